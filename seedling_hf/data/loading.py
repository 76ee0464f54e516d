"""Batches from worker processes: never waited for in vain, and from no more workers than a machine can use."""

import logging
import math
import multiprocessing
import multiprocessing.connection
import multiprocessing.queues
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from enum import Enum
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import dataloader as torch_loading

from seedling_hf.data.handover import PREFETCH, BatchLostError, HandingOver
from seedling_hf.data.images import num_cores
from seedling_hf.errors import InputError
from seedling_hf.signals import Stopped, StopSignal, sparing_children

POLL_SECONDS = 0.5  # between two looks at signals and workers while no batch comes
WORKERS_PER_CORE, ALWAYS_ALLOWED = 4, 8
SLOW_SECONDS = 60  # after which a wait is mentioned
GRACE_SECONDS = 0.5  # for a worker that has ended to be seen as such
PATIENCE_SECONDS = 0.1  # for workers to end by themselves; what they still do is of no use
HANDOVER_EXIT_CODE = 71  # EX_OSERR of sysexits.h

logger = logging.getLogger(__name__)


class State(Enum):
    """Of a process that needs its next batch."""

    WAITING = "waiting"
    READY = "ready"
    FAILED = "failed"


class Waiting:
    """What a process does about signals while it needs batches; see `inference.waiting` for several processes.

    Attributes:
        stop: The signal that ends the wait; None: signals have their own effect.
    """

    stop: StopSignal | None = None

    def agree(self, state: State, error: InputError | None = None) -> None:
        """Called twice a second while the process waits, and once when its batch is there or will never be.

        Raises:
            Stopped: if a signal came.
        """
        if self.stop and self.stop.received:
            raise Stopped

    def interruptible(self) -> AbstractContextManager:
        """Within it a signal raises `Stopped` at once, because nothing looks at it while images are decoded."""
        return self.stop.raising() if self.stop else nullcontext()


@cache
def usable_workers(asked: int, num_processes: int, cores: int) -> int:
    """Workers of one of the processes on this machine: those asked for, or fewer with one notice.

    More do not load faster, and a thousand take the machine down.
    """
    most = max(ALWAYS_ALLOWED, WORKERS_PER_CORE * cores) // num_processes or 1
    if asked <= most:
        return asked
    shared = f", shared by {num_processes} processes" if num_processes > 1 else ""
    logger.warning(
        "--dataloader_num_workers %d is more than this machine can use (%d cores%s): %d are started",
        asked, cores, shared, most,
    )  # fmt: skip
    return most


def _processes_here() -> int:
    """Processes that the launcher has started on this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


class Loader(DataLoader):
    """A DataLoader whose workers live as long as it, and which ends a wait that is in vain.

    It waits for a batch until a signal comes (see `Waiting`) or a worker dies. Where workers cannot be started, the
    process loads its images itself, with a notice.

    Args:
        collate_fn: Makes a batch, a dictionary of tensors and of what can be pickled; in a worker.
        waiting: Asked while a batch is awaited.
        advice: Ends the sentence about a worker that died.

    Raises:
        InputError: while iterating, if a worker dies, or the memory does not suffice.
        Stopped: while iterating, as `waiting` does.
    """

    def __init__(
        self, dataset: Any, *, num_workers: int, collate_fn: Callable[..., dict[str, Any]] = dict,
        waiting: Waiting | None = None, advice: str = "run the command again", **options: Any,
    ) -> None:  # fmt: skip
        num_workers = usable_workers(num_workers, _processes_here(), num_cores())
        self.waiting, self.advice = waiting or Waiting(), advice
        self._settings = {"collate_fn": collate_fn, "waiting": self.waiting, "advice": advice, **options}
        if num_workers:
            options |= {
                "persistent_workers": True, "prefetch_factor": PREFETCH, "worker_init_fn": _prepare_worker
            }  # fmt: skip
        # Each start of an iteration draws from it, and a run that is resumed within an epoch starts one more: with the
        # global generator, stochastic depth would then draw other numbers.
        generator = torch.Generator()
        collate_fn = HandingOver(collate_fn)
        super().__init__(dataset, num_workers=num_workers, collate_fn=collate_fn, generator=generator, **options)

    def check_worker_number_rationality(self) -> None:
        """PyTorch's warns above one worker for each core; ours is `usable_workers`."""

    def with_batches(self, batch_sampler: Any) -> "Loader":
        """The same with other batches."""
        settings = {name: value for name, value in self._settings.items() if name not in ("batch_size", "sampler")}
        return Loader(self.dataset, num_workers=self.num_workers, **settings, batch_sampler=batch_sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.waiting.agree(State.WAITING)
        batches = self._guarded(super().__iter__)
        while True:
            try:
                batch = self._guarded(partial(next, batches))
            except StopIteration:
                return
            self.waiting.agree(State.READY)
            yield batch

    def _guarded(self, load: Callable[[], Any]) -> Any:
        """The result of `load`; its errors, as far as they are known, in a sentence that every process raises."""
        states = None if self.num_workers else (random.getstate(), np.random.get_state(), torch.get_rng_state())
        try:
            with self.waiting.interruptible() if states else nullcontext():
                return load()
        except StopIteration:
            raise
        except Stopped:
            if states:  # raised while images were decoded
                random.setstate(states[0])
                np.random.set_state(states[1])
                torch.set_rng_state(states[2])
                self.waiting.agree(State.WAITING)  # the other processes do not know of it yet
            raise
        except Exception as error:
            raise self._explain(error) from error

    def _get_iterator(self) -> Any:
        if self.num_workers:
            try:
                return _WorkersIterator(self)
            except (OSError, RuntimeError) as error:
                logger.warning(
                    "cannot start %d workers (%s): images are loaded in the process itself", self.num_workers, error
                )
                self.num_workers = 0
        return super()._get_iterator()

    def _explain(self, error: Exception) -> Exception:
        found = self._describe(error)
        if found is not None:
            error = InputError(
                f"expected batches from {self.num_workers or 'no'} workers, found {found}; lower "
                f"--dataloader_num_workers or the batch size, and {self.advice}"
            )
        if isinstance(error, InputError):
            self.waiting.agree(State.FAILED, error)
        return error

    def _describe(self, error: Exception) -> str | None:
        """What happened, if it is the workers' fault."""
        workers = getattr(self._iterator, "_workers", [])
        if isinstance(error, BatchLostError):  # its memory goes a moment before the worker has ended
            sentinels = {worker.sentinel: worker for worker in workers}
            for sentinel in multiprocessing.connection.wait(sentinels, GRACE_SECONDS):
                sentinels[sentinel].join()
        if dead := [worker for worker in workers if worker.exitcode is not None]:
            code = dead[0].exitcode
            how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
            reason = ", as it happens where memory runs out" if code == -signal.SIGKILL else ""
            return f"worker {dead[0].pid} ended by {how}{reason}"
        if isinstance(error, BatchLostError):
            return "one that cannot be read any more"
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return "too little memory"
        if "Too many open files" in str(error):
            return "too many open files"
        return None

    def close(self) -> None:
        """Ends the workers, in a second at most."""
        iterator, self._iterator = self._iterator, None
        if isinstance(iterator, _WorkersIterator):
            iterator._shutdown_workers()


class _WorkersIterator(torch_loading._MultiProcessingDataLoaderIter):
    """PyTorch's, but it looks at signals while it waits, and at its end it does not wait for workers that hang."""

    _shutdown = True  # until it has started

    def __init__(self, loader: Loader) -> None:
        self.waiting, self.waited_from = loader.waiting, None
        # Of PyTorch: on the death of a worker it would raise an error amid whatever the process does then, a save say.
        handler = signal.getsignal(signal.SIGCHLD) if _takes_signals() else None
        try:
            with sparing_children(multiprocessing.get_start_method()):
                super().__init__(loader)
        except BaseException:
            for worker in getattr(self, "_workers", []):
                worker.kill()
            self._shutdown = True
            raise
        finally:
            if handler is not None:
                signal.signal(signal.SIGCHLD, handler)

    def _try_get_data(self, timeout: float = POLL_SECONDS) -> tuple[bool, Any]:
        try:
            with self.waiting.interruptible():
                found = super()._try_get_data(POLL_SECONDS)
        except Stopped:
            self.waiting.agree(State.WAITING)  # the other processes do not know of it yet
            raise
        if found[0]:
            self.waited_from = None
        else:
            self.waiting.agree(State.WAITING)
            self._mention_long_wait()
        return found

    def _mention_long_wait(self) -> None:
        now = time.monotonic()
        self.waited_from = self.waited_from or now
        if now - self.waited_from > SLOW_SECONDS:
            logger.warning("no batch came for %d s; a signal, such as Ctrl-C, ends the wait", SLOW_SECONDS)
            self.waited_from = math.inf  # once

    def _shutdown_workers(self) -> None:
        if self._shutdown:
            return
        # Those that are amid a batch, or stopped, would be waited for five seconds each.
        impatience = threading.Timer(PATIENCE_SECONDS, lambda: [worker.kill() for worker in self._workers])
        with suppress(RuntimeError):  # the interpreter ends, and starts no threads any more
            impatience.start()
        super()._shutdown_workers()
        impatience.cancel()


def _prepare_worker(number: int) -> None:
    for name in ("SIGSEGV", "SIGBUS", "SIGFPE"):  # PyTorch's handlers print, and our sentence names the signal
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    # It is called in the thread that sends: without it the batch would be lost, and waited for for ever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_give_up)


def _give_up(error: Exception, batch: Any) -> None:
    os.write(2, f"a worker cannot hand over its batch: {error}\n".encode(errors="replace"))
    os._exit(HANDOVER_EXIT_CODE)


def _takes_signals() -> bool:
    return hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
