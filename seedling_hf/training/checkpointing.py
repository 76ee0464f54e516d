"""Checkpoints that survive a kill at any moment.

A checkpoint is a folder such as `step-00000120`, with the files that `checkpoint_files` describes. It is written into a
hidden temporary folder, flushed to the disk and renamed; then the pointer file `latest` is replaced; only then are
older checkpoints pruned. At whatever moment the run is killed, `latest` names a complete checkpoint.

Data-loading workers need no state here: order, augmentation and MixUp depend only on (seed, epoch, index).
"""

import contextlib
import hashlib
import itertools
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from seedling_hf.errors import InputError
from seedling_hf.training.checkpoint_files import (
    MANIFEST,
    DamageError,
    RunState,
    checkpoint_name,
    flush,
    read_manifest,
    read_run_state,
    step_of,
    write_file,
    write_run_state,
)
from seedling_hf.training.resuming import get_random_state

LATEST = "latest"
AFFORDABLE_SHARE = 0.02
# EX_IOERR of sysexits.h: the run itself succeeded, but its state could not be saved.
UNSAVED_EXIT_CODE = 74

logger = logging.getLogger(__name__)


class CheckpointError(OSError):
    """A checkpoint could not be written (disk full, folder read-only or missing); the earlier ones are unchanged."""


class Checkpoints:
    """The checkpoints of one run, in `output_dir/checkpoints`.

    Every process calls `save` and `load`; only the first touches the folder when saving.

    Args:
        output_dir: On a disk that all processes see.
        save_total_limit: How many of the newest checkpoints to keep, besides the protected one; all if None.
        gather: Joins the lists of all processes on each of them, in the order of their ranks
            (`accelerate.utils.gather_object`).

    Raises:
        InputError: for a `save_total_limit` below 1.
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
                f"expected save_total_limit of at least 1, or None to keep all checkpoints, found {save_total_limit}"
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
    ) -> Path:
        """Writes the checkpoint of `step`, makes it the latest, and prunes.

        Args:
            tensors: State dicts by name; `model` becomes `model.safetensors`.
            state: Nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.
            protect: Step of a checkpoint that is never pruned: the best one.

        Raises:
            CheckpointError: on every process, if it could not be written; the earlier ones are unchanged.
        """
        started = time.perf_counter()
        random_states = self.gather([get_random_state()])
        path = self.folder / checkpoint_name(step)
        error = None
        if self.process_index == 0:
            try:
                self._write(path, step, tensors, state, random_states)
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
        """Whether one more save keeps the time spent saving within `AFFORDABLE_SHARE`; true for the first save."""
        seconds = sum(self._seconds_of_saves) + max(self._seconds_of_saves, default=0.0)
        return self.gather([seconds <= AFFORDABLE_SHARE * (time.perf_counter() - self._started)])[0]

    def load(self, source: str | Path, use: Callable[[RunState], None] = lambda _: None) -> RunState | None:
        """Reads a checkpoint, on every process the same one; None if `source` is `latest` and there is none yet.

        Args:
            source: `latest`; the folder of a checkpoint; or a folder of a run, for its latest. If the latest one is
                damaged, a warning names it and the one before it is used.
            use: Restores it, and raises DamageError if it cannot, so that it counts as damaged.

        Raises:
            InputError: if there is no checkpoint at `source`, or no complete one.
        """
        candidates, damages = self._find(source) if self.process_index == 0 else None, []
        while True:
            checkpoint, error = None, None
            if self.process_index == 0:
                try:
                    checkpoint = next(candidates, None)
                except InputError as fault:
                    error = str(fault)
            path, error = self.gather([(checkpoint and checkpoint.path, error)])[0]
            if error is not None:
                raise InputError(error)
            if path is None and damages:
                raise InputError(f"expected a checkpoint of this run at {source}, found none: {'; '.join(damages)}")
            if path is None:
                return None
            checkpoint = checkpoint or read_run_state(path, check=False)
            damage = next(filter(None, self.gather([_try(use, checkpoint)])), None)
            if damage is None:
                return checkpoint
            logger.warning("%s", damage)
            damages.append(damage)

    def _find(self, source: str | Path) -> Iterator[RunState]:
        """The complete checkpoints to try, the newest first."""
        if str(source) == LATEST:
            with contextlib.suppress(OSError):  # a read-only folder can be resumed from
                _remove_leftovers(self.folder)
            yield from _read_newest(self.folder)
            return
        source = Path(source)
        for folder in (source, source / "checkpoints"):
            if _steps(folder):
                yield from _read_newest(folder)
                return
        yield read_run_state(source)

    def _write(self, path, step, tensors, state, random_states) -> None:
        if not self.folder.exists():
            self.folder.mkdir()  # not its parents: a missing disk must not be replaced by a folder of the same name
            flush(self.folder.parent)
        _remove_leftovers(self.folder)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.mkdir()
        write_run_state(temporary, step, tensors, state, random_states)
        if path.exists():  # from an earlier run that reached this step
            _move_aside(path)
        temporary.rename(path)
        flush(self.folder)
        pointer = self.folder / f".{LATEST}.tmp"
        write_file(pointer, _pointer_text(path.name))
        pointer.replace(self.folder / LATEST)
        flush(self.folder)

    def _prune(self, step: int, protect: int | None) -> None:
        try:
            _remove_leftovers(self.folder)
            if self.save_total_limit is None:
                return
            steps = [other for other in _steps(self.folder) if _is_ours_alone(self.folder / checkpoint_name(other))]
            # Steps after this one are from before the run went back to an earlier checkpoint.
            steps.sort(key=lambda other: other > step)
            for other in steps[self.save_total_limit :]:
                if other not in (step, protect):
                    path = self.folder / checkpoint_name(other)
                    # Renamed first, so that no half-deleted folder is ever mistaken for a checkpoint.
                    shutil.rmtree(path.rename(path.with_name(f".{path.name}.pruned")))
        except OSError as fault:
            logger.warning("Older checkpoints in %s could not be pruned: %s", self.folder, fault)


def _steps(folder: Path) -> list[int]:
    """Steps of all folders in `folder` that are named as checkpoints, newest first."""
    paths = [path for path in folder.glob("step-*") if path.is_dir() and not path.is_symlink()]
    return sorted((step for path in paths if (step := step_of(path.name)) is not None), reverse=True)


def _remove_leftovers(folder: Path) -> None:
    """Deletes what a killed or failed save has left, and restores a checkpoint that it had moved aside."""
    for path in folder.glob(".step-*"):
        name, _, kind = path.name.removeprefix(".").partition(".")
        if step_of(name) is None or kind not in ("tmp", "old", "pruned"):
            continue
        if kind == "old" and not path.with_name(name).exists():
            path.rename(path.with_name(name))
        else:
            shutil.rmtree(path, ignore_errors=True)


def discard_checkpoints(folder: Path) -> None:
    """Deletes the checkpoints of a run that is discarded; other files, and damaged checkpoints, stay in the folder."""
    _remove_leftovers(folder)
    for step in _steps(folder):
        path = folder / checkpoint_name(step)
        if _is_ours_alone(path):
            shutil.rmtree(path.rename(path.with_name(f".{path.name}.pruned")))
        else:
            _move_aside(path)
    if _read_pointer(folder / LATEST) is not None:
        (folder / LATEST).unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()  # only if it is empty


def holds_checkpoint(folder: Path, *others: Path) -> bool:
    """Whether one of the folders in `folder`, or of the others, is a checkpoint."""
    for path in (*(folder / checkpoint_name(step) for step in _steps(folder)), *others):
        with contextlib.suppress(InputError):
            return bool(read_manifest(path))
    return False


def holds_pointer(path: Path) -> bool:
    """Whether a file is the pointer `latest` of a run."""
    return _read_pointer(path) is not None


def _move_aside(path: Path) -> None:
    """Makes room for a checkpoint of the same step; a damaged one, or one with other files in it, is kept for good."""
    if _is_ours_alone(path):
        path.rename(path.with_name(f".{path.name}.old"))  # until the new one is in place
        return
    aside = next(a for i in itertools.count(1) if not (a := path.with_name(f"{path.name}.aside-{i}")).exists())
    path.rename(aside)
    logger.warning("%s is not a complete checkpoint, or has other files in it; it is now %s", path, aside.name)


def _is_ours_alone(path: Path) -> bool:
    """Whether a folder holds only files of a checkpoint, so that it may be deleted."""
    try:
        manifest = read_manifest(path)
    except InputError:
        return False
    return {file.name for file in path.iterdir()} <= {MANIFEST, *manifest["files"]}


def _try(use: Callable[[RunState], None], checkpoint: RunState) -> str | None:
    """Uses a checkpoint; returns why it cannot be used."""
    try:
        use(checkpoint)
    except DamageError as damage:
        return str(damage)
    return None


def _read_newest(folder: Path) -> Iterator[RunState]:
    """The complete checkpoints of a folder up to the latest, the newest first; InputError if all are damaged."""
    steps = _steps(folder)
    latest = _read_pointer(folder / LATEST)
    if latest is not None:
        # Steps after the pointer's are from before the run went back to an earlier checkpoint.
        steps = [step for step in steps if step <= latest]
    elif steps:
        logger.warning("%s is missing or damaged: using the newest checkpoint beside it", folder / LATEST)
    damages = []
    for step in steps:
        try:
            checkpoint = read_run_state(folder / checkpoint_name(step))
        except InputError as damage:
            logger.warning("%s", damage)
            damages.append(str(damage))
        else:
            yield checkpoint
    if damages and len(damages) == len(steps):
        raise InputError(f"expected a complete checkpoint in {folder}, found none: {'; '.join(damages)}")


def _pointer_text(name: str) -> str:
    return f"{name} {hashlib.sha256(name.encode()).hexdigest()[:16]}\n"


def _read_pointer(pointer: Path) -> int | None:
    if not pointer.is_file():  # reading from a pipe would never end
        return None
    try:
        text = pointer.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    name = text.partition(" ")[0]
    return step_of(name) if text == _pointer_text(name) else None
