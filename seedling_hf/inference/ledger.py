"""The answered images of a watched folder, on the disk: a killed watch resumes with no row missing or repeated."""

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from seedling_hf.errors import InputError
from seedling_hf.inference.answers import Answer
from seedling_hf.inference.journal import describe_changes

# An image is read once it has not been written to for this long.
SETTLED_S = 2.0


class Ledger:
    """The images that are answered, and the length of the output file with these answers.

    The answers to a batch are written first and entered here afterwards, together with the length of the file: after a
    kill between the two, the file is cut to that length and the batch is answered again.

    Args:
        path: Of a SQLite file; an empty string is a temporary one.
        identity: All that the answers depend on.

    Raises:
        InputError: if the former watch with this file had another identity.
    """

    def __init__(self, path: str | Path, identity: dict[str, Any]) -> None:
        self.database = sqlite3.connect(path)
        self.database.executescript(
            "CREATE TABLE IF NOT EXISTS images (file BLOB PRIMARY KEY, stamp TEXT, reason TEXT) WITHOUT ROWID;"
            "CREATE TABLE IF NOT EXISTS run (identity TEXT, length INTEGER);"
        )
        if (row := self.database.execute("SELECT identity FROM run").fetchone()) is None:
            self.database.execute("INSERT INTO run VALUES (?, 0)", (json.dumps(identity),))
            self.database.commit()
        elif changes := describe_changes(json.loads(row[0]), identity):
            raise InputError(
                f"expected to resume the watch with its answers in {path}, found {changes}; repeat its command, or "
                "name another --output_file"
            )

    @property
    def length(self) -> int:
        """Bytes of the output file whose answers are entered."""
        return self.database.execute("SELECT length FROM run").fetchone()[0]

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

    def enter(self, answers: Iterable[Answer], length: int) -> None:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.database.close()


def _stamp(file: str | Path) -> tuple[str, bool]:
    """What changes when a file is written to, and whether writing has ended."""
    status = os.stat(file)
    age = time.time() - status.st_mtime
    # A time in the future comes from another clock and counts as settled.
    return f"{status.st_size} {status.st_mtime_ns}", not 0 <= age < SETTLED_S
