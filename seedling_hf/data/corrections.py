"""Corrected labels: a CSV names images whose class is another one, or that training leaves out.

Only training images are corrected. Validation images keep the labels that their folders give, so that figures with and
without corrections are of the same images and labels.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from seedling_hf.data.images import a_few
from seedling_hf.data.pool import ImagePool, Row, propose_names
from seedling_hf.data.tables import read_columns
from seedling_hf.errors import InputError
from seedling_hf.escaping import format_count, one_line, unescape_cell
from seedling_hf.files import write_csv, writing
from seedling_hf.origin import is_ours

KEPT = "corrections.csv"  # in the folder of a run
COLUMNS = "file", "label"  # others may stand beside them
ADVICE = "change the labels.csv that inspect_dataset --predictions writes"

Labels = dict[str, str]  # the class of each file, empty for an image that is left out

logger = logging.getLogger(__name__)


def read_labels(path: str | os.PathLike) -> Labels:
    """The class that a CSV with the columns `file` and `label` gives each file, empty where it is to be left out.

    Raises:
        InputError: if it is no such file, or names a file twice.
    """
    labels: Labels = {}
    cells = read_columns(path, COLUMNS, "a list of labels", ADVICE)
    for number, (file, label) in enumerate((map(unescape_cell, row) for row in cells), 2):
        if file in labels:
            raise InputError(
                f"expected each file once in {path}, found {one_line(file)} again in row {number}; keep one of them"
            )
        labels[file] = label if label.strip() else ""
    return labels


def read_corrections(
    path: str | os.PathLike | None, pools: Mapping[str, ImagePool], class_names: Sequence[str]
) -> Labels:
    """Labels for images of some pools, as `read_labels` gives them; none without a path.

    Raises:
        InputError: for an unknown image or class, with a known name that it nearly is.
    """
    if path is None:
        return {}
    labels = read_labels(path)
    files = {file for pool in pools.values() for file, _ in pool.rows}
    if unknown := sorted(labels.keys() - files):
        raise InputError(
            f"expected the images of {pools['train'].where} in the column file of {path}, found "
            f"{propose_names(unknown, sorted(files))}; name them as split.csv does, by class folder and file"
        )
    if unknown := sorted(set(labels.values()) - {"", *class_names}):
        raise InputError(
            f"expected the classes of {pools['train'].where} in the column label of {path}, found "
            f"{propose_names(unknown, class_names)}; use {a_few(class_names, 12)}, or an empty cell to leave an image "
            "out"
        )
    return labels


def correct_training_images(
    labels: Labels, pools: Mapping[str, ImagePool], members: Mapping[str, list[int]], path: str | os.PathLike
) -> tuple[dict[str, ImagePool], dict[str, list[int]]]:
    """Pools and members of all splits with the labels of training images corrected; says how many those are.

    Args:
        labels: As `read_labels` gives them, checked by `check_labels`.
        pools: Of the splits that have images of their own; the others are drawn from `train`.
        members: For each split, positions in its pool.
    """
    pools = {split: pools.get(split, pools["train"]) for split in members}
    changed = {split: _find_changes(labels, pools[split].rows, found) for split, found in members.items()}
    train = pools["train"]
    left_out = {i for i in changed["train"] if not labels[train.rows[i][0]]}
    others = sum(len(found) for split, found in changed.items() if split != "train")
    logger.info(
        "%s: %s corrected, %d left out%s", path,
        format_count(len(changed["train"]) - len(left_out), "training image"), len(left_out),
        f"; {format_count(others, 'image')} not trained on stay as given" if others else "",
    )  # fmt: skip
    corrected = replace(train, rows=[(file, labels.get(file) or label) for file, label in train.rows])
    return pools | {"train": corrected}, {**members, "train": [i for i in members["train"] if i not in left_out]}


def keep_corrections(labels: Labels | None, folder: str | os.PathLike) -> None:
    """Writes the labels that a run was given into its folder; without any, those of an earlier run are removed."""
    path = Path(folder, KEPT)
    if labels is not None:
        write_csv(path, COLUMNS, sorted(labels.items()))
    elif is_ours(path):
        with writing(path):
            path.unlink(missing_ok=True)


def has_kept(labels: Labels | None, folder: str | os.PathLike) -> bool:
    """Whether the run in a folder was given these labels."""
    path = Path(folder, KEPT)
    try:
        return (read_labels(path) if path.exists() else None) == labels
    except InputError:
        return False


def _find_changes(labels: Labels, rows: Sequence[Row], members: Sequence[int]) -> list[int]:
    """Those of some rows to which other labels are given, or none."""
    return [i for i in members if labels.get(rows[i][0], rows[i][1]) != rows[i][1]]
