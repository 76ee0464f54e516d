"""What the folds of a recipe have found, for the model that the same recipe trains on all images.

No image is left to calibrate that model on, to set its thresholds, or to judge it. The networks of the folds are like
it, and each has images that it was not trained on.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml

from seedling_hf.data.images import a_few
from seedling_hf.errors import InputError
from seedling_hf.evaluation.out_of_fold import pool_folds, report_folds
from seedling_hf.evaluation.report import Report
from seedling_hf.files import write_text
from seedling_hf.hub.outbox import OUT_OF_FOLD
from seedling_hf.inference.batch_memory import image_side
from seedling_hf.inference.classifier import Pretrained
from seedling_hf.inference.familiarity import stage_sizes
from seedling_hf.inference.members import list_members
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training.certainty import Certainty, fit_familiarity, load_finished, scale_logits, write_settled
from seedling_hf.training.loop import Training
from seedling_hf.training.resuming import FREE_ARGUMENTS, ROUNDING_ARGUMENTS

# Arguments that a model on all images need not share with its folds.
OWN_ARGUMENTS = frozenset(
    {
        "early_stopping_patience", "eval_steps", "max_eval_samples", "model_name_or_path", "seed", "split_seed",
        "split_strategy", "train_val_split", "validation_dir",
    }
)  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precedents:
    """What folds have found.

    Attributes:
        temperature: Geometric mean of theirs; None if they are not calibrated.
        confidence_threshold: From the answers of all of them, each for images that it was not trained on.
        familiarity_threshold: From the distances of these images; None without distances.
        report: On the same answers.
    """

    temperature: float | None
    confidence_threshold: float
    familiarity_threshold: float | None
    report: Report


def read_precedents(arguments: TrainArguments, class_names: Sequence[str]) -> Precedents | None:
    """What `--folds_dir` holds; None without that flag.

    Raises:
        InputError: if it holds no finished folds, or folds of other classes.
    """
    if arguments.folds_dir is None:
        return None
    members = list_members(arguments.folds_dir)
    if len(members) < 2:
        raise InputError(
            f"expected an output folder of --fold all/n in --folds_dir, found {len(members)} models in folders fold_1, "
            f"fold_2 and so on in {arguments.folds_dir}; train the folds first"
        )
    pooled, found = pool_folds(members), sorted(class_names)
    if sorted(pooled.class_names) != found:
        different = sorted(set(pooled.class_names) ^ set(found))
        raise InputError(
            f"expected folds of the classes of this run in {arguments.folds_dir}, found others: {a_few(different)}; "
            "train the folds on the same classes"
        )
    _compare_arguments(arguments, members[0])
    temperatures = [getattr(Pretrained(str(path)).load_config(), "calibration_temperature", None) for path in members]
    temperature = float(np.exp(np.mean(np.log(temperatures)))) if all(temperatures) else None
    images = arguments.train_dir or arguments.dataset_name
    report = report_folds(pooled, members, images, seed=arguments.seed)
    return Precedents(temperature, pooled.confidence_threshold, pooled.familiarity_threshold, report)


def settle_by_precedents(training: Training, precedents: Precedents | None) -> Certainty | None:
    """Gives the saved model of a run without validation images the temperature and the thresholds of the folds.

    As `certainty.settle_certainty` does with those of validation images. Every process must call it.
    """
    if precedents is None:
        return None
    arguments, report, evaluator = training.arguments, precedents.report, load_finished(training)
    model = evaluator.model
    temperature = None if arguments.no_calibration else precedents.temperature
    familiarity, sizes = None, stage_sizes(model.config)
    if precedents.familiarity_threshold is not None and sizes is not None:
        familiarity = fit_familiarity(evaluator, training, sizes)
        familiarity.threshold.fill_(precedents.familiarity_threshold)
    folded = getattr(model.config, "calibration_temperature", None)
    if temperature and not folded and not scale_logits(model, temperature, image_side(evaluator.image_processor)):
        temperature = None
    write_settled(training, evaluator, familiarity, temperature, precedents.confidence_threshold)
    if training.accelerator.is_main_process:
        write_text(training.output_dir / OUT_OF_FOLD, json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")
    return Certainty(
        temperature, None, report.expected_calibration_error, precedents.confidence_threshold,
        familiarity and float(familiarity.threshold), report.num_examples,
    )  # fmt: skip


def describe_final_model(training: Training, precedents: Precedents | None) -> str:
    """What is known of a model that has seen all images, for a terminal."""
    lines = [
        f"Trained on all {len(training.splits['train']):,} images: no validation image is left, and these are the "
        "weights of the last step."
    ]
    if precedents is None:
        return lines[0] + " How often it is right is unknown (--folds_dir)."
    report = precedents.report
    low, high = report.accuracy_interval
    lines.append(
        f"Of the {len(report.folds)} networks in {training.arguments.folds_dir}, each on the images that it was not "
        f"trained on, {report.accuracy:.1%} of {report.num_examples:,} answers are right (95% interval {low:.1%} to "
        f"{high:.1%})."
    )
    if precedents.temperature and not training.arguments.no_calibration:
        lines.append(f"Their temperature of {precedents.temperature:.2f} is in the weights.")
    lines.append(f"From a probability of {precedents.confidence_threshold:.2f} on, an answer is sure.")
    return "\n".join(lines)


def _compare_arguments(arguments: TrainArguments, fold: Path) -> None:
    """Says which flags the folds were trained with that this run does not have."""
    try:
        theirs = yaml.safe_load((fold / "arguments.yaml").read_text(encoding="utf-8"))
        ours = json.loads(json.dumps(asdict(arguments)))
        names = sorted((theirs.keys() & ours.keys()) - FREE_ARGUMENTS - ROUNDING_ARGUMENTS - OWN_ARGUMENTS)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
        return  # trained elsewhere
    if changes := [f"{name} {theirs[name]!r} and here {ours[name]!r}" for name in names if theirs[name] != ours[name]]:
        logger.warning(
            "the folds in %s were trained with other flags than this run (%s): their temperature, thresholds and "
            "figures need not be those of this model",
            fold.parent, a_few(changes),
        )  # fmt: skip
