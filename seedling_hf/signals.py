"""Signals that stop a run: SIGTERM and SIGUSR1 from schedulers and spot machines, SIGINT from the keyboard."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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

    def __init__(self) -> None:
        self.received: str | None = None
        self._raises = False
        self._process_id = os.getpid()

    def __enter__(self) -> Self:
        signals = STOP_SIGNALS if threading.current_thread() is threading.main_thread() else ()
        self._former_handlers = {number: signal.signal(number, self._handle) for number in signals}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former_handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Raises `Stopped` within its block as soon as a signal comes, or at its start if one has come."""
        try:
            self._raises = True
            if self.received:
                raise Stopped
            yield
        finally:
            self._raises = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process_id:  # a data-loading worker receives Ctrl-C too, and ends with its process
            return
        if self.received is None:
            self.received, self._received_at = signal.Signals(number).name, time.monotonic()
            # Not print: a handler may interrupt another print, whose buffer is not reentrant.
            os.write(2, f"{self.received}: finishing this step and saving; a second signal ends at once\n".encode())
            if self._raises:
                raise Stopped
        elif time.monotonic() - self._received_at > ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
