"""Image files: found in folders in one order, decoded to their end, and refused by name where that fails."""

import logging
import os
import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from PIL import ExifTags, ImageFile, ImageOps
from PIL import Image as PILImage

from seedling_hf.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
IMAGE_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L"})
MOST_NAMES_IN_MEMORY = 10_000
LARGEST_ASPECT_RATIO = 100  # beyond it, scaling the shorter side up to the model's size takes gigabytes
T = TypeVar("T")

logger = logging.getLogger(__name__)


def list_images(paths: Iterable[str | os.PathLike]) -> Iterator[Path]:
    """The images among `paths`: files as they are, folders searched through in byte order; never all in memory.

    What is hidden is left out, and so are links that lead back to a folder above them.

    Raises:
        InputError: for a path that does not exist, or a folder that cannot be read.
    """
    for path in map(Path, paths):
        if path.is_dir():
            yield from _walk(path, frozenset())
        elif path.exists() or path.is_symlink():
            yield path
        else:
            raise InputError(f"expected an image or a folder at {path}, found nothing there")


def choose_evenly(items: Sequence[T], count: int | None) -> list[T]:
    """At most `count` items at equal distances, so that sorted images of all classes are among them; None for all."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def find_bad_images(paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Decodes every image and yields those that cannot be used, with the reason; never all paths in memory."""
    for portion in _portions(paths, 1024):
        for path, reason in zip(portion, _check(portion), strict=True):
            if reason is not None:
                yield path, reason


def read_image(path: Path) -> PILImage.Image:
    """An image from the disk, decoded whole and turned upright as its camera says.

    Raises:
        InputError: with the reason why it cannot be used.
    """
    try:
        return _decode(path, in_full=True)
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise InputError(_reason(error)) from error


def find_good_images(names: Sequence[str | Path], sources: Iterable[Path | bytes], skip: bool) -> list[int]:
    """Positions of the images that can be decoded; refuses if there are others, unless they are to be skipped."""
    reasons = list(_check(sources))
    bad = [f"{name} ({reason})" for name, reason in zip(names, reasons, strict=True) if reason is not None]
    if bad and not skip:
        raise InputError(
            f"expected images that can be decoded, found {len(bad)} of {len(names)} that cannot: {a_few(bad)}; "
            "repair or remove them, or leave them out by --skip_bad_images"
        )
    if bad:
        logger.warning("left out %d of %d images that cannot be decoded: %s", len(bad), len(names), a_few(bad))
    return [i for i, reason in enumerate(reasons) if reason is None]


def _check(sources: Iterable[Path | bytes]) -> Iterator[str | None]:
    """For each image None, or why it cannot be used."""
    num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Threads, because decoding runs outside of Python's lock.
    with ThreadPoolExecutor(num_threads) as pool:
        for portion in _portions(sources, 1024):
            with warnings.catch_warnings():
                warnings.simplefilter("error", PILImage.DecompressionBombWarning)
                reasons = list(pool.map(_reason_it_is_bad, portion))
            yield from reasons


def _portions(items: Iterable[T], size: int) -> Iterator[list[T]]:
    items = iter(items)
    while portion := list(islice(items, size)):
        yield portion


def _reason_it_is_bad(source: Path | bytes) -> str | None:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("expected PIL to refuse truncated images, found LOAD_TRUNCATED_IMAGES set")
    try:
        _decode(source, in_full=False)
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        return _reason(error)
    return None


def _decode(source: Path | bytes, *, in_full: bool) -> PILImage.Image:
    if isinstance(source, Path) and source.exists() and not source.is_file():
        raise InputError("no regular file")  # opening a pipe would wait for ever
    with PILImage.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
        width, height = image.size
        if width * height > PILImage.MAX_IMAGE_PIXELS:
            raise PILImage.DecompressionBombError
        if max(width, height) > LARGEST_ASPECT_RATIO * min(width, height):
            raise InputError(f"{width}×{height} pixels are too long and thin")
        if not in_full:
            image.draft("RGB", (1, 1))  # a JPEG is read to its end all the same, several times quicker
        image.load()
        if image.mode not in IMAGE_MODES and not (image.mode == "I" and image.getextrema()[1] < 1 << 16):
            raise InputError(f"its pixels are neither of 8 nor of 16 bits but of PIL's mode {image.mode}")
        turned = image.getexif().get(ExifTags.Base.Orientation) is not None
        return ImageOps.exif_transpose(image) if turned else image


def _reason(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, (PILImage.DecompressionBombError, PILImage.DecompressionBombWarning)):
        return f"more than {PILImage.MAX_IMAGE_PIXELS:,} pixels"
    return getattr(error, "strerror", None) or str(error).split(" '")[0].split(" <")[0] or type(error).__name__


def list_folder(folder: Path) -> list[str]:
    """The names in a folder in byte order, which for UTF-8 is Python's order of strings."""
    return list(_names_in_order(folder))


def _names_in_order(folder: Path) -> Iterator[str]:
    """As `_list_folder`, with the names of a large folder sorted on the disk."""
    try:
        with os.scandir(folder) as entries:
            names = (_check_utf8(entry.name, folder) for entry in entries)
            first = list(islice(names, MOST_NAMES_IN_MEMORY))
            if len(first) < MOST_NAMES_IN_MEMORY:
                yield from sorted(first)
                return
            with closing(sqlite3.connect("")) as database:  # a temporary file, of which a few megabytes are in memory
                database.execute("CREATE TABLE names (name TEXT)")
                database.executemany("INSERT INTO names VALUES (?)", ((name,) for name in chain(first, names)))
                del first
                yield from (name for (name,) in database.execute("SELECT name FROM names ORDER BY name"))
    except OSError as error:
        found = {FileNotFoundError: "nothing there", NotADirectoryError: "a file there"}
        raise InputError(
            f"expected a folder that can be read at {folder}, found {found.get(type(error), error.strerror)}"
        ) from error


def _check_utf8(name: str, folder: Path) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"expected names in UTF-8 in {folder}, found {os.fsencode(name)!r}; rename it") from error
    return name


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    above |= {os.path.realpath(folder)}
    for name in _names_in_order(folder):
        path = folder / name
        if name.startswith("."):
            continue
        if path.is_dir():
            if os.path.realpath(path) not in above:
                yield from _walk(path, above)
        elif is_image(name):
            yield path


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def a_few(names: Sequence[str], most: int = 5) -> str:
    """A few names for a sentence; line breaks in them are made visible."""
    shown = ", ".join(str(name).replace("\n", "\\n") for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
