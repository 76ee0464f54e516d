"""How long a program says nothing: run with pipes or on a terminal of its own, and listened to."""

import os
import pty
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Heard:
    """What a program said.

    Attributes:
        first: Seconds until its first byte.
        longest: The longest time in seconds without one, from its start to its end.
        text: What it wrote to standard output and error, in the order of its arrival.
    """

    code: int
    first: float
    longest: float
    seconds: float
    text: str


def listen(
    command: Sequence[str], *, terminal: bool = False, env: Mapping[str, str] | None = None, timeout: float = 300
) -> Heard:
    """Runs a command to its end, its output in one pipe, or on a terminal, and listens."""
    reader, writer = pty.openpty() if terminal else os.pipe()
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, env=os.environ | dict(env or {})
    )
    os.close(writer)
    times, content = [started], b""
    try:
        while time.monotonic() < started + timeout:
            if not select.select([reader], [], [], 1)[0]:
                continue
            try:
                data = os.read(reader, 1 << 16)
            except OSError:  # of a terminal that nobody writes to any more
                data = b""
            times.append(time.monotonic())
            if not data:
                break
            content += data
        code = process.wait(timeout=max(1, started + timeout - time.monotonic()))
    finally:
        process.kill()
        process.wait()
        os.close(reader)
    longest = max(b - a for a, b in pairwise(times))
    return Heard(code, times[1] - started, longest, times[-1] - started, content.decode(errors="replace"))
