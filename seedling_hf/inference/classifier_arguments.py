"""The flags that name a classifier, or several that answer together."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seedling_hf import SHIPPED_MODEL
from seedling_hf.arguments import MOST_WORKERS, ArgumentGroup, option
from seedling_hf.data.images import a_few
from seedling_hf.errors import InputError
from seedling_hf.inference.classifier import Pretrained
from seedling_hf.inference.members import list_members
from seedling_hf.inference.model_files import CONFIG

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel

    from seedling_hf.inference.ensemble import Ensemble


def names_a_model(word: str) -> bool:
    """Whether a word that follows the name of a model is another one: images are no models."""
    path = Path(word)
    return not path.exists() or os.path.lexists(path / CONFIG) or bool(list_members(word))


@dataclass(kw_only=True)
class ClassifierArguments(ArgumentGroup):
    """Which classifier: these flags join the group of the class that inherits them."""

    model_name_or_path: list[str] = option(
        list,
        "model folder of a training run, or Hub repository (default: the shipped nano); where a command takes several, "
        "or the output folder of --fold all/n, the mean of their probabilities counts",
        accepts=names_a_model,
    )
    model_revision: str | None = option(None, "branch, tag or commit of that repository")
    trust_remote_code: bool = option(False, "run the Python code of that repository; a RepLKNet needs none")

    _takes_several = False

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.model_name_or_path or [str(SHIPPED_MODEL)]
        given = [given] if isinstance(given, str) else given
        self.model_name_or_path = given[0] if len(given) == 1 else given
        if len(self.members) > 1 and not self._takes_several:
            raise InputError(
                f"expected one model in --model_name_or_path, found {len(self.members)} ({a_few(self.members)}); name "
                "one of them: several together are for evaluate, predict, demo and export"
            )
        if len(set(self.members)) < len(self.members):
            raise InputError(f"expected each model once in --model_name_or_path, found {a_few(self.members)}")
        _ = self.sources  # refuses a mistyped name at once

    @property
    def members(self) -> list[str]:
        """The names of the models; of an output folder of all folds, those in it."""
        given = [self.model_name_or_path] if isinstance(self.model_name_or_path, str) else self.model_name_or_path
        return [str(each) for name in given for each in (list_members(name) or [name])]

    @property
    def model_name(self) -> str:
        """What the models are called together."""
        return self.model_name_or_path if isinstance(self.model_name_or_path, str) else " + ".join(self.members)

    def load(self, *, merge: bool = True) -> "tuple[PreTrainedModel | Ensemble, BaseImageProcessor]":
        """The classifier that the flags name, see `load_classifier`, or several as one, see `load_ensemble`."""
        options = {"revision": self.model_revision, "trust_remote_code": self.trust_remote_code, "merge": merge}
        from seedling_hf.inference.ensemble import load_together  # loads torch

        return load_together(self.members, name=self.model_name, **options)

    @property
    def sources(self) -> "list[Pretrained]":
        """Where the files of each model are."""
        return [Pretrained(name, self.model_revision, self.trust_remote_code) for name in self.members]

    @property
    def source(self) -> "Pretrained":
        """Where the files of the model are, or of the first."""
        return self.sources[0]

    def find_file(self, name: str) -> Path | None:
        """A file beside the model; None where there is none."""
        return self.source.find(name)


@dataclass(kw_only=True)
class InferenceArguments(ClassifierArguments):
    _argument_group_name = "Inference"

    per_device_eval_batch_size: int = option(64, "images in a batch, per process", least=1)
    dataloader_num_workers: int = option(0, "processes that load images, per process", least=0, most=MOST_WORKERS)
    mixed_precision: str | None = option(None, "precision of the forward pass", choices=["no", "fp16", "bf16"])
    no_merge: bool = option(False, "keep small kernels and BatchNorms unmerged: slower, same predictions")
    skip_bad_images: bool = option(False, "skip images that cannot be decoded instead of refusing them")

    def load(self, *, merge: bool = True) -> "tuple[PreTrainedModel, BaseImageProcessor]":
        return super().load(merge=merge and not self.no_merge)
