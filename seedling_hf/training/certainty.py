"""What makes the answers of a finished model trustworthy: calibrated probabilities, and a measure of the unfamiliar."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torchvision.transforms import v2
from transformers import PreTrainedModel

from seedling_hf.data.images import to_rgb
from seedling_hf.data.light import stretch
from seedling_hf.data.transforms import ExampleTransform
from seedling_hf.evaluation.calibration import calibrate, scale_probabilities, sure_threshold
from seedling_hf.evaluation.evaluator import Evaluator, LabelledProbabilities
from seedling_hf.evaluation.metrics import expected_calibration_error, reliability_bins
from seedling_hf.evaluation.out_of_fold import DISTANCES, STRETCHED_DISTANCES
from seedling_hf.inference.batch_memory import image_side
from seedling_hf.inference.classifier import load_classifier
from seedling_hf.inference.familiarity import Familiarity, stage_sizes
from seedling_hf.inference.prediction import InferenceTransform

if TYPE_CHECKING:
    from seedling_hf.training.loop import Training

MOST_MEASURED = 20_000  # training images: more change the distances little, and take minutes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Certainty:
    """What was found on the validation images.

    Attributes:
        temperature: What the logits are divided by; None for a model that is not calibrated.
        calibration_error: Expected calibration error before; None where only the error after it was measured.
        calibrated_error: The same after, each half of the images scaled by the temperature of the other half.
        confidence_threshold: The probability from which on a familiar answer is sure.
        familiarity_threshold: The largest distance of a familiar image; None for a network without this measure.
        num_images: On which all this was found.
    """

    temperature: float | None
    calibration_error: float | None
    calibrated_error: float | None
    confidence_threshold: float
    familiarity_threshold: float | None
    num_images: int


def settle_certainty(training: "Training") -> tuple[Certainty, dict[str, np.ndarray]]:
    """Calibrates the saved model of a finished run, and writes how unfamiliar images are told.

    The temperature is folded into the classifier (W / T, b / T), so that whoever loads the model gets calibrated
    probabilities; the weights of a run whose end is repeated are not changed again. Every process must call it.

    Returns:
        What was found, and the distances (N,) of the validation images in their order, in each of their forms; none
        where they cannot be measured.
    """
    arguments, evaluator = training.arguments, load_finished(training)
    model, image_processor = evaluator.model, evaluator.image_processor
    found, familiarity, distances = _measure(evaluator, training)
    is_familiar = np.full(len(found.labels), True)
    if familiarity is not None:
        is_familiar = distances[DISTANCES] <= float(familiarity.threshold)

    folded = getattr(model.config, "calibration_temperature", None)
    raw = found.probabilities if folded is None else scale_probabilities(found.probabilities, 1 / folded)
    error = expected_calibration_error(reliability_bins(raw.max(1), found.correct))
    temperature = scaled_error = None
    if not arguments.no_calibration and len(found.labels) > 1:
        calibration = calibrate(raw, found.labels, seed=arguments.seed, fitted_on="the validation images")
        temperature, scaled_error = folded or calibration.temperature, calibration.after.expected_calibration_error
        if not folded and not scale_logits(model, temperature, image_side(image_processor)):
            logger.warning(
                "%s does not end in one linear layer: its probabilities stay as they are", type(model).__name__
            )
            temperature = scaled_error = None
    confidence = (scale_probabilities(raw, temperature) if temperature else raw).max(1)
    threshold = sure_threshold(confidence, found.correct, is_familiar)
    write_settled(training, evaluator, familiarity, temperature, threshold)
    limit = familiarity and float(familiarity.threshold)
    return Certainty(temperature, error, scaled_error, threshold, limit, len(found.labels)), distances


def load_finished(training: "Training") -> Evaluator:
    """The saved model of a finished run, as its users will load it but not merged."""
    loading = training.arguments.per_device_eval_batch_size, training.arguments.dataloader_num_workers
    return Evaluator(*load_classifier(str(training.output_dir), merge=False), training.accelerator, *loading)


def write_settled(
    training: "Training",
    evaluator: Evaluator,
    familiarity: Familiarity | None,
    temperature: float | None,
    confidence_threshold: float,
) -> None:
    """Writes the model of `load_finished` with its certainty, unless that is in it already, and what is familiar to it.

    Every process must call it: afterwards all of them can load what the first has written.
    """
    model = evaluator.model
    if training.accelerator.is_main_process:
        if getattr(model.config, "calibration_temperature", None) is None:
            training.learner.write_model(
                model.state_dict(),
                training.output_dir,
                evaluator.image_processor,
                calibration_temperature=temperature,
                confidence_threshold=confidence_threshold,
            )
        if familiarity:
            familiarity.save(training.output_dir)
    training.accelerator.wait_for_everyone()


def describe_certainty(certainty: Certainty) -> str:
    """What was found, for a terminal."""
    lines, found = [], certainty
    if found.temperature:
        lines.append(
            f"Calibrated: the weights hold a temperature of {found.temperature:.2f}, and the calibration error falls "
            f"from {found.calibration_error:.3f} to {found.calibrated_error:.3f} (each half of the images by the "
            "temperature of the other)."
        )
    if found.confidence_threshold == 1:
        return "\n".join([*lines, "No answer counts as sure: not enough of the validation images are right."])
    unfamiliar = "" if found.familiarity_threshold is None else ", if the image is not unfamiliar"
    lines.append(f"From a probability of {found.confidence_threshold:.2f} on, an answer is sure{unfamiliar}.")
    return "\n".join(lines)


def _measure(
    evaluator: Evaluator, training: "Training"
) -> tuple[LabelledProbabilities, Familiarity | None, dict[str, np.ndarray]]:
    """The predictions of the validation images, and their distances (N,) from the training images, in each form.

    These count as they are and as training has changed them: what it has taught the network to see past is familiar.
    """
    arguments, validation = training.arguments, training.splits["validation"]
    sizes = stage_sizes(evaluator.model.config)
    if sizes is None or arguments.streaming:
        return evaluator.predict(validation), None, {}
    familiarity = fit_familiarity(evaluator, training, sizes)
    found, features = evaluator.measure(validation)
    distances = {DISTANCES: familiarity(features).numpy()}
    if arguments.levels_prob:  # half of what it changes is stretched, which is as familiar as the originals
        _, features = evaluator.measure(validation, Stretched(evaluator.image_processor))
        distances[STRETCHED_DISTANCES] = familiarity(features).numpy()
    familiarity.set_threshold(*distances.values())
    return found, familiarity, distances


class Stretched(InferenceTransform):
    """Prepares images whose values are stretched from their smallest and their largest to 0 and 255."""

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pixels = [v2.functional.pil_to_tensor(to_rgb(image)) / 255 for image in rows["image"]]
        return super().__call__({**rows, "image": [v2.functional.to_pil_image(stretch(image)) for image in pixels]})


def fit_familiarity(evaluator: Evaluator, training: "Training", sizes: Sequence[int]) -> Familiarity:
    """The measure of the training images, whose threshold is still infinite; every process must call it."""
    train = training.splits["train"]
    train = train.select(range(0, len(train), math.ceil(len(train) / MOST_MEASURED)))
    changed = ExampleTransform(training.batches.build_transform(), seed=training.arguments.seed)
    known = [evaluator.measure(train), evaluator.measure(train, changed)]
    features = np.concatenate([features.numpy() for _, features in known])
    return Familiarity.fit(features, np.concatenate([found.labels for found, _ in known]), sizes)


@torch.no_grad()
def scale_logits(model: PreTrainedModel, temperature: float, side: int) -> bool:
    """Divides the logits of a classifier for images of `side` pixels by `temperature`, in its last layer's weights.

    Returns:
        Whether that was possible, since the network ends in one linear layer; otherwise it is unchanged.
    """
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == model.config.num_labels]
    if not heads:
        return False
    kept = {name: tensor.clone() for name, tensor in heads[-1].state_dict().items()}
    generator, channels = torch.Generator().manual_seed(0), getattr(model.config, "num_channels", 3)
    images = torch.randn(2, channels, side, side, generator=generator).to(model.device)
    before = model(pixel_values=images).logits
    for parameter in heads[-1].parameters():
        parameter /= temperature
    after = temperature * model(pixel_values=images).logits
    is_scaled = torch.allclose(after, before, rtol=0, atol=1e-3 * float(before.abs().max()))
    if not is_scaled:  # another layer follows, or a second head is added
        heads[-1].load_state_dict(kept)
    return is_scaled
