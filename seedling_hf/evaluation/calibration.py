"""How far a classifier's probabilities can be trusted: temperature, reliability, coverage and risk, and intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seedling_hf.errors import InputError
from seedling_hf.evaluation.metrics import (
    CONFIDENCE,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_bins,
)
from seedling_hf.progress import follow

BOOTSTRAP_RESAMPLES = 2000
LARGEST_LOG_TEMPERATURE = 5.0
# Of the prior of a temperature's logarithm, a normal distribution around 0: it decides where a few images cannot.
PRIOR_DEVIATION = 0.5
SURE_SHARE = 0.95  # of the images, where nearly every answer is right
CURVE_POINTS = 101


@dataclass(frozen=True)
class Reliability:
    """How well probabilities are calibrated; the bins are those of `metrics.reliability_bins`."""

    expected_calibration_error: float
    loss: float
    bins: list[dict[str, float | int]]


@dataclass(frozen=True)
class Calibration:
    """Calibration before and after temperature scaling.

    The temperature was fitted on the `num_fitted` images that the report calls `fitted_on`. Where these are its own
    images, `after` is `cross_fitted`: each half was scaled by the temperature of the other.
    """

    temperature: float
    cross_fitted: bool
    num_fitted: int
    before: Reliability
    after: Reliability
    fitted_on: str


@dataclass(frozen=True)
class Kept:
    """The share of the predictions that a threshold keeps, and the accuracy of those (None if there are none)."""

    coverage: float
    accuracy: float | None


@dataclass(frozen=True)
class NotSure:
    """Below which probability a model should say that it is not sure.

    The threshold is the lowest at which the predictions that it keeps reach the target. It, their share and their
    accuracy are None if none does. `cross_fitted` is what a threshold chosen on one half keeps of the other.
    """

    target_accuracy: float
    threshold: float | None = None
    coverage: float | None = None
    accuracy: float | None = None
    cross_fitted: Kept | None = None

    @property
    def keeps_all(self) -> bool:
        """Whether all predictions together reach the target, so that none need be withheld."""
        return self.coverage == 1


@dataclass(frozen=True)
class Bootstrap:
    """95% intervals [low, high] by the percentiles of `resamples` draws with a seed."""

    accuracy: list[float]
    macro_f1: list[float]
    resamples: int
    seed: int


def scale_probabilities(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities (N, C) that the logits give when divided by `temperature` (arXiv 1706.04599, section 4.2)."""
    from scipy.special import softmax

    # What all logits of a row have in common cancels in the softmax, so the logarithms serve as logits.
    return softmax(np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)) / temperature, axis=1)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The most probable temperature, given (N, C) and the true classes (N,) (arXiv 1706.04599, section 4.2).

    A number from 1/148 to 148: above 1 where the model was overconfident. Where every one of a few predictions is
    right, the images alone would ask for a temperature of 0; the prior keeps it near 1.
    """
    from scipy.optimize import minimize_scalar

    def loss(log: float) -> float:
        prior = (log / PRIOR_DEVIATION) ** 2 / 2 / len(labels)
        return negative_log_likelihood(scale_probabilities(probabilities, np.exp(log)), labels) + prior

    bounds = (-LARGEST_LOG_TEMPERATURE, LARGEST_LOG_TEMPERATURE)
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x))


def halves(num_examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the examples in two random halves."""
    order = np.random.default_rng(seed).permutation(num_examples)
    return np.sort(order[: num_examples // 2]), np.sort(order[num_examples // 2 :])


def cross_fit(probabilities: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Probabilities scaled by a temperature that was fitted on the other half: no image affects its own."""
    scaled = np.empty_like(probabilities)
    first, second = halves(len(labels), seed)
    for fitted, judged in ((first, second), (second, first)):
        temperature = fit_temperature(probabilities[fitted], labels[fitted])
        scaled[judged] = scale_probabilities(probabilities[judged], temperature)
    return scaled


def calibrate(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int,
    fitted_on: str,
    fitted: tuple[np.ndarray, np.ndarray] | None = None,
) -> Calibration:
    """Calibration of probabilities (N, C) before and after temperature scaling.

    Args:
        fitted_on: What the report calls the images that the temperature is fitted on.
        fitted: Their probabilities and labels. If None the temperature is fitted on the given images, and for the
            figures after scaling on one half of them for the other.

    Raises:
        InputError: for a single image without others to fit on.
    """
    if fitted is None and len(labels) < 2:
        raise InputError(f"expected at least 2 images to fit a temperature, found {len(labels)}; give more images")
    temperature = fit_temperature(*(fitted or (probabilities, labels)))
    scaled = scale_probabilities(probabilities, temperature) if fitted else cross_fit(probabilities, labels, seed)

    def judge(p: np.ndarray) -> Reliability:
        bins = reliability_bins(p.max(1), p.argmax(1) == labels)
        return Reliability(expected_calibration_error(bins), negative_log_likelihood(p, labels), bins)

    num_fitted = len(fitted[1] if fitted else labels)
    return Calibration(temperature, fitted is None, num_fitted, judge(probabilities), judge(scaled), fitted_on)


def coverage_risk(confidence: np.ndarray, correct: np.ndarray) -> dict[str, np.ndarray]:
    """What is kept, and how much of it is wrong, at each confidence (N,) below which predictions are withheld.

    For each different confidence, the highest first, with predictions of equal confidence kept together: `threshold`,
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

    Each of several predictions of equal confidence counts with the risk of all of them.
    """
    curve = coverage_risk(confidence, correct)
    return float(np.average(curve["risk"], weights=np.diff(curve["coverage"], prepend=0.0)))


def thin_curve(curve: dict[str, np.ndarray]) -> list[dict[str, float]]:
    """Points of a curve of `coverage_risk`, no more than a figure needs, including the last."""
    picked = np.unique(np.linspace(0, len(curve["risk"]) - 1, CURVE_POINTS).round().astype(int))
    return [{name: float(values[i]) for name, values in curve.items()} for i in picked]


def not_sure_threshold(confidence: np.ndarray, correct: np.ndarray, target_accuracy: float) -> NotSure:
    """The lowest confidence (N,) at which the predictions that are kept are right (N,) often enough."""
    curve = coverage_risk(confidence, correct)
    enough = np.flatnonzero(1 - curve["risk"] >= target_accuracy)
    if not len(enough):
        return NotSure(target_accuracy)
    threshold, coverage, risk = (float(curve[name][enough[-1]]) for name in ("threshold", "coverage", "risk"))
    return NotSure(target_accuracy, threshold, coverage, 1 - risk)


def sure_threshold(
    confidence: np.ndarray, correct: np.ndarray, familiar: np.ndarray, target_accuracy: float = 0.95
) -> float:
    """The confidence (N,) from which on a familiar (N,) answer counts as sure, so that most of these are right (N,).

    The lowest at which the target is reached; 1 if none does. Where all familiar answers together reach it although
    some are wrong, the least confident ones are withheld, so that `SURE_SHARE` of all images remain: otherwise nothing
    would ever be "not sure".
    """
    if not familiar.any():
        return 1.0
    found = not_sure_threshold(confidence[familiar], correct[familiar], target_accuracy)
    if found.threshold is None:
        return 1.0
    if not found.keeps_all or correct[familiar].all():
        return found.threshold
    ordered = np.sort(confidence[familiar])[::-1]
    return float(ordered[min(round(SURE_SHARE * len(confidence)), len(ordered)) - 1])


def cross_fit_not_sure(confidence: np.ndarray, correct: np.ndarray, target_accuracy: float, seed: int) -> Kept:
    """What a threshold that was chosen on one half keeps of the other."""
    kept = np.zeros(len(correct), dtype=bool)
    first, second = halves(len(correct), seed)
    for chosen, judged in ((first, second), (second, first)):
        threshold = not_sure_threshold(confidence[chosen], correct[chosen], target_accuracy).threshold
        kept[judged] = threshold is not None and confidence[judged] >= threshold
    return Kept(float(kept.mean()), float(correct[kept].mean()) if kept.any() else None)


def bootstrap_intervals(matrix: Sequence[Sequence[int]] | np.ndarray, seed: int) -> Bootstrap:
    """Intervals of accuracy and macro-F1 from counts (C, C), whose rows are the truth.

    By the percentiles of the bootstrap (Efron and Tibshirani 1993, section 13.3). To draw images with replacement is
    to draw counts for the cells of the confusion matrix.
    """
    matrix = np.asarray(matrix)
    rows, columns = np.nonzero(matrix)
    counts = matrix[rows, columns]
    generator, shares = np.random.default_rng(seed), counts / counts.sum()
    # One after another: with many classes, all draws at once take gigabytes.
    draws = (generator.multinomial(counts.sum(), shares) for _ in range(BOOTSTRAP_RESAMPLES))
    draws = follow(draws, "resampling", BOOTSTRAP_RESAMPLES, unit="sample")
    figures = np.array([_accuracy_and_macro_f1(rows, columns, draw, len(matrix)) for draw in draws])
    tail = 100 * (1 - CONFIDENCE) / 2
    accuracy, macro_f1 = np.percentile(figures, [tail, 100 - tail], axis=0).T.tolist()
    return Bootstrap(accuracy, macro_f1, BOOTSTRAP_RESAMPLES, seed)


def _accuracy_and_macro_f1(rows: np.ndarray, columns: np.ndarray, counts: np.ndarray, size: int) -> tuple[float, float]:
    right = np.bincount(rows, weights=counts * (rows == columns), minlength=size)
    occurrences = np.bincount(rows, weights=counts, minlength=size) + np.bincount(columns, counts, minlength=size)
    f1 = 2 * right / np.maximum(occurrences, 1)
    return float(right.sum() / counts.sum()), float(f1[occurrences > 0].mean())
