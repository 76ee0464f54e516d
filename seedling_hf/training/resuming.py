"""What a resumed run needs beside the loop: its checkpoint, the same arguments, and random numbers that continue."""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset

from seedling_hf.data.images import ImageError
from seedling_hf.errors import InputError, without_advice
from seedling_hf.hub.repository import download_run
from seedling_hf.origin import ForeignFileError
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training.checkpoint_files import DamageError, RunState

# Arguments that do not change the resulting weights, or change them by images and labels, which are compared.
FREE_ARGUMENTS = frozenset(
    {
        "allow_changed_arguments", "auto_find_batch_size", "dataloader_num_workers", "ddp_timeout", "fold",
        "folds_dir", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_tag", "hub_timeout",
        "label_file", "label_map", "logging_steps", "no_calibration", "no_duplicate_check", "output_dir",
        "overwrite_output_dir", "per_device_eval_batch_size", "push_to_hub", "report_to",
        "resume_from_checkpoint", "run_name", "save_steps", "save_total_limit", "split_file",
        "trust_remote_code",
    }
)  # fmt: skip
# Arguments that decide which state there is, so that not even `--allow_changed_arguments` can change them.
FIXED_ARGUMENTS = frozenset(
    {"depths", "freeze", "hidden_sizes", "kernel_sizes", "layer_decay", "optim", "timm_architecture", "variant"}
)
# Arguments that may change, though results then differ in the last bits: whether the model is compiled, and the factors
# of `global_batch_size`, with the same product.
ROUNDING_ARGUMENTS = frozenset(
    {
        "gradient_accumulation_steps", "num_processes", "per_device_train_batch_size", "torch_compile",
        "torch_compile_mode",
    }
)  # fmt: skip
# What is compared and is no argument by itself.
MEANINGS = {
    "split": "split (the images and their labels, after --split_file and --label_file)",
    "class_names": "class_names (after --label_map)",
}


@contextmanager
def advising_to_resume() -> Iterator[None]:
    """Says of an image that changed under a run, and of a file that somebody put there, how the run continues."""
    try:
        yield
    except (ImageError, ForeignFileError) as error:
        remedy = "restore it" if isinstance(error, ImageError) else "move it"
        raise InputError(
            f"{without_advice(error)}; {remedy}, and resume with --resume_from_checkpoint latest"
        ) from error


def fetch_checkpoint(name: str, output_dir: Path, accelerator: Accelerator) -> str:
    """Downloads the checkpoint of a run on the Hub, on the main process for all, and returns its folder.

    Raises:
        InputError: on every process, if there is none.
    """
    path = error = None
    if accelerator.is_main_process:
        try:
            path = str(download_run(name, output_dir))
        except InputError as fault:
            error = str(fault)
    path, error = gather_object([(path, error)])[0]
    if error is not None:
        raise InputError(error)
    return path


def compared_arguments(
    arguments: TrainArguments, splits: Mapping[str, Dataset], global_batch_size: int
) -> dict[str, Any]:
    """What must be the same when a run is resumed; of the batch, its global size."""
    names = ["validation"] if arguments.streaming else ["train", "validation"]
    rows = [row for name in names for row in zip(splits[name]["file"], splits[name]["label"], strict=True)]
    files = "\n".join(f"{file}\t{label}" for file, label in rows)
    class_names = splits["validation"].features["label"].names
    in_class_folders = {file.partition("/")[0] for file, _ in rows} <= set(class_names)
    # Folders name the classes with the files, and a checkpoint of a dataset from the Hub has no names without a map.
    as_folders = in_class_folders or arguments.train_dir is None
    named = {} if as_folders and arguments.label_map is None else {"class_names": class_names}
    return (
        asdict(arguments)
        | named
        | {
            "global_batch_size": global_batch_size,
            "split": hashlib.sha256(files.encode()).hexdigest(),
        }
    )


def check_unchanged(saved: Mapping[str, Any], current: Mapping[str, Any], *, allow: bool = False) -> list[str]:
    """Compares the arguments of a checkpoint with those of the run that resumes it.

    Returns:
        A clause for each accepted difference, after which the run is not bit-equal to an uninterrupted one.

    Raises:
        InputError: if arguments that change the run differ and `allow` is false; it names each with both values.
    """
    saved, current = (json.loads(json.dumps(dict(arguments), default=str)) for arguments in (saved, current))
    # A checkpoint of an earlier version knows fewer flags, whose defaults change nothing.
    defaults = {flag.name: flag.default for flag in fields(TrainArguments) if flag.default is not MISSING}
    defaults |= {flag.name: [] for flag in fields(TrainArguments) if flag.default_factory is list}
    saved = {**{name: value for name, value in defaults.items() if name in current}, **saved}
    changes = {
        name: f"{MEANINGS.get(name, name)} was {_shown(saved, name)} and is {_shown(current, name)}"
        for name in sorted((saved.keys() | current.keys()) - FREE_ARGUMENTS)
        if _shown(saved, name) != _shown(current, name)
    }
    refused = [change for name, change in changes.items() if name not in ROUNDING_ARGUMENTS]
    if refused and not allow:
        raise InputError(
            f"expected the arguments that the checkpoint was written with, found that {'; '.join(refused)}; restore "
            "the earlier values, resume anyway with --allow_changed_arguments, which is the way to go on for longer, "
            "or start a new run from this model with --model_name_or_path"
        )
    is_averaged = {bool(arguments.get("ema_decay")) for arguments in (saved, current)}
    fixed_names = FIXED_ARGUMENTS | ({"ema_decay"} if len(is_averaged) == 2 else set())
    if fixed := [changes[name] for name in changes.keys() & fixed_names]:
        raise InputError(
            f"expected the network and the optimizer of the checkpoint, found that {'; '.join(sorted(fixed))}, which "
            "does not fit its state; restore the earlier values, or start a new run from this model with "
            "--model_name_or_path"
        )
    return list(changes.values())


@contextmanager
def explaining_damage(checkpoint: RunState) -> Iterator[None]:
    """Turns what fails while a checkpoint is restored into a DamageError; an InputError passes."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError) as fault:
        reason = str(fault).strip().split("\n")
        raise DamageError(
            f"the checkpoint {checkpoint.path} is not one of this run: {type(fault).__name__}: {' '.join(reason[:2])}; "
            "resume from an older one, or from the folder of its own run"
        ) from fault


def check_same_shape(name: str, found: Any, like: Any) -> None:
    """Checks that a value of a checkpoint has the types and sizes of this run's own; None is like any of a kind.

    Of dictionaries only the keys that both have are compared, since versions of PyTorch differ in others.

    Raises:
        ValueError: with the name of what differs.
    """
    if found is None or like is None:
        return
    if isinstance(like, torch.Tensor):
        same = isinstance(found, torch.Tensor) and (found.shape, found.dtype) == (like.shape, like.dtype)
    elif isinstance(like, Mapping):
        same = isinstance(found, Mapping)
        for key in like.keys() & found.keys() if same else ():
            check_same_shape(f"{name}.{key}", found[key], like[key])
    elif isinstance(like, list | tuple):
        same = isinstance(found, list | tuple) and len(found) == len(like)
        for i, pair in enumerate(zip(found, like, strict=True) if same else ()):
            check_same_shape(f"{name}.{i}", *pair)
    elif isinstance(like, int | float) and not isinstance(like, bool):
        same = isinstance(found, int | float) and not isinstance(found, bool)
    else:
        same = type(found) is type(like)
    if not same:
        raise ValueError(f"{name} is not like that of this run")


def check_counters(counters: Any, like: Mapping[str, Any], step: int) -> None:
    """Checks the counters of the checkpoint of `step`; ValueError as from `check_same_shape`."""
    if not isinstance(counters, dict) or counters.keys() != like.keys() or counters["step"] != step:
        raise ValueError(f"its counters are not those of step {step}")
    check_same_shape("counters", counters, dict.fromkeys(like, 0) | {"best_step": counters["best_step"] and 0})
    if any(value is None for name, value in counters.items() if name != "best_step"):
        raise ValueError("a counter is missing")


def get_random_state() -> dict[str, Any]:
    """The states of this process's generators: Python's, NumPy's, torch's on the CPU and on its GPU, if it uses one."""
    number, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": (number, torch.tensor(words), gauss),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restores what `get_random_state` returned."""
    number, words, gauss = state["python"]
    random.setstate((number, tuple(words.tolist()), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _shown(arguments: Mapping[str, Any], name: str) -> str:
    return repr(arguments[name]) if name in arguments else "unknown"
