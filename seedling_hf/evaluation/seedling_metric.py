"""`classification_metrics` as a metric of `evaluate`; importing it imports `evaluate`, which takes seconds."""

import tempfile
from collections.abc import Sequence
from typing import Any

import evaluate
from datasets import Features, List, Value

from seedling_hf.evaluation.metrics import classification_metrics


class SeedlingMetric(evaluate.Metric):
    """Every figure of a report, from probabilities (N, C) as predictions and classes (N,) as references.

    `compute(predictions=…, references=…, class_names=…)`, where batches may come before by
    `add_batch(predictions=…, references=…)`. Being a class of its own and not one that `evaluate.load` fetches, it
    needs no network. It stays in memory, so that several processes share no file, and draws no random numbers.
    """

    def __init__(self, **kwargs: Any) -> None:
        # The base class makes a folder for cache files, in the user's home by default; in memory it stays empty.
        with tempfile.TemporaryDirectory() as folder:
            super().__init__(keep_in_memory=True, cache_dir=folder, **kwargs)

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
