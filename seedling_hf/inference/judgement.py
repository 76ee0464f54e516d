"""What a model computes for images becomes what is said of each: a ranking, and how far it can be trusted.

An answer is `unfamiliar` where the image does not look like those that the model was trained on, whatever its
probability, else `sure` from a probability on that the model folder or `--threshold` names, else `not sure`. Any module
can be judged whose outputs have `logits` and, where it `knows_familiar`, `unfamiliarity`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from seedling_hf.inference.answers import NOT_SURE, SURE, UNFAMILIAR, Ranking
from seedling_hf.inference.classifier import Pretrained
from seedling_hf.inference.ensemble import Ensemble
from seedling_hf.inference.familiarity import Familiarity, find_familiarity, stage_features


class Judgement(NamedTuple):
    """What is said of an image: the ranking of its classes, and a word on how far to trust it; None for no word."""

    ranking: Ranking
    certainty: str | None = None


@dataclass(frozen=True)
class Certainty:
    """When an answer is sure, not sure or unfamiliar.

    Attributes:
        threshold: Probability of the most probable class from which it is sure; None if that is unknown.
        knows_familiar: Whether the model can tell that an image is unfamiliar.
    """

    threshold: float | None = None
    knows_familiar: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """The words that answers may have; none where nothing is said."""
        return (
            *((SURE, NOT_SURE) if self.threshold is not None else ()),
            *([UNFAMILIAR] if self.knows_familiar else ()),
        )

    def of(self, probability: float, unfamiliarity: float | None) -> str | None:
        """The word for an answer; None for a familiar image where no threshold is known."""
        if self.knows_familiar and unfamiliarity is not None and unfamiliarity > 1:
            return UNFAMILIAR
        if self.threshold is None:
            return None
        return SURE if probability >= self.threshold else NOT_SURE


SAYS_NOTHING = Certainty()


def choose_certainty(model: nn.Module, threshold: float | None = None, *, otherwise: float | None = None) -> Certainty:
    """The certainty of a model's answers: by `threshold`, or that of its configuration, or `otherwise`."""
    candidates = (threshold, getattr(model.config, "confidence_threshold", None), otherwise)
    threshold = next((value for value in candidates if value is not None), None)
    return Certainty(threshold, getattr(model, "knows_familiar", False))


def describe_silence(certainty: Certainty) -> str | None:
    """What the certainty of answers cannot say for lack of files in the model folder; None if it says everything."""
    if not certainty.words:
        return (
            "certainty is not said: the model has neither a confidence_threshold in its config.json nor a "
            "familiarity.safetensors, which training writes; --threshold marks what is not sure"
        )
    if certainty.threshold is None:
        return (
            "certainty says only what is unfamiliar: the model has no confidence_threshold in its config.json; "
            "--threshold marks what is not sure"
        )
    if not certainty.knows_familiar:
        return (
            "certainty says only what is sure: the model has no familiarity.safetensors, which tells images that look "
            "like none of its training"
        )
    return None


@dataclass
class FamiliarOutput(ModelOutput):
    """`logits` (N, C), and `unfamiliarity` (N,): above 1 an image is unfamiliar; None where that is unknown."""

    logits: Tensor | None = None
    unfamiliarity: Tensor | None = None


class FamiliarClassifier(nn.Module):
    """A classifier that also tells, from the same forward pass, how unfamiliar each image is."""

    knows_familiar = True

    def __init__(self, model: PreTrainedModel, familiarity: Familiarity) -> None:
        super().__init__()
        self.model, self.familiarity = model, familiarity.to(model.device)
        self.config, self.name_or_path = model.config, model.name_or_path
        self.train(model.training)

    def forward(self, pixel_values: Tensor) -> FamiliarOutput:
        outputs = self.model(pixel_values=pixel_values, output_hidden_states=True)
        features = stage_features(outputs.hidden_states)
        if torch.is_autocast_enabled(features.device.type):
            # Distances are differences of large numbers, which half precision would lose.
            with torch.autocast(features.device.type, enabled=False):
                return FamiliarOutput(outputs.logits, self.familiarity.unfamiliarity(features))
        return FamiliarOutput(outputs.logits, self.familiarity.unfamiliarity(features))


class SideBySide(nn.Module):
    """Gives logits and unfamiliarity of a module side by side, (N, C + 1), so that processes gather them as one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.name_or_path = model, getattr(model, "name_or_path", "")
        self.train(model.training)

    def forward(self, pixel_values: Tensor) -> FamiliarOutput:
        outputs = self.model(pixel_values=pixel_values)
        return FamiliarOutput(torch.cat([outputs.logits.double(), outputs.unfamiliarity[:, None].double()], dim=1))


def add_familiarity(model: PreTrainedModel | Ensemble, source: Pretrained) -> nn.Module:
    """The model with what its folder or repository knows of unfamiliar images; the model itself where that is nothing.

    Of several models as one each has its own, and all need it.

    Raises:
        InputError: for a damaged file, or that of another network.
    """
    if isinstance(model, Ensemble):
        return model.rebuilt(add_familiarity)
    familiarity = find_familiarity(source, model.config)
    return model if familiarity is None else FamiliarClassifier(model, familiarity)


def without_familiarity(model: nn.Module) -> nn.Module:
    """The classifier alone, for what reads its layers."""
    if isinstance(model, Ensemble):
        return model.rebuilt(lambda member, source: without_familiarity(member))
    return model.model if isinstance(model, FamiliarClassifier) else model


def explained_network(model: nn.Module) -> nn.Module:
    """The classifier whose layers are looked into: of several as one, the first."""
    classifier = without_familiarity(model)
    return classifier.first if isinstance(classifier, Ensemble) else classifier


def judge(outputs: Any, class_names: Sequence[str], certainty: Certainty, top_k: int = 1) -> list[Judgement]:
    """What a model's outputs for N images say: the `top_k` most probable classes of each, and how far to trust them."""
    rankings = rank_classes(outputs.logits.float().cpu(), class_names, top_k)
    unfamiliarity = getattr(outputs, "unfamiliarity", None)
    values = [None] * len(rankings) if unfamiliarity is None else unfamiliarity.tolist()
    return [
        Judgement(ranking, certainty.of(ranking[0][1], value)) for ranking, value in zip(rankings, values, strict=True)
    ]


def rank_classes(logits: Tensor, class_names: Sequence[str], top_k: int = 1) -> list[Ranking]:
    """For each row of logits (N, C) the `top_k` most probable classes with their probabilities, best first."""
    ranked = logits.double().softmax(-1).topk(top_k)
    return [
        [(class_names[i], p) for i, p in zip(indices, probabilities, strict=True)]
        for indices, probabilities in zip(ranked.indices.tolist(), ranked.values.tolist(), strict=True)
    ]
