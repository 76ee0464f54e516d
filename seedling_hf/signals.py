"""What stops a run: SIGTERM and SIGUSR1 from schedulers, Ctrl-C, a closing terminal, and the end of the launcher."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Self

# EX_TEMPFAIL of sysexits.h: the run was stopped, its state is saved, and the same command can resume it.
RESUMABLE_EXIT_CODE = 75
# Ctrl-C and schedulers reach the launcher and its processes, and the launcher forwards the signal: still one signal.
ECHO_SECONDS = 1.0
# Windows has neither SIGUSR1 nor SIGHUP.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
)  # fmt: skip
HANGUP = getattr(signal, "SIGHUP", None)
LOOK_SECONDS = 0.5  # between two looks whether the launcher lives
LAUNCHER_VARIABLES = ("ACCELERATE_", "TORCHELASTIC_")
LAUNCHERS = {
    "accelerate", "accelerate-launch", "accelerate.commands.accelerate_cli", "accelerate.commands.launch", "torchrun",
    "torch.distributed.launch", "torch.distributed.run",
}  # fmt: skip


class Stopped(BaseException):
    """A signal came while a run waited for data; not an `Exception`, which code between may catch."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP ends the command: what cleans up after Ctrl-C cleans up after it."""


class StopSignal:
    """Turns the first signal into a flag, so that a step can be finished and saved; a second one ends the process.

    A second signal has its default effect at once; saving is safe against that at any moment. A terminal that closes is
    never the second, because it may follow from the first. In a thread that is not the main one Python takes no
    signals, and nothing is ever received.

        with StopSignal() as stop:
            while not stop.received:
                ...

    Args:
        then: What the first signal leads to, for the line on stderr.

    Attributes:
        received: Name of the received signal, or None.
        is_obeyed: Whether it, or one within its block, has received a signal.
    """

    def __init__(self, then: str = "finishing this step and saving") -> None:
        self.then, self.is_obeyed = then, False
        self.received: str | None = None
        self._raises, self._deaf_until = False, -math.inf
        self._process_id = os.getpid()

    @property
    def signals(self) -> tuple[int, ...]:
        """A run under `nohup` outlives its terminal."""
        return tuple(n for n in STOP_SIGNALS if n != HANGUP or signal.getsignal(n) is not signal.SIG_IGN)

    def __enter__(self) -> Self:
        signals = self.signals if threading.current_thread() is threading.main_thread() else ()
        self._former_handlers = {number: signal.signal(number, self._handle) for number in signals}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former_handlers.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, StopSignal):  # the echo may come later
                outer._deaf_until, outer.is_obeyed = self._deaf_until, outer.is_obeyed or self.is_obeyed

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Raises `Stopped` within its block as soon as a signal comes, or at its start if one has come."""
        try:
            self._raises = True
            if self.received:
                raise self._error()
            yield
        finally:
            self._raises = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process_id:
            # A data-loading worker receives Ctrl-C too, and ends with its process.
            if number == signal.SIGTERM:
                _take_effect(number)
        elif time.monotonic() < self._deaf_until or (number == HANGUP and self.is_obeyed):
            return
        elif self.received is None:
            self.received, self._deaf_until = signal.Signals(number).name, time.monotonic() + ECHO_SECONDS
            self.is_obeyed = True
            self._announce()
            if self._raises:
                raise self._error()
        else:
            _take_effect(number)

    def _announce(self) -> None:
        _say(f"{self.received}: {self.then}; a second signal ends at once")

    def _error(self) -> BaseException:
        return Stopped()


class EndSignal(StopSignal):
    """The same for a command that has nothing to save: `raising` raises KeyboardInterrupt, or `Terminated`."""

    @property
    def signals(self) -> tuple[int, ...]:
        """A shell lets commands in its background ignore Ctrl-C."""
        return tuple(
            n for n in (signal.SIGTERM, signal.SIGINT, HANGUP) if n and signal.getsignal(n) is not signal.SIG_IGN
        )

    def _announce(self) -> None:
        pass

    def _error(self) -> BaseException:
        return KeyboardInterrupt() if self.received == "SIGINT" else Terminated()


def _take_effect(number: int) -> None:
    """Ends the process by the default effect of a signal."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _say(line: str) -> None:
    # Not print: a handler may interrupt another print, whose buffer is not reentrant.
    with suppress(OSError):  # nobody reads it any more
        os.write(2, f"{line}\n".encode())


@contextmanager
def ending_with_launcher() -> Iterator[None]:
    """Within it, the end of the launcher that started this process is a SIGTERM, unless a signal came before.

    `accelerate launch` does not pass on the signals that end it. Other parents may end: a shell often does before the
    run that it has started.
    """
    parent = os.getppid()
    if threading.current_thread() is not threading.main_thread() or not _is_launcher(parent):
        yield
        return
    is_over = threading.Event()
    threading.Thread(target=_watch_launcher, args=(parent, is_over), daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _is_launcher(process_id: int) -> bool:
    # Windows keeps the number of a parent that has ended.
    if os.name == "nt" or not any(name.startswith(LAUNCHER_VARIABLES) for name in os.environ):
        return False
    import psutil

    try:
        words = psutil.Process(process_id).cmdline()
    except psutil.Error:
        return False
    return any(os.path.basename(word) in LAUNCHERS for word in words)


def _watch_launcher(process_id: int, is_over: threading.Event) -> None:
    while not is_over.wait(LOOK_SECONDS):
        if os.getppid() == process_id:
            continue
        stop = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if not (isinstance(stop, StopSignal) and stop.is_obeyed):
            _say("the launcher has ended")
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)  # it may wait in a call
        return


@contextmanager
def sparing_children(start_method: str) -> Iterator[None]:
    """Processes that are started within it do not receive Ctrl-C, whose traceback each of them would print.

    The process that starts them is to end them.
    """
    if start_method == "fork" or not hasattr(signal, "pthread_sigmask"):  # forks inherit a handler; Windows
        yield
        return
    from multiprocessing import resource_tracker

    with suppress(OSError):
        resource_tracker.ensure_running()  # its start would let the signal through again
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
