"""Which of the evaluated images the model was trained on, and how good it is on the others."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from seedling_hf.data.recognition import KnownImages, TrainingImages, find_training_images, read_known_images
from seedling_hf.errors import InputError, without_advice
from seedling_hf.evaluation.evaluator import LabelledProbabilities
from seedling_hf.evaluation.metrics import wilson_interval

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OtherImages:
    """The accuracy on the images that the model was not trained on, with its 95% interval (Wilson)."""

    count: int
    correct: int
    accuracy: float
    interval: list[float]


@dataclass(frozen=True)
class TrainedOn:
    """The images among those evaluated that the model was trained on.

    Attributes:
        count: How many they are; `same_name` of them have the name that they had in training.
        by_content: Whether contents were compared, or only names.
        excluded: Whether they were left out of the report.
        files: Their names.
        others: None if they were left out, or there are no others.
    """

    count: int
    same_name: int
    by_content: bool
    excluded: bool
    files: list[str]
    others: OtherImages | None


def find_known_images(split_file: Path | None) -> KnownImages | None:
    """The images of the run that a model comes from; None, perhaps with a warning, without a whole split.csv."""
    if split_file is None:
        return None
    try:
        return read_known_images(split_file)
    except InputError as error:
        logger.warning("which images the model was trained on is not known: %s", without_advice(error))
        return None


def recognise(dataset: Dataset, split_files: Sequence[Path | None]) -> list[TrainingImages | None]:
    """For the split.csv of each model, which images of a dataset it was trained on; None where that is unknown."""
    return find_training_images(dataset, list(map(find_known_images, split_files)))


def recognise_together(dataset: Dataset, split_files: Sequence[Path | None]) -> TrainingImages | None:
    """Which images of a dataset any of some models was trained on; None where that is unknown of one of them."""
    found = recognise(dataset, split_files)
    if None in found or len(found) == 1:
        return found[0] if len(found) == 1 else None
    known = {file for each in found for file in each.files}
    files = [file for file in dataset["file"] if file in known]
    return TrainingImages(files, max(each.same_name for each in found), all(each.by_content for each in found))


def leave_out(dataset: Dataset, training_images: TrainingImages | None, model: str) -> Dataset:
    """The images that a model was not trained on, numbered anew.

    Raises:
        InputError: if there are none, or nothing is known about the training images.
    """
    if training_images is None:
        raise InputError(
            f"expected a split.csv beside the model {model}, found none that says what it was trained on; leave "
            "--exclude_training out"
        )
    excluded = set(training_images.files)
    kept = [i for i, file in enumerate(dataset["file"]) if file not in excluded]
    if not kept:
        raise InputError(
            f"expected images that the model {model} was not trained on, found none among {len(dataset):,}; give other "
            "images, or leave --exclude_training out"
        )
    index = np.full(len(dataset), -1)
    index[kept] = np.arange(len(kept))
    # The column is added before rows are selected, because that would copy the selected images.
    return dataset.remove_columns("index").add_column("index", index.tolist()).select(kept)


def judge_others(training_images: TrainingImages, found: LabelledProbabilities, *, excluded: bool) -> TrainedOn:
    """What a report says of the training images among those that were predicted, or were left out before."""
    return TrainedOn(
        count=len(training_images.files),
        same_name=training_images.same_name,
        by_content=training_images.by_content,
        excluded=excluded,
        files=training_images.files,
        others=None if excluded else _judge(found, training_images.files),
    )


def _judge(found: LabelledProbabilities, training_files: Sequence[str]) -> OtherImages | None:
    correct = found.correct[~np.isin(found.files, training_files)]
    if not len(correct):
        return None
    right = int(correct.sum())
    return OtherImages(len(correct), right, right / len(correct), list(wilson_interval(right, len(correct))))
