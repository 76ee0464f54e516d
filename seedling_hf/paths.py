"""Paths as people give them: `~` and variables expanded, and outputs kept apart from what is read."""

import mimetypes
import os
import re
from collections.abc import Iterable
from pathlib import Path

from seedling_hf.errors import InputError


def expand_home(path: str) -> str:
    """`~` and `~user` at the beginning; the shell leaves `--output_dir=~/run` as it is."""
    return os.path.expanduser(path)


def expand_variables(path: str, flag: str) -> str:
    """`$NAME` and `${NAME}` in a path that nothing has yet; a folder may have a `$` in its name.

    Raises:
        InputError: for a variable that is not set.
    """
    if "$" not in path or os.path.lexists(path):
        return path
    expanded = os.path.expandvars(path)
    if missing := re.search(r"\$(\w+|\{[^}]*\})", expanded, re.ASCII):
        raise InputError(
            f"expected ${missing[1].strip('{}')} to be set for {flag}, found {path}; set it, or write it out"
        )
    return expanded


def check_path(path: str, flag: str) -> None:
    """Refuses a path that cannot be meant; it may lead nowhere.

    Raises:
        InputError: if it is empty, which would be the current folder, or one that no file can have, or names a pipe, a
            socket or a device, which would be waited for.
    """
    if not path.strip():
        raise InputError(f"expected a path for {flag}, found an empty one; write . for the current folder")
    if "\0" in path:
        raise InputError(f"expected a path for {flag}, found a zero byte in {path!r}; remove it")
    check_regular(expand_home(path), flag)


def check_regular(path: str | os.PathLike, what: str) -> None:
    """Raises InputError for what is there, but neither a file nor a folder."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise InputError(f"expected a file or a folder as {what}, found a pipe, a socket or a device: {path}")


def holds_or_lies_in(first: str | os.PathLike, second: str | os.PathLike) -> bool:
    """Whether a path is, holds, or lies in another."""
    first, second = Path(os.path.abspath(first)), Path(os.path.abspath(second))
    return first.is_relative_to(second) or second.is_relative_to(first)


def check_folder_apart(folder: str, flag: str, read: Iterable[tuple[str, str]], *, around: bool) -> None:
    """Refuses an output folder that is, or lies in, a folder of images, where it would be read as images or a class.

    Args:
        read: The images and folders that are read, each after its flag.
        around: Also refuse a folder that holds one of them.

    Raises:
        InputError: names both.
    """
    output = Path(folder).resolve()
    for source_flag, name in read:
        source = Path(name).resolve()
        if source.is_dir() and output.is_relative_to(source):
            raise InputError(
                f"expected {flag} outside of {name}, which {source_flag} reads, found {folder}; choose another {flag}"
            )
        if around and source != output and source.is_relative_to(output):
            raise InputError(
                f"expected {flag} apart from {name}, which {source_flag} reads, found {folder} around it; choose "
                f"another {flag}"
            )


def check_file_apart(file: str, flag: str, read: Iterable[tuple[str, str]]) -> None:
    """Raises InputError for an output file that is read too, or that has the name of an image."""
    kind = mimetypes.guess_type(Path(file).name)[0] or ""
    if kind.startswith("image/"):
        raise InputError(f"expected {flag} to be no image, found {file}; choose another name")
    for source_flag, name in read:
        if os.path.isfile(name) and os.path.exists(file) and os.path.samefile(name, file):
            raise InputError(f"expected {flag} apart from {source_flag}, found {file} for both; choose another {flag}")
