"""A classifier by name: where the name leads, and how it is loaded."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from seedling_hf.errors import InputError
from seedling_hf.inference.model_files import (
    CONFIG,
    INDEX,
    PICKLED,
    PICKLED_INDEX,
    PROCESSORS,
    WEIGHTS,
    TensorForm,
    check_config,
    check_file,
    check_finite,
    check_image_processor,
    check_processor,
    find_misfits,
    first_line,
    plain_name,
    read_forms,
    read_index,
    read_tensors,
)
from seedling_hf.network import explaining
from seedling_hf.progress import Progress
from seedling_hf.spelling import find_near
from seedling_hf.verbosity import is_verbose

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PretrainedConfig, PreTrainedModel


class Pretrained:
    """A model folder or a repository on the Hub, from which config, image processor and model are loaded.

    Args:
        name: Folder, `user/repo` or `user/repo@revision`.
        revision: Branch, tag or commit, where `name` has none.
        trust_remote_code: Whether Python code that comes with the model may run. A RepLKNet needs none here.

    Raises:
        InputError: for a folder without a model, a path that leads nowhere, or two revisions. So do the methods, where
            loading fails.
    """

    def __init__(self, name: str, revision: str | None = None, trust_remote_code: bool = False) -> None:
        self.name, named_revision = parse_hub_name(name) or (name, None)
        if named_revision and revision:
            raise InputError(
                f"expected one revision, found {named_revision} in --model_name_or_path and {revision} in "
                "--model_revision; remove one"
            )
        path = Path(self.name)
        if path.exists() and not os.path.lexists(path / CONFIG):
            raise InputError(
                f"expected a model folder with a config.json at {self.name}, found a "
                f"{'folder without one' if path.is_dir() else 'file'}; give the --output_dir of a training run"
            )
        check_model_name(name, revision)
        self.options = {"revision": named_revision or revision or "main", "trust_remote_code": trust_remote_code}

    def load_config(self) -> "PretrainedConfig":
        from transformers import AutoConfig

        with self._explaining(CONFIG):
            if (path := self.find(CONFIG)) is not None:
                check_config(path)
            config = AutoConfig.from_pretrained(self.name, **self.options)
            if config.num_labels < 1:
                raise InputError(f"expected a classifier at {self.name}, found one without classes")
        # What a file may ask for, and what would change which weights are read or what the model returns.
        config.return_dict, config.output_hidden_states = True, False
        vars(config).pop("transformers_weights", None)
        if config.model_type == "replknet":
            config._attn_implementation = None
        return config

    def load_image_processor(self, num_channels: int | None = None) -> "BaseImageProcessor":
        """The image processor, tried on a small image; `num_channels` are those that the model takes."""
        from transformers import AutoImageProcessor

        with self._explaining():
            for name in PROCESSORS:
                if (path := self.find(name)) is not None:
                    check_processor(path)
            image_processor = AutoImageProcessor.from_pretrained(self.name, **self.options)
        check_image_processor(image_processor, num_channels, self.name)
        return image_processor

    def load_model(
        self, config: "PretrainedConfig", *, complete: bool = True, ignore_mismatched_sizes: bool = True
    ) -> "tuple[PreTrainedModel, list[str]]":
        """The model of `config` in float32, and the names of the weights that no file had or that did not fit.

        Before anything of its size is allocated, names, types and shapes in the files are compared with the model's.

        Args:
            complete: Refuse a RepLKNet without a head, which is otherwise initialised.
            ignore_mismatched_sizes: Count weights of another shape among those that no file had.
        """
        import torch
        from transformers import AutoModelForImageClassification

        with self._explaining():
            files, forms = self._read_forms(config, complete)
            options = {
                "dtype": torch.float32,
                "output_loading_info": True,
                "ignore_mismatched_sizes": ignore_mismatched_sizes,
            }
            if any(name != plain_name(name) for name in forms):  # written by a compiled or distributed model
                weights = {plain_name(name): tensor for name, tensor in read_tensors(files).items()}
                kind = AutoModelForImageClassification._model_mapping[type(config)]
                model, loading = kind.from_pretrained(None, config=config, state_dict=weights, **options)
            else:
                model, loading = AutoModelForImageClassification.from_pretrained(
                    self.name, config=config, **options, **self.options
                )
        check_finite(model.state_dict(), self.name)
        return model, sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})

    def check(self) -> None:
        """Refuses a folder that no command could load, or without weights that are pushed; no model is built.

        A backbone without a head, and a model without an image processor, are right here.
        """
        config = self.load_config()
        if any(self.find(name) for name in PROCESSORS):
            self.load_image_processor(getattr(config, "num_channels", None))
        architectures = config.architectures or ["ForImageClassification"]
        with self._explaining():
            is_classifier = any("ForImageClassification" in name for name in architectures)
            files, _ = self._read_forms(config, complete=is_classifier)
            if not files:
                raise InputError(
                    f"expected weights in {Path(self.name) / WEIGHTS}, found them in another format; save the model "
                    "again with save_pretrained"
                )
            for file in files:
                check_finite(read_tensors([file]), str(file))

    def find(self, file: str) -> Path | None:
        """A file of the folder or, downloaded, of the repository; None where there is none."""
        folder = Path(self.name)
        if folder.exists():
            return folder / file if os.path.lexists(folder / file) else None
        from transformers.utils import cached_file

        found = cached_file(
            self.name, file, revision=self.options["revision"],
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        return None if found is None else Path(found)

    def _find_weights(self) -> list[Path]:
        """The files that hold the weights; none if they are not in safetensors."""
        if (path := self.find(WEIGHTS)) is not None:
            return [path]
        for name, is_index in ((INDEX, True), (PICKLED, False), (PICKLED_INDEX, True)):
            if (path := self.find(name)) is None:
                continue
            files = [self.find(file) or path.with_name(file) for file in read_index(path)] if is_index else [path]
            for file in files:
                check_file(file, "weights")
            return files if name == INDEX else []
        if Path(self.name).exists():
            raise InputError(
                f"expected weights in {Path(self.name) / WEIGHTS}, found none; give the --output_dir of a training run"
            )
        return []

    def _read_forms(self, config: "PretrainedConfig", complete: bool) -> tuple[list[Path], dict[str, TensorForm]]:
        """The files of the weights and what they hold, which fits the model if that is a RepLKNet."""
        files = self._find_weights()
        forms = read_forms(files)
        if forms and config.model_type == "replknet":
            self._check_fit(config, {plain_name(name): form for name, form in forms.items()}, complete)
        return files, forms

    def _check_fit(self, config: "PretrainedConfig", forms: dict[str, TensorForm], complete: bool) -> None:
        import torch

        from seedling_hf.replknet import RepLKNetForImageClassification

        with torch.device("meta"):
            model = RepLKNetForImageClassification(config)
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        prefix = f"{model.base_model_prefix}."
        if not any(name.startswith(prefix) for name in forms):  # the model without a head, or a backbone
            forms = {f"{prefix}{name}": form for name, form in forms.items()}
        if not complete:  # a backbone has no last normalization either
            expected = {
                name: s
                for name, s in expected.items()
                if name.startswith((f"{prefix}embeddings.", f"{prefix}encoder."))
            }
        if misfits := find_misfits(forms, expected):
            raise InputError(
                f"expected all weights of {type(model).__name__} in {self.name}, found none that fit for "
                f"{len(misfits):,}, such as {misfits[0]}; give a folder that training has written"
            )
        foreign = [name for name in forms if name not in expected and re.search(r"\.layers\.\d+\.", name)]
        if foreign:
            raise InputError(
                f"expected the weights of the network in {self.name}/{CONFIG}, found {len(foreign):,} of a deeper one, "
                f"such as {foreign[0]}; get both files again"
            )

    @contextmanager
    def _explaining(self, file: str = "") -> Iterator[None]:
        """Loads under our progress, not the library's bars, and turns what a library raises into one sentence.

        `file` is at fault where nothing else is.
        """
        from transformers.utils import logging

        import seedling_hf.replknet  # noqa: F401  registers the classes with the Auto classes

        with_bar = logging.is_progress_bar_enabled()
        if not is_verbose():
            logging.disable_progress_bar()
        try:
            with Progress("loading the model"), explaining(f"an image classifier at {self.name}", OSError, ValueError):
                yield
        except InputError:
            raise
        except Exception as error:  # a stranger's file can bring a library to raise anything
            raise InputError(
                f"expected an image classifier at {self.name}, found{file and f' in its {file}'}: {first_line(error)}; "
                "get the model again"
            ) from error
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
    config = source.load_config()
    image_processor = source.load_image_processor(getattr(config, "num_channels", None))
    model, untrained = source.load_model(config)
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


def check_model_name(name: str, revision: str | None = None) -> None:
    """Refuses a path that leads nowhere, instead of asking the Hub for it; see `is_on_hub`.

    Raises:
        InputError: with the folder that was probably meant, if there is one.
    """
    path = Path(name)
    if path.exists() or is_on_hub(name, revision):
        return
    near = None
    with suppress(OSError):
        near = find_near(path.name, [each.name for each in path.parent.iterdir() if each.is_dir()])
    hint = f"did you mean {path.parent / near}? A" if near else "a"
    repository = f"{name}@main" if parse_hub_name(name) else "user/repo"
    raise InputError(
        f"expected a model folder at {name}, found nothing there; {hint} repository on the Hub is written {repository}"
    )


def is_on_hub(name: str, revision: str | None = None) -> bool:
    """Whether a name is that of a repository: `user/repo`, and `user` is no folder here or a revision is named."""
    parts = parse_hub_name(name)
    return parts is not None and bool(parts[1] or revision or not Path(name).parent.is_dir())


def parse_hub_name(name: str) -> tuple[str, str | None] | None:
    """Splits `user/repo` or `user/repo@revision`; None for any other name, and for a path that exists here."""
    match = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\S+))?", name, re.ASCII)
    return None if match is None or Path(name).exists() else (match[1], match[2])
