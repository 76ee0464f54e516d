"""Files and folders that appear complete or not at all, however a run ends and whatever the disk does."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from seedling_hf.errors import HubError, InputError, WriteError, causes
from seedling_hf.escaping import CsvWriter
from seedling_hf.origin import mark_archive
from seedling_hf.paths import holds_or_lies_in

MAX_NAME = 255  # bytes of a file name, on the usual file systems
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ONLY_OF_WRITING = FULL | {errno.EROFS}
FAILURES = ONLY_OF_WRITING | {
    errno.EIO, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR,
}  # fmt: skip
# Of libraries that keep a system's words and lose its number.
WORDS = {
    "No space left on device": errno.ENOSPC, "disk is full": errno.ENOSPC, "Disk quota exceeded": errno.EDQUOT,
    "File too large": errno.EFBIG, "Read-only file system": errno.EROFS, "readonly database": errno.EROFS,
    "Input/output error": errno.EIO, "disk I/O error": errno.EIO, "File name too long": errno.ENAMETOOLONG,
    "PytorchStreamWriter failed": errno.ENOSPC,
}  # fmt: skip


def write_failure(error: BaseException | None, numbers: Container[int]) -> tuple[int, str | None] | None:
    """Number, one of `numbers`, and file of the refused write that an error is, or was caused by; else None."""
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in numbers:
            return cause.errno, cause.filename and os.fsdecode(cause.filename)
        number = next((number for words, number in WORDS.items() if words in str(cause)), None)
        if number in numbers:
            return number, None
    return None


def write_error(path: str | os.PathLike, number: int, size: int = 0) -> WriteError:
    """The sentence for a file that could not be written, of which `size` bytes were."""
    reason = os.strerror(number)
    if number in FULL:
        room = ""
        with suppress(OSError):
            written = f"{size:,} bytes were written, " if size else ""
            room = f" ({written}{shutil.disk_usage(_existing(path)).free:,} are free)"
        sentence = f"expected room for {path}, found none: {reason}{room}; free space and run the command again"
    elif number == errno.ENAMETOOLONG:
        name = os.fsencode(Path(path).name)
        sentence = f"expected a name of at most {MAX_NAME} bytes, found {len(name)} in {path}; choose a shorter name"
    else:
        sentence = f"expected to write {path}, found {reason}; choose a place that can be written, or mend this one"
    error = WriteError(sentence)
    error.errno = number
    return error


@contextmanager
def writing(path: str | os.PathLike, size: Callable[[], int] = int) -> Iterator[None]:
    """Turns the refusal of a write to `path` into WriteError; `size` tells how many bytes were written."""
    try:
        yield
    except (InputError, HubError, WriteError):
        raise
    except Exception as error:
        failure = write_failure(error, FAILURES)
        if failure is None:
            raise
        number, file = failure
        is_beside = file is None or holds_or_lies_in(file, Path(path).absolute().parent)
        if number not in FULL and not is_beside:  # another file, that could not be read
            raise
        raise write_error(path, number, size()) from error


def _existing(path: str | os.PathLike) -> Path:
    """The path, or the first folder above it that exists."""
    path = Path(path).absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    with suppress(OSError):
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        return sum(file.stat().st_size for file in files)
    return 0


def fitting(name: str, suffix: str = "") -> str:
    """`name` with `suffix`, its end replaced by a digest where a file system would refuse so long a name."""
    if len(os.fsencode(name + suffix)) <= MAX_NAME:
        return name + suffix
    digest = f"-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}{suffix}"
    start = os.fsencode(name)[: MAX_NAME - len(os.fsencode(digest))]
    return start.decode("utf-8", errors="ignore") + digest


def temporary_path(path: str | os.PathLike) -> Path:
    """Where `path` is written until it is complete: next to it, so that one rename finishes it."""
    path = Path(path)
    return path.with_name(fitting(f".{path.name}", ".tmp"))


def share_as_usual(path: Path) -> None:
    """Gives a file, or each in a folder, the permissions that the umask grants: safetensors grants none to others."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file() and not file.is_symlink():
            with suppress(OSError):  # a file system without permissions
                file.chmod(0o666 & ~_umask())


@cache
def _umask() -> int:
    umask = os.umask(0)  # it cannot be read without being set
    os.umask(umask)
    return umask


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path to write to, which replaces `path` at the end; after an error `path` is unchanged.

    Missing folders above it are created.

    Raises:
        WriteError: if the disk is full, or refuses the file.
    """
    temporary, written = temporary_path(path), 0
    with writing(path, lambda: written):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            share_as_usual(temporary)
            os.replace(temporary, path)
        except BaseException:
            written = _size(temporary)
            with suppress(OSError):  # the error that led here is the one to report
                temporary.unlink(missing_ok=True)
            raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a file in UTF-8, complete or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def open_text(path: str | os.PathLike, mode: str = "w") -> TextIO:
    """Opens a text file; names that are not UTF-8 keep their bytes."""
    return open(path, mode, encoding="utf-8", errors="surrogateescape", newline="")


def write_csv(path: str | os.PathLike, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes rows as CSV, complete or not at all."""
    with replacing(path) as temporary, open_text(temporary) as stream:
        CsvWriter(stream).writerows(chain([header], rows))


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
    """Writes arrays as a compressed archive of NumPy, complete or not at all."""
    import numpy as np

    with replacing(path) as temporary:
        with open(temporary, "wb") as stream:
            np.savez_compressed(stream, **arrays)
        mark_archive(temporary)


@contextmanager
def creating_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `folder`, new or empty, at the end; after an error nothing is left.

    Raises:
        WriteError: if the disk is full, or refuses a file.
    """
    written = 0
    with writing(folder, lambda: written):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent, ignore_cleanup_errors=True) as temporary:
            building = Path(temporary, folder.name)
            building.mkdir()
            try:
                yield building
            except BaseException:
                written = _size(building)
                raise
            share_as_usual(building)
            if folder.exists():
                folder.rmdir()
            building.rename(folder)


def check_new_folder(folder: Path, flag: str) -> None:
    """Raises InputError for a folder that exists and is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"expected {flag} to be new or empty, found {folder} in use; choose another folder")


def check_writable_folder(folder: Path, flag: str) -> None:
    """Raises InputError, before any work is done, for a folder that cannot be created or written to."""
    existing = _existing(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        found = "a folder without write permission" if existing.is_dir() else "a file"
        raise InputError(f"expected {flag} in a writable folder, found {existing}, {found}; choose another")
