"""Out-of-fold predictions: each image by the one network of a cross-validation that was not trained on it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from seedling_hf.data.images import a_few
from seedling_hf.errors import InputError
from seedling_hf.escaping import format_count
from seedling_hf.evaluation.calibration import calibrate, sure_threshold
from seedling_hf.evaluation.evaluator import LabelledProbabilities, compute_metrics
from seedling_hf.evaluation.report import FoldFigures, Provenance, Report, make_report
from seedling_hf.inference.familiarity import FAMILIAR_SHARE
from seedling_hf.inference.judgement import Certainty

# In probabilities.npz: of the images as they are, and with their values stretched to the whole range.
DISTANCES, STRETCHED_DISTANCES = "distances", "stretched_distances"


@dataclass(frozen=True)
class OutOfFold:
    """The predictions of all folds together, in the order of the files.

    Attributes:
        fold: (N,) the number of the fold that each image belongs to, from 1.
        distances: (N,) how far each image is from the training images of its network, as it is and perhaps stretched;
            only what every fold has.
        folds: The figures of each fold.
    """

    found: LabelledProbabilities
    class_names: list[str]
    fold: np.ndarray
    distances: dict[str, np.ndarray]
    folds: list[FoldFigures]

    @property
    def familiarity_threshold(self) -> float | None:
        """The distance within which `FAMILIAR_SHARE` of the images are, in each form; None without distances."""
        limits = [float(np.quantile(distances, FAMILIAR_SHARE)) for distances in self.distances.values()]
        return max(limits, default=None)

    @property
    def confidence_threshold(self) -> float:
        """The probability from which on a familiar answer is sure."""
        limit = self.familiarity_threshold
        is_familiar = np.full(len(self.fold), True) if limit is None else self.distances[DISTANCES] <= limit
        return sure_threshold(self.found.probabilities.max(1), self.found.correct, is_familiar)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What probabilities.npz has of all folds beside that of one run."""
        return {"fold": self.fold} | self.distances


def pool_folds(folders: Sequence[Path]) -> OutOfFold:
    """Joins the `probabilities.npz` and the `report.json` of runs, one for each fold in order.

    Raises:
        InputError: for a missing or damaged file, other classes, or an image in two folds.
    """
    archives = [_read(folder / "probabilities.npz") for folder in folders]
    seconds = [_read_report(folder)["provenance"]["seconds"] for folder in folders]
    class_names = archives[0]["class_names"].tolist()
    for folder, archive in zip(folders, archives, strict=True):
        if archive["class_names"].tolist() != class_names:
            raise InputError(
                f"expected the classes of {folders[0]} in {folder}, found others: "
                f"{a_few(sorted(set(class_names) ^ set(archive['class_names'].tolist())) or ['in another order'])}; "
                "train all folds on the same images"
            )
    files, first, counts = np.unique(
        np.concatenate([archive["files"] for archive in archives]), return_index=True, return_counts=True
    )
    if (counts > 1).any():
        twice = files[counts > 1].tolist()
        raise InputError(
            f"expected each image in one fold of {folders[0].parent}, found "
            f"{format_count(len(twice), 'image')} in several: {a_few(twice)}; train all folds on the same images"
        )
    joined = {
        name: np.concatenate([archive[name] for archive in archives])[first]
        for name in ("probabilities", "labels", DISTANCES, STRETCHED_DISTANCES)
        if all(name in archive for archive in archives)
    }
    distances = {
        name: joined[name] for name in (DISTANCES, STRETCHED_DISTANCES) if DISTANCES in joined and name in joined
    }
    found = LabelledProbabilities(joined["probabilities"], joined["labels"], files.tolist(), sum(seconds))
    fold = np.repeat(np.arange(1, len(archives) + 1), [len(archive["labels"]) for archive in archives])
    figures = [_measure(number, archive, class_names) for number, archive in enumerate(archives, 1)]
    return OutOfFold(found, class_names, fold[first], distances, figures)


def report_folds(pooled: OutOfFold, folders: Sequence[Path], images: str, *, seed: int) -> Report:
    """The report on all images together, of which `images` is the name, with the figures of each fold.

    Args:
        folders: Of the runs that were pooled, all in one folder.
        seed: As for `evaluate_model`.
    """
    found, count, limit = pooled.found, len(folders), pooled.familiarity_threshold
    certainty = Certainty(pooled.confidence_threshold, limit is not None)
    if limit is not None:
        found = replace(found, unfamiliarity=pooled.distances[DISTANCES] / limit)
    provenance = replace(
        Provenance(**_read_report(folders[0])["provenance"]),
        model=f"{folders[0].parent} ({count} folds)",
        data=f"the images of {images}, each by the network that was not trained on it",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(found.seconds, 2),
        images_per_second=round(len(found.labels) / max(found.seconds, 1e-9), 1),
    )
    calibration = calibrate(found.probabilities, found.labels, seed=seed, fitted_on="the images of all folds")
    report = make_report(found, pooled.class_names, provenance, calibration=calibration, certainty=certainty, seed=seed)
    return replace(report, folds=pooled.folds)


def _measure(number: int, archive: dict[str, np.ndarray], class_names: Sequence[str]) -> FoldFigures:
    figures = compute_metrics(archive["probabilities"], archive["labels"], class_names)
    names = ("num_examples", "accuracy", "accuracy_interval", "macro_f1", "expected_calibration_error")
    return FoldFigures(number, **{name: figures[name] for name in names})


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        count, num_classes = arrays["probabilities"].shape
        if {len(arrays[name]) for name in ("labels", "files", DISTANCES, STRETCHED_DISTANCES) if name in arrays} != {
            count
        }:
            raise ValueError("arrays of different lengths")
        if len(arrays["class_names"]) != num_classes:
            raise ValueError("probabilities of other classes")
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(
            f"expected the probabilities of a finished run in {path}, found: {error}; train that fold again"
        ) from error
    return arrays


def _read_report(folder: Path) -> dict[str, Any]:
    path = folder / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        report["provenance"]["seconds"] + 0
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"expected the report of a finished run in {path}, found: {error}; train that fold again"
        ) from error
    return report
