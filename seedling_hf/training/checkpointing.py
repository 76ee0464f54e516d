"""Checkpoints that survive a kill at any moment, and that can run no code.

A checkpoint is a folder `step-00000120` of safetensors and JSON files, so nothing is ever unpickled:

    model.safetensors, ema.safetensors, …      state dicts, one file each
    state.json, state.safetensors              everything else: counters, optimizer, scaler, …
    random_states.json, random_states.safetensors   one entry a process
    manifest.json                              format version, step, size and SHA-256 of every file

It is written into a hidden temporary folder, flushed to disk and renamed; then the pointer file `latest` is replaced;
only then are older checkpoints pruned. Whatever the moment of a kill, `latest` names a whole checkpoint.

Data-loading workers need no state here: order, augmentation and MixUp depend on (seed, epoch, index) alone.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from seedling_hf.errors import InputError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LATEST = "latest"
AFFORDABLE_SHARE = 0.02
# EX_IOERR of sysexits.h: the run itself was sound, but its state could not be kept.
UNSAVED_EXIT_CODE = 74

# Arguments that leave the weights that come out as they are.
FREE_ARGUMENTS = frozenset(
    {
        "allow_changed_arguments", "auto_find_batch_size", "dataloader_num_workers", "ddp_timeout", "fold",
        "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_tag", "hub_timeout", "logging_steps",
        "no_duplicate_check", "output_dir", "overwrite_output_dir", "per_device_eval_batch_size", "push_to_hub",
        "report_to", "resume_from_checkpoint", "run_name", "save_steps", "save_total_limit", "split_file",
        "trust_remote_code",
    }
)  # fmt: skip
# Factors of `global_batch_size`: where that stays, they may be traded against each other, though not to the last bit.
BATCH_FACTORS = frozenset({"per_device_train_batch_size", "gradient_accumulation_steps", "num_processes"})

logger = logging.getLogger(__name__)


class CheckpointError(OSError):
    """A checkpoint could not be written (disk full, folder read-only or gone); the former ones are as they were."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run was made of after `step` optimizer steps.

    Attributes:
        tensors: State dicts by name, on the CPU.
        state: What was given to `Checkpoints.save`, tensors on the CPU.
        random_states: One entry for each process that wrote it, for `set_random_state`.
    """

    path: Path
    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]
    random_states: list[dict[str, Any]] = field(repr=False)


class Checkpoints:
    """The checkpoints of one run, in `output_dir/checkpoints`.

    Every process calls `save` and `load`; only the first touches the folder when saving.

    Args:
        output_dir: Folder of the run, on a disk that all processes see.
        save_total_limit: How many of the newest checkpoints to keep, besides the protected one; all if None.
        process_index: Rank of this process.
        gather: Joins the lists of all processes on each of them, in the order of their ranks
            (`accelerate.utils.gather_object`).
    """

    def __init__(
        self,
        output_dir: str | Path,
        save_total_limit: int | None = None,
        *,
        process_index: int = 0,
        gather: Callable[[list[Any]], list[Any]] = list,
    ) -> None:
        if save_total_limit is not None and save_total_limit < 1:
            raise InputError(
                f"save_total_limit must be at least 1, or left out to keep all checkpoints, got {save_total_limit}"
            )
        self.folder = Path(output_dir) / "checkpoints"
        self.save_total_limit = save_total_limit
        self.process_index = process_index
        self.gather = gather
        self._started = time.perf_counter()
        self._seconds_of_saves: list[float] = []

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        state: Mapping[str, Any],
        *,
        protect: int | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> Path:
        """Writes the checkpoint of `step`, makes it the latest, and prunes.

        Args:
            step: Optimizer steps made.
            tensors: State dicts by name; `model` becomes `model.safetensors`.
            state: Nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.
            protect: Step of a checkpoint that is never pruned: the best one.
            texts: Further files by name, such as `config.json`, which makes the folder one for `from_pretrained`.

        Returns:
            The folder written.

        Raises:
            CheckpointError: on every process, if it could not be written; the former ones are as they were.
        """
        started = time.perf_counter()
        random_states = self.gather([get_random_state()])
        path = self.folder / _name(step)
        error = None
        if self.process_index == 0:
            try:
                self._write(path, step, tensors, state, random_states, texts or {})
            except (OSError, SafetensorError) as fault:  # safetensors wraps the error of a full disk in its own
                with contextlib.suppress(OSError):
                    _remove_leftovers(self.folder)
                error = f"the checkpoint of step {step} could not be written to {path}: {fault}"
            else:
                self._prune(step, protect)
        error = self.gather([error])[0]
        self._seconds_of_saves.append(time.perf_counter() - started)
        if error is not None:
            raise CheckpointError(error)
        return path

    def are_affordable(self) -> bool:
        """Whether after one more save saving has taken at most `AFFORDABLE_SHARE` of the time; true for the first."""
        seconds = sum(self._seconds_of_saves) + max(self._seconds_of_saves, default=0.0)
        return self.gather([seconds <= AFFORDABLE_SHARE * (time.perf_counter() - self._started)])[0]

    def load(self, source: str | Path) -> Checkpoint | None:
        """Reads a checkpoint, on every process the same one.

        Args:
            source: `latest`; the folder of a checkpoint; or a folder of a run, for its latest. A damaged latest
                checkpoint is named in a warning and the one before it is used.

        Returns:
            The checkpoint, or None if `source` is `latest` and there is none yet.

        Raises:
            InputError: if there is no checkpoint at `source`, or none that is whole.
        """
        checkpoint, error = None, None
        if self.process_index == 0:
            try:
                checkpoint = self._find(source)
            except InputError as fault:
                error = str(fault)
        path, error = self.gather([(checkpoint and checkpoint.path, error)])[0]
        if error is not None:
            raise InputError(error)
        if path is None:
            return None
        return checkpoint or _read(path, check=False)

    def _find(self, source: str | Path) -> Checkpoint | None:
        if str(source) == LATEST:
            with contextlib.suppress(OSError):  # a folder that can only be read can be resumed from
                _remove_leftovers(self.folder)
            return _read_latest(self.folder)
        source = Path(source)
        for folder in (source, source / "checkpoints"):
            if _steps(folder):
                return _read_latest(folder)
        return _read(source)

    def _write(self, path, step, tensors, state, random_states, texts) -> None:
        if not self.folder.exists():
            self.folder.mkdir()  # not its parents: a disk that is gone must not be replaced by a folder of its name
            _flush(self.folder.parent)
        _remove_leftovers(self.folder)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.mkdir()
        contents = {f"{name}.safetensors": values for name, values in tensors.items()}
        contents |= _pack_files("state", state) | _pack_files("random_states", random_states) | texts
        with ThreadPoolExecutor(max_workers=4) as pool:  # writing and hashing leave Python's lock
            written = pool.map(_write_file, [temporary / name for name in contents], contents.values())
            files = dict(zip(contents, written, strict=True))
        _write_file(temporary / MANIFEST, _manifest_text(step, files))
        _flush(temporary)

        if path.exists():  # from an earlier run that came as far
            _move_aside(path)
        temporary.rename(path)
        _flush(self.folder)
        pointer = self.folder / f".{LATEST}.tmp"
        _write_file(pointer, _pointer_text(path.name))
        pointer.replace(self.folder / LATEST)
        _flush(self.folder)

    def _prune(self, step: int, protect: int | None) -> None:
        try:
            _remove_leftovers(self.folder)
            if self.save_total_limit is None:
                return
            steps = [other for other in _steps(self.folder) if _is_ours_alone(self.folder / _name(other))]
            # Steps beyond this one are those of a run that was taken back to an earlier checkpoint.
            steps.sort(key=lambda other: other > step)
            for other in steps[self.save_total_limit :]:
                if other not in (step, protect):
                    # Renamed first, so that no half-deleted folder is ever taken for a checkpoint.
                    path = self.folder / _name(other)
                    shutil.rmtree(path.rename(path.with_name(f".{path.name}.pruned")))
        except OSError as fault:
            logger.warning("Older checkpoints in %s could not be pruned: %s", self.folder, fault)


def check_unchanged(saved: Mapping[str, Any], current: Mapping[str, Any], *, allow: bool = False) -> list[str]:
    """Compares the arguments of a checkpoint with those of the run that resumes it.

    Args:
        saved: Arguments by name, as they were when the checkpoint was written, with `global_batch_size` and
            `num_processes` among them.
        current: The same of this run.
        allow: Accept any difference.

    Returns:
        A clause for each accepted difference after which the run is not equal, to the last bit, to one that was never
        interrupted.

    Raises:
        InputError: if arguments that alter the run differ and `allow` is false; it names each with both values.
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
            f"the checkpoint belongs to a run with other arguments: {'; '.join(refused)}; give the former values, or "
            "--allow_changed_arguments to go on all the same"
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
    """Puts back what `get_random_state` returned."""
    number, words, gauss = state["python"]
    random.setstate((number, tuple(words.tolist()), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _shown(arguments: Mapping[str, Any], name: str) -> str:
    return repr(arguments[name]) if name in arguments else "not known"


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _step(name: str) -> int | None:
    """The step of a checkpoint's name, or None if the name is not one."""
    return int(name.removeprefix("step-")) if re.fullmatch(r"step-\d{8,18}", name, re.ASCII) else None


def _steps(folder: Path) -> list[int]:
    """Steps of all that may be checkpoints in `folder`, newest first."""
    paths = [path for path in folder.glob("step-*") if path.is_dir() and not path.is_symlink()]
    return sorted((step for path in paths if (step := _step(path.name)) is not None), reverse=True)


def _remove_leftovers(folder: Path) -> None:
    """Clears away what a killed or failed save has left, and puts back a checkpoint it had moved aside."""
    for path in folder.glob(".step-*"):
        name, _, kind = path.name.removeprefix(".").partition(".")
        if _step(name) is None or kind not in ("tmp", "old", "pruned"):
            continue
        if kind == "old" and not path.with_name(name).exists():
            path.rename(path.with_name(name))
        else:
            shutil.rmtree(path, ignore_errors=True)


def _move_aside(path: Path) -> None:
    """Makes room for a checkpoint of the same step; what is not wholly ours, or damaged, is kept for good."""
    if _is_ours_alone(path):
        path.rename(path.with_name(f".{path.name}.old"))  # until the new one has its place
        return
    aside = next(a for i in itertools.count(1) if not (a := path.with_name(f"{path.name}.aside-{i}")).exists())
    path.rename(aside)
    logger.warning("%s holds what is no whole checkpoint, and is now %s", path, aside.name)


def _is_ours_alone(path: Path) -> bool:
    """Whether a folder holds nothing but files of a checkpoint, so that it may be deleted."""
    try:
        manifest = _read_manifest(path)
    except InputError:
        return False
    return {file.name for file in path.iterdir()} <= {MANIFEST, *manifest["files"]}


def _read_latest(folder: Path) -> Checkpoint | None:
    steps = _steps(folder)
    latest = _read_pointer(folder / LATEST)
    if latest is not None:
        # Later steps than the pointer's were left behind by a run that was taken back to an earlier checkpoint.
        steps = [step for step in steps if step <= latest]
    elif steps:
        logger.warning("%s is missing or damaged: the newest checkpoint beside it is used", folder / LATEST)
    damages = []
    for step in steps:
        try:
            checkpoint = _read(folder / _name(step))
        except InputError as damage:
            logger.warning("%s", damage)
            damages.append(str(damage))
        else:
            return checkpoint
    if damages:
        raise InputError(f"no checkpoint in {folder} is whole: {'; '.join(damages)}")
    return None


def _read(path: Path, check: bool = True) -> Checkpoint:
    """Reads a checkpoint whose every file is as its manifest says."""
    manifest = _read_manifest(path)
    if check:
        for name, written in manifest["files"].items():
            _check(path / name, **written)
    try:
        names = [name.removesuffix(".safetensors") for name in manifest["files"] if name.endswith(".safetensors")]
        return Checkpoint(
            path=path,
            step=manifest["step"],
            tensors={
                name: load_file(path / f"{name}.safetensors")
                for name in names
                if name not in ("state", "random_states")
            },
            state=_read_state(path, "state"),
            random_states=_read_state(path, "random_states"),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as fault:
        raise InputError(
            f"the checkpoint {path} holds other things than safetensors and JSON ({fault!r}); expected one that this "
            "program wrote; nothing of it was run or used"
        ) from fault


def _read_manifest(path: Path) -> dict[str, Any]:
    if not (path / MANIFEST).is_file():
        if path.is_dir() and _step(path.name) is not None:
            raise InputError(f"the checkpoint {path} is damaged: {MANIFEST} is missing; an older one has to be used")
        raise InputError(f"expected a checkpoint, a folder with {MANIFEST}, and found none at {path}")
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        version, step, files = manifest["format_version"], manifest["step"], manifest["files"]
        whole = text == _manifest_text(step, files, version) and isinstance(step, int)
        whole = whole and all(Path(name).name == name and files[name].keys() == {"size", "sha256"} for name in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise InputError(
            f"the checkpoint {path} is damaged: {MANIFEST} is not as it was written; an older one has to be used"
        )
    if version != FORMAT_VERSION:
        raise InputError(
            f"the checkpoint {path} has format version {version} and this program reads version {FORMAT_VERSION}; "
            "resume it with the version of seedling-hf that wrote it"
        )
    return manifest


def _check(file: Path, size: int, sha256: str) -> None:
    try:
        found = file.stat().st_size if file.is_file() else None
        if found is None:
            problem = "is missing"
        elif found != size:
            problem = f"has {found} bytes instead of {size}"
        elif _hash(file) != sha256:
            problem = "does not have the SHA-256 it was written with"
        else:
            return
    except OSError as fault:
        problem = f"cannot be read ({fault.strerror})"
    raise InputError(f"the checkpoint {file.parent} is damaged: {file.name} {problem}; an older one has to be used")


def _pointer_text(name: str) -> str:
    return f"{name} {hashlib.sha256(name.encode()).hexdigest()[:16]}\n"


def _read_pointer(pointer: Path) -> int | None:
    try:
        text = pointer.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    name = text.partition(" ")[0]
    return _step(name) if text == _pointer_text(name) else None


def _manifest_text(step: int, files: Mapping[str, Any], version: int = FORMAT_VERSION) -> str:
    """The manifest, with a checksum of its own."""
    manifest = {"format_version": version, "step": step, "files": files}
    digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": digest}, indent=2) + "\n"


def _write_file(file: Path, content: str | Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Writes a text or tensors to the disk, and returns the file's entry in the manifest."""
    if isinstance(content, str):
        file.write_text(content, encoding="utf-8")
    else:
        tensors = {name: tensor.detach().contiguous() for name, tensor in content.items()}
        save_file(tensors, file, metadata={"format": "pt"})
    _flush(file)
    return {"size": file.stat().st_size, "sha256": _hash(file)}


def _pack_files(name: str, state: Any) -> dict[str, str | dict[str, torch.Tensor]]:
    """The contents of the two files that hold nested values."""
    tensors: dict[str, torch.Tensor] = {}
    packed = _pack(state, name, tensors)
    return {f"{name}.json": json.dumps(packed, indent=2) + "\n", f"{name}.safetensors": tensors}


def _read_state(folder: Path, name: str) -> Any:
    text = (folder / f"{name}.json").read_text(encoding="utf-8")
    return _unpack(json.loads(text), load_file(folder / f"{name}.safetensors"))


def _pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Turns nested values into JSON, in which each tensor is replaced by its name in `tensors`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        while name in tensors:  # {"a.b": x, "a": {"b": y}} have one name
            name += "'"
        tensors[name] = value
        return {"__tensor__": name}
    if isinstance(value, list):
        return [_pack(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"__tuple__": _pack(list(value), name, tensors)}
    if isinstance(value, Mapping):
        packed = {key: _pack(item, f"{name}.{key}", tensors) for key, item in value.items()}
        if all(isinstance(key, str) and not key.startswith("__") for key in packed):
            return packed
        return {"__items__": [[_pack(key, name, tensors), item] for key, item in packed.items()]}
    raise TypeError(f"{name} is of type {type(value).__name__}, which a checkpoint cannot hold")


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__tensor__"}:
        return tensors[value["__tensor__"]]
    if value.keys() == {"__tuple__"}:
        return tuple(_unpack(value["__tuple__"], tensors))
    if value.keys() == {"__items__"}:
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in value["__items__"]}
    return {key: _unpack(item, tensors) for key, item in value.items()}


def _hash(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as fault:
        # Some network file systems cannot flush a folder, and keep its names by themselves.
        if not (path.is_dir() and fault.errno in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)
