"""What has been answered of a watched folder, on the disk: a killed watch goes on with no row lost or doubled."""

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from seedling_hf.errors import InputError
from seedling_hf.inference.answers import Answer

# An image is looked at once nobody has written to it for so long.
SETTLED_S = 2.0


class Ledger:
    """The images that are answered, and the length of the output file with these answers.

    The answers to a batch are written first and entered here afterwards, together with the length of the file: what a
    kill leaves between the two is cut off the file, and made again.

    Args:
        path: A SQLite file; an empty string is a temporary one.
        identity: All that the answers depend on.

    Raises:
        InputError: if the former watch with this file was another one.
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
        elif json.loads(row[0]) != identity:
            former = json.loads(row[0])
            changed = [f"{k} {v!r} instead of {former.get(k)!r}" for k, v in identity.items() if v != former.get(k)]
            raise InputError(
                f"expected the watch that has its answers in {path}, found {', '.join(changed)}; repeat its command, "
                "or name another --output_file"
            )

    @property
    def length(self) -> int:
        """Bytes of the output file that are certain."""
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
        """Those of the files that are waiting for an answer: new ones, and bad ones that were written anew."""
        for file in files:
            try:
                stamp, settled = _stamp(file)
            except OSError:  # gone while the folder was read
                continue
            query = "SELECT stamp, reason FROM images WHERE file = ?"
            row = self.database.execute(query, (os.fsencode(file),)).fetchone()
            if settled and (row is None or (row[1] is not None and row[0] != stamp)):
                yield str(file)

    def enter(self, answers: Iterable[Answer], length: int) -> None:
        """Enters answers that the output file holds, which has `length` bytes now."""
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
    """What changes when a file is written to, and whether nobody writes to it any more."""
    status = os.stat(file)
    age = time.time() - status.st_mtime
    # A clock ahead of ours says nothing.
    return f"{status.st_size} {status.st_mtime_ns}", not 0 <= age < SETTLED_S
