"""How an image is prepared for the model: augmentation in training, the image processor in evaluation."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from transformers import BaseImageProcessor

from seedling_hf.data.backgrounds import Backgrounds, RandomBackground
from seedling_hf.data.camera import RandomBlur, RandomJPEG, RandomNoise
from seedling_hf.data.geometry import RandomQuarterTurn, RandomRotation, RandomZoom
from seedling_hf.data.images import to_rgb
from seedling_hf.data.light import RandomGamma, RandomLevels, RandomShadow, RandomWhiteBalance
from seedling_hf.data.seeds import mix
from seedling_hf.train_arguments import AugmentationArguments

Transform = Callable[[Image.Image | Tensor], Tensor]  # of an image in RGB, or its (3, H, W) bytes


class Cutout(nn.Module):
    """Greys a square of `size` pixels at a random place, also over the edge (arXiv 1708.04552, section 3.2)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: Tensor) -> Tensor:
        """Sets a square of a normalised `image` (C, H, W) to 0, the mean colour."""
        height, width = image.shape[-2:]
        y, x = (int(torch.randint(side, ())) - self.size // 2 for side in (height, width))
        image = image.clone()
        image[..., max(0, y) : max(0, y + self.size), max(0, x) : max(0, x + self.size)] = 0
        return image


def build_train_transform(
    augmentation: AugmentationArguments,
    image_processor: BaseImageProcessor,
    image_size: int | None = None,
    backgrounds: Backgrounds | None = None,
) -> Transform:
    """The augmentation of one image: PIL image or its bytes in, normalised (3, image_size, image_size) float32 out.

    Training must resize as evaluation does, with the interpolation of `image_processor`: a network trained on softer
    images than it is evaluated on takes sharpness for a property of a class. `image_size` defaults to the side of the
    image processor, which `cutout_size` is relative to; `backgrounds` to drawn ones only.
    """
    final_size = image_processor.crop_size["height"]
    size, mean = image_size or final_size, image_processor.image_mean
    if backgrounds is None and uses_backgrounds(augmentation):
        backgrounds = Backgrounds()
    steps: list[nn.Module] = [v2.PILToTensor()]
    steps += _steps_on_bytes(augmentation, image_processor, size, backgrounds)
    # From here on in float, in which colour jitter is faster.
    steps.append(v2.ToDtype(torch.float32, scale=True))
    if augmentation.rotation_degrees:
        fill = mean if augmentation.rotation_fill == "mean" else None
        steps.append(RandomRotation(augmentation.rotation_degrees, size, fill))
    steps += _steps_on_light(augmentation, mean, backgrounds)
    steps.append(v2.Normalize(mean, image_processor.image_std))
    if augmentation.random_erasing:
        steps.append(v2.RandomErasing(augmentation.random_erasing))
    if cutout := augmentation.cutout_size * size // final_size:
        steps.append(Cutout(cutout))
    return v2.Compose(steps)


def uses_backgrounds(augmentation: AugmentationArguments) -> bool:
    """Whether `build_train_transform` takes backgrounds."""
    return augmentation.background_prob > 0 or augmentation.zoom_out_prob > 0


def _steps_on_bytes(
    augmentation: AugmentationArguments, image_processor: BaseImageProcessor, size: int,
    backgrounds: Backgrounds | None,
) -> list[nn.Module]:  # fmt: skip
    # Tensors cannot be resized by Lanczos and the other filters of PIL.
    resample = {Image.Resampling.NEAREST: "nearest", Image.Resampling.BILINEAR: "bilinear"}
    how = {"interpolation": InterpolationMode(resample.get(image_processor.resample, "bicubic")), "antialias": True}
    steps: list[nn.Module] = []
    if augmentation.jpeg_prob:
        steps.append(v2.RandomApply([RandomJPEG()], augmentation.jpeg_prob))  # first, as in a camera
    if augmentation.min_crop_scale < 1:
        crop = v2.RandomResizedCrop(size, scale=(augmentation.min_crop_scale, 1.0), **how)
    else:
        crop = v2.Resize((size, size), **how)
    if augmentation.zoom_in_prob or augmentation.zoom_out_prob:
        crop = RandomZoom(augmentation.zoom_in_prob, augmentation.zoom_out_prob, size, crop, backgrounds, **how)
    steps.append(crop)
    if augmentation.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(augmentation.horizontal_flip))
    if augmentation.vertical_flip:
        steps.append(v2.RandomVerticalFlip(augmentation.vertical_flip))
    if augmentation.quarter_turns:
        steps.append(RandomQuarterTurn(augmentation.quarter_turns))
    return steps


def _steps_on_light(
    augmentation: AugmentationArguments, mean: list[float], backgrounds: Backgrounds | None
) -> list[nn.Module]:
    """From the plant through the air to the sensor; each flag that is 0 has no step and draws no random numbers."""
    operations, magnitude = augmentation.randaugment_num_ops, augmentation.randaugment_magnitude
    steps: list[nn.Module] = []
    if augmentation.background_prob:
        steps.append(RandomBackground(augmentation.background_prob, backgrounds))
    if augmentation.shadow_prob:
        steps.append(RandomShadow(augmentation.shadow_prob))
    if augmentation.white_balance:
        steps.append(RandomWhiteBalance(augmentation.white_balance))
    if augmentation.gamma:
        steps.append(RandomGamma(augmentation.gamma))
    if augmentation.blur_prob:
        steps.append(RandomBlur(augmentation.blur_prob))
    if augmentation.noise_prob:
        steps.append(RandomNoise(augmentation.noise_prob))
    if augmentation.color_jitter:
        steps.append(v2.ColorJitter(*3 * [augmentation.color_jitter]))
    if augmentation.levels_prob:
        steps.append(RandomLevels(augmentation.levels_prob))  # last, as copies are stretched
    if operations:
        steps.append(v2.ToDtype(torch.uint8, scale=True))
        steps.append(v2.RandAugment(operations, magnitude, fill=[round(255 * value) for value in mean]))
        steps.append(v2.ToDtype(torch.float32, scale=True))
    return steps


class EvalTransform:
    """One image as `image_processor` prepares it, so that evaluation sees what the model's users will see."""

    def __init__(self, image_processor: BaseImageProcessor) -> None:
        self.image_processor = image_processor

    def __call__(self, image: Image.Image) -> Tensor:
        return self.image_processor(image, return_tensors="pt")["pixel_values"][0]


class ExampleTransform:
    """Makes examples of the rows of a dataset, for `Dataset.with_transform`.

    The randomness of an image depends only on (seed, epoch, index), and on its place in the order of the epoch where it
    may come again: it does not change with the number of workers or processes, and their states need not be saved.
    """

    def __init__(self, transform: Transform, seed: int = 0) -> None:
        self.transform, self.seed, self.epoch = transform, seed, 0
        self.start: int | None = None

    def set_epoch(self, epoch: int, start: int | None = None) -> None:
        """Call it before the loader starts its workers, which get a copy.

        Args:
            start: The place of the next row in the order of the epoch; None where each image comes once.
        """
        self.epoch, self.start = epoch, start

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            pixel_values = [
                self._make(image, index, *([] if self.start is None else [self.start + i]))
                for i, (image, index) in enumerate(zip(rows["image"], rows["index"], strict=True))
            ]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
        return {"pixel_values": pixel_values, "labels": rows["label"], "index": rows["index"]}

    def _make(self, image: Image.Image | Tensor, *draw: int) -> Tensor:
        seed = int(mix(self.seed, self.epoch, *draw)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        return self.transform(image if isinstance(image, Tensor) else to_rgb(image))
