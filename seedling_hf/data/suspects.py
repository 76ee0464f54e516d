"""Labels that look wrong, by what a model answers to images that it was not trained on: confident learning.

Northcutt et al., arXiv 1911.00068, section 3, as cleanlab counts it: a class's threshold is the mean probability that
its own images get, images above the threshold of another class than their own are counted as having a wrong label, and
so many are listed, those first whose label is least probable beside the answer.
"""

import csv
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from zipfile import is_zipfile

import numpy as np

from seedling_hf.data.corrections import read_labels
from seedling_hf.data.images import a_few
from seedling_hf.data.pool import ImagePool
from seedling_hf.data.splits import read_split_csv
from seedling_hf.errors import InputError, require_package
from seedling_hf.escaping import one_line, unescape_cell
from seedling_hf.files import write_csv
from seedling_hf.origin import LABELS, check_ours
from seedling_hf.paths import check_regular

ARRAYS = ("probabilities", "files", "class_names")  # of probabilities.npz; its labels are those of the folders
COLUMNS = ("file", "label", "prediction", "probability", "label_probability")  # of predictions.csv
HEADER = ("file", "label", "suggestion", "margin")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions:
    """What a model answers: probabilities (N, C) of the classes for each file, named as in split.csv."""

    path: str
    files: list[str]
    class_names: list[str]
    probabilities: np.ndarray


@dataclass(frozen=True)
class LabelledImage:
    """An image of a tree: `path` in the tree, `file` as split.csv names it, and its class."""

    path: str
    file: str
    label: str


@dataclass(frozen=True)
class Suspect:
    """A label that looks wrong: `suggestion` is the model's answer, and `margin` how much more probable that is."""

    file: str  # in the tree
    name: str  # as split.csv names it
    label: str
    suggestion: str
    probability: float
    label_probability: float
    margin: float


def look_at_labels(path: str | os.PathLike, folder: Path, pools: Mapping[str, ImagePool]) -> tuple[int, list[Suspect]]:
    """What `find_suspects` gives for the images that pools list in a folder, with a warning of those trained on.

    Raises:
        InputError: as `read_predictions` and `find_suspects` do.
    """
    predictions = read_predictions(path)
    warn_of_training_images(predictions)
    images = [
        LabelledImage(str(Path(pool.where, file).relative_to(folder)), file, label)
        for pool in pools.values()
        for file, label in pool.rows
    ]
    return find_suspects(predictions, images)


def read_predictions(path: str | os.PathLike) -> Predictions:
    """The probabilities.npz or predictions.csv of a run or of `evaluate`, or the one in their folder.

    predictions.csv holds the probabilities of the answer and of the label; what is left is spread over the other
    classes, so that the order is exact, and how many are suspects almost.

    Raises:
        InputError: if it is neither of them.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "probabilities.npz" if (path / "probabilities.npz").exists() else path / "predictions.csv"
    check_regular(path, "--predictions")
    read = _read_arrays if path.suffix == ".npz" else _read_rows
    try:
        predictions = read(path)
    except Exception as error:  # readers fail in many ways on a damaged archive, tokenize's among them
        reason = one_line(getattr(error, "strerror", None) or error)
        raise InputError(
            f"expected the predictions.csv or probabilities.npz that train and evaluate write at {path}, found "
            f"{reason[:200]}; check --predictions"
        ) from error
    seen: set[str] = set()
    again = [file for file in predictions.files if file in seen or seen.add(file)]
    if again:
        raise InputError(f"expected each image once in {path}, found {a_few(again, 3)} again; use those of one run")
    return predictions


def find_suspects(predictions: Predictions, images: Sequence[LabelledImage]) -> tuple[int, list[Suspect]]:
    """The images whose label looks wrong, the most suspicious first, and how many images have predictions.

    Raises:
        InputError: if the predictions are not for these images and classes, or cleanlab is missing.
    """
    require_package("cleanlab", "--predictions")
    from cleanlab.filter import find_label_issues

    known = _match(predictions, images)
    number_of = {name: number for number, name in enumerate(predictions.class_names)}
    if unknown := sorted({image.label for image in known.values()} - number_of.keys()):
        raise InputError(
            f"expected predictions for the class {a_few(unknown, 3)}, found only those for "
            f"{a_few(predictions.class_names, 12)} in {predictions.path}; use those of a model for all these classes"
        )
    labels = np.array([number_of[image.label] for image in known.values()])
    if len(set(labels.tolist())) < 2:
        raise InputError(
            f"expected predictions for images of at least two classes in {predictions.path}, found one class; "
            "predict all of them"
        )
    rows, probabilities = np.arange(len(labels)), predictions.probabilities[list(known)]
    others = probabilities.copy()
    others[rows, labels] = -1
    answers = others.argmax(1)
    label_probabilities, probability = probabilities[rows, labels], probabilities[rows, answers]
    margins = probability - label_probabilities
    listed = find_label_issues(labels, probabilities, filter_by="low_normalized_margin", n_jobs=1)
    suspects = [
        Suspect(
            image.path, image.file, image.label, predictions.class_names[answers[i]],
            round(float(probability[i]), 4), round(float(label_probabilities[i]), 4), round(float(margins[i]), 4),
        )
        for i, image in enumerate(known.values()) if listed[i] and margins[i] > 0
    ]  # fmt: skip
    return len(known), sorted(suspects, key=lambda suspect: (-suspect.margin, suspect.file))


def warn_of_training_images(predictions: Predictions) -> None:
    """Warns of predictions for images that the model was trained on, where a file beside them tells."""
    trained = _find_trained_on(Path(predictions.path).parent)
    found = [file for file in predictions.files if file in trained]
    if found:
        logger.warning(
            "%d of the %d predictions are for images that the model was trained on, and whose wrong labels it may have "
            "learnt: %s; train --fold all/5 predicts each image by a model that has not seen it",
            len(found), len(predictions.files), a_few(found, 3),
        )  # fmt: skip


def write_candidates(suspects: Iterable[Suspect], path: str | os.PathLike) -> None:
    """Writes the suspects for `train --label_file`: as they are they change nothing, until somebody edits `label`."""
    write_csv(path, HEADER, ((s.name, s.label, s.suggestion, s.margin) for s in suspects))


def check_candidates(path: Path, labels: Mapping[str, str]) -> None:
    """Refuses to replace a list that somebody has edited, or another file.

    Args:
        labels: Of the images now; those that are gone have the class of their folder.

    Raises:
        InputError: that says which.
    """
    check_ours(path, "--output_dir", LABELS)
    if not path.exists() or not path.stat().st_size:
        return
    changed = [file for file, label in read_labels(path).items() if label != labels.get(file, file.rpartition("/")[0])]
    if changed:
        raise InputError(
            f"expected {path} as inspect_dataset wrote it, found that somebody has changed the labels of "
            f"{a_few(changed, 3)}; move it to keep them, or choose another --output_dir"
        )


def _match(predictions: Predictions, images: Sequence[LabelledImage]) -> dict[int, LabelledImage]:
    """The image of each prediction, by its position; those of other files are left out with a warning."""
    named: dict[str, list[LabelledImage]] = {}
    for image in images:
        named.setdefault(image.file, []).append(image)
    places = {i: named[file] for i, file in enumerate(predictions.files) if file in named}
    several = [found for found in places.values() if len(found) > 1]
    if several:
        raise InputError(
            f"expected each image of {predictions.path} in one split, found "
            f"{a_few([image.path for image in several[0]])}; give the folder of one split as --train_dir"
        )
    if not places:
        raise InputError(
            f"expected predictions for the images of --train_dir in {predictions.path}, found those of other files, "
            f"such as {a_few(predictions.files, 1) or 'none'}; name the folder that was predicted"
        )
    if len(places) < len(predictions.files):
        other = [file for file in predictions.files if file not in named]
        logger.warning(
            "%d of the %d predictions in %s are for files that are not in --train_dir: %s",
            len(other), len(predictions.files), predictions.path, a_few(other, 3),
        )  # fmt: skip
    return {i: found[0] for i, found in places.items()}


def _read_arrays(path: Path) -> Predictions:
    with open(path, "rb") as stream:
        if not is_zipfile(stream):
            raise ValueError("no archive of NumPy")
    with np.load(path, allow_pickle=False) as arrays:
        if not set(ARRAYS) <= set(arrays.files):
            raise ValueError(f"the arrays {', '.join(arrays.files)}")
        probabilities, files, names = (arrays[name] for name in ARRAYS)
    if probabilities.shape != (len(files), len(names)) or probabilities.dtype.kind != "f":
        raise ValueError(f"probabilities {probabilities.shape} of {len(files)} files and {len(names)} classes")
    return Predictions(str(path), files.tolist(), names.tolist(), _check_range(probabilities.astype(np.float64)))


def _read_rows(path: Path) -> Predictions:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.DictReader(stream)
        if not set(COLUMNS) <= set(reader.fieldnames or ()):
            raise ValueError(f"the columns {','.join(reader.fieldnames or ()) or 'of an empty file'}")
        rows = [[unescape_cell(row[name] or "") for name in COLUMNS] for row in reader]
    names = sorted({row[1] for row in rows} | {row[2] for row in rows})
    number_of = {name: number for number, name in enumerate(names)}
    probabilities = np.full((len(rows), len(names)), np.nan)
    for i, (_, label, answer, probability, label_probability) in enumerate(rows):
        probabilities[i, number_of[label]] = float(label_probability)
        probabilities[i, number_of[answer]] = float(probability)
        left = np.isnan(probabilities[i])
        probabilities[i, left] = max(0.0, 1 - np.nansum(probabilities[i])) / max(1, left.sum())
    return Predictions(str(path), [row[0] for row in rows], names, _check_range(probabilities))


def _check_range(probabilities: np.ndarray) -> np.ndarray:
    if not ((probabilities >= -1e-6) & (probabilities <= 1 + 1e-6)).all():  # false for NaN
        raise ValueError("probabilities that are not between 0 and 1")
    return probabilities.clip(0, 1)


def _find_trained_on(folder: Path) -> set[str]:
    """Files that a run's split.csv, or a report that found one, says the model was trained on."""
    trained: set[str] = set()
    for name in ("split.csv", "report.json"):
        check_regular(folder / name, f"the {name} beside the predictions")
    with suppress(InputError):
        trained |= {file for (file, _), split in read_split_csv(folder / "split.csv").items() if split == "train"}
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        found = json.loads((folder / "report.json").read_text(encoding="utf-8"))["trained_on"]
        trained |= set() if found["excluded"] else set(found["files"])
    return trained
