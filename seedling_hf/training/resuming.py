"""What a resumed run needs beside the loop: its checkpoint, the same arguments, and random numbers that continue."""

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from seedling_hf.data.images import ImageError
from seedling_hf.errors import InputError
from seedling_hf.hub.repository import download_run

# Arguments that do not change the resulting weights.
FREE_ARGUMENTS = frozenset(
    {
        "allow_changed_arguments", "auto_find_batch_size", "dataloader_num_workers", "ddp_timeout", "fold",
        "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_tag", "hub_timeout", "logging_steps",
        "no_duplicate_check", "output_dir", "overwrite_output_dir", "per_device_eval_batch_size", "push_to_hub",
        "report_to", "resume_from_checkpoint", "run_name", "save_steps", "save_total_limit", "split_file",
        "trust_remote_code",
    }
)  # fmt: skip
# Factors of `global_batch_size`: with the same product they may change, though results then differ in the last bits.
BATCH_FACTORS = frozenset({"per_device_train_batch_size", "gradient_accumulation_steps", "num_processes"})


@contextmanager
def advising_to_resume() -> Iterator[None]:
    """Says of an image that changed under a run how the run continues."""
    try:
        yield
    except ImageError as error:
        found = str(error).rpartition("; ")[0]
        raise InputError(f"{found}; restore it, and resume with --resume_from_checkpoint latest") from error


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


def check_unchanged(saved: Mapping[str, Any], current: Mapping[str, Any], *, allow: bool = False) -> list[str]:
    """Compares the arguments of a checkpoint with those of the run that resumes it.

    Returns:
        A clause for each accepted difference, after which the run is not bit-equal to an uninterrupted one.

    Raises:
        InputError: if arguments that change the run differ and `allow` is false; it names each with both values.
    """
    saved, current = (json.loads(json.dumps(dict(arguments), default=str)) for arguments in (saved, current))
    changes = {
        name: f"{name} was {_shown(saved, name)} and is {_shown(current, name)}"
        for name in sorted((saved.keys() | current.keys()) - FREE_ARGUMENTS)
        if _shown(saved, name) != _shown(current, name)
    }
    refused = [change for name, change in changes.items() if name not in BATCH_FACTORS]
    if refused and not allow:
        raise InputError(
            f"expected the arguments that the checkpoint was written with, found that {'; '.join(refused)}; restore "
            "the earlier values, or resume anyway with --allow_changed_arguments"
        )
    return list(changes.values())


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
