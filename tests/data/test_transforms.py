"""The augmentation is torchvision's in all but speed."""

from io import BytesIO

import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from seedling_hf.data.geometry import RandomQuarterTurn, RandomRotation
from seedling_hf.data.transforms import build_train_transform, to_rgb
from seedling_hf.replknet import RepLKNetImageProcessor
from seedling_hf.train_arguments import AugmentationArguments

SIZE, MEAN, STD = 96, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def train_transform(resample: int = Image.Resampling.BICUBIC, **flags):
    """The training transform of `SIZE` with these flags."""
    processor = RepLKNetImageProcessor(crop_size=SIZE, resample=resample)
    return build_train_transform(AugmentationArguments(**flags), processor)


@pytest.fixture
def images(sample_dir) -> list[Image.Image]:
    return [to_rgb(Image.open(sorted(folder.iterdir())[0])) for folder in sorted(sample_dir.iterdir())]


def same_random_numbers(seed: int, transform, image) -> torch.Tensor:
    torch.manual_seed(seed)
    return transform(image)


def test_an_image_is_turned_as_torchvision_turns_it_but_less_softly(images):
    ours = RandomRotation(180, SIZE, MEAN)
    theirs = v2.RandomRotation(180, interpolation=InterpolationMode.BILINEAR, fill=list(MEAN))
    prepare = v2.Compose([v2.PILToTensor(), v2.Resize((SIZE, SIZE)), v2.ToDtype(torch.float32, scale=True)])
    soften = v2.GaussianBlur(15, 3.0)  # then bilinear and bicubic are nearly the same
    gains = []
    for seed, original in enumerate(images):
        image = soften(prepare(original))
        found, expected = (same_random_numbers(seed, transform, image) for transform in (ours, theirs))
        # All but torchvision's seam, of two pixels along four edges.
        equal = (found - expected).abs().amax(0) < 0.01
        assert equal.float().mean() > 1 - 4 * 3 * SIZE / SIZE**2
        found, expected = (same_random_numbers(seed, transform, prepare(original)) for transform in (ours, theirs))
        middle = slice(SIZE // 3, -SIZE // 3)
        gains.append(roughness(found[:, middle, middle]) / roughness(expected[:, middle, middle]))
    assert min(gains) > 1.02 and sum(gains) / len(gains) > 1.04


def roughness(image: torch.Tensor) -> torch.Tensor:
    return image.diff(dim=-1).abs().mean() + image.diff(dim=-2).abs().mean()


def test_a_quarter_turn_moves_pixels_and_mixes_none(images):
    image = v2.functional.pil_to_tensor(images[0].resize((SIZE, SIZE)))
    torch.manual_seed(0)
    seen = [RandomQuarterTurn(1.0)(image) for _ in range(40)]
    turns = [torch.rot90(image, k, (1, 2)) for k in range(4)]
    counts = [sum(torch.equal(each, turn) for each in seen) for turn in turns]
    assert sum(counts) == 40 and min(counts) > 3
    assert all(torch.equal(RandomQuarterTurn(0.0)(image), image) for _ in range(9))


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_without_random_steps_an_image_is_what_the_processor_makes_of_it(images, resample):
    """Softer images in training than in evaluation cost nano one point in a hundred."""
    processor = RepLKNetImageProcessor(size={"shortest_edge": SIZE}, crop_size=SIZE, resample=resample)
    nothing_random = AugmentationArguments(
        min_crop_scale=1, horizontal_flip=0, vertical_flip=0, quarter_turns=0, rotation_degrees=0, color_jitter=0
    )
    ours = build_train_transform(nothing_random, processor)
    for image in images:
        expected = processor(image, return_tensors="pt")["pixel_values"][0]
        assert image.width == image.height  # so that the processor crops nothing away
        torch.testing.assert_close(ours(image), expected, rtol=0, atol=1.01 / 255 / min(STD))


def test_an_image_is_compressed_as_pillow_does_and_as_often_as_requested(images):
    """Nano, trained without JPEGs, classifies 552 of 564 images correctly as PNGs, and 542 as JPEGs."""
    processor = RepLKNetImageProcessor(size={"shortest_edge": SIZE}, crop_size=SIZE)
    nothing = {"min_crop_scale": 1, "horizontal_flip": 0, "vertical_flip": 0, "rotation_degrees": 0, "color_jitter": 0}

    for seed, image in enumerate(images):
        found = same_random_numbers(seed, train_transform(jpeg_prob=1.0, **nothing), image)
        torch.manual_seed(seed)
        torch.rand(())  # whether
        file = BytesIO()
        image.save(file, "JPEG", quality=int(torch.randint(50, 101, ())))
        expected = processor(Image.open(file), return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1.01 / 255 / min(STD))
    whole = train_transform(jpeg_prob=0.0, **nothing)(images[0])
    sometimes = train_transform(jpeg_prob=0.25, **nothing)
    altered = [not torch.equal(same_random_numbers(n, sometimes, images[0]), whole) for n in range(100)]
    assert 15 < sum(altered) < 35


def test_a_crop_is_as_sharp_as_evaluation(images):
    soft, sharp = (
        train_transform(resample, rotation_degrees=0)
        for resample in (Image.Resampling.BILINEAR, Image.Resampling.LANCZOS)  # Lanczos becomes bicubic
    )
    for seed, image in enumerate(images):
        found, expected = (same_random_numbers(seed, transform, image) for transform in (sharp, soft))
        assert roughness(found) > 1.02 * roughness(expected)


def test_the_corners_have_the_mean_colour_and_the_edge_no_seam():
    white = torch.ones(3, SIZE, SIZE)
    torch.manual_seed(1)
    turned = RandomRotation(45, SIZE, MEAN)(white)
    for channel, mean in zip(turned, MEAN, strict=True):
        assert mean - 0.07 < channel.min() < mean  # cubics undershoot beside an edge; a seam would be far darker
        assert channel[0, 0] == pytest.approx(mean)
        assert channel.max() == pytest.approx(1)


def test_the_augmentation_is_torchvisions_chain_on_bytes_but_for_rounding(images):
    ours = train_transform(rotation_degrees=0)
    theirs = v2.Compose(
        [
            v2.PILToTensor(), v2.RandomResizedCrop(SIZE, scale=(0.6, 1.0), interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(0.5), v2.RandomVerticalFlip(0.5),
            v2.ColorJitter(0.2, 0.2, 0.2), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
        ]
    )  # fmt: skip
    for seed, image in enumerate(images):
        found, expected = (same_random_numbers(seed, transform, image) for transform in (ours, theirs))
        assert (found.shape, found.dtype) == ((3, SIZE, SIZE), torch.float32)
        # In steps of a byte: three roundings downwards of theirs, of which jitter makes a little more.
        difference = (found - expected) * torch.tensor(STD)[:, None, None] * 255
        assert difference.abs().median() < 2
        assert difference.abs().mean() < 2


def test_randaugment_works_on_bytes(images):
    transform = train_transform(randaugment_num_ops=2)
    dtypes = []
    (step,) = [step for step in transform.transforms if isinstance(step, v2.RandAugment)]
    step.register_forward_pre_hook(lambda module, inputs: dtypes.append(inputs[0].dtype))
    assert transform(images[0]).dtype == torch.float32
    assert dtypes == [torch.uint8]
