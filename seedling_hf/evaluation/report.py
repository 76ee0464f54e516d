"""The report: how good a classifier is on labelled images, which classes it confuses, and how that was measured."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
from datasets import Dataset

from seedling_hf import __version__
from seedling_hf.data.recognition import TrainingImages
from seedling_hf.evaluation.calibration import (
    Bootstrap,
    Calibration,
    NotSure,
    area_under_risk,
    bootstrap_intervals,
    calibrate,
    coverage_risk,
    cross_fit_not_sure,
    not_sure_threshold,
    thin_curve,
)
from seedling_hf.evaluation.evaluator import Evaluator, LabelledProbabilities, compute_metrics
from seedling_hf.evaluation.metrics import HARD_PAIR, CropWeedCosts, HardPair, confused_pair, crop_weed_costs
from seedling_hf.evaluation.probing import Probing
from seedling_hf.evaluation.training_data import TrainedOn, judge_others
from seedling_hf.evaluation.trust import Trust, list_certainties, measure_trust
from seedling_hf.inference.judgement import SAYS_NOTHING, Certainty
from seedling_hf.inference.prediction import EightSymmetries
from seedling_hf.machine import device_name, precision_name

LIBRARIES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "scikit-learn")
TOP_CONFUSIONS = 10
WORST_MISTAKES = 24


@dataclass(frozen=True)
class Prediction:
    """The predicted class of an image and its probability, beside the true class and the probability of that.

    `certainty` is None where the model does not say.
    """

    file: str
    label: str
    prediction: str
    probability: float
    label_probability: float
    certainty: str | None = None


@dataclass(frozen=True)
class Confusion:
    """How many images of a class were taken for another, and their share of the class."""

    label: str
    prediction: str
    count: int
    share: float


@dataclass(frozen=True)
class CoverageRisk:
    """The share of wrong predictions among those kept, against the share kept; see `calibration.coverage_risk`."""

    area: float
    curve: list[dict[str, float]]


@dataclass(frozen=True)
class Augmentation:
    """What test-time augmentation gains and costs: `fixed` and `broken` predictions became right and wrong by it."""

    accuracy: float
    macro_f1: float
    loss: float
    expected_calibration_error: float
    accuracy_gain: float
    macro_f1_gain: float
    fixed: int
    broken: int
    seconds: float
    plain_seconds: float
    cost: float


@dataclass(frozen=True)
class Provenance:
    """Which model was evaluated on what, when and by what."""

    model: str
    architecture: str
    num_parameters: int
    data: str
    date: str
    seconds: float
    images_per_second: float
    device: str
    num_processes: int
    mixed_precision: str
    versions: dict[str, str]

    @property
    def precision(self) -> str:
        return precision_name(self.mixed_precision)


@dataclass(frozen=True)
class FoldFigures:
    """The figures of one network on the images of its fold."""

    fold: int
    num_examples: int
    accuracy: float
    accuracy_interval: list[float]
    macro_f1: float
    expected_calibration_error: float


@dataclass(frozen=True)
class Report:
    """The figures of `metrics.classification_metrics`, and all that follows from the same probabilities.

    Attributes:
        calibration: None for a single image.
        not_sure: For the probability of the predicted class as `predict` writes it.
        worst_mistakes: The most confident first.
        hard_pair: None, as `crop_weed_costs`, where the classes are not those of the plant seedlings.
        predictions: One for each image; not part of the JSON.
        probabilities: (N, C); not part of the JSON.
        probing: None, and not part of the JSON, unless it was requested.
        trained_on: None, and not part of the JSON, where it is unknown which images the model was trained on.
        folds: None, and not part of the JSON, unless each image was predicted by the fold that has not seen it.
        trust: None, and not part of the JSON, where the model does not say how certain it is.
    """

    accuracy: float
    accuracy_interval: list[float]
    macro_f1: float
    num_examples: int
    loss: float
    expected_calibration_error: float
    per_class: dict[str, dict[str, Any]]
    confusion_matrix: list[list[int]]
    class_names: list[str]
    bootstrap: Bootstrap
    top_confusions: list[Confusion]
    hard_pair: HardPair | None
    crop_weed_costs: CropWeedCosts | None
    calibration: Calibration | None
    coverage_risk: CoverageRisk
    not_sure: NotSure
    test_time_augmentation: Augmentation | None
    worst_mistakes: list[Prediction]
    provenance: Provenance
    predictions: list[Prediction] = field(repr=False)
    probabilities: np.ndarray = field(repr=False, compare=False)
    probing: Probing | None = None
    trained_on: TrainedOn | None = None
    folds: list[FoldFigures] | None = None
    trust: Trust | None = None

    def to_json(self) -> dict[str, Any]:
        """The figures as plain dicts, lists, numbers and strings."""
        # Emptied first: `asdict` copies what it meets, and there is a prediction for every image.
        figures = asdict(replace(self, predictions=[], probabilities=np.empty(0)))
        skipped = {"predictions", "probabilities"}
        skipped |= {name for name in ("probing", "trained_on", "folds", "trust") if getattr(self, name) is None}
        return {name: value for name, value in figures.items() if name not in skipped}


def evaluate_model(
    evaluator: Evaluator,
    dataset: Dataset,
    *,
    data_name: str = "the validation split",
    calibration: tuple[Dataset, str] | None = None,
    target_accuracy: float = 0.95,
    test_time_augmentation: bool = False,
    training_images: TrainingImages | None = None,
    excluded: bool = False,
    seed: int = 42,
) -> Report:
    """Predicts labelled images and reports on the predictions.

    The report is the same on every process except for the times.

    Args:
        dataset: As for `Evaluator.predict`.
        data_name: What the report calls the images.
        calibration: Other labelled images to fit the temperature on, and what the report calls them. Without them
            it is fitted on one half of the images and judged on the other, and the other way round.
        target_accuracy: Accuracy of the predictions that "not sure" keeps.
        test_time_augmentation: Predict again with the mean over the eight symmetries of the square.
        training_images: Which images the model was trained on, among these or, if `excluded`, left out of them.
        seed: Of the bootstrap and of the halves.
    """
    class_names, found = evaluator.class_names, evaluator.predict(dataset)
    report = make_report(
        found,
        class_names,
        _describe_run(evaluator, data_name, found),
        calibration=_calibrate(evaluator, found, calibration, data_name, seed),
        certainty=evaluator.certainty,
        target_accuracy=target_accuracy,
        seed=seed,
    )
    turned = evaluator.predict(dataset, model=EightSymmetries(evaluator.model)) if test_time_augmentation else None
    return replace(
        report,
        test_time_augmentation=_compare_augmented(turned, found, report) if turned else None,
        trained_on=training_images and judge_others(training_images, found, excluded=excluded),
    )


def make_report(
    found: LabelledProbabilities,
    class_names: Sequence[str],
    provenance: Provenance,
    *,
    calibration: Calibration | None,
    certainty: Certainty = SAYS_NOTHING,
    target_accuracy: float = 0.95,
    seed: int = 42,
) -> Report:
    """The report on predictions that have been made; arguments as of `evaluate_model` and of `Evaluator`."""
    figures = compute_metrics(found.probabilities, found.labels, class_names)
    matrix, confidence = figures["confusion_matrix"], found.probabilities.max(1)
    said = list_certainties(certainty, confidence, found.unfamiliarity)
    predictions = list_predictions(found, class_names, said)
    return Report(
        **figures,
        class_names=list(class_names),
        bootstrap=bootstrap_intervals(matrix, seed),
        top_confusions=top_confusions(matrix, class_names),
        hard_pair=confused_pair(matrix, class_names, HARD_PAIR),
        crop_weed_costs=crop_weed_costs(matrix, class_names),
        calibration=calibration,
        coverage_risk=CoverageRisk(
            area_under_risk(confidence, found.correct), thin_curve(coverage_risk(confidence, found.correct))
        ),
        not_sure=_find_not_sure(confidence, found.correct, target_accuracy, seed),
        test_time_augmentation=None,
        worst_mistakes=worst_mistakes(predictions),
        provenance=provenance,
        predictions=predictions,
        probabilities=found.probabilities,
        trust=measure_trust(certainty, said, found.correct),
    )


def list_predictions(
    found: LabelledProbabilities, class_names: Sequence[str], said: Sequence[str | None]
) -> list[Prediction]:
    """A row for each image, with what is said of its certainty."""
    return [
        Prediction(file, class_names[label], class_names[row.argmax()], float(row.max()), float(row[label]), word)
        for file, label, row, word in zip(found.files, found.labels, found.probabilities, said, strict=True)
    ]


def worst_mistakes(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The wrong predictions, the most confident first."""
    mistakes = [row for row in predictions if row.label != row.prediction]
    return sorted(mistakes, key=lambda row: (-row.probability, row.file))[:WORST_MISTAKES]


def top_confusions(matrix: Sequence[Sequence[int]], class_names: Sequence[str]) -> list[Confusion]:
    """The most frequent mistakes first, of counts (C, C) whose rows are the truth."""
    matrix = np.asarray(matrix)
    mistakes = [
        Confusion(
            class_names[row], class_names[column], int(matrix[row, column]),
            float(matrix[row, column] / matrix[row].sum()),
        )
        for row, column in np.argwhere(matrix > 0)
        if row != column
    ]  # fmt: skip
    return sorted(mistakes, key=lambda m: (-m.count, -m.share))[:TOP_CONFUSIONS]


def _compare_augmented(augmented: LabelledProbabilities, plain: LabelledProbabilities, before: Report) -> Augmentation:
    after = compute_metrics(augmented.probabilities, augmented.labels, before.class_names)
    return Augmentation(
        **{name: after[name] for name in ("accuracy", "macro_f1", "loss", "expected_calibration_error")},
        accuracy_gain=after["accuracy"] - before.accuracy,
        macro_f1_gain=after["macro_f1"] - before.macro_f1,
        fixed=int((augmented.correct & ~plain.correct).sum()),
        broken=int((~augmented.correct & plain.correct).sum()),
        seconds=round(augmented.seconds, 2),
        plain_seconds=round(plain.seconds, 2),
        cost=round(augmented.seconds / plain.seconds, 2),
    )


def _calibrate(
    evaluator: Evaluator, found: LabelledProbabilities, others: tuple[Dataset, str] | None, data_name: str, seed: int
) -> Calibration | None:
    if others:
        fitted = evaluator.predict(others[0])
        return calibrate(
            found.probabilities, found.labels, seed=seed, fitted_on=others[1],
            fitted=(fitted.probabilities, fitted.labels),
        )  # fmt: skip
    if len(found.labels) < 2:
        return None
    return calibrate(found.probabilities, found.labels, seed=seed, fitted_on=data_name)


def _find_not_sure(confidence: np.ndarray, correct: np.ndarray, target_accuracy: float, seed: int) -> NotSure:
    not_sure = not_sure_threshold(confidence, correct, target_accuracy)
    if len(correct) < 2:
        return not_sure
    return replace(not_sure, cross_fitted=cross_fit_not_sure(confidence, correct, target_accuracy, seed))


def _describe_run(evaluator: Evaluator, data_name: str, found: LabelledProbabilities) -> Provenance:
    model, accelerator = evaluator.classifier, evaluator.accelerator
    return Provenance(
        model=model.name_or_path or type(model).__name__,
        architecture=type(model).__name__,
        num_parameters=sum(p.numel() for p in model.parameters()),
        data=data_name,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(found.seconds, 2),
        images_per_second=round(len(found.labels) / found.seconds, 1),
        device=device_name(accelerator.device),
        num_processes=accelerator.num_processes,
        mixed_precision=accelerator.mixed_precision,
        versions={
            "seedling_hf": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
    )
