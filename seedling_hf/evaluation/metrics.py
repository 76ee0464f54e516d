"""Accuracy, F1, confusions and calibration of a classifier, from its probabilities."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from seedling_hf.errors import InputError

CALIBRATION_BINS = 15  # arXiv 1706.04599, section 5
NORMAL_QUANTILE = 1.959963984540054  # two-sided 95 %
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


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927, Journal of the American Statistical Association 22, p. 209).

    It stays inside 0 and 1 and keeps its width where every trial succeeds, unlike the textbook's normal one.
    """
    share, square = successes / trials, NORMAL_QUANTILE**2
    middle = (share + square / (2 * trials)) / (1 + square / trials)
    half = NORMAL_QUANTILE * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2)) / (1 + square / trials)
    return max(0.0, middle - half), min(1.0, middle + half)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, num_bins: int = CALIBRATION_BINS) -> float:
    """The mean distance of confidence from accuracy over bins of equal width (arXiv 1706.04599, equation 3).

    Args:
        confidence: (N,) probability of each answer.
        correct: (N,) whether the answer is right.
        num_bins: Bins between 0 and 1; a bin holds its upper edge.
    """
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, weights=correct.astype(float) - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(confidence))


def classification_metrics(
    probabilities: ArrayLike, labels: ArrayLike, class_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Every figure of a report, of plain numbers and lists only, so that it goes into JSON as it is.

    Args:
        probabilities: (N, C), each row adding up to 1.
        labels: (N,) indices of the true classes.
        class_names: C names; "0", "1", … if None.

    Returns:
        `accuracy` and `accuracy_interval` (95 %, Wilson), `macro_f1` (mean over the classes that occur among labels or
        answers, as scikit-learn has it), `num_examples`, `per_class` {name: precision, recall, f1, support; 0 where
        undefined}, `confusion_matrix` (rows are the truth), `expected_calibration_error` and `loss` (mean negative
        log-probability of the truth).

    Raises:
        InputError: for shapes that do not fit, labels out of range, or rows that are no probabilities.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise InputError(
            f"expected probabilities of shape (N, C) and labels of shape (N,), N ≥ 1, found {probabilities.shape} "
            f"and {labels.shape}"
        )
    num_classes = probabilities.shape[1]
    class_names = [str(i) for i in range(num_classes)] if class_names is None else list(class_names)
    if len(class_names) != num_classes or len(set(class_names)) != num_classes:
        raise InputError(f"expected {num_classes} different class names, found {class_names}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"expected labels that are whole numbers from 0 to {num_classes - 1}, found {labels.dtype} from "
            f"{labels.min()} to {labels.max()}"
        )
    if not np.isfinite(probabilities).all():
        raise InputError("expected finite probabilities, found infinite or NaN: the model's weights have run away")
    if not (probabilities >= 0).all() or not np.allclose(probabilities.sum(1), 1, atol=1e-3):
        raise InputError("expected rows of probabilities that add up to 1, found others; apply a softmax to logits")

    answers, confidence = probabilities.argmax(1), probabilities.max(1)
    correct, classes = answers == labels, range(num_classes)
    precision, recall, f1, support = precision_recall_fscore_support(labels, answers, labels=classes, zero_division=0)
    occurring = np.union1d(labels, answers)
    truth_probability = probabilities[np.arange(len(labels)), labels].clip(np.finfo(np.float64).tiny)
    return {
        "accuracy": float(correct.mean()),
        "accuracy_interval": list(wilson_interval(int(correct.sum()), len(labels))),
        "macro_f1": float(f1[occurring].mean()),
        "num_examples": len(labels),
        "loss": float(-np.log(truth_probability).mean()),
        "expected_calibration_error": expected_calibration_error(confidence, correct),
        "per_class": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for name, p, r, f, n in zip(class_names, precision, recall, f1, support, strict=True)
        },
        "confusion_matrix": confusion_matrix(labels, answers, labels=classes).tolist(),
    }


def crop_weed_costs(matrix: ArrayLike, class_names: Sequence[str]) -> dict[str, Any] | None:
    """What mistakes cost in a field: a crop taken for a weed is weeded out, a weed taken for a crop is left to grow.

    Args:
        matrix: (C, C) counts, rows are the truth.
        class_names: C names.

    Returns:
        None where not all classes are of `PLANT_SEEDLINGS`, or crops or weeds have no image. Else `crops_lost` and
        `weeds_missed` ({count, total, share, interval: 95 %, Wilson}), `accuracy` of crop against weed, and `species`:
        by name `kind` (crop or weed), `count` of the mistaken and `total`.
    """
    matrix = np.asarray(matrix)
    is_crop = np.array([name in CROPS for name in class_names])
    totals = matrix.sum(1)
    if not set(class_names) <= PLANT_SEEDLINGS or not totals[is_crop].any() or not totals[~is_crop].any():
        return None
    mistaken = np.where(is_crop, matrix[:, ~is_crop].sum(1), matrix[:, is_crop].sum(1))

    def cost(rows: np.ndarray) -> dict[str, Any]:
        count, total = int(mistaken[rows].sum()), int(totals[rows].sum())
        return {
            "count": count,
            "total": total,
            "share": count / total,
            "interval": list(wilson_interval(count, total)),
        }

    return {
        "crops_lost": cost(is_crop),
        "weeds_missed": cost(~is_crop),
        "accuracy": float(1 - mistaken.sum() / totals.sum()),
        "species": {
            name: {"kind": "crop" if crop else "weed", "count": int(count), "total": int(total)}
            for name, crop, count, total in zip(class_names, is_crop, mistaken, totals, strict=True)
            if total
        },
    }


def confused_pair(matrix: ArrayLike, class_names: Sequence[str], pair: tuple[str, str]) -> dict[str, Any] | None:
    """Two species and each other: `pair`, `first_as_second`, `second_as_first`, `total` of both, `share` of the two.

    None where the model does not know both, or neither has an image.
    """
    if not set(pair) <= set(class_names):
        return None
    matrix, (first, second) = np.asarray(matrix), (list(class_names).index(name) for name in pair)
    total = int(matrix[[first, second]].sum())
    there, back = int(matrix[first, second]), int(matrix[second, first])
    if not total:
        return None
    return {
        "pair": list(pair),
        "first_as_second": there,
        "second_as_first": back,
        "total": total,
        "share": (there + back) / total,
        "share_of_mistakes": (there + back) / max(1, int(matrix.sum() - np.trace(matrix))),
    }


def __getattr__(name: str) -> type:
    """Makes `ClassificationMetric` when first asked for: `import evaluate` takes about eight seconds."""
    if name != "ClassificationMetric":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import evaluate
    from datasets import Features, List, Value

    class ClassificationMetric(evaluate.Metric):
        """`classification_metrics` as a metric of `evaluate`: a local class, so that it needs no network.

        `compute(predictions=probabilities (N, C), references=labels (N,), class_names=…)`; batches may come before by
        `add_batch(predictions=…, references=…)`.
        """

        def __init__(self, **kwargs: Any) -> None:
            # In memory there is no cache file for two processes to fight over.
            super().__init__(**{"keep_in_memory": True, **kwargs})

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description="Accuracy with its interval, F1, confusions and calibration of a classifier.",
                citation="",
                inputs_description="predictions: probabilities (N, C); references: indices of the true classes (N,).",
                features=Features({"predictions": List(Value("float64")), "references": Value("int64")}),
            )

        def _compute(
            self, predictions: list[list[float]], references: list[int], class_names: Sequence[str] | None = None
        ) -> dict[str, Any]:
            return classification_metrics(predictions, references, class_names)

    ClassificationMetric.__qualname__ = "ClassificationMetric"
    globals()["ClassificationMetric"] = ClassificationMetric
    return ClassificationMetric
