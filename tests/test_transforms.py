"""The augmentation is torchvision's in all but speed."""

import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from seedling_hf.transforms import RandomRotation, build_train_transform, to_rgb

SIZE, MEAN, STD = 96, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def images(sample_dir) -> list[Image.Image]:
    return [to_rgb(Image.open(sorted(folder.iterdir())[0])) for folder in sorted(sample_dir.iterdir())]


def same_random_numbers(seed: int, transform, image) -> torch.Tensor:
    torch.manual_seed(seed)
    return transform(image)


def test_a_picture_is_turned_as_torchvision_turns_it(images):
    ours = RandomRotation(180, SIZE, MEAN)
    theirs = v2.RandomRotation(180, interpolation=InterpolationMode.BILINEAR, fill=list(MEAN))
    prepare = v2.Compose([v2.PILToTensor(), v2.Resize((SIZE, SIZE)), v2.ToDtype(torch.float32, scale=True)])
    for seed, image in enumerate(images):
        picture = prepare(image)
        found, expected = (same_random_numbers(seed, transform, picture) for transform in (ours, theirs))
        # All but torchvision's seam, of two pixels along four edges: its sums are ours in another order.
        equal = (found - expected).abs().amax(0) < 1e-3
        assert equal.float().mean() > 1 - 4 * 2 * SIZE / SIZE**2


def test_the_corners_have_the_mean_colour_and_the_edge_no_seam():
    white = torch.ones(3, SIZE, SIZE)
    torch.manual_seed(1)
    turned = RandomRotation(45, SIZE, MEAN)(white)
    for channel, mean in zip(turned, MEAN, strict=True):
        assert channel.min() == pytest.approx(mean)  # a seam would be darker
        assert channel.max() == pytest.approx(1)


def test_the_default_augmentation_is_torchvisions_chain_on_bytes_but_for_rounding(images):
    ours = build_train_transform(image_size=SIZE, mean=MEAN, std=STD)
    theirs = v2.Compose(
        [
            v2.PILToTensor(), v2.RandomResizedCrop(SIZE, scale=(0.6, 1.0)), v2.RandomHorizontalFlip(0.5),
            v2.RandomVerticalFlip(0.5),
            v2.RandomRotation(180, interpolation=InterpolationMode.BILINEAR, fill=[round(255 * m) for m in MEAN]),
            v2.ColorJitter(0.2, 0.2, 0.2), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
        ]
    )  # fmt: skip
    for seed, image in enumerate(images):
        found, expected = (same_random_numbers(seed, transform, image) for transform in (ours, theirs))
        assert (found.shape, found.dtype) == ((3, SIZE, SIZE), torch.float32)
        # In steps of a byte: three roundings downwards of theirs, of which jitter makes a little more.
        difference = (found - expected) * torch.tensor(STD)[:, None, None] * 255
        assert difference.abs().median() < 2
        assert difference.abs().mean() < 3  # the seam among them


def test_randaugment_works_on_bytes(images):
    transform = build_train_transform(image_size=SIZE, mean=MEAN, std=STD, randaugment_num_ops=2)
    dtypes = []
    (step,) = [step for step in transform.transforms if isinstance(step, v2.RandAugment)]
    step.register_forward_pre_hook(lambda module, inputs: dtypes.append(inputs[0].dtype))
    assert transform(images[0]).dtype == torch.float32
    assert dtypes == [torch.uint8]
