"""Files that are there whole or not at all, however a run ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seedling_hf.errors import InputError


def temporary_path(path: str | os.PathLike) -> Path:
    """Where `path` is written until it is whole: beside it, so that one operation puts it into its place."""
    path = Path(path)
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a path to write to, which takes the place of `path` in the end; after an error `path` is as it was."""
    yield temporary_path(path)
    os.replace(temporary_path(path), path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a file in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_writable_folder(folder: Path, flag: str) -> None:
    """Refuses, before any work is done, a folder that is not there and cannot be made, or not be written to."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        found = "a folder that may not be written to" if existing.is_dir() else "a file"
        raise InputError(f"expected {flag} in a folder that can be written to, found {existing}, {found}; name another")
