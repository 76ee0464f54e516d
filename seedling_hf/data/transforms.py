"""How an image is prepared for the model: augmentation in training, the image processor in evaluation."""

import math
import random
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from transformers import BaseImageProcessor

from seedling_hf.data.images import to_rgb
from seedling_hf.data.seeds import mix
from seedling_hf.train_arguments import AugmentationArguments

Transform = Callable[[Image.Image | Tensor], Tensor]  # of an image in RGB, or its (3, H, W) bytes


class RandomQuarterTurn(nn.Module):
    """With this probability rotates a square image by 0, 90, 180 or 270 degrees, without interpolation."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, image: Tensor) -> Tensor:
        """Rotates an `image` (C, size, size)."""
        if torch.rand(()) >= self.probability:
            return image
        return torch.rot90(image, int(torch.randint(4, ())), (-2, -1))


class RandomRotation(nn.Module):
    """Rotates a square image about its centre with bicubic interpolation, faster than torchvision's `RandomRotation`.

    One grid is kept and rotated, by up to `degrees` in either direction. Pixels outside count as `fill`, one value per
    channel, in the interpolation at the edge too, where torchvision leaves a dark seam.
    """

    def __init__(self, degrees: float, size: int, fill: tuple[float, ...]) -> None:
        super().__init__()
        self.degrees = degrees
        self.fill = torch.tensor(fill)[:, None, None]
        # (1, size, size, 2): x and y of each pixel from -1 to 1, and the same rotated by a quarter turn.
        self.grid = F.affine_grid(torch.eye(2, 3)[None], [1, 1, size, size], align_corners=False)
        self.quarter = torch.stack((-self.grid[..., 1], self.grid[..., 0]), dim=-1)

    def forward(self, image: Tensor) -> Tensor:
        """Rotates a float `image` (C, size, size) of values from 0 to 1."""
        angle = math.radians(torch.empty(1).uniform_(-self.degrees, self.degrees).item())
        grid = torch.add(self.grid * math.cos(angle), self.quarter, alpha=math.sin(angle))
        # Outside the image, grid_sample takes zeros.
        turned = F.grid_sample((image - self.fill)[None], grid, mode="bicubic", align_corners=False)[0] + self.fill
        return turned.clamp_(0, 1)  # bicubic interpolation overshoots


class RandomJPEG(nn.Module):
    """Compresses an image as JPEG with Pillow's encoder, at a random quality of 50 to 100.

    torchvision's `v2.JPEG` gives the same bytes, but its encoder is deprecated since torchvision 0.29.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Compresses the bytes of an `image` (3, H, W)."""
        quality, file = int(torch.randint(50, 101, ())), BytesIO()
        v2.functional.to_pil_image(image).save(file, "JPEG", quality=quality)
        return v2.functional.pil_to_tensor(Image.open(file, formats=["JPEG"]))


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
    augmentation: AugmentationArguments, image_processor: BaseImageProcessor, image_size: int | None = None
) -> Transform:
    """The augmentation of one image: PIL image or its bytes in, normalised (3, image_size, image_size) float32 out.

    Training must resize as evaluation does, with the interpolation of `image_processor`: a network trained on softer
    images than it is evaluated on takes sharpness for a property of a class. `image_size` defaults to the side of the
    image processor, which `cutout_size` is relative to.
    """
    final_size = image_processor.crop_size["height"]
    size, mean = image_size or final_size, image_processor.image_mean
    # Tensors cannot be resized by Lanczos and the other filters of PIL.
    resample = {Image.Resampling.NEAREST: "nearest", Image.Resampling.BILINEAR: "bilinear"}
    how = {"interpolation": InterpolationMode(resample.get(image_processor.resample, "bicubic")), "antialias": True}
    steps: list[nn.Module] = [v2.PILToTensor()]
    if augmentation.jpeg_prob:
        steps.append(v2.RandomApply([RandomJPEG()], augmentation.jpeg_prob))  # first, as in a camera
    if augmentation.min_crop_scale < 1:
        steps.append(v2.RandomResizedCrop(size, scale=(augmentation.min_crop_scale, 1.0), **how))
    else:
        steps.append(v2.Resize((size, size), **how))
    if augmentation.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(augmentation.horizontal_flip))
    if augmentation.vertical_flip:
        steps.append(v2.RandomVerticalFlip(augmentation.vertical_flip))
    if augmentation.quarter_turns:
        steps.append(RandomQuarterTurn(augmentation.quarter_turns))
    # From here on in float, in which colour jitter is faster.
    steps.append(v2.ToDtype(torch.float32, scale=True))
    if augmentation.rotation_degrees:
        steps.append(RandomRotation(augmentation.rotation_degrees, size, mean))
    if augmentation.color_jitter:
        steps.append(v2.ColorJitter(*3 * [augmentation.color_jitter]))
    if augmentation.randaugment_num_ops:
        operations, magnitude = augmentation.randaugment_num_ops, augmentation.randaugment_magnitude
        steps.append(v2.ToDtype(torch.uint8, scale=True))
        steps.append(v2.RandAugment(operations, magnitude, fill=[round(255 * value) for value in mean]))
        steps.append(v2.ToDtype(torch.float32, scale=True))
    steps.append(v2.Normalize(mean, image_processor.image_std))
    if augmentation.random_erasing:
        steps.append(v2.RandomErasing(augmentation.random_erasing))
    if cutout := augmentation.cutout_size * size // final_size:
        steps.append(Cutout(cutout))
    return v2.Compose(steps)


class EvalTransform:
    """One image as `image_processor` prepares it, so that evaluation sees what the model's users will see."""

    def __init__(self, image_processor: BaseImageProcessor) -> None:
        self.image_processor = image_processor

    def __call__(self, image: Image.Image) -> Tensor:
        return self.image_processor(image, return_tensors="pt")["pixel_values"][0]


class ExampleTransform:
    """Makes examples of the rows of a dataset, for `Dataset.with_transform`.

    The randomness of an image depends only on (seed, epoch, index): it does not change with the number of workers or
    processes, and their states need not be saved.
    """

    def __init__(self, transform: Transform, seed: int = 0) -> None:
        self.transform, self.seed, self.epoch = transform, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Call it before the loader starts its workers, which get a copy."""
        self.epoch = epoch

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            pixel_values = [self._make(image, index) for image, index in zip(rows["image"], rows["index"], strict=True)]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
        return {"pixel_values": pixel_values, "labels": rows["label"], "index": rows["index"]}

    def _make(self, image: Image.Image | Tensor, index: int) -> Tensor:
        seed = int(mix(self.seed, self.epoch, index)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        return self.transform(image if isinstance(image, Tensor) else to_rgb(image))
