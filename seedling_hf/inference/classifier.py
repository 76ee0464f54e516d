"""A classifier by name: the flags that name it, where the name leads, and how it is loaded."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedling_hf import SHIPPED_MODEL
from seedling_hf.arguments import MOST_WORKERS, ArgumentGroup, option
from seedling_hf.errors import InputError
from seedling_hf.network import explaining

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PretrainedConfig, PreTrainedModel


@dataclass(kw_only=True)
class ClassifierArguments(ArgumentGroup):
    """Which classifier: these flags join the group of the class that inherits them."""

    model_name_or_path: str | None = option(
        None, "model folder of a training run, or Hub repository (default: the shipped nano)"
    )
    model_revision: str | None = option(None, "branch, tag or commit of that repository")
    trust_remote_code: bool = option(False, "run the Python code of that repository; a RepLKNet needs none")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model_name_or_path = self.model_name_or_path or str(SHIPPED_MODEL)

    def load(self, *, merge: bool = True) -> "tuple[PreTrainedModel, BaseImageProcessor]":
        """The classifier that the flags name, see `load_classifier`."""
        return load_classifier(
            self.model_name_or_path,
            revision=self.model_revision,
            trust_remote_code=self.trust_remote_code,
            merge=merge,
        )


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


class Pretrained:
    """A model folder or a repository on the Hub, from which config, image processor and model are loaded.

    Args:
        name: Folder, `user/repo` or `user/repo@revision`.
        revision: Branch, tag or commit, where `name` has none.
        trust_remote_code: Whether Python code that comes with the model may run. A RepLKNet needs none here.

    Raises:
        InputError: for a folder without a model, or two revisions. So do the methods, where loading fails.
    """

    def __init__(self, name: str, revision: str | None = None, trust_remote_code: bool = False) -> None:
        self.name, named_revision = parse_hub_name(name) or (name, None)
        if named_revision and revision:
            raise InputError(
                f"expected one revision, found {named_revision} in --model_name_or_path and {revision} in "
                "--model_revision; remove one"
            )
        path = Path(self.name)
        if path.exists() and not (path / "config.json").is_file():
            raise InputError(
                f"expected a model folder with a config.json at {self.name}, found a "
                f"{'folder without one' if path.is_dir() else 'file'}; give the --output_dir of a training run"
            )
        if not path.exists() and (path.is_absolute() or self.name[0] in ".~" or len(path.parts) > 2):
            raise InputError(f"expected a model folder at {self.name}, found nothing there")
        self.options = {"revision": named_revision or revision or "main", "trust_remote_code": trust_remote_code}

    def load_config(self) -> "PretrainedConfig":
        from transformers import AutoConfig

        with self._explaining():
            return AutoConfig.from_pretrained(self.name, **self.options)

    def load_image_processor(self) -> "BaseImageProcessor":
        from transformers import AutoImageProcessor

        with self._explaining():
            return AutoImageProcessor.from_pretrained(self.name, **self.options)

    def load_model(self, config: "PretrainedConfig", **options: Any) -> "tuple[PreTrainedModel, list[str]]":
        """The model of `config` in float32, and the names of the weights that no file had or that did not fit."""
        import torch
        from transformers import AutoModelForImageClassification

        with self._explaining():
            model, loading = AutoModelForImageClassification.from_pretrained(
                self.name, config=config, dtype=torch.float32, output_loading_info=True, **options, **self.options
            )
        return model, sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Loads without a progress bar, and turns what a library raises into one sentence."""
        from safetensors import SafetensorError
        from transformers.utils import logging

        import seedling_hf.replknet  # noqa: F401  registers the classes with the Auto classes

        with_bar = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            with explaining(f"an image classifier at {self.name}", OSError, ValueError, SafetensorError):
                yield
        finally:
            if with_bar:
                logging.enable_progress_bar()


def load_classifier(
    model_name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False, merge: bool = True
) -> "tuple[PreTrainedModel, BaseImageProcessor]":
    """Loads a trained classifier in float32 and in evaluation mode, with its image processor; see `Pretrained`.

    Args:
        merge: Merge parallel branches and BatchNorms into the convolutions, where the model can: faster, with the
            same predictions.

    Raises:
        InputError: if there is no model, or one without every trained weight of its classifier.
    """
    source = Pretrained(model_name_or_path, revision, trust_remote_code)
    model, untrained = source.load_model(source.load_config(), ignore_mismatched_sizes=True)
    image_processor = source.load_image_processor()
    if untrained:
        raise InputError(
            f"expected all weights of {type(model).__name__} in {model_name_or_path}, found none that fit for "
            f"{len(untrained)}, such as {untrained[0]}; give a folder that training has written"
        )
    model.eval()
    if merge and hasattr(model, "fuse_batch_norms"):
        model.fuse_batch_norms()
    return model, image_processor


def list_classes(config: "PretrainedConfig") -> list[str]:
    """The names of a model's classes, in the order of its logits."""
    return [config.id2label[i] for i in range(config.num_labels)]


def parse_hub_name(name: str) -> tuple[str, str | None] | None:
    """Splits `user/repo` or `user/repo@revision`; None for any other name, and for a path that exists here."""
    match = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\S+))?", name, re.ASCII)
    return None if match is None or Path(name).exists() else (match[1], match[2])
