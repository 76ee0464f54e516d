"""The answered images of a watched folder, on the disk: a killed watch resumes with no row missing or repeated."""

import errno
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from seedling_hf.errors import InputError, WriteError
from seedling_hf.files import write_error
from seedling_hf.inference.answers import Answer
from seedling_hf.inference.journal import describe_changes

# An image is read once it has not been written to for this long.
SETTLED_S = 2.0
# Of a ledger, behind the name of its output.
SUFFIX = ".watched"
# SQLite's names of what a disk refuses, by their beginnings, the longer one first.
REFUSALS = {
    "SQLITE_FULL": errno.ENOSPC, "SQLITE_READONLY_DBMOVED": errno.ENOENT, "SQLITE_READONLY": errno.EACCES,
    "SQLITE_IOERR": errno.EIO, "SQLITE_CANTOPEN": errno.EACCES, "SQLITE_PERM": errno.EACCES,
}  # fmt: skip


class Ledger:
    """The images that are answered, and the length of the output file with these answers.

    The answers to a batch are written first and entered here afterwards, together with the length of the file: after a
    kill between the two, the file is cut to that length and the batch is answered again.

    Args:
        path: Of a SQLite file; an empty string is a temporary one.
        identity: All that the answers depend on.
        is_new: Whether there are no rows yet, so that nothing need have been entered.

    Raises:
        InputError: if the former watch with this file had another identity, or the file is no ledger.
        WriteError: if the disk refuses the file. As a context, it turns what goes wrong with the database into these.
    """

    def __init__(self, path: str | Path, identity: dict[str, Any], *, is_new: bool = True) -> None:
        self.path = path
        if path and Path(path).exists() and not Path(path).is_file():
            raise self._damaged("something else")
        is_there = not path or Path(path).exists()
        try:
            self.database = sqlite3.connect(path)
        except sqlite3.Error as error:
            raise self._explained(error) from error
        try:
            self._begin(identity, is_new)
        except (sqlite3.Error, ValueError, TypeError, RecursionError) as error:
            self.database.close()
            if not is_there:
                Path(path).unlink(missing_ok=True)
            raise error if isinstance(error, InputError) else self._explained(error) from error

    def _begin(self, identity: dict[str, Any], is_new: bool) -> None:
        former = self._open()
        if former is None and not is_new:
            raise self._damaged("an empty one")
        if former is None:
            self.database.execute("INSERT INTO run VALUES (?, 0)", (json.dumps(identity),))
            self.database.commit()
        elif changes := describe_changes(former, identity):
            raise InputError(
                f"expected to resume the watch with its answers in {self.path}, found {changes}; repeat its command, "
                "or name another --output_file"
            )

    def _open(self) -> dict[str, Any] | None:
        """Makes missing tables and reads what a ledger must hold; returns the identity of the former watch, if any."""
        if (state := self.database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise ValueError(state)
        self.database.executescript(
            "CREATE TABLE IF NOT EXISTS images (file BLOB PRIMARY KEY, stamp TEXT, reason TEXT) WITHOUT ROWID;"
            "CREATE TABLE IF NOT EXISTS run (identity TEXT, length INTEGER);"
            "CREATE TABLE IF NOT EXISTS output (inode TEXT);"
        )
        self.database.execute("SELECT file, stamp, reason FROM images LIMIT 1")
        rows = self.database.execute("SELECT identity, length FROM run").fetchall()
        if not rows:
            return None
        identity, length = json.loads(rows[0][0]), rows[0][1]
        if len(rows) > 1 or not isinstance(identity, dict) or not isinstance(length, int) or length < 0:
            raise ValueError(f"a run of {length!r} bytes")
        return identity

    @property
    def length(self) -> int:
        """Bytes of the output file whose answers are entered."""
        return self.database.execute("SELECT length FROM run").fetchone()[0]

    @property
    def inode(self) -> str | None:
        """What told the output file from others when its length was entered, if it was."""
        row = self.database.execute("SELECT inode FROM output").fetchone()
        return row and row[0]

    @property
    def count(self) -> int:
        """Images that have an answer."""
        return self.database.execute("SELECT count(*) FROM images WHERE reason IS NULL").fetchone()[0]

    def failed(self) -> Iterator[Answer]:
        """The images that cannot be decoded, by name."""
        rows = self.database.execute("SELECT file, reason FROM images WHERE reason IS NOT NULL ORDER BY file")
        return (Answer(os.fsdecode(file), [], reason) for file, reason in rows)

    def new(self, files: Iterable[str | Path]) -> Iterator[str]:
        """The files that have no answer yet: new ones, and failed ones that were written again."""
        for file in files:
            try:
                stamp, settled = _stamp(file)
            except OSError:  # deleted while the folder was read
                continue
            query = "SELECT stamp, reason FROM images WHERE file = ?"
            row = self.database.execute(query, (os.fsencode(file),)).fetchone()
            if settled and (row is None or (row[1] is not None and row[0] != stamp)):
                yield str(file)

    def is_entered(self, file: str) -> bool:
        """Whether an image has an answer."""
        query = "SELECT 1 FROM images WHERE file = ? AND reason IS NULL"
        return self.database.execute(query, (os.fsencode(file),)).fetchone() is not None

    def enter(self, answers: Iterable[Answer], length: int, inode: str | None = None) -> None:
        """Enters answers that were written to the output file, now of `length` bytes."""
        with self.database:
            for answer in answers:
                try:
                    stamp = _stamp(answer.file)[0]
                except OSError:
                    stamp = ""
                row = (os.fsencode(answer.file), stamp, answer.reason)
                self.database.execute("INSERT OR REPLACE INTO images VALUES (?, ?, ?)", row)
            self.database.execute("UPDATE run SET length = ?", (length,))
            self.database.execute("DELETE FROM output")
            self.database.execute("INSERT INTO output VALUES (?)", (inode,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.database.close()
        if isinstance(error, sqlite3.Error):
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> InputError | WriteError:
        name = getattr(error, "sqlite_errorname", "")
        refused = next((number for beginning, number in REFUSALS.items() if name.startswith(beginning)), None)
        if refused is not None:
            return write_error(self.path or tempfile.gettempdir(), self._on_this_disk(refused))
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            return InputError(
                f"expected {self.path} for this watch alone, found another program using it; close that one, and "
                "repeat the command, which goes on where it stopped"
            )
        return self._damaged(str(error))

    def _on_this_disk(self, number: int) -> int:
        """Where SQLite has one name for several reasons, the one that holds here."""
        folder = Path(self.path).absolute().parent
        if number == errno.EACCES and not folder.is_dir():
            return errno.ENOENT
        place = self.path if Path(self.path).is_file() else folder
        read_only = hasattr(os, "statvfs") and os.statvfs(place).f_flag & os.ST_RDONLY
        return errno.EROFS if number == errno.EACCES and read_only else number

    def _damaged(self, found: str) -> InputError:
        output = str(self.path).removesuffix(SUFFIX)
        return InputError(
            f"expected the ledger of --watch at {self.path}, found: {found}; move it away together with {output} to "
            "start again, or name another --output_file"
        )


def _stamp(file: str | Path) -> tuple[str, bool]:
    """What changes when a file is written to, and whether writing has ended."""
    status = os.stat(file)
    age = time.time() - status.st_mtime
    # A time in the future comes from another clock and counts as settled.
    return f"{status.st_size} {status.st_mtime_ns}", not 0 <= age < SETTLED_S
