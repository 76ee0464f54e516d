"""Pushes beside the training: one thread, snapshots on the disk, and patience."""

import logging
import os
import shlex
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import is_offline_mode
from huggingface_hub.utils import disable_progress_bars
from tqdm.auto import tqdm

from seedling_hf.errors import InputError
from seedling_hf.hub.model_card import write_card
from seedling_hf.hub.outbox import Outbox, Snapshot, Target, model_files
from seedling_hf.hub.repository import (
    PREFLIGHT_TIMEOUT_S,
    REQUEST_TIMEOUT_S,
    check_access,
    explain,
    limit_waiting,
    push,
)

FIRST_DELAY_S = 30.0
LONGEST_DELAY_S = 600.0
# At the end of a run each further try delays the user, and huggingface_hub has waited 23 s within most of them.
FINAL_TRIES = 3
# What each strategy pushes: a new best model, a save, and the end of the run.
EVENTS = {
    "end": {"end"}, "best": {"best", "end"}, "every_save": {"save", "end"}, "checkpoint": {"save", "end"}
}  # fmt: skip

logger = logging.getLogger(__name__)


class HubPusher:
    """Pushes beside the training, of one process; nothing that the Hub does ends or delays the run.

    One thread sends the newest snapshot; a newer one replaces one that waits. A push that fails is tried again after
    30 s, 1 min … 10 min and at the next save; after an error that time does not heal, at the end only.

    Args:
        output_dir: Folder of the run; snapshots wait in `hub_outbox` inside.
        repo_id: `user/name`, or `name` for the user that the token belongs to.
        private: Whether a new repository is made private.
        revision: Branch to push to.
        strategy: `end`, `best`, `every_save` or `checkpoint`; says which events are pushed.
        tag: Set on the last commit.
        timeout_s: How long `finish` waits, and the longest that any request does.
        push_command: What the user types to push later, `seedling-hf push_to_hub …` if None.

    Raises:
        ValueError: for another strategy.
    """

    first_delay_s = FIRST_DELAY_S
    longest_delay_s = LONGEST_DELAY_S

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
        push_command: str | None = None,
    ) -> None:
        if strategy not in EVENTS:
            raise ValueError(f"expected a strategy of {', '.join(EVENTS)}, found {strategy!r}")
        self.output_dir, self.outbox = Path(output_dir), Outbox(output_dir)
        self.repo_id, self.private, self.revision, self.tag = repo_id, private, revision, tag
        self.strategy, self.timeout_s = strategy, timeout_s
        self.push_command = push_command or shlex.join(["seedling-hf", "push_to_hub", "--output_dir", str(output_dir)])
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._pushing: Snapshot | None = None
        self._news = self._finishing = self._in_vain = False
        self._address = self._failure = self._not_staged = ""
        self._num_bytes = 0
        self._checkpoint: Path | None = None
        limit_waiting(min(REQUEST_TIMEOUT_S, timeout_s))
        disable_progress_bars()  # they would run through the bar of the training

    def preflight(self) -> None:
        """Asks the Hub, before the first step, whether this token may push.

        Raises:
            InputError: if not. A Hub that cannot be reached is a warning.
        """
        if is_offline_mode():
            if self.strategy == "end":
                logger.info("HF_HUB_OFFLINE is set: what is to be pushed will wait for `%s`", self.push_command)
                return
            raise InputError(
                "expected a network for --push_to_hub, found HF_HUB_OFFLINE set; unset it, or prepare one push for "
                "later by --hub_strategy end"
            )
        try:
            target = Target(self.repo_id, "", self.private, self.revision, self.tag)
            check_access(target, timeout_s=min(PREFLIGHT_TIMEOUT_S, self.timeout_s))
        except InputError:
            raise
        except Exception as error:
            reason, _ = explain(error)
            logger.warning("%s; the run goes on, and pushes wait in %s", reason, self.outbox.folder)

    def stage(
        self,
        event: str,
        *,
        step: int,
        epoch: float,
        metrics: Mapping[str, float] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Puts the model folder aside for the Hub, as it is now, if the strategy asks for it at this event.

        Returns at once and never raises. The card is written first. With the event `end` report, curves and tag go
        along; before, those in the folder may be of other weights.

        Args:
            event: `best` (the folder holds a new best model), `save` (a checkpoint was written) or `end`.
            step: Optimizer steps made.
            epoch: Passes over the training images made.
            metrics: Figures for the message.
            checkpoint: Folder of the state to resume from; with the strategy `checkpoint` it goes along, and the last
                one with `end`.
        """
        if event not in EVENTS[self.strategy]:
            return
        if self.strategy == "checkpoint":
            self._checkpoint = checkpoint or self._checkpoint
        is_end = event == "end"
        figures = ", ".join(f"{name} {value:.4f}" for name, value in (metrics or {}).items())
        message = f"Step {step}, epoch {epoch:.2f}{': ' + figures if figures else ''} ({event})"
        target = Target(self.repo_id, message, self.private, self.revision, self.tag if is_end else None)
        try:
            if (self.output_dir / "config.json").exists():
                self._write_card(results=is_end)
            elif self._checkpoint is None:
                return  # there is no model before the first evaluation
            files = model_files(self.output_dir, results=is_end, checkpoint=self._checkpoint)
            snapshot = self._put(files, target, f"step-{step:08d}-{event}")
        except (OSError, ValueError) as error:
            self._not_staged = f"step {step} could not be put aside: {getattr(error, 'strerror', None) or error}"
            logger.warning(
                "%s; the model itself is safe in %s, and `%s` pushes it later",
                self._not_staged, self.output_dir, self.push_command,
            )  # fmt: skip
            return
        self._not_staged, self._num_bytes = "", snapshot.num_bytes
        with self._changed:
            self.outbox.remove_before(snapshot, keep=self._pushing)
            self._news = True
            self._changed.notify()
        self._start()

    def finish(self) -> bool:
        """Waits for the last push, as long as is allowed, and says how it went; never raises.

        Returns:
            Whether the Hub has all that was put aside.
        """
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
            logger.info("the Hub has the model: %s", self._address or self.repo_id)
            return True
        reason = self._not_staged or self._failure or f"{self.timeout_s:g} s were not enough"
        logger.warning(
            "the Hub does not have the last push (%s); it is safe in %s, and this command pushes it later:\n\n  %s\n",
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
        except OSError:  # a full disk may have room without the snapshots that this one replaces
            with self._changed:
                self.outbox.clear(keep=self._pushing)
            return self.outbox.put(files, target, name)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="hub-pusher", daemon=True)
            self._thread.start()

    def _wait(self) -> None:
        size = f", {self._num_bytes / 1e6:.1f} MB" if self._num_bytes else ""
        started = time.monotonic()
        with tqdm(
            total=round(self.timeout_s), desc=f"pushing to {self.repo_id}{size}", unit="s", leave=False, disable=None,
            bar_format="{desc} |{bar}| {n:.0f} of {total} s at most",
        ) as bar:  # fmt: skip
            while self._thread.is_alive() and (passed := time.monotonic() - started) < self.timeout_s:
                self._thread.join(min(0.5, self.timeout_s - passed))
                bar.update(min(time.monotonic() - started, self.timeout_s) - bar.n)

    def _work(self) -> None:
        delay = None  # until a push that failed is tried again
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._finishing or (self._news and not self._in_vain), timeout=delay)
                finishing, self._news = self._finishing, False
                self._pushing = snapshot = self.outbox.newest()
            if snapshot is not None:
                self._push(snapshot, tries=FINAL_TRIES if finishing else 1)
                with self._changed:
                    self._pushing = None
                    if (newest := self.outbox.newest()) is not None:
                        self.outbox.remove_before(newest, keep=None)
            if finishing:
                return
            if not self._failure or self._in_vain:
                delay = None
            else:
                delay = min(2 * delay, self.longest_delay_s) if delay else self.first_delay_s

    def _push(self, snapshot: Snapshot, tries: int) -> None:
        try:
            self._address, self._failure, self._in_vain = push(snapshot, tries=tries), "", False
            self.outbox.remove(snapshot)
            logger.info("pushed to %s: %s", self.repo_id, snapshot.target.message)
        except Exception as error:
            if not snapshot.exists():  # the command that pushes later came first
                self._failure = ""
                return
            self._failure, self._in_vain = explain(error)
            if not self._finishing:
                again = "at the end of the run" if self._in_vain else "in a while and at the next save"
                logger.warning(
                    "not pushed: %s; it is safe in %s and is tried again %s; `%s` pushes it later",
                    self._failure, snapshot.folder, again, self.push_command,
                )  # fmt: skip
