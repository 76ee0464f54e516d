"""Images decoded once and kept on the disk, so that an epoch reads pixels instead of decoding files.

A cache is an Arrow file of `datasets`, memory-mapped and shared by all runs and processes that need the same images.
Its key depends on the images (path, size and modification time, or the bytes if a dataset holds them) and on how they
were prepared. `Dataset.from_generator` writes it under a lock into a temporary folder, which is renamed when it is
complete: the first process writes, the others wait, and what a killed process has written is never read.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetGenerationError
from PIL import Image as PILImage
from torch import Tensor
from transformers import BaseImageProcessor

from seedling_hf.data.images import map_in_threads, read_image, to_rgb
from seedling_hf.data.pool import image_sources
from seedling_hf.data.transforms import EvalTransform
from seedling_hf.errors import InputError

FORMAT_VERSION = 2
# 64-bit offsets, because large images soon exceed 2 GB.
FEATURES = Features({"data": Value("large_binary"), "shape": List(Value("int32"))})
ROWS_IN_MEMORY = 32

logger = logging.getLogger(__name__)


def cache_training_images(split: Dataset, side: int, image_processor: BaseImageProcessor) -> Dataset:
    """Caches the images of a split in RGB, resized once, for `FromCache`.

    The shorter side of larger images becomes `side` pixels (bicubic, antialiased). The result has columns `data`
    (H × W × 3 bytes), `shape`, `label` and `index`, memory-mapped.

    Raises:
        InputError: if the cache cannot be written, or `side` is smaller than the training images.
    """
    least = image_processor.crop_size["height"]
    if side < least:
        raise InputError(
            f"expected --cache_images of at least {least}, the side of the training images, found {side}; raise it"
        )
    what = f"training images, shorter side at most {side} pixels"
    return _cache(split, partial(_shrink, side=side), ["shrunk", side], what, "train")


def cache_validation_images(split: Dataset, image_processor: BaseImageProcessor) -> Dataset:
    """Caches the images of a split as `image_processor` prepares them, exactly, for `prepared_examples`.

    The result has columns `data` (3 × H × W float32), `shape`, `label` and `index`, memory-mapped.

    Raises:
        InputError: if the cache cannot be written.
    """
    prepare = EvalTransform(image_processor)
    settings = ["prepared", json.loads(image_processor.to_json_string())]
    what = "validation images as the model sees them"
    return _cache(split, lambda image: prepare(image).numpy(), settings, what, "validation")


class FromCache:
    """Applies a transform such as `ExampleTransform` to rows of `cache_training_images`, as (3, H, W) bytes."""

    def __init__(self, transform: Callable[[dict[str, list[Any]]], dict[str, list[Any]]]) -> None:
        self.transform = transform

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        images = [image.permute(2, 0, 1) for image in _tensors(rows, torch.uint8)]
        return self.transform({"image": images, "label": rows["label"], "index": rows["index"]})


def prepared_examples(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Makes examples of rows of `cache_validation_images`."""
    return {"pixel_values": _tensors(rows, torch.float32), "labels": rows["label"], "index": rows["index"]}


def _tensors(rows: dict[str, list[Any]], dtype: torch.dtype) -> list[Tensor]:
    # A bytearray, because tensors are writable and bytes are not.
    arrays = zip(rows["data"], rows["shape"], strict=True)
    return [torch.frombuffer(bytearray(data), dtype=dtype).view(shape) for data, shape in arrays]


def _shrink(image: PILImage.Image, side: int) -> np.ndarray:
    shorter = min(image.size)
    if shorter > side:
        width, height = (round(length * side / shorter) for length in image.size)
        image = image.resize((width, height), PILImage.Resampling.BICUBIC)
    return np.asarray(image)


def _cache(
    split: Dataset, make: Callable[[PILImage.Image], np.ndarray], settings: list[Any], what: str, name: str
) -> Dataset:
    folder = Path(datasets.config.HF_DATASETS_CACHE, "seedling_hf")
    started, written = time.perf_counter(), []

    def generate() -> Iterator[dict[str, Any]]:
        written.append(True)
        sources = image_sources(split)
        for array in map_in_threads(lambda s: make(to_rgb(read_image(s))), sources, chunk_size=ROWS_IN_MEMORY):
            yield {"data": array.tobytes(), "shape": list(array.shape)}

    try:
        cached = Dataset.from_generator(
            generate, features=FEATURES, cache_dir=str(folder), fingerprint=_key(split, settings),
            writer_batch_size=ROWS_IN_MEMORY, split=name,
        )  # fmt: skip
    except (DatasetGenerationError, OSError) as error:
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        raise InputError(
            f"expected to keep {len(split):,} decoded images in {folder}, found: {reason}; free some space, set "
            "HF_DATASETS_CACHE to another folder, or drop --cache_images"
        ) from error
    megabytes = sum(os.path.getsize(file["filename"]) for file in cached.cache_files) / 1e6
    logger.info(
        "%s %s %s: %.0f MB %s", "decoded" if written else "found", f"{len(cached):,}", what, megabytes,
        f"written to {folder} in {time.perf_counter() - started:.0f} s" if written else f"in {folder}",
    )  # fmt: skip
    for column in ("label", "index"):
        cached = cached.add_column(column, list(split[column]), feature=split.features[column])
    return cached


def _key(split: Dataset, settings: list[Any]) -> str:
    versions = [version(name) for name in ("pillow", "torchvision", "transformers")]
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, versions, settings], sort_keys=True).encode())
    for source in image_sources(split):
        if isinstance(source, bytes):
            digest.update(hashlib.sha256(source).digest())
        else:
            status = source.stat()
            digest.update(json.dumps([os.path.abspath(source), status.st_size, status.st_mtime_ns]).encode())
    return digest.hexdigest()[:32]
