"""Image files: opened in one place, decoded completely, and reported with name and reason where that fails."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from io import BytesIO
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, ImageFile, UnidentifiedImageError
from PIL import Image as PILImage

from seedling_hf.data.formats import describe_beginning, image_formats
from seedling_hf.data.listing import list_images
from seedling_hf.data.metadata import without_metadata
from seedling_hf.errors import InputError
from seedling_hf.escaping import one_line
from seedling_hf.progress import Progress

IMAGE_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L"})
LARGEST_ASPECT_RATIO = 100  # beyond it, scaling the shorter side up to the model's size takes gigabytes
TURNS = {
    2: PILImage.Transpose.FLIP_LEFT_RIGHT, 3: PILImage.Transpose.ROTATE_180, 4: PILImage.Transpose.FLIP_TOP_BOTTOM,
    5: PILImage.Transpose.TRANSPOSE, 6: PILImage.Transpose.ROTATE_270, 7: PILImage.Transpose.TRANSVERSE,
    8: PILImage.Transpose.ROTATE_90,
}  # fmt: skip
CHECKING = "checking images"
DECODER_ERROR = "decoder error"  # all that Pillow says of what libtiff refuses
ORIENTATION_KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
Source = str | os.PathLike | bytes  # an image file, or its content
T = TypeVar("T")
U = TypeVar("U")


class ImageError(InputError):
    """An image that cannot be used: the message names it, and `reason` is only the reason."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


def choose_evenly(items: Sequence[T], count: int | None) -> list[T]:
    """At most `count` items at equal distances, so that sorted images of all classes are among them; None for all."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_threads(
    function: Callable[[T], U], items: Iterable[T], num_threads: int | None = None, chunk_size: int = 256
) -> Iterator[U]:
    """`map` in threads, for decoding, which releases Python's lock; by default one thread for each available core.

    Items are taken in chunks, because a pool reads all its input at once. Threads that are amid an item when the
    iteration ends, by Ctrl-C say, are left to themselves: a disk may never answer.
    """
    items = iter(items)
    try:
        pool = ThreadPool(num_threads or num_cores())
    except (ImportError, OSError):  # its locks lie in /dev/shm, which may be full or missing
        yield from map(function, items)
        return
    with pool:
        while chunk := list(islice(items, chunk_size)):
            yield from pool.imap(function, chunk)


def find_bad_images(paths: Iterable[Path], total: int | None = None) -> Iterator[tuple[Path, str]]:
    """Decodes every image and yields those that cannot be used, with the reason; never all paths in memory.

    `total` is their number if `paths` has no length.
    """
    total = len(paths) if total is None and isinstance(paths, Sized) else total
    paths = iter(paths)
    with Progress(CHECKING, total) as progress:
        while chunk := list(islice(paths, 1024)):
            reasons = _check(chunk, progress)
            yield from ((path, reason) for path, reason in zip(chunk, reasons, strict=True) if reason)


def check_images(sources: Iterable[Source], total: int | None = None) -> list[str | None]:
    """Decodes every image, `total` in number: for each None, or the reason why it cannot be used."""
    with Progress(CHECKING, total) as progress:
        return _check(sources, progress)


def _check(sources: Iterable[Source], progress: Progress) -> list[str | None]:
    reasons = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", PILImage.DecompressionBombWarning)
        for reason in map_in_threads(_reason_it_is_bad, sources):
            reasons.append(reason)
            progress.update()
    return reasons


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


def read_image(source: Source, name: str | None = None) -> PILImage.Image:
    """An image, decoded completely and turned upright according to its EXIF orientation.

    Metadata that cannot be read count as none.

    Args:
        name: For the message, where `source` is the content of a file.

    Raises:
        ImageError: with the file and the reason why it cannot be used.
    """
    try:
        return _decode(source, in_full=True)
    except Exception as error:  # decoders of damaged files raise all kinds of errors
        reason = _reason(error, source)
        name = name or (f"an image of {len(source):,} bytes" if isinstance(source, bytes) else source)
        raise ImageError(
            f"expected images that stay unchanged while they are used, found {a_few([name])} ({reason}); restore it "
            "and start again",
            reason,
        ) from error


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
        return _reason(error, source)
    return None


def _decode(source: Source, *, in_full: bool) -> PILImage.Image:
    if not isinstance(source, bytes) and Path(source).exists() and not Path(source).is_file():
        # Opening a pipe would wait forever.
        raise InputError("a folder" if Path(source).is_dir() else "no regular file")
    try:
        return _decode_content(BytesIO(source) if isinstance(source, bytes) else source, in_full=in_full)
    except Exception as error:
        if pixels := None if _is_final(error) else without_metadata(_content(source)):
            with suppress(Exception):
                return _decode_content(BytesIO(pixels), in_full=in_full)
        raise


def _is_final(error: Exception) -> bool:
    """Whether an image fails for its pixels or its file, not for what stands around the pixels."""
    kinds = (InputError, PILImage.DecompressionBombError, PILImage.DecompressionBombWarning, OSError)
    # libtiff fails for tags too.
    may_be_of_tags = isinstance(error, UnidentifiedImageError) or str(error).startswith(DECODER_ERROR)
    return isinstance(error, kinds) and not may_be_of_tags


def _decode_content(file: BytesIO | str | os.PathLike, *, in_full: bool) -> PILImage.Image:
    with PILImage.open(file, formats=image_formats()) as image:
        width, height = image.size
        if width * height > PILImage.MAX_IMAGE_PIXELS:
            raise PILImage.DecompressionBombError
        if max(width, height) > LARGEST_ASPECT_RATIO * min(width, height):
            raise InputError(f"{width}×{height} pixels are too long and thin")
        if not in_full:
            image.draft("RGB", (1, 1))  # a JPEG is still read to its end, several times faster
        if image.format == "TIFF" and _lacks_parts(image):
            raise InputError("its strips or tiles are too few for its size")
        image.load()
        if image.mode not in IMAGE_MODES and not (image.mode == "I" and image.getextrema()[1] < 1 << 16):
            raise InputError(f"its pixels are neither of 8 nor of 16 bits but of PIL's mode {image.mode}")
        return _upright(image)


def _lacks_parts(image: PILImage.Image) -> bool:
    """Whether strips or tiles of a TIFF are missing, which Pillow would make black."""
    parts = {tile[1] for tile in image.tile}
    # Not image.size, which is that of the turned image.
    width, height = image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
    area = sum((min(right, width) - left) * (min(lower, height) - upper) for left, upper, right, lower in parts)
    return area < width * height


def _upright(image: PILImage.Image) -> PILImage.Image:
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # broken metadata around whole pixels
        turn = None
    image = image if turn is None else image.transpose(turn)
    for key in ORIENTATION_KEYS:  # nobody may turn it again
        image.info.pop(key, None)
    return image


def _reason(error: Exception, source: Source) -> str:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, (PILImage.DecompressionBombError, PILImage.DecompressionBombWarning)):
        return f"more than {PILImage.MAX_IMAGE_PIXELS:,} pixels"
    if isinstance(error, UnidentifiedImageError) and (found := describe_beginning(_content(source, 512))):
        return found
    if str(error).startswith(DECODER_ERROR):
        return "its pixels cannot be decoded"
    return getattr(error, "strerror", None) or str(error).split(" '")[0].split(" <")[0] or type(error).__name__


def _content(source: Source, size: int = -1) -> bytes:
    """The first `size` bytes of an image, or all; none if it is gone by now."""
    if isinstance(source, bytes):
        return source[:size] if size >= 0 else source
    try:
        with open(source, "rb") as file:
            return file.read(size)
    except OSError:
        return b"?"


def a_few(names: Sequence[str], most: int = 5) -> str:
    """The first names for a sentence, and how many more there are; control characters in them are made visible."""
    shown = ", ".join(map(one_line, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
