"""Accuracy, F1, confusions and calibration of a classifier, from its probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from seedling_hf.data.images import a_few
from seedling_hf.errors import InputError

CALIBRATION_BINS = 15  # arXiv 1706.04599, section 5
CONFIDENCE = 0.95
# Giselsson et al., arXiv 1711.05458: the species of their images.
CROPS = frozenset({"Common wheat", "Maize", "Sugar beet"})
WEEDS = frozenset(
    {
        "Black-grass", "Charlock", "Cleavers", "Common Chickweed", "Fat Hen", "Loose Silky-bent", "Scentless Mayweed",
        "Shepherds Purse", "Small-flowered Cranesbill",
    }
)  # fmt: skip
PLANT_SEEDLINGS = CROPS | WEEDS
HARD_PAIR = ("Black-grass", "Loose Silky-bent")


@dataclass(frozen=True)
class Mistakes:
    """How many of `total` images were mistaken: `share` with its 95% interval (Wilson)."""

    count: int
    total: int
    share: float
    interval: list[float]


@dataclass(frozen=True)
class CropWeedCosts:
    """What mistakes cost in a field: a crop taken for a weed is weeded out, a weed taken for a crop is left to grow.

    `accuracy` is that of crop against weed; `species` have `kind` (crop or weed), `count` of the mistaken and `total`.
    """

    crops_lost: Mistakes
    weeds_missed: Mistakes
    accuracy: float
    species: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class HardPair:
    """How often two classes are taken for each other: `share` is of the `total` images of the two."""

    pair: list[str]
    first_as_second: int
    second_as_first: int
    total: int
    share: float
    share_of_mistakes: float


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927, Journal of the American Statistical Association 22, p. 209).

    It stays between 0 and 1 and keeps its width where every trial succeeds, unlike the textbook's normal interval.
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean negative log-probability of the truth; finite also where the truth has no probability."""
    truth = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(truth, np.finfo(np.float64).tiny)).mean())


def reliability_bins(
    confidence: np.ndarray, correct: np.ndarray, num_bins: int = CALIBRATION_BINS
) -> list[dict[str, float | int]]:
    """Bins of equal width that hold an image: `low`, `high`, `count`, mean `confidence` and `accuracy`.

    Confidence (N,) is the probability of each prediction; a bin includes its upper edge.
    """
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    return [
        {
            "low": number / num_bins,
            "high": (number + 1) / num_bins,
            "count": int((bins == number).sum()),
            "confidence": float(confidence[bins == number].mean()),
            "accuracy": float(correct[bins == number].mean()),
        }
        for number in np.unique(bins).tolist()
    ]


def expected_calibration_error(bins: Sequence[dict[str, float | int]]) -> float:
    """The mean distance of confidence from accuracy over `reliability_bins` (arXiv 1706.04599, equation 3)."""
    gaps = [abs(row["accuracy"] - row["confidence"]) for row in bins]
    return float(np.average(gaps, weights=[row["count"] for row in bins]))


def classification_metrics(
    probabilities: ArrayLike, labels: ArrayLike, class_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Every figure of a report, of plain numbers and lists only, so that it goes into JSON as it is.

    Args:
        probabilities: (N, C), each row adding up to 1.
        labels: (N,) indices of the true classes.
        class_names: "0", "1", … if None.

    Returns:
        `accuracy` and `accuracy_interval` (95%, Wilson), `macro_f1` (mean over the classes that occur among labels or
        predictions, as in scikit-learn), `num_examples`, `per_class` {name: precision, recall, f1, support; 0 where
        undefined}, `confusion_matrix` (rows are the truth), `expected_calibration_error` and `loss` (mean negative
        log-probability of the truth).

    Raises:
        InputError: for shapes that do not fit, labels out of range, or rows that are not probabilities.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    class_names = _check(probabilities, labels, class_names)
    predictions, classes = probabilities.argmax(1), range(len(class_names))
    correct = predictions == labels
    scores = precision_recall_fscore_support(labels, predictions, labels=classes, zero_division=0)
    return {
        "accuracy": float(correct.mean()),
        "accuracy_interval": list(wilson_interval(int(correct.sum()), len(labels))),
        "macro_f1": float(scores[2][np.union1d(labels, predictions)].mean()),
        "num_examples": len(labels),
        "loss": negative_log_likelihood(probabilities, labels),
        "expected_calibration_error": expected_calibration_error(reliability_bins(probabilities.max(1), correct)),
        "per_class": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for name, p, r, f, n in zip(class_names, *scores, strict=True)
        },
        "confusion_matrix": confusion_matrix(labels, predictions, labels=classes).tolist(),
    }


def crop_weed_costs(matrix: ArrayLike, class_names: Sequence[str]) -> CropWeedCosts | None:
    """The costs of mistakes from counts (C, C), whose rows are the truth.

    None where not all classes are of `PLANT_SEEDLINGS`, or crops or weeds have no image.
    """
    matrix = np.asarray(matrix)
    is_crop = np.array([name in CROPS for name in class_names])
    totals = matrix.sum(1)
    if not set(class_names) <= PLANT_SEEDLINGS or not totals[is_crop].any() or not totals[~is_crop].any():
        return None
    mistaken = np.where(is_crop, matrix[:, ~is_crop].sum(1), matrix[:, is_crop].sum(1))

    def count(rows: np.ndarray) -> Mistakes:
        count, total = int(mistaken[rows].sum()), int(totals[rows].sum())
        return Mistakes(count, total, count / total, list(wilson_interval(count, total)))

    return CropWeedCosts(
        crops_lost=count(is_crop),
        weeds_missed=count(~is_crop),
        accuracy=float(1 - mistaken.sum() / totals.sum()),
        species={
            name: {"kind": "crop" if crop else "weed", "count": int(count), "total": int(total)}
            for name, crop, count, total in zip(class_names, is_crop, mistaken, totals, strict=True)
            if total
        },
    )


def confused_pair(matrix: ArrayLike, class_names: Sequence[str], pair: tuple[str, str]) -> HardPair | None:
    """How often two classes are taken for each other; None where the model lacks one, or neither has an image."""
    if not set(pair) <= set(class_names):
        return None
    matrix, (first, second) = np.asarray(matrix), (list(class_names).index(name) for name in pair)
    total = int(matrix[[first, second]].sum())
    if not total:
        return None
    there, back = int(matrix[first, second]), int(matrix[second, first])
    mistakes = int(matrix.sum() - np.trace(matrix))
    return HardPair(list(pair), there, back, total, (there + back) / total, (there + back) / max(1, mistakes))


def _check(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None) -> list[str]:
    """The names of the classes, once everything fits together."""
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise InputError(
            f"expected probabilities of shape (N, C) and labels of shape (N,), N ≥ 1, found {probabilities.shape} "
            f"and {labels.shape}"
        )
    num_classes = probabilities.shape[1]
    class_names = [str(i) for i in range(num_classes)] if class_names is None else list(class_names)
    if len(class_names) != num_classes or len(set(class_names)) != num_classes:
        raise InputError(
            f"expected {num_classes} different class names, found {len(class_names)}: {a_few(class_names, 12)}"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"expected labels that are whole numbers from 0 to {num_classes - 1}, found {labels.dtype} from "
            f"{labels.min()} to {labels.max()}"
        )
    if not np.isfinite(probabilities).all():
        raise InputError("expected finite probabilities, found infinite or NaN: the model's weights have diverged")
    if not (probabilities >= 0).all() or not np.allclose(probabilities.sum(1), 1, atol=1e-3):
        raise InputError("expected rows of probabilities that add up to 1, found others; apply a softmax to logits")
    return class_names
