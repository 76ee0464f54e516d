"""A classifier and labelled images in, probabilities and figures out."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf.inference.batch_memory import EVAL_ADVICE, check_memory, image_side
from seedling_hf.inference.classifier import list_classes
from seedling_hf.inference.compiled_batches import CompiledInferenceArguments
from seedling_hf.inference.familiarity import WithFeatures
from seedling_hf.inference.prediction import build_accelerator, build_dataloader, predict


@dataclass(frozen=True)
class LabelledProbabilities:
    """Probabilities (N, C) in float64 of N images in the order of their numbers, their labels (N,) and their files."""

    probabilities: np.ndarray
    labels: np.ndarray
    files: list[str]
    seconds: float

    @property
    def correct(self) -> np.ndarray:
        """(N,) whether the most probable class is the true one."""
        return self.probabilities.argmax(1) == self.labels


@dataclass(frozen=True)
class Evaluator:
    """A classifier with all that is needed to predict labelled images; batches and workers are those of one process."""

    model: PreTrainedModel
    image_processor: BaseImageProcessor
    accelerator: Accelerator
    batch_size: int = 64
    num_workers: int = 0

    @property
    def class_names(self) -> list[str]:
        return list_classes(self.model.config)

    def predict(
        self, dataset: Dataset, *, model: torch.nn.Module | None = None, transform: Callable[..., Any] | None = None
    ) -> LabelledProbabilities:
        """Predicts a dataset with columns `image`, `file`, `label` (numbered as the model's classes) and `index`.

        Args:
            dataset: Each `index` once, in any order.
            model: Predicts in place of the classifier.
            transform: Makes `pixel_values` and `index` of rows, in place of the image processor.
        """
        started = time.perf_counter()
        logits = self._compute(dataset, model or self.model, transform)
        seconds = time.perf_counter() - started
        # In float64 a small probability does not become zero, whose logarithm is infinite.
        return LabelledProbabilities(logits.double().softmax(-1).numpy(), *_list_labels(dataset), seconds)

    def measure(self, dataset: Dataset) -> tuple[LabelledProbabilities, Tensor]:
        """Predicts a dataset as `predict` does, and gives the stage features (N, D) of the same pass."""
        started = time.perf_counter()
        both = self._compute(dataset, WithFeatures(self.model))
        seconds, num_classes = time.perf_counter() - started, len(self.class_names)
        probabilities = both[:, :num_classes].double().softmax(-1).numpy()
        return LabelledProbabilities(probabilities, *_list_labels(dataset), seconds), both[:, num_classes:]

    def _compute(self, dataset: Dataset, model: torch.nn.Module, transform: Callable[..., Any] | None = None) -> Tensor:
        """The logits of a model, in the order of the numbers of the images."""
        self.model.to(self.accelerator.device)
        check_memory(self.model, min(self.batch_size, len(dataset)), image_side(self.image_processor), EVAL_ADVICE)
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


def load_evaluator(arguments: CompiledInferenceArguments) -> Evaluator:
    """The classifier that the flags name, ready to predict."""
    accelerator = build_accelerator(arguments.mixed_precision)
    loading = arguments.per_device_eval_batch_size, arguments.dataloader_num_workers
    model, image_processor = arguments.load()
    arguments.compile(model.to(accelerator.device), accelerator)
    return Evaluator(model, image_processor, accelerator, *loading)


def compute_metrics(probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """The figures of `metrics.classification_metrics`, by our metric of `evaluate`."""
    from seedling_hf.evaluation.seedling_metric import SeedlingMetric

    return SeedlingMetric().compute(predictions=probabilities, references=labels, class_names=list(class_names))
