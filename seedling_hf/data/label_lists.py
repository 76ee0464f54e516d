"""A list beside images that gives each its class: metadata.csv, .jsonl or .parquet with `file_name` and `label`.

This is the convention of the `imagefolder` builder of `datasets`. That reads a list wherever there is one, takes
numbers and missing labels as they are, and passes over images that are not listed; here these are refused, or counted.
"""

import json
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from seedling_hf.data.formats import HEIF_ADVICE, HEIF_SUFFIXES, is_image
from seedling_hf.data.images import a_few
from seedling_hf.data.listing import is_utf8
from seedling_hf.data.tables import read_columns, read_header
from seedling_hf.errors import InputError, first_line
from seedling_hf.escaping import one_line
from seedling_hf.paths import check_regular
from seedling_hf.spelling import find_near, spelling_key

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
COLUMNS = ("file_name", "label")
ADVICE = "call the column of the images file_name and that of their classes label"
SPLITS = frozenset({"train", "val", "validation", "test"})  # folders of these names hold splits
NUMBER = re.compile(r"[+-]?\d+")
ELSEWHERE = re.compile(r"/|\.\.(/|$)|[A-Za-z]:/")  # of a normalised path: absolute, or above the folder
MOST_NAMED = 3

Row = tuple[str, str]  # file relative to the folder, and class


def find_list(folder: Path) -> Path | None:
    """The list of labels in a folder; None for none, and where class folders lie beside lists without labels.

    Raises:
        InputError: for several lists, or one that cannot be read.
    """
    found = [folder / name for name in NAMES if (folder / name).exists()]
    if found and has_class_folders(folder):
        found = [path for path in found if has_labels(path)]
    if len(found) > 1:
        raise InputError(
            f"expected one list of labels in {folder}, found {' and '.join(path.name for path in found)}; keep one"
        )
    return found[0] if found else None


def has_labels(path: Path) -> bool:
    """Whether a list has the columns of files and labels.

    Raises:
        InputError: if it cannot be read.
    """
    return set(COLUMNS) <= set(_column_names(path))


def has_class_folders(folder: Path) -> bool:
    """Whether images lie in folders of a folder."""
    try:
        inside = [entry.path for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
        return any(is_image(name) for each in inside for name in os.listdir(each))
    except OSError:  # said where its images are listed
        return False


def read_list(path: Path, images: Sequence[str]) -> list[Row]:
    """The images that a list names and their classes, in the order that class folders would give: by class and file.

    Args:
        images: All images in the folder of the list and in the folders inside, relative to it.

    Raises:
        InputError: for a list without the columns `file_name` and `label`; for files that it names twice, that are
            missing, elsewhere or no images, or have no class; and for class folders that it does not agree with.
    """
    check_regular(path, "a list of labels")
    readers: dict[str, Callable[[Path], list[tuple[Any, Any]]]]
    readers = {".csv": _read_csv, ".jsonl": _read_lines, ".parquet": _read_parquet}
    cells = readers[path.suffix](path)
    labels = _check_labels(path, cells)
    files = _check_files(path, [file for file, _ in cells], images)
    rows = list(zip(files, labels, strict=True))
    _check_splits(path, files)
    _check_class_folders(path, rows, images)
    return sorted(rows, key=lambda row: (row[1], row[0]))


def is_number(label: str) -> bool:
    """Whether a label is the number of a class, whose name a list does not tell."""
    return NUMBER.fullmatch(label) is not None


# Cells


def _column_names(path: Path) -> list[str]:
    """The columns of a list, without reading the rest of it; of .jsonl those of its first line."""
    check_regular(path, "a list of labels")
    if path.suffix == ".csv":
        return read_header(path)
    if path.suffix == ".jsonl":
        return [name for _, line in zip(range(1), _lines(path), strict=False) for name in line]
    return _parquet(path, lambda file: file.schema_arrow.names)


def _read_csv(path: Path) -> list[tuple[Any, Any]]:
    cells = read_columns(path, COLUMNS, "a list of labels", ADVICE)
    for i, row in enumerate(cells):
        if not all(map(is_utf8, row)):
            raise InputError(f"expected UTF-8 in {path}, found {_place(path, i, ','.join(row))}; save it as UTF-8")
    return cells


def _read_lines(path: Path) -> list[tuple[Any, Any]]:
    lines = list(_lines(path))
    _check_columns(path, list(dict.fromkeys(name for line in lines for name in line)))
    return [tuple(line.get(name) for name in COLUMNS) for line in lines]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8-sig") as stream:
            for number, text in enumerate(stream, 1):
                line = json.loads(text) if text.strip() else None
                if line is not None and not isinstance(line, dict):
                    raise ValueError(f"line {number} is no object")
                if line is not None:
                    yield line
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"expected an object of JSON in each line of {path}, found: {first_line(error)}") from error


def _read_parquet(path: Path) -> list[tuple[Any, Any]]:
    from datasets import ClassLabel, Features

    _check_columns(path, _column_names(path))
    table = _parquet(path, lambda file: file.read(list(COLUMNS)))
    feature = Features.from_arrow_schema(table.schema)["label"]
    files, labels = (table[name].to_pylist() for name in COLUMNS)
    if isinstance(feature, ClassLabel):  # -1 stands for none
        labels = [None if number is None or number < 0 else feature.int2str(number) for number in labels]
    return list(zip(files, labels, strict=True))


def _parquet(path: Path, read: Callable[[Any], Any]) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            return read(file)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(f"expected a Parquet file at {path}, found: {first_line(error)}") from error


def _check_columns(path: Path, found: Sequence[str]) -> None:
    if not set(COLUMNS) <= set(found):
        raise InputError(
            f"expected the columns {' and '.join(COLUMNS)} in {path}, found {a_few(list(found)) or 'none'}; {ADVICE}"
        )


# What the cells say


def _check_labels(path: Path, cells: Sequence[tuple[Any, Any]]) -> list[str]:
    """The labels as text; a number is that of a class, which has its name from elsewhere."""
    empty = [label is None or not str(label).strip() for _, label in cells]
    without = [_place(path, i, file) for i, (file, _) in enumerate(cells) if empty[i]]
    if without:
        raise InputError(
            f"expected a label for each image in {path}, found {len(without)} without: {a_few(without, MOST_NAMED)}; "
            "write them, or remove these rows"
        )
    labels = []
    for i, (_, label) in enumerate(cells):
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise InputError(
                f"expected names of classes in the column label of {path}, found {_place(path, i, label)}; write names"
            )
        labels.append(str(label))
    spaced = [_place(path, i, repr(label)) for i, label in enumerate(labels) if label != label.strip()]
    if spaced:
        raise InputError(
            f"expected labels without spaces around them in {path}, found {len(spaced)} with: "
            f"{a_few(spaced, MOST_NAMED)}; remove the spaces"
        )
    return labels


def _check_files(path: Path, files: Sequence[Any], images: Sequence[str]) -> list[str]:
    """The files as they lie in the folder: relative, with slashes, each once, there, and images."""
    nameless = [_place(path, i) for i, file in enumerate(files) if not isinstance(file, str) or not file.strip()]
    if nameless:
        raise InputError(
            f"expected the name of a file in each row of {path}, found none in {a_few(nameless, MOST_NAMED)}; write "
            "it, or remove the row"
        )
    elsewhere = [_place(path, i, file) for i, file in enumerate(files) if _is_elsewhere(path.parent, file)]
    if elsewhere:
        raise InputError(
            f"expected files in {path.parent} in the column file_name of {path}, found {a_few(elsewhere, MOST_NAMED)}; "
            "write them relative to that folder"
        )
    files = [_normalise(path.parent, file) for file in files]
    rows: dict[str, int] = {}
    for i, file in enumerate(files):
        if rows.setdefault(file, i) != i:
            raise InputError(
                f"expected each image once in {path}, found {_place(path, i, file)} again; keep one of them"
            )
    if missing := [file for file in files if not (path.parent / file).is_file()]:
        named = [_propose(file, images) for file in missing[:MOST_NAMED]]
        raise InputError(
            f"expected the images that {path} lists, found {len(missing):,} of {len(files):,} missing: "
            f"{a_few([*named, *missing[MOST_NAMED:]], MOST_NAMED)}; correct file_name, restore them, or remove their "
            "rows"
        )
    if others := [file for file in files if not is_image(file)]:
        heif = all(Path(file).suffix.lower() in HEIF_SUFFIXES for file in others)
        raise InputError(
            f"expected images in the column file_name of {path}, found {a_few(others, MOST_NAMED)}, no images by their "
            f"suffix; {HEIF_ADVICE if heif else 'convert them to JPEG or PNG, or remove these rows'}"
        )
    return files


def _check_splits(path: Path, files: Sequence[str]) -> None:
    """Refuses one list for the folders of several splits, which would become one."""
    if len(splits := sorted({file.split("/")[0] for file in files if "/" in file} & SPLITS)) > 1:
        raise InputError(
            f"expected a list in each of {' and '.join(splits)} in {path.parent}, found {path.name} for all of them; "
            "write one into each, with file_name relative to it"
        )


def _check_class_folders(path: Path, rows: Sequence[Row], images: Sequence[str]) -> None:
    """Refuses class folders that the list does not name, or names otherwise."""
    expected = f"expected class folders or {path.name} in {path.parent}, found both"
    advice = f"remove {path.name} to use the folders, or correct it"
    classes = {label for _, label in rows}
    if others := [f"{file} is {label}" for file, label in rows if file.split("/")[0] in classes - {label}]:
        raise InputError(f"{expected}, which differ: in {path.name}, {a_few(others, MOST_NAMED)}; {advice}")
    keys = set(map(spelling_key, classes))
    unnamed = {file.split("/")[0] for file in images if "/" in file} - {file.split("/")[0] for file, _ in rows}
    if unnamed := sorted(folder for folder in unnamed if spelling_key(folder) in keys):
        raise InputError(f"{expected}: it lists no image of the folder {a_few(unnamed, MOST_NAMED)}; {advice}")


def _normalise(folder: Path, file: str) -> str:
    """A file with slashes and without . and .. inside, as `datasets` finds it; backslashes are those of Windows."""
    if "\\" in file and not (folder / file).is_file():
        file = file.replace("\\", "/")
    return posixpath.normpath(file)


def _is_elsewhere(folder: Path, file: str) -> bool:
    """Whether a file lies outside of a folder by its name; links may lead outside, as in class folders."""
    return ELSEWHERE.match(_normalise(folder, file)) is not None or "://" in file


def _propose(file: str, images: Sequence[str]) -> str:
    """A missing file, with the one that is probably meant: in a folder, with a suffix, or spelled otherwise."""
    name = file.lower()
    likely = (each for each in images if each.lower() == name or os.path.splitext(each)[0].lower() == name)
    likely = next(likely, None) or next((each for each in images if each.lower().endswith(f"/{name}")), None)
    likely = likely or find_near(file, images)
    return f"{file} (did you mean {likely}?)" if likely else file


def _place(path: Path, position: int, what: object = "") -> str:
    """What stands at a position, and its row in the file; the first row of a CSV is its header."""
    row = f"row {position + (2 if path.suffix == '.csv' else 1)}"
    return f"{one_line(what)} ({row})" if what != "" else row
