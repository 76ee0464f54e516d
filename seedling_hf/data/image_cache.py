"""Images decoded once and kept on the disk, so that an epoch reads pixels instead of decoding files.

A cache is an Arrow file of `datasets`, shared by all runs and processes that need the same images. Its key depends on
the images (path, size and modification time, or the bytes if a dataset holds them) and on how they were prepared.
`Dataset.from_generator` writes it into a temporary folder, which is renamed when it is complete, and all of it happens
under a lock: the first process writes, the others wait, and what a killed process has written is never read.

Checksums lie beside it. A cache that does not fit them when it is opened is made anew. Afterwards its rows are read by
their place in the file: in a mapped file that is cut during a run, a missing page would end the process.
"""

import hashlib
import json
import logging
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import version
from io import FileIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetGenerationError
from filelock import FileLock
from PIL import Image as PILImage
from torch import Tensor
from transformers import BaseImageProcessor

from seedling_hf.data.images import map_in_threads, read_image, to_rgb
from seedling_hf.data.pool import image_sources
from seedling_hf.data.transforms import EvalTransform
from seedling_hf.errors import InputError
from seedling_hf.files import write_text
from seedling_hf.progress import follow
from seedling_hf.verbosity import is_verbose

FORMAT_VERSION = 3
CHECKSUMS = "checksums.json"
BYTES_AT_ONCE = 1 << 24
# 64-bit offsets, because large images soon exceed 2 GB.
FEATURES = Features({"data": Value("large_binary"), "shape": List(Value("int32"))})
ROWS_IN_MEMORY = 32

logger = logging.getLogger(__name__)


def cache_training_images(split: Dataset, side: int, image_processor: BaseImageProcessor) -> Dataset:
    """Caches the images of a split in RGB, resized once, for `FromCache`.

    The shorter side of larger images becomes `side` pixels (bicubic, antialiased). The result has columns `shape`
    (H × W × 3 bytes), `label` and `index`, and where the pixels lie: `path`, `offset` and `length` in bytes.

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

    The result has columns `shape` (3 × H × W float32), `label` and `index`, and where the pixels lie: `path`, `offset`
    and `length` in bytes.

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
    places = zip(rows["path"], rows["offset"], rows["length"], rows["shape"], strict=True)
    return [torch.frombuffer(_read(path, *place), dtype=dtype).view(shape) for path, *place, shape in places]


def _read(path: str, offset: int, length: int) -> bytearray:
    data = bytearray(length)  # tensors are writable and bytes are not
    try:
        file = _open(path, os.getpid(), threading.get_ident())
        file.seek(offset)
        found = file.readinto(data)
    except OSError as error:
        raise InputError(f"expected the cache of images at {path}, found: {error.strerror}; start again") from error
    if found < length:
        raise InputError(
            f"expected the cache of images at {path} as it was at the start, found it cut short; start again, which "
            "makes it anew"
        )
    return data


@cache
def _open(path: str, process_id: int, thread_id: int) -> FileIO:
    """A file for each reader, which stays the same when another takes its place."""
    return open(path, "rb", buffering=0)


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
        arrays = map_in_threads(lambda s: make(to_rgb(read_image(s))), sources, chunk_size=ROWS_IN_MEMORY)
        for array in follow(arrays, f"decoding {name} images for the cache", len(split)):
            yield {"data": array.tobytes(), "shape": list(array.shape)}

    key = _key(split, settings)
    place = folder / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            _remove_damaged(place)
            with _without_bars():
                kept = Dataset.from_generator(
                    generate, features=FEATURES, cache_dir=str(place), fingerprint=key,
                    writer_batch_size=ROWS_IN_MEMORY, split=name,
                )  # fmt: skip
            files = [file["filename"] for file in kept.cache_files]
            if written:
                whole = [file for file in place.rglob("*") if file.is_file() and file.suffix != ".lock"]
                sums = {str(file.relative_to(place)): _checksum(file) for file in whole}
                write_text(place / CHECKSUMS, json.dumps(sums, indent=1))
            rows = [row for file in files for row in _places(file)]
    except (DatasetGenerationError, OSError) as error:
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        raise InputError(
            f"expected to keep {len(split):,} decoded images in {folder}, found: {reason}; free some space, set "
            "HF_DATASETS_CACHE to another folder, or drop --cache_images"
        ) from error
    megabytes = sum(map(os.path.getsize, files)) / 1e6
    logger.info(
        "%s %s %s: %.0f MB %s", "decoded" if written else "found", f"{len(rows):,}", what, megabytes,
        f"written to {folder} in {time.perf_counter() - started:.0f} s" if written else f"in {folder}",
    )  # fmt: skip
    columns = {column: [row[i] for row in rows] for i, column in enumerate(("path", "offset", "length", "shape"))}
    cached = Dataset.from_dict(columns, split=name)
    for column in ("label", "index"):
        cached = cached.add_column(column, list(split[column]), feature=split.features[column])
    return cached


@contextmanager
def _without_bars() -> Iterator[None]:
    """Meanwhile `datasets` draws no bar beside ours."""
    shown = not datasets.are_progress_bars_disabled() and not is_verbose()
    if shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _remove_damaged(place: Path) -> None:
    """Removes what is left of a cache that is not whole, with a notice if it once was."""
    try:
        sums = json.loads((place / CHECKSUMS).read_text(encoding="utf-8"))
        damaged = [file for file, checksum in sums.items() if _checksum(place / file) != checksum]
        if sums and not damaged:
            return
    except (OSError, ValueError, AttributeError):
        damaged = [CHECKSUMS]
    if place.is_dir() and any(place.rglob("*.arrow")):
        logger.warning("the cache of images in %s is damaged (%s) and is made anew", place, damaged or "incomplete")
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _checksum(file: Path) -> int:
    """CRC-32 of a file, in about the time that reading it from a fast disk takes."""
    checksum = 0
    with open(file, "rb", buffering=0) as stream:
        while data := stream.read(BYTES_AT_ONCE):
            checksum = zlib.crc32(data, checksum)
    return checksum


def _places(file: str) -> Iterator[tuple[str, int, int, list[int]]]:
    """For each row of an Arrow file its path, where the pixels begin, how many bytes they are, and their shape."""
    with pa.memory_map(file) as mapped:
        start = mapped.read_buffer(1).address
        mapped.seek(0)
        for batch in pa.ipc.open_stream(mapped):
            data = batch["data"]
            offsets = np.frombuffer(data.buffers()[1], np.int64)[data.offset : data.offset + len(data) + 1]
            beginning = data.buffers()[2].address - start
            for i, shape in enumerate(batch["shape"].to_pylist()):
                yield file, int(beginning + offsets[i]), int(offsets[i + 1] - offsets[i]), shape


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
