"""Signals that stop a run: SIGTERM and SIGUSR1 from schedulers and spot machines, SIGINT from the keyboard."""

import os
import signal
import time
from types import FrameType
from typing import Self

# EX_TEMPFAIL of sysexits.h: the run was stopped, its state is saved, and the same command can resume it.
RESUMABLE_EXIT_CODE = 75
# Ctrl-C and schedulers reach the launcher and its processes, and the launcher forwards the signal: still one signal.
ECHO_SECONDS = 1.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignal:
    """Turns the first signal into a flag, so that a step can be finished and saved; a second one ends the process.

    A second signal has its default effect at once; saving is safe against that at any moment.

        with StopSignal() as stop:
            while not stop.received:
                ...

    Attributes:
        received: Name of the received signal, or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._process_id = os.getpid()

    def __enter__(self) -> Self:
        self._former_handlers = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process_id:  # a data-loading worker receives Ctrl-C too, and ends with its process
            return
        if self.received is None:
            self.received, self._received_at = signal.Signals(number).name, time.monotonic()
            # Not print: a handler may interrupt another print, whose buffer is not reentrant.
            os.write(2, f"{self.received}: finishing this step and saving; a second signal ends at once\n".encode())
        elif time.monotonic() - self._received_at > ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
