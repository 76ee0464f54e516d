"""Tables that people write: CSV with a header, of which some columns are read and the others may hold anything."""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from seedling_hf.errors import InputError
from seedling_hf.escaping import format_count, one_line
from seedling_hf.paths import check_regular


def read_header(path: str | os.PathLike) -> list[str]:
    """The names of the columns of a CSV, without the rest of the file; none for an empty one.

    Raises:
        InputError: if it cannot be read.
    """
    with _opening(path, f"expected a CSV at {path}") as reader:
        return next(reader, [])


def read_columns(path: str | os.PathLike, columns: Sequence[str], what: str, advice: str) -> list[tuple[str, ...]]:
    """The cells of some columns of a CSV, row by row, the first of which is row 2 of the file; without empty lines.

    Bytes that are not UTF-8 become surrogates (PEP 383).

    Args:
        what: What the file is, for messages.
        advice: What to do about another file; it ends the sentence.

    Raises:
        InputError: for a file without these columns, or with rows of another length.
    """
    check_regular(path, what)
    names = f"the columns {' and '.join(columns)}"
    expected = f"expected {names} in {path}, separated by commas"
    with _opening(path, f"expected a CSV with {names} at {path}") as reader:
        header = next(reader, [])
        # Before the rest, so that a huge file of another kind is not read completely.
        if any(header.count(name) != 1 for name in columns):
            raise InputError(f"{expected}, found {one_line(','.join(header))[:60] or 'nothing'}; {advice}")
        rows = [row for row in reader if row]
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{expected}, found {format_count(len(row), 'cell')} in row {number}; {advice}")
    places = [header.index(name) for name in columns]
    return [tuple(row[place] for place in places) for row in rows]


@contextmanager
def _opening(path: str | os.PathLike, expected: str) -> Iterator[Iterator[list[str]]]:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            yield csv.reader(stream)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{expected}, found: {error}") from error
