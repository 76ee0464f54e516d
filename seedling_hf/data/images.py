"""Image files: listed in one order, decoded completely, and reported with a reason where that fails."""

import logging
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, ImageFile, ImageOps
from PIL import Image as PILImage

from seedling_hf.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
IMAGE_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L"})
MOST_NAMES_IN_MEMORY = 10_000
LARGEST_ASPECT_RATIO = 100  # beyond it, scaling the shorter side up to the model's size takes gigabytes
Source = str | os.PathLike | bytes  # an image file, or its content
T = TypeVar("T")
U = TypeVar("U")

logger = logging.getLogger(__name__)


def list_images(paths: Iterable[str | os.PathLike]) -> Iterator[Path]:
    """The images among `paths`: files as they are, folders searched in byte order; never all of them in memory.

    Hidden files and folders are ignored, and so are links that lead back to a folder above them.

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


def map_in_threads(
    function: Callable[[T], U], items: Iterable[T], num_threads: int | None = None, chunk_size: int = 256
) -> Iterator[U]:
    """`map` in threads, for decoding, which releases Python's lock; by default one thread for each available core.

    Items are taken in chunks, because an executor's `map` reads all its input at once and keeps every result.
    """
    if num_threads is None:
        num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    items = iter(items)
    with ThreadPoolExecutor(num_threads) as pool:
        while chunk := list(islice(items, chunk_size)):
            yield from pool.map(function, chunk)


def find_bad_images(paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Decodes every image and yields those that cannot be used, with the reason; never all paths in memory."""
    paths = iter(paths)
    while chunk := list(islice(paths, 1024)):
        yield from ((path, reason) for path, reason in zip(chunk, check_images(chunk), strict=True) if reason)


def check_images(sources: Iterable[Source]) -> list[str | None]:
    """Decodes every image: for each None, or the reason why it cannot be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", PILImage.DecompressionBombWarning)
        return list(map_in_threads(_reason_it_is_bad, sources))


def select_images(paths: Sequence[str], count: int | None = None, *, skip_bad_images: bool | None = None) -> list[Path]:
    """At most `count` images, evenly chosen from files and folders, all of which can be decoded.

    `skip_bad_images` is the value of that flag; None for a command without it.

    Raises:
        InputError: for no images, or those that cannot be decoded unless they are to be skipped.
    """
    files = choose_evenly(list(list_images(paths)), count)
    bad = dict(find_bad_images(files))
    if bad and not skip_bad_images:
        file, reason = next(iter(bad.items()))
        raise InputError(
            f"expected images that can be decoded, found {len(bad):,} that cannot, such as {file} ({reason}); remove "
            f"them{'' if skip_bad_images is None else ', or skip them with --skip_bad_images'}"
        )
    if len(files) == len(bad):
        raise InputError(f"expected images in {', '.join(paths)}, found none; name another folder")
    return [file for file in files if file not in bad]


def read_image(source: Source) -> PILImage.Image:
    """An image, decoded completely and turned upright according to its EXIF orientation.

    Raises:
        InputError: with the reason why it cannot be used.
    """
    try:
        return _decode(source, in_full=True)
    except Exception as error:  # decoders of damaged files raise all kinds of errors
        raise InputError(_reason(error)) from error


def to_rgb(image: PILImage.Image) -> PILImage.Image:
    """Any image in RGB; 16-bit grey is scaled to 8 bits, which PIL would clip."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = PILImage.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "PA" or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")  # PIL warns of a palette with transparency that is converted to RGB directly
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason_it_is_bad(source: Source) -> str | None:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("expected PIL to refuse truncated images, found LOAD_TRUNCATED_IMAGES set")
    try:
        _decode(source, in_full=False)
    except Exception as error:  # decoders of damaged files raise all kinds of errors
        return _reason(error)
    return None


def _decode(source: Source, *, in_full: bool) -> PILImage.Image:
    if not isinstance(source, bytes) and Path(source).exists() and not Path(source).is_file():
        raise InputError("no regular file")  # opening a pipe would wait forever
    with PILImage.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
        width, height = image.size
        if width * height > PILImage.MAX_IMAGE_PIXELS:
            raise PILImage.DecompressionBombError
        if max(width, height) > LARGEST_ASPECT_RATIO * min(width, height):
            raise InputError(f"{width}×{height} pixels are too long and thin")
        if not in_full:
            image.draft("RGB", (1, 1))  # a JPEG is still read to its end, several times faster
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
    """As `list_folder`, with the names of a large folder sorted on the disk."""
    try:
        with os.scandir(folder) as entries:
            names = (_check_utf8(entry.name, folder) for entry in entries)
            first = list(islice(names, MOST_NAMES_IN_MEMORY))
            if len(first) < MOST_NAMES_IN_MEMORY:
                yield from sorted(first)
                return
            with closing(sqlite3.connect("")) as database:  # a temporary file on the disk
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
    """The first names for a sentence, and how many more there are; line breaks in them are made visible."""
    shown = ", ".join(str(name).replace("\n", "\\n") for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
