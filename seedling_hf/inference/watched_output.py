"""The output file of a watch: it only grows, and others may move, truncate or replace it at any time, as logs are."""

import csv
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from seedling_hf.errors import InputError
from seedling_hf.escaping import escape_cell, unescape_cell
from seedling_hf.files import writing

CANNOT_FLUSH = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})


class WatchedOutput:
    """A file that rows are appended to, each of them once, whatever happens to the file in between.

    A file that was moved or deleted is followed by a new one, and one that was truncated or replaced is appended to;
    both begin with the heading. What others have written is never cut.

    Args:
        heading: What a file begins with; empty for none.
        images: The watched folders and files, with which each row begins.

    Attributes:
        length: Bytes of the file after the last row.
        inode: What tells the file from another one at the same path.
    """

    def __init__(self, path: Path, heading: bytes, images: Sequence[str]) -> None:
        self.path, self.heading, self.images = path, heading, images
        self.descriptor: int | None = None
        self.length, self.inode = 0, ""

    def resume(self, length: int, inode: str | None, is_entered: Callable[[str], bool]) -> None:
        """Opens the file and cuts the rows behind `length` that a killed watch has written and not entered.

        Args:
            inode: Of the file with this length; None if it is not known.
            is_entered: Whether the answer to an image was entered.

        Raises:
            InputError: if something else than a file is at the path.
            WriteError: as `append`.
        """
        with writing(self.path):
            self._open()
            status = os.fstat(self.descriptor)
            self.length, self.inode = length, str(status.st_ino)
            if length and inode not in (None, self.inode):
                self._lose()
            elif status.st_size > length and self._is_unentered(length, is_entered):
                os.ftruncate(self.descriptor, length)
        self.append(b"")

    def append(self, rows: bytes) -> None:
        """Writes rows to the end of the file that is at the path now, and to the disk.

        Raises:
            WriteError: if they cannot be written; the file then ends where it ended before.
        """
        with writing(self.path):
            self._append(rows)

    def _append(self, rows: bytes) -> None:
        self._follow()
        size = os.fstat(self.descriptor).st_size
        if size < self.length:
            self._lose()
        beginning = b""
        if size and self._read(1, size - 1) != b"\n":
            beginning = b"\n"
        if self._read(len(self.heading), 0) != self.heading:
            beginning += self.heading
        self._write(beginning + rows, size)
        self.length = size + len(beginning + rows)  # not what the file has now: it may just have been truncated
        self.inode = str(os.fstat(self.descriptor).st_ino)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)

    def _open(self) -> None:
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"expected a file at {self.path}, found something else; move it away")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self.descriptor = os.open(self.path, flags, 0o666)

    def _follow(self) -> None:
        """Opens the file that is at the path now, if that is another one."""
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(self.descriptor)):
                return
        except FileNotFoundError:
            pass
        self._lose()
        former = self.descriptor
        self._open()
        os.close(former)

    def _write(self, data: bytes, size: int) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]
            # Else a power cut could lose rows whose images are entered as answered.
            os.fsync(self.descriptor)
        except OSError as error:
            if not rest and error.errno in CANNOT_FLUSH:
                return
            with suppress(OSError):
                os.ftruncate(self.descriptor, size)
            raise

    def _read(self, count: int, start: int) -> bytes:
        os.lseek(self.descriptor, start, os.SEEK_SET)
        return os.read(self.descriptor, count)

    def _is_unentered(self, start: int, is_entered: Callable[[str], bool]) -> bool:
        """Whether all from `start` on are rows of watched images without an entered answer, the last one cut or not."""
        with open(self.path, "rb") as stream:
            stream.seek(start)
            tail = stream.read().rstrip(b"\0")  # zeros are left by a power cut
        if start == 0:
            tail = tail.removeprefix(self.heading)
        text, end, rest = tail.decode("utf-8", "surrogateescape").rpartition("\n")
        files = [_file_of(row) for row in _rows(text + end)]
        if not all(file.startswith(tuple(self.images)) and not is_entered(file) for file in files):
            return False
        # The row may be cut within its first name, and the heading too.
        rest = rest.removeprefix('{"file": ').removeprefix('"')
        heading = self.heading.decode() if start == 0 else ""
        beginnings = [*self.images, *map(escape_cell, self.images), *filter(None, [heading])]
        return any(rest[: len(name)] == name[: len(rest)] for name in beginnings)

    def _lose(self) -> None:
        """Says that the rows so far are elsewhere."""
        self.length = 0
        print(
            f"warning: {self.path} was moved, truncated or replaced: further rows go to the end of the file that is "
            "there now, and no image is named twice",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def _rows(text: str) -> list[str | list[str]]:
    """The lines of JSON lines, or the cells of CSV."""
    if text.startswith("{"):
        return text.splitlines()
    return [row for row in csv.reader(text.splitlines(keepends=True)) if row]


def _file_of(row: str | list[str]) -> str:
    """The image of a row; empty for what is no row of ours."""
    if isinstance(row, list):
        return unescape_cell(row[0])
    try:
        return json.loads(row)["file"]
    except (ValueError, KeyError, TypeError):
        return ""
