"""Signals that stop a run: SIGTERM and SIGUSR1 from schedulers and spot machines, SIGINT from the keyboard."""

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
# Windows has no SIGUSR1.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)  # fmt: skip


class Stopped(BaseException):
    """A signal came while a run waited for data; not an `Exception`, which code between may catch."""


class Terminated(KeyboardInterrupt):
    """SIGTERM ends the command: what cleans up after Ctrl-C cleans up after it."""


class StopSignal:
    """Turns the first signal into a flag, so that a step can be finished and saved; a second one ends the process.

    A second signal has its default effect at once; saving is safe against that at any moment. In a thread that is not
    the main one Python takes no signals, and nothing is ever received.

        with StopSignal() as stop:
            while not stop.received:
                ...

    Attributes:
        received: Name of the received signal, or None.
    """

    signals = STOP_SIGNALS

    def __init__(self) -> None:
        self.received: str | None = None
        self._raises, self._deaf_until = False, -math.inf
        self._process_id = os.getpid()

    def __enter__(self) -> Self:
        signals = self.signals if threading.current_thread() is threading.main_thread() else ()
        self._former_handlers = {number: signal.signal(number, self._handle) for number in signals}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former_handlers.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, StopSignal):  # the echo may come later
                outer._deaf_until = self._deaf_until

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
        elif time.monotonic() < self._deaf_until:
            return
        elif self.received is None:
            self.received, self._deaf_until = signal.Signals(number).name, time.monotonic() + ECHO_SECONDS
            self._announce()
            if self._raises:
                raise self._error()
        else:
            _take_effect(number)

    def _announce(self) -> None:
        # Not print: a handler may interrupt another print, whose buffer is not reentrant.
        with suppress(OSError):  # nobody reads it any more
            os.write(2, f"{self.received}: finishing this step and saving; a second signal ends at once\n".encode())

    def _error(self) -> BaseException:
        return Stopped()


class EndSignal(StopSignal):
    """The same for a command that has nothing to save: `raising` raises KeyboardInterrupt, or `Terminated`."""

    @property
    def signals(self) -> tuple[int, ...]:
        """A shell lets commands in its background ignore Ctrl-C."""
        return tuple(n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN)

    def _announce(self) -> None:
        pass

    def _error(self) -> BaseException:
        return Terminated() if self.received == "SIGTERM" else KeyboardInterrupt()


def _take_effect(number: int) -> None:
    """Ends the process by the default effect of a signal."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


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
