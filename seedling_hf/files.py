"""Files and folders that appear complete or not at all, however a run ends."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from seedling_hf.errors import InputError
from seedling_hf.escaping import CsvWriter


def temporary_path(path: str | os.PathLike) -> Path:
    """Where `path` is written until it is complete: next to it, so that one rename finishes it."""
    path = Path(path)
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path to write to, which replaces `path` at the end; after an error `path` is unchanged.

    Missing folders above it are created.
    """
    temporary = temporary_path(path)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


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


@contextmanager
def creating_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `folder`, new or empty, at the end; after an error nothing is left."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as temporary:
        building = Path(temporary, folder.name)
        building.mkdir()
        yield building
        if folder.exists():
            folder.rmdir()
        building.rename(folder)


def check_new_folder(folder: Path, flag: str) -> None:
    """Raises InputError for a folder that exists and is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"expected {flag} to be new or empty, found {folder} in use; choose another folder")


def check_writable_folder(folder: Path, flag: str) -> None:
    """Raises InputError, before any work is done, for a folder that cannot be created or written to."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        found = "a folder without write permission" if existing.is_dir() else "a file"
        raise InputError(f"expected {flag} in a writable folder, found {existing}, {found}; choose another")
