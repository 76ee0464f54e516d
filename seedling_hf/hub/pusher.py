"""Pushes in the background of a training run: one thread, snapshots on disk, and retries."""

import logging
import os
import shlex
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

from huggingface_hub import is_offline_mode
from huggingface_hub.utils import disable_progress_bars
from tqdm.auto import tqdm

from seedling_hf.errors import InputError
from seedling_hf.hub.connection import REQUEST_TIMEOUT_S, limit_waiting
from seedling_hf.hub.endpoint import endpoint_files
from seedling_hf.hub.model_card import write_card
from seedling_hf.hub.outbox import Outbox, Snapshot, Target, model_files
from seedling_hf.hub.repository import PREFLIGHT_TIMEOUT_S, TRIES, check_access, push
from seedling_hf.network import explain
from seedling_hf.train_arguments import TrainArguments

# The events that each strategy pushes: a new best model, a save, and the end of the run.
EVENTS = {
    "end": {"end"}, "best": {"best", "end"}, "every_save": {"save", "end"}, "checkpoint": {"save", "end"}
}  # fmt: skip

logger = logging.getLogger(__name__)


class HubPusher:
    """Pushes in the background of a run, from one process; no failure of the Hub ends or delays the run.

    One thread pushes the pending snapshots, oldest first; a newer one replaces a pending one of its kind. A failed push
    is retried after 30 s, 1 min … 10 min and at the next save; after a permanent error, at the end of the run only.

    Args:
        output_dir: Folder of the run; pending snapshots are in `hub_outbox` inside.
        repo_id: As `private` and `revision`, see `Target`.
        strategy: A key of `EVENTS`.
        tag: Tag of the last commit.
        timeout_s: The longest that `finish` waits, and an upper limit for each request.

    Raises:
        ValueError: for another strategy.
    """

    first_delay_s = 30.0
    longest_delay_s = 600.0

    def __init__(
        self,
        output_dir: str | os.PathLike,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        strategy: str = "every_save",
        tag: str | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        if strategy not in EVENTS:
            raise ValueError(f"expected a strategy of {', '.join(EVENTS)}, found {strategy!r}")
        self.output_dir, self.outbox = Path(output_dir), Outbox(output_dir)
        self.target = Target(repo_id, "", private, revision, tag)
        self.strategy, self.timeout_s = strategy, timeout_s
        self.push_command = shlex.join(["seedling-hf", "push_to_hub", "--output_dir", str(output_dir)])
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._pushing: Snapshot | None = None
        self._news = self._finishing = self._permanent = False
        self._address = self._failure = self._not_staged = ""
        self._num_bytes = 0
        self._checkpoint: Path | None = None
        limit_waiting(min(REQUEST_TIMEOUT_S, timeout_s))
        disable_progress_bars()  # they would break the progress bar of the training

    @classmethod
    def from_arguments(cls, arguments: TrainArguments) -> Self:
        """The pusher of a run, once the Hub has said that its token may push."""
        pusher = cls(
            arguments.output_dir,
            arguments.hub_model_id or Path(arguments.output_dir).resolve().name,
            private=arguments.hub_private_repo,
            revision=arguments.hub_revision,
            strategy=arguments.hub_strategy,
            tag=arguments.hub_tag,
            timeout_s=arguments.hub_timeout,
        )
        pusher.preflight()
        return pusher

    def preflight(self) -> None:
        """Checks write access before the first step.

        Raises:
            InputError: without access. A Hub that cannot be reached is a warning.
        """
        if is_offline_mode():
            if self.strategy == "end":
                logger.info("HF_HUB_OFFLINE is set; push the model later with `%s`", self.push_command)
                return
            raise InputError(
                "expected a network for --push_to_hub, found HF_HUB_OFFLINE set; unset it, or use --hub_strategy end "
                "to push later"
            )
        try:
            check_access(self.target, timeout_s=min(PREFLIGHT_TIMEOUT_S, self.timeout_s))
        except InputError:
            raise
        except Exception as error:
            reason, _ = explain(error)
            logger.warning("%s; the run continues, and pushes wait in %s", reason, self.outbox.folder)

    def stage(
        self,
        event: str,
        *,
        step: int,
        epoch: float,
        metrics: Mapping[str, float] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Takes a snapshot of the model folder and hands it to the thread, if the strategy pushes at this event.

        Returns at once and never raises. The card is written first. Report, curves and tag are pushed with the event
        `end` only; before, those in the folder may belong to other weights.

        Args:
            event: `best` (the folder holds a new best model), `save` (a checkpoint was written) or `end`.
            metrics: Figures for the commit message.
            checkpoint: Its folder. The strategy `checkpoint` pushes it too, and the last one with `end`.
        """
        if event not in EVENTS[self.strategy]:
            return
        if self.strategy == "checkpoint":
            self._checkpoint = checkpoint or self._checkpoint
        is_end = event == "end"
        figures = ", ".join(f"{name} {value:.4f}" for name, value in (metrics or {}).items())
        message = f"Step {step}, epoch {epoch:.2f}{': ' + figures if figures else ''} ({event})"
        target = replace(self.target, message=message, tag=self.target.tag if is_end else None)
        try:
            if (self.output_dir / "config.json").exists():
                self._write_card(results=is_end)
            elif self._checkpoint is None:
                return  # there is no model before the first evaluation
            files = model_files(self.output_dir, results=is_end, checkpoint=self._checkpoint)
            files |= endpoint_files(self.output_dir)
            snapshot = self._put(files, target, f"step-{step:08d}-{event}")
        except (OSError, ValueError) as error:
            self._not_staged = f"no snapshot of step {step}: {getattr(error, 'strerror', None) or error}"
            logger.warning(
                "%s; the model is safe in %s, and `%s` pushes it later",
                self._not_staged, self.output_dir, self.push_command,
            )  # fmt: skip
            return
        self._not_staged, self._num_bytes = "", snapshot.num_bytes
        with self._changed:
            self.outbox.remove_replaced(keep=self._pushing)
            self._news = True
            self._changed.notify()
        self._start()

    def finish(self) -> bool:
        """Waits for the last push, at most `timeout_s`, reports and returns whether all is on the Hub; never raises."""
        if self._thread is None and self.outbox.newest() is None:
            return not self._not_staged
        with self._changed:
            self._finishing = True
            self._changed.notify()
        self._start()
        try:
            self._wait()
        except KeyboardInterrupt:
            self._failure = self._failure or "it was interrupted"
        left = self.outbox.newest()
        if left is None and not self._not_staged:
            logger.info("the model is on the Hub: %s", self._address or self.target.repo_id)
            return True
        reason = self._not_staged or self._failure or f"not finished after {self.timeout_s:g} s"
        logger.warning(
            "the last push failed (%s); it is safe in %s, and this command pushes it later:\n\n  %s\n",
            reason, left.folder if left else self.output_dir, self.push_command,
        )  # fmt: skip
        return False

    def _write_card(self, *, results: bool) -> None:
        try:
            write_card(self.output_dir, results=results)
        except Exception as error:  # weights without a card are better than none
            logger.warning("the card in %s could not be written: %s", self.output_dir, error)

    def _put(self, files: Mapping[str, Path], target: Target, name: str) -> Snapshot:
        try:
            return self.outbox.put(files, target, name)
        except OSError:  # a full disk may have room after the snapshots that this one replaces are removed
            with self._changed:
                self.outbox.make_room(files, target, keep=self._pushing)
            return self.outbox.put(files, target, name)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="hub-pusher", daemon=True)
            self._thread.start()

    def _wait(self) -> None:
        size = f", {self._num_bytes / 1e6:.1f} MB" if self._num_bytes else ""
        started = time.monotonic()
        with tqdm(
            desc=f"pushing to {self.target.repo_id}{size}", total=round(self.timeout_s), unit="s",
            leave=False, disable=None, bar_format="{desc} |{bar}| {n:.0f} of at most {total} s",
        ) as bar:  # fmt: skip
            while self._thread.is_alive() and (passed := time.monotonic() - started) < self.timeout_s:
                self._thread.join(min(0.5, self.timeout_s - passed))
                bar.update(min(time.monotonic() - started, self.timeout_s) - bar.n)

    def _work(self) -> None:
        delay = None  # until a failed push is retried
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._finishing or (self._news and not self._permanent), timeout=delay)
                finishing, self._news = self._finishing, False
            self._push_pending(tries=TRIES if finishing else 1)
            if finishing:
                return
            if not self._failure or self._permanent:
                delay = None
            else:
                delay = min(2 * delay, self.longest_delay_s) if delay else self.first_delay_s

    def _push_pending(self, tries: int) -> None:
        """Pushes what waits, oldest first; after a failure nothing more to the same place, to keep the order."""
        failures: dict[tuple, tuple[str, bool]] = {}
        for snapshot in self.outbox.pending():
            with self._changed:
                if snapshot.target.place in failures or not snapshot.exists():
                    continue
                self._pushing = snapshot
            if failure := self._push(snapshot, tries):
                failures[snapshot.target.place] = failure
            with self._changed:
                self._pushing = None
                self.outbox.remove_replaced(keep=None)
        self._failure = "; ".join(reason for reason, _ in failures.values())
        self._permanent = bool(failures) and all(permanent for _, permanent in failures.values())

    def _push(self, snapshot: Snapshot, tries: int) -> tuple[str, bool] | None:
        """Pushes one snapshot; the reason of a failure, and whether it is permanent."""
        try:
            self._address = push(snapshot, tries=tries)
            self.outbox.remove(snapshot)
            logger.info("pushed to %s: %s", snapshot.target.repo_id, snapshot.target.message)
        except Exception as error:
            if not snapshot.exists():  # push_to_hub was faster
                return None
            self._failure, permanent = explain(error)
            if not self._finishing:
                again = "at the end of the run" if permanent else "soon and at the next save"
                logger.warning(
                    "push failed: %s; it is safe in %s and is retried %s; `%s` pushes it later",
                    self._failure, snapshot.folder, again, self.push_command,
                )  # fmt: skip
            return self._failure, permanent
        return None
