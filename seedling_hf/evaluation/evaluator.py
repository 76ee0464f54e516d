"""A classifier and labelled images in, probabilities and figures out."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from transformers import BaseImageProcessor

from seedling_hf.inference.batch_memory import EVAL_ADVICE, check_memory, image_side
from seedling_hf.inference.classifier import Pretrained, list_classes, load_classifier
from seedling_hf.inference.compiled_batches import CompiledInferenceArguments
from seedling_hf.inference.familiarity import WithFeatures
from seedling_hf.inference.judgement import (
    SAYS_NOTHING,
    Certainty,
    SideBySide,
    add_familiarity,
    choose_certainty,
    without_familiarity,
)
from seedling_hf.inference.prediction import build_accelerator, build_dataloader, predict


@dataclass(frozen=True)
class LabelledProbabilities:
    """Probabilities (N, C) in float64 of N images in the order of their numbers, their labels (N,) and their files.

    `unfamiliarity` (N,) is None where the model does not tell.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    files: list[str]
    seconds: float
    unfamiliarity: np.ndarray | None = None

    @property
    def correct(self) -> np.ndarray:
        """(N,) whether the most probable class is the true one."""
        return self.probabilities.argmax(1) == self.labels


@dataclass(frozen=True)
class Evaluator:
    """A classifier with all that is needed to predict labelled images; batches and workers are those of one process.

    `model` is as for `judgement.judge`, and `certainty` says how far to trust its predictions.
    """

    model: nn.Module
    image_processor: BaseImageProcessor
    accelerator: Accelerator
    batch_size: int = 64
    num_workers: int = 0
    certainty: Certainty = SAYS_NOTHING

    @property
    def class_names(self) -> list[str]:
        return list_classes(self.model.config)

    @property
    def classifier(self) -> nn.Module:
        """The classifier alone."""
        return without_familiarity(self.model)

    def predict(
        self, dataset: Dataset, *, model: nn.Module | None = None, transform: Callable[..., Any] | None = None
    ) -> LabelledProbabilities:
        """Predicts a dataset with columns `image`, `file`, `label` (numbered as the model's classes) and `index`.

        Args:
            dataset: Each `index` once, in any order.
            model: Predicts in place of the classifier.
            transform: Makes `pixel_values` and `index` of rows, in place of the image processor.
        """
        started = time.perf_counter()
        model, unfamiliarity = model or self.model, None
        knows_familiar = getattr(model, "knows_familiar", False)
        logits = self._compute(dataset, SideBySide(model) if knows_familiar else model, transform)
        seconds = time.perf_counter() - started
        if knows_familiar:
            logits, unfamiliarity = logits[:, :-1], logits[:, -1].numpy()
        # In float64 a small probability does not become zero, whose logarithm is infinite.
        probabilities = logits.double().softmax(-1).numpy()
        return LabelledProbabilities(probabilities, *_list_labels(dataset), seconds, unfamiliarity)

    def measure(
        self, dataset: Dataset, transform: Callable[..., Any] | None = None
    ) -> tuple[LabelledProbabilities, Tensor]:
        """Predicts a dataset as `predict` does, and gives the stage features (N, D) of the same pass."""
        started = time.perf_counter()
        both = self._compute(dataset, WithFeatures(self.classifier), transform)
        seconds, num_classes = time.perf_counter() - started, len(self.class_names)
        probabilities = both[:, :num_classes].double().softmax(-1).numpy()
        return LabelledProbabilities(probabilities, *_list_labels(dataset), seconds), both[:, num_classes:]

    def _compute(self, dataset: Dataset, model: nn.Module, transform: Callable[..., Any] | None = None) -> Tensor:
        """The logits of a model, in the order of the numbers of the images."""
        self.model.to(self.accelerator.device)
        check_memory(self.classifier, min(self.batch_size, len(dataset)), image_side(self.image_processor), EVAL_ADVICE)
        dataloader = build_dataloader(
            dataset,
            self.image_processor,
            self.accelerator,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            transform=transform,
        )
        with closing(dataloader.base_dataloader):
            return predict(model, dataloader, self.accelerator)[0]


def _list_labels(dataset: Dataset) -> tuple[np.ndarray, list[str]]:
    """Labels and files of a dataset, in the order of the numbers of its images."""
    order = np.argsort(dataset["index"])
    return np.array(dataset["label"])[order], np.array(dataset["file"])[order].tolist()


def load_evaluator(arguments: CompiledInferenceArguments, threshold: float | None = None) -> Evaluator:
    """The classifier that the flags name, ready to predict; sure from the probability `threshold`, or its own, on."""
    accelerator = build_accelerator(arguments.mixed_precision)
    loading = arguments.per_device_eval_batch_size, arguments.dataloader_num_workers
    model, image_processor = arguments.load()
    model = add_familiarity(model.to(accelerator.device), arguments.source)
    arguments.compile(model, accelerator)
    return Evaluator(model, image_processor, accelerator, *loading, choose_certainty(model, threshold))


def open_evaluator(folder: str, accelerator: Accelerator, batch_size: int, num_workers: int) -> Evaluator:
    """The classifier of a folder or repository, ready to predict."""
    model, image_processor = load_classifier(folder)
    model = add_familiarity(model, Pretrained(folder))
    return Evaluator(model, image_processor, accelerator, batch_size, num_workers, choose_certainty(model))


def compute_metrics(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """The figures of `metrics.classification_metrics`, by our metric of `evaluate`."""
    from seedling_hf.evaluation.seedling_metric import SeedlingMetric

    return SeedlingMetric().compute(predictions=probabilities, references=labels, class_names=list(class_names))
