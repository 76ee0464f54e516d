"""How far a classifier's probabilities can be trusted: temperature, reliability, coverage and risk, and chance."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from seedling_hf.errors import InputError

BOOTSTRAP_RESAMPLES = 2000
CONFIDENCE = 0.95
LARGEST_LOG_TEMPERATURE = 5.0
CURVE_POINTS = 101


def scale_probabilities(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities (N, C) that the logits give when divided by `temperature` (arXiv 1706.04599, section 4.2)."""
    # Softmax does not see what all logits of a row have in common, so the logarithms are logits.
    scaled = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)) / temperature
    scaled = np.exp(scaled - scaled.max(1, keepdims=True))
    return scaled / scaled.sum(1, keepdims=True)


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean negative log-probability of the truth."""
    truth = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(truth, np.finfo(np.float64).tiny)).mean())


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature at which the truth is most probable (arXiv 1706.04599, section 4.2).

    Args:
        probabilities: (N, C).
        labels: (N,) true classes.

    Returns:
        A number from 1/148 to 148: above 1 where the model was too sure of itself. Where every answer is right there
        is no best one, and the lower end is given.
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log: negative_log_likelihood(scale_probabilities(probabilities, np.exp(log)), labels),
        bounds=(-LARGEST_LOG_TEMPERATURE, LARGEST_LOG_TEMPERATURE),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def halves(num_examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the examples in two halves, drawn by chance with a seed."""
    order = np.random.default_rng(seed).permutation(num_examples)
    return np.sort(order[: num_examples // 2]), np.sort(order[num_examples // 2 :])


def cross_fit(probabilities: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Probabilities scaled by a temperature that was fitted on the other half: no image judges its own fit."""
    scaled = np.empty_like(probabilities)
    first, second = halves(len(labels), seed)
    for fitted, judged in ((first, second), (second, first)):
        scaled[judged] = scale_probabilities(
            probabilities[judged], fit_temperature(probabilities[fitted], labels[fitted])
        )
    return scaled


def reliability_bins(confidence: np.ndarray, correct: np.ndarray, num_bins: int) -> list[dict[str, float | int]]:
    """Bins of equal width that hold an image: `low`, `high`, `count`, mean `confidence` and `accuracy`."""
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


def coverage_risk(confidence: np.ndarray, correct: np.ndarray) -> dict[str, np.ndarray]:
    """What is kept, and how much of it is wrong, at each confidence below which answers are held back.

    Args:
        confidence: (N,) probability of each answer.
        correct: (N,) whether the answer is right.

    Returns:
        For each different confidence, the highest first, with answers of equal confidence kept together: `threshold`,
        `coverage` (share kept) and `risk` (share of the kept that is wrong).
    """
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    errors = np.cumsum(~correct[order].astype(bool))
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    kept = last + 1
    return {"threshold": ordered[last], "coverage": kept / len(ordered), "risk": errors[last] / kept}


def area_under_risk(confidence: np.ndarray, correct: np.ndarray) -> float:
    """The mean of the risk over all coverages 1/N to 1 (arXiv 1805.08206, section 3); 0 is best.

    Among answers of one confidence the order is left to chance: each of them counts with the risk of all.
    """
    curve = coverage_risk(confidence, correct)
    return float(np.average(curve["risk"], weights=np.diff(curve["coverage"], prepend=0.0)))


def not_sure_threshold(confidence: np.ndarray, correct: np.ndarray, target_accuracy: float) -> dict[str, Any]:
    """The lowest confidence at which the answers that are kept are right often enough.

    Args:
        confidence: (N,) probability of each answer.
        correct: (N,) whether the answer is right.
        target_accuracy: Least share of right answers among those with at least that confidence.

    Returns:
        `threshold`, and `coverage` and `accuracy` of what is kept; None for all three where no threshold is enough.
    """
    curve = coverage_risk(confidence, correct)
    enough = np.flatnonzero(1 - curve["risk"] >= target_accuracy)
    if not len(enough):
        return {"threshold": None, "coverage": None, "accuracy": None}
    lowest = enough[-1]
    return {
        "threshold": float(curve["threshold"][lowest]),
        "coverage": float(curve["coverage"][lowest]),
        "accuracy": float(1 - curve["risk"][lowest]),
    }


def cross_fit_not_sure(
    confidence: np.ndarray, correct: np.ndarray, target_accuracy: float, seed: int
) -> dict[str, float | None]:
    """What a threshold that was chosen on one half keeps of the other: `coverage`, and `accuracy` of what is kept."""
    kept = np.zeros(len(correct), dtype=bool)
    first, second = halves(len(correct), seed)
    for chosen, judged in ((first, second), (second, first)):
        threshold = not_sure_threshold(confidence[chosen], correct[chosen], target_accuracy)["threshold"]
        kept[judged] = threshold is not None and confidence[judged] >= threshold
    return {"coverage": float(kept.mean()), "accuracy": float(correct[kept].mean()) if kept.any() else None}


def bootstrap_intervals(matrix: Sequence[Sequence[int]] | np.ndarray, seed: int) -> dict[str, list[float]]:
    """95 % intervals by the percentiles of the bootstrap (Efron and Tibshirani 1993, section 13.3).

    Images drawn with replacement are counts drawn for the cells of the confusion matrix, so that alone is needed.

    Args:
        matrix: (C, C) counts, rows are the truth.
        seed: Of the draws.

    Returns:
        `accuracy` and `macro_f1`, each [low, high].
    """
    matrix = np.asarray(matrix)
    rows, columns = np.nonzero(matrix)
    counts = matrix[rows, columns]
    draws = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=BOOTSTRAP_RESAMPLES)
    figures = np.array([_accuracy_and_macro_f1(rows, columns, draw, len(matrix)) for draw in draws])
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(figures, [tail, 100 - tail], axis=0)
    return {"accuracy": [float(low[0]), float(high[0])], "macro_f1": [float(low[1]), float(high[1])]}


def calibrate(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int,
    num_bins: int,
    fitted: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Calibration before and after temperature scaling.

    Args:
        probabilities: (N, C) on the images that judge.
        labels: (N,) their classes.
        seed: Of the halves.
        num_bins: Bins of the reliability diagram.
        fitted: Probabilities and labels of the other images that the temperature is fitted on. If None it is fitted
            on these, all for `temperature`, and for the figures one half for the other.

    Returns:
        `temperature`, `cross_fitted`, `num_fitted`, and `before` and `after`, each with
        `expected_calibration_error`, `loss` and `bins`.

    Raises:
        InputError: for a single image without others to fit on.
    """
    if fitted is None and len(labels) < 2:
        raise InputError(f"expected at least 2 images to fit a temperature, found {len(labels)}; give more images")
    temperature = fit_temperature(*(fitted or (probabilities, labels)))
    scaled = (
        cross_fit(probabilities, labels, seed) if fitted is None else scale_probabilities(probabilities, temperature)
    )

    def judge(p: np.ndarray) -> dict[str, Any]:
        bins = reliability_bins(p.max(1), p.argmax(1) == labels, num_bins)
        gaps = sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in bins)
        return {
            "expected_calibration_error": gaps / len(labels),
            "loss": negative_log_likelihood(p, labels),
            "bins": bins,
        }

    return {
        "temperature": temperature,
        "cross_fitted": fitted is None,
        "num_fitted": len(labels if fitted is None else fitted[1]),
        "before": judge(probabilities),
        "after": judge(scaled),
    }


def thin_curve(curve: dict[str, np.ndarray]) -> list[dict[str, float]]:
    """Points of a curve of `coverage_risk`, at most as many as a figure needs, the last of them kept."""
    picked = np.unique(np.linspace(0, len(curve["risk"]) - 1, CURVE_POINTS).round().astype(int))
    return [{name: float(values[i]) for name, values in curve.items()} for i in picked]


def _accuracy_and_macro_f1(rows: np.ndarray, columns: np.ndarray, counts: np.ndarray, size: int) -> tuple[float, float]:
    right = np.bincount(rows, weights=counts * (rows == columns), minlength=size)
    occurrences = np.bincount(rows, weights=counts, minlength=size) + np.bincount(columns, counts, minlength=size)
    f1 = 2 * right / np.maximum(occurrences, 1)
    return float(right.sum() / counts.sum()), float(f1[occurrences > 0].mean())
