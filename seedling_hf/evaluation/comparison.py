"""Several classifiers on the same images: which is better, whether it is chance, and where they differ."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from seedling_hf.errors import InputError
from seedling_hf.evaluation.report import Report
from seedling_hf.spelling import describe_difference

SHOWN_DIFFERENCES = 48


@dataclass(frozen=True)
class Comparison:
    """Reports about the same images side by side.

    Attributes:
        models: Figures of each; `trained_on` is how many of the images it was trained on, None where that is unknown.
        pairs: `first`, `second`, what `mcnemar_test` gives, and `corrected_p_value`.
        agreement: Share of the images for which all models predict the same class.
        num_differences: The other images.
        num_any_right: Those of them that at least one model gets right.
        differences: The first of those, by how much the models differ: `file`, `label` and `predictions`, one a model.
        class_names: Of all models, in the order of the first.
        provenance: `data`, `date`, `device` and `versions`.
        predictions: As `differences`, for every image; not part of the JSON.
    """

    models: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    num_examples: int
    agreement: float
    num_differences: int
    num_any_right: int
    differences: list[dict[str, Any]]
    class_names: list[str]
    provenance: dict[str, Any]
    predictions: list[dict[str, Any]] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The figures as plain dicts, lists, numbers and strings."""
        figures = asdict(replace(self, predictions=[]))  # `asdict` would copy those of every image
        del figures["predictions"]
        return figures


def mcnemar_test(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """McNemar's exact test: whether two classifiers differ by more than chance on the same images.

    `first` and `second` are (N,) whether each is right. Only images that one of them alone gets right count; if both
    were equally good, each would get half of those (McNemar 1947, Psychometrika 12, p. 153; the exact form is the
    binomial test).

    Returns:
        `only_first`, `only_second`, `both` and `neither` (images that they get right), `difference` of the accuracies
        (second less first), and the two-sided `p_value`, 1 if they get the same images right.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    apart = only_first + only_second
    return {
        "only_first": only_first,
        "only_second": only_second,
        "both": int((first & second).sum()),
        "neither": int((~first & ~second).sum()),
        "difference": (only_second - only_first) / len(first),
        "p_value": float(binomtest(only_first, apart, 0.5).pvalue) if apart else 1.0,
    }


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests at once (Holm 1979, Scandinavian Journal of Statistics 6, p. 65).

    The more pairs are compared, the likelier one of them differs by chance; these p-values hold for all together.
    """
    order, corrected, highest = np.argsort(p_values, kind="stable"), [0.0] * len(p_values), 0.0
    for rank, number in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[number]))
        corrected[number] = highest
    return corrected


def compare_models(names: Sequence[str], reports: Sequence[Report], data_name: str) -> Comparison:
    """Puts a report for each of some models, whose `names` are all different, side by side.

    Raises:
        InputError: for reports of different images or classes, or fewer than two.
    """
    _check(names, reports)
    right = np.array([[row.label == row.prediction for row in report.predictions] for report in reports])
    predictions = [
        {
            "file": rows[0].file,
            "label": rows[0].label,
            "predictions": [
                {"model": name, **_pick(row, "prediction", "probability", "label_probability")}
                for name, row in zip(names, rows, strict=True)
            ],
        }
        for rows in zip(*(report.predictions for report in reports), strict=True)
    ]
    different = [row for row in predictions if len({a["prediction"] for a in row["predictions"]}) > 1]
    any_right = [row for row in different if any(a["prediction"] == row["label"] for a in row["predictions"])]
    any_right.sort(key=lambda row: (-_gap(row), row["file"]))
    return Comparison(
        models=[_figures(name, report) for name, report in zip(names, reports, strict=True)],
        pairs=_test_pairs(names, right),
        num_examples=len(predictions),
        agreement=1 - len(different) / len(predictions),
        num_differences=len(different),
        num_any_right=len(any_right),
        differences=any_right[:SHOWN_DIFFERENCES],
        class_names=reports[0].class_names,
        provenance={"data": data_name, **_pick(reports[0].provenance, "date", "device", "versions")},
        predictions=predictions,
    )


def _check(names: Sequence[str], reports: Sequence[Report]) -> None:
    if len(reports) < 2 or len(set(names)) < len(names):
        raise InputError(f"expected two or more models of different names, found {', '.join(names)}; give more folders")
    classes = reports[0].class_names
    truth = [(row.file, row.label) for row in reports[0].predictions]
    for name, report in zip(names, reports, strict=True):
        if set(report.class_names) != set(classes):
            raise InputError(
                f"expected models of the same {len(classes)} classes, found {len(report.class_names)} others in "
                f"{name}{describe_difference(report.class_names, classes)}; compare models that were trained on the "
                "same classes"
            )
        if [(row.file, row.label) for row in report.predictions] != truth:
            raise InputError(f"expected predictions of the same images, found others of {name}")


def _test_pairs(names: Sequence[str], right: np.ndarray) -> list[dict[str, Any]]:
    pairs = [
        {"first": names[i], "second": names[j], **mcnemar_test(right[i], right[j])}
        for i, j in combinations(range(len(names)), 2)
    ]
    corrected = holm_correction([pair["p_value"] for pair in pairs])
    return [{**pair, "corrected_p_value": p_value} for pair, p_value in zip(pairs, corrected, strict=True)]


def _figures(name: str, report: Report) -> dict[str, Any]:
    return {
        "name": name,
        **_pick(report, "accuracy", "macro_f1", "loss", "expected_calibration_error"),
        "accuracy_interval": report.bootstrap.accuracy,
        "macro_f1_interval": report.bootstrap.macro_f1,
        "trained_on": report.trained_on and report.trained_on.count,
        "f1": {class_name: row["f1"] for class_name, row in report.per_class.items()},
        **_pick(report.provenance, "model", "architecture", "num_parameters", "seconds", "images_per_second"),
    }


def _pick(record: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(record, name) for name in names}


def _gap(row: dict[str, Any]) -> float:
    shares = [p["label_probability"] for p in row["predictions"]]
    return max(shares) - min(shares)
