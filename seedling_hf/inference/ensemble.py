"""Several classifiers as one: the mean of their probabilities, for the same classes and from the same pixels."""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from seedling_hf.data.images import a_few
from seedling_hf.errors import InputError
from seedling_hf.inference.classifier import Pretrained, list_classes, load_classifier

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

# Of an image processor: what does not change the pixels.
NAMES_ONLY = frozenset({"image_processor_type", "auto_map", "processor_class"})


class Ensemble(nn.Module):
    """Predicts with several classifiers.

    Logits are the logarithms of the mean probabilities. Where every member `knows_familiar`, unfamiliarity is the mean
    of theirs, each a multiple of its own threshold.

    Args:
        members: Two classifiers or more, as for `judgement.judge`; their classes may be in any order.
        sources: Where the files of each are.
        name: Of all together.

    Attributes:
        config: That of the first, whose order of the classes counts, with the mean of the confidence thresholds.

    Raises:
        InputError: if their classes are not the same by name.
    """

    def __init__(self, members: Sequence[nn.Module], sources: Sequence[Pretrained], name: str) -> None:
        super().__init__()
        self.members, self.sources, self.name_or_path = nn.ModuleList(members), list(sources), name
        self.config = deepcopy(members[0].config)
        names = list_classes(self.config)
        for number, (member, source) in enumerate(zip(members, sources, strict=True)):
            theirs = list_classes(member.config)
            if sorted(theirs) != sorted(names):
                different = sorted(set(theirs) ^ set(names)) or ["one of them several times"]
                raise InputError(
                    f"expected models of the same classes, found others in {source.name} than in {sources[0].name}: "
                    f"{a_few(different)}; name models of the same classes"
                )
            order = torch.tensor([theirs.index(each) for each in names])
            self.register_buffer(f"order_{number}", order, persistent=False)
        thresholds = [getattr(member.config, "confidence_threshold", None) for member in members]
        known = None not in thresholds
        self.config.confidence_threshold = sum(thresholds) / len(thresholds) if known else None
        self.config.calibration_temperature = None  # each has its own
        self.knows_familiar = all(getattr(member, "knows_familiar", False) for member in members)
        self.eval()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def first(self) -> nn.Module:
        """The first member, for what looks into a network."""
        return self.members[0]

    def rebuilt(self, change: Callable[[nn.Module, Pretrained], nn.Module]) -> "Ensemble":
        """The ensemble of the changed members."""
        members = [change(member, source) for member, source in zip(self.members, self.sources, strict=True)]
        return Ensemble(members, self.sources, self.name_or_path)

    def forward(self, pixel_values: Tensor) -> "EnsembleOutput":
        """Outputs for `pixel_values` (N, C, H, W)."""
        outputs = [member(pixel_values=pixel_values) for member in self.members]
        logarithms = [
            output.logits.float().log_softmax(-1)[:, self.get_buffer(f"order_{number}")]
            for number, output in enumerate(outputs)
        ]
        mean = torch.stack(logarithms).logsumexp(0) - torch.tensor(float(len(outputs))).log()
        if not self.knows_familiar:
            return EnsembleOutput(logits=mean)
        return EnsembleOutput(logits=mean, unfamiliarity=torch.stack([o.unfamiliarity for o in outputs]).mean(0))


@dataclass
class EnsembleOutput(ModelOutput):
    """`logits` (N, C), and `unfamiliarity` (N,) where it is known."""

    logits: Tensor | None = None
    unfamiliarity: Tensor | None = None


def load_together(names: Sequence[str], *, name: str, **options: Any) -> "tuple[nn.Module, BaseImageProcessor]":
    """One classifier as `load_classifier` loads it, or several as `load_ensemble` does."""
    return load_classifier(names[0], **options) if len(names) == 1 else load_ensemble(names, name=name, **options)


def load_ensemble(
    names: Sequence[str], *, name: str, revision: str | None = None, trust_remote_code: bool = False, merge: bool = True
) -> "tuple[Ensemble, BaseImageProcessor]":
    """Loads classifiers as `load_classifier` does, with the image processor that they share.

    Args:
        name: What they are called together.

    Raises:
        InputError: as `load_classifier` does, and for other classes, or pixels that are prepared in another way.
    """
    members, sources, shared = [], [], None
    for member_name in names:
        sources.append(Pretrained(member_name, revision, trust_remote_code))
        member, image_processor = load_classifier(
            member_name, revision=revision, trust_remote_code=trust_remote_code, merge=merge
        )
        members.append(member)
        shared = shared or image_processor
        _check_same_pixels(names[0], shared, member_name, image_processor)
    return Ensemble(members, sources, name), shared


def _check_same_pixels(
    first: str, shared: "BaseImageProcessor", name: str, image_processor: "BaseImageProcessor"
) -> None:
    ours, theirs = (_settings(processor) for processor in (shared, image_processor))
    different = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    if different:
        key = next((key for key in ("crop_size", "size") if key in different), different[0])
        raise InputError(
            f"expected models that prepare images in the same way, found {key} {theirs.get(key)} for {name} and "
            f"{ours.get(key)} for {first}; name models that were trained for images of one size"
        )


def _settings(image_processor: "BaseImageProcessor") -> dict[str, object]:
    # As in their files, where a size is an object in one version and a dictionary in another.
    return {key: value for key, value in json.loads(image_processor.to_json_string()).items() if key not in NAMES_ONLY}
