"""The augmentation is torchvision's in all but speed."""

from io import BytesIO

import pytest
import torch
from augmented import roughness, same_random_numbers
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from seedling_hf.data.geometry import RandomRotation
from seedling_hf.data.transforms import build_train_transform, to_rgb
from seedling_hf.replknet import RepLKNetImageProcessor
from seedling_hf.train_arguments import AugmentationArguments

SIZE, MEAN, STD = 96, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

FOR_THE_FIELD = (
    "zoom_in_prob", "zoom_out_prob", "background_prob", "shadow_prob", "white_balance", "gamma", "levels_prob",
    "blur_prob", "noise_prob",
)  # fmt: skip
NOTHING = {"min_crop_scale": 1, "horizontal_flip": 0, "vertical_flip": 0, "rotation_degrees": 0, "color_jitter": 0}


def train_transform(resample: int = Image.Resampling.BICUBIC, **flags):
    """The training transform of `SIZE` with these flags."""
    processor = RepLKNetImageProcessor(crop_size=SIZE, resample=resample)
    return build_train_transform(AugmentationArguments(**flags), processor)


@pytest.fixture
def images(sample_dir) -> list[Image.Image]:
    return [to_rgb(Image.open(sorted(folder.iterdir())[0])) for folder in sorted(sample_dir.iterdir())]


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_without_random_steps_an_image_is_what_the_processor_makes_of_it(images, resample):
    """Softer images in training than in evaluation cost nano one point in a hundred."""
    processor = RepLKNetImageProcessor(size={"shortest_edge": SIZE}, crop_size=SIZE, resample=resample)
    ours = build_train_transform(AugmentationArguments(**NOTHING), processor)
    for image in images:
        expected = processor(image, return_tensors="pt")["pixel_values"][0]
        assert image.width == image.height  # so that the processor crops nothing away
        torch.testing.assert_close(ours(image), expected, rtol=0, atol=1.01 / 255 / min(STD))


def test_an_image_is_compressed_as_pillow_does_and_as_often_as_requested(images):
    """Nano, trained without JPEGs, classifies 552 of 564 images correctly as PNGs, and 542 as JPEGs."""
    processor = RepLKNetImageProcessor(size={"shortest_edge": SIZE}, crop_size=SIZE)
    for seed, image in enumerate(images):
        found = same_random_numbers(seed, train_transform(jpeg_prob=1.0, **NOTHING), image)
        torch.manual_seed(seed)
        torch.rand(())  # whether
        file = BytesIO()
        image.save(file, "JPEG", quality=int(torch.randint(50, 101, ())))
        expected = processor(Image.open(file), return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1.01 / 255 / min(STD))
    whole = train_transform(jpeg_prob=0.0, **NOTHING)(images[0])
    sometimes = train_transform(jpeg_prob=0.25, **NOTHING)
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


def test_augmentation_that_is_off_leaves_every_bit_and_every_random_number(images):
    ours = train_transform(rotation_fill="mean", **dict.fromkeys(FOR_THE_FIELD, 0.0))
    crop = v2.RandomResizedCrop(SIZE, scale=(0.6, 1.0), interpolation=InterpolationMode.BICUBIC)
    by_hand = v2.Compose(
        [
            v2.PILToTensor(), crop, v2.RandomHorizontalFlip(0.5), v2.RandomVerticalFlip(0.5),
            v2.ToDtype(torch.float32, scale=True), RandomRotation(180, SIZE, MEAN), v2.ColorJitter(0.2, 0.2, 0.2),
            v2.Normalize(MEAN, STD),
        ]
    )  # fmt: skip
    for seed, image in enumerate(images):
        assert torch.equal(same_random_numbers(seed, ours, image), same_random_numbers(seed, by_hand, image))
        found = torch.rand(())
        same_random_numbers(seed, by_hand, image)
        assert torch.equal(found, torch.rand(()))


@pytest.mark.parametrize("flag", FOR_THE_FIELD)
def test_each_step_keeps_shape_and_range_and_depends_on_the_random_numbers_only(images, flag):
    transform = train_transform(**NOTHING, **{flag: 1.0})
    whole = train_transform(**NOTHING)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    changed = altered = 0
    for seed, image in enumerate(images):
        found = same_random_numbers(seed, transform, image)
        assert (found.shape, found.dtype) == ((3, SIZE, SIZE), torch.float32)
        values = found * std + mean
        assert values.min() > -1e-6 and values.max() < 1 + 1e-6  # rounding of the normalisation
        assert torch.equal(found, same_random_numbers(seed, transform, image))
        changed += not torch.equal(found, same_random_numbers(seed + 1, transform, image))
        altered += not torch.equal(found, whole(image))
    # The levels of half are 0 and 1, as those of copies are already; an image of ground only has no plant to keep.
    least = 0.25 if flag == "levels_prob" else 0.8
    assert changed > least * len(images) and altered > least * len(images)


@pytest.mark.parametrize("flag", [name for name in FOR_THE_FIELD if name.endswith("_prob")])
def test_a_step_is_taken_as_often_as_requested(images, flag):
    sometimes, whole = train_transform(**NOTHING, **{flag: 0.25}), train_transform(**NOTHING)(images[1])
    altered = [not torch.equal(same_random_numbers(n, sometimes, images[1]), whole) for n in range(100)]
    assert 14 < sum(altered) < 36


def test_all_steps_together_work_with_images_of_any_side(images):
    flags = dict.fromkeys(FOR_THE_FIELD, 0.5)
    for size in (32, 96, 161):
        processor = RepLKNetImageProcessor(crop_size=size)
        transform = build_train_transform(AugmentationArguments(rotation_fill="mirror", **flags), processor)
        for seed, side in enumerate((20, 33, 150)):
            found = same_random_numbers(seed, transform, images[seed].resize((side, side + 7)))
            assert found.shape == (3, size, size) and found.isfinite().all()


@pytest.mark.parametrize("flag", FOR_THE_FIELD)
def test_a_step_gives_the_same_bits_whatever_the_number_of_threads(images, flag):
    """Large enough for PyTorch to divide the work; workers have one thread, a process without workers all."""
    augmentation = AugmentationArguments(**NOTHING, **{flag: 1.0})
    transform = build_train_transform(augmentation, RepLKNetImageProcessor(crop_size=224))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append([same_random_numbers(seed, transform, image) for seed, image in enumerate(images)])
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *found))
