"""How long images take to become batches, compared with torchvision and timm with the same augmentation."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2
from transformers import BaseImageProcessor

from seedling_hf.data.collator import Collator
from seedling_hf.data.dataset import load_folder
from seedling_hf.data.image_cache import FromCache, cache_training_images
from seedling_hf.data.images import choose_evenly
from seedling_hf.data.transforms import ExampleTransform, build_train_transform
from seedling_hf.errors import InputError
from seedling_hf.replknet import RepLKNetImageProcessor
from seedling_hf.speed.forms import OURS, Setting
from seedling_hf.speed.results import row
from seedling_hf.train_arguments import AugmentationArguments

OURS_CACHED, TORCHVISION, TIMM = "ours, cached", "torchvision", "timm"
MOST_IMAGES = 512
DEFAULTS = AugmentationArguments()
CROP_SCALE = (DEFAULTS.min_crop_scale, 1.0)


def loading_row(setting: Setting, folder: str, cached_side: int) -> dict[str, Any]:
    """One epoch in one process without workers: read, augment, normalize, stack.

    Each loader crops, flips, rotates and jitters colors as `train` does by default, without MixUp. timm has no rotation
    of its own, so torchvision's is added to its transforms. At most `MOST_IMAGES` of the images in the class folders
    of `folder` are used, evenly; `cached_side` is the value of `--cache_images`.

    Raises:
        InputError: for a folder without class folders of images, or with too few for a batch.
    """
    image_size, batch_size = setting.image_size, setting.batch_size
    processor = RepLKNetImageProcessor(crop_size={"height": image_size, "width": image_size})
    images = load_folder(folder)
    count = min(MOST_IMAGES, len(images)) // batch_size * batch_size  # timm drops what does not fill a batch
    if count == 0:
        raise InputError(f"expected at least {batch_size} images in {folder} for a batch, found {len(images)}")
    images = images.select(choose_evenly(range(len(images)), count))
    transform = ExampleTransform(build_train_transform(DEFAULTS, processor), seed=setting.seed)
    cached = cache_training_images(images, cached_side, processor)
    collator = Collator(images.features["label"].num_classes)
    loader = {"batch_size": batch_size, "collate_fn": collator}
    with tempfile.TemporaryDirectory() as links:
        for file in images["file"]:
            link = Path(links, file)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(Path(folder, file).absolute())
        loaders = {
            OURS: DataLoader(images.with_transform(transform), **loader),
            OURS_CACHED: DataLoader(cached.with_transform(FromCache(transform)), **loader),
            TORCHVISION: DataLoader(ImageFolder(links, _torchvision_transform(processor)), batch_size),
            TIMM: _timm_loader(links, batch_size, processor),
        }
        torch.manual_seed(setting.seed)
        runs = {name: _one_epoch(loader, len(images), image_size) for name, loader in loaders.items()}
        seconds = replace(setting, device="cpu").time(runs)
    what = f"loading {len(images)} images, {image_size} px, cached at {cached_side} px"
    return row(what, seconds, len(images))


def _one_epoch(loader: Iterable[Any], count: int, image_size: int) -> Callable[[], None]:
    def run() -> None:
        left = count
        for batch in loader:
            images = batch["pixel_values"] if isinstance(batch, dict) else batch[0]
            left -= len(images)
            if images.shape[1:] != (3, image_size, image_size) or images.dtype != torch.float32:
                raise RuntimeError(f"expected normalized images of {image_size} px, found {images.shape}")
        if left:
            raise RuntimeError(f"expected {count} images in an epoch, found {count - left}")

    return run


def _rotation(processor: BaseImageProcessor) -> v2.RandomRotation:
    fill = [round(255 * value) for value in processor.image_mean]
    return v2.RandomRotation(DEFAULTS.rotation_degrees, interpolation=InterpolationMode.BICUBIC, fill=fill)


def _torchvision_transform(processor: BaseImageProcessor) -> v2.Transform:
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                processor.crop_size["height"], scale=CROP_SCALE, interpolation=InterpolationMode.BICUBIC
            ),
            v2.RandomHorizontalFlip(DEFAULTS.horizontal_flip),
            v2.RandomVerticalFlip(DEFAULTS.vertical_flip),
            _rotation(processor),
            v2.ColorJitter(*3 * [DEFAULTS.color_jitter]),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(processor.image_mean, processor.image_std),
        ]
    )


def _timm_loader(folder: str, batch_size: int, processor: BaseImageProcessor) -> Iterable[Any]:
    from timm.data import create_dataset, create_loader

    size = processor.crop_size["height"]
    loader = create_loader(
        create_dataset("", folder, is_training=True), (3, size, size), batch_size, is_training=True, scale=CROP_SCALE,
        hflip=DEFAULTS.horizontal_flip, vflip=DEFAULTS.vertical_flip, color_jitter=DEFAULTS.color_jitter,
        interpolation="bicubic", mean=processor.image_mean, std=processor.image_std, num_workers=0,
        persistent_workers=False, device=torch.device("cpu"), collate_fn=None,
    )  # fmt: skip
    loader.dataset.transform.transforms.insert(3, _rotation(processor))  # after crop and flips
    return loader
