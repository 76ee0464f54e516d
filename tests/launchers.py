"""Training started by real launchers in a terminal of its own, and signalled as a keyboard or a scheduler does."""

import os
import pty
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

PYTHON = [sys.executable, "-m"]
SCRIPT = str(Path(__file__).resolve().parents[1] / "scripts" / "train.py")
LAUNCHERS = {
    "seedling-hf train": [*PYTHON, "seedling_hf", "train"],
    "accelerate launch": [*PYTHON, "accelerate.commands.launch", "--num_processes", "1", "--cpu", SCRIPT],
    "accelerate launch, two processes": [
        *PYTHON, "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "PORT",
        SCRIPT,
    ],
    "torchrun, two processes": [*PYTHON, "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT],
    # As srun starts one task for each process.
    "two tasks": [*PYTHON, "seedling_hf", "train"],
}  # fmt: skip
# The shell of the terminal: it lives on when its command has ended, and is not ended by Ctrl-C itself.
SHELL = """
import fcntl, os, signal, subprocess, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, lambda *_: None)
signal.signal(signal.SIGHUP, lambda *_: None)
folder, *words = sys.argv[1:]
command = subprocess.Popen(words)
with open(f"{folder}/pid.tmp", "w") as file:
    file.write(str(command.pid))
os.rename(f"{folder}/pid.tmp", f"{folder}/pid")
code = command.wait()
with open(f"{folder}/code.tmp", "w") as file:
    file.write(str(code))
os.rename(f"{folder}/code.tmp", f"{folder}/code")
time.sleep(600)
"""


class Ending(NamedTuple):
    """How a launched run ended.

    Attributes:
        codes: Exit codes of the commands that were started, negative for a signal.
        seconds: From the signal until the last process of the run had ended.
        left: Processes that had to be killed after `timeout` seconds.
    """

    codes: list[int]
    seconds: float
    left: int
    output: str


class Launched:
    """A launcher with its processes, each known by a variable in its environment."""

    def __init__(self, launcher: str, flags: Sequence[object], folder: Path) -> None:
        self.mark, self.folder, self.terminals, self.shells = uuid.uuid4().hex, folder, [], []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        words = [word.replace("PORT", port) for word in (*LAUNCHERS[launcher], *map(str, flags))]
        environment = os.environ | {"SEEDLING_HF_TEST": self.mark, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            environment.pop(name, None)
        tasks = 2 if launcher == "two tasks" else 1
        for rank in range(tasks):
            if tasks > 1:
                environment |= {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                }  # fmt: skip
            self._start(words, environment, f"task-{rank}")

    def _start(self, words: list[str], environment: dict[str, str], name: str) -> None:
        notes = self.folder / name
        notes.mkdir(parents=True)
        terminal, inside = pty.openpty()
        with (notes / "output").open("wb") as output:
            shell = subprocess.Popen(
                [sys.executable, "-c", SHELL, str(notes), *words], cwd=self.folder, env=environment,
                stdin=inside, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        os.close(inside)
        self.terminals.append(terminal)
        self.shells.append((shell, notes))

    @property
    def launchers(self) -> list[int]:
        """The processes that the shells have started."""
        return [int((notes / "pid").read_text()) for _, notes in self.shells]

    def processes(self) -> list[psutil.Process]:
        """All that lives of the run, without the shells."""
        shells, found = {shell.pid for shell, _ in self.shells}, []
        for process in psutil.process_iter():
            try:
                marked = process.environ().get("SEEDLING_HF_TEST") == self.mark
                if marked and process.pid not in shells and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def output(self) -> str:
        return "".join((notes / "output").read_text(errors="replace") for _, notes in self.shells)

    def wait_until_it_trains(self, steps: int = 2, timeout: float = 120) -> None:
        metrics, end = self.folder / "run" / "metrics.jsonl", time.monotonic() + timeout
        while not (metrics.exists() and metrics.read_text().count('"loss"') >= steps):
            assert time.monotonic() < end and not list(self.folder.glob("task-*/code")), self.output()
            time.sleep(0.05)

    def type_ctrl_c(self) -> None:
        """Into each terminal, which sends SIGINT to its foreground."""
        for terminal in self.terminals:
            os.write(terminal, b"\x03")

    def send_to_launcher(self, number: int) -> None:
        for pid in self.launchers:
            os.kill(pid, number)

    def send_to_all(self, number: int) -> None:
        """As a scheduler does to a step."""
        for process in self.processes():
            process.send_signal(number)

    def finish(self, timeout: float = 60) -> Ending:
        """Waits until nothing of the run lives; kills what does after `timeout` seconds."""
        started = time.monotonic()
        while (living := self.processes()) and time.monotonic() < started + timeout:
            time.sleep(0.05)
        seconds = time.monotonic() - started
        for process in living:
            process.kill()
        codes = [notes / "code" for _, notes in self.shells]
        while not all(code.exists() for code in codes) and time.monotonic() < started + timeout + 10:
            time.sleep(0.05)
        for (shell, _), terminal in zip(self.shells, self.terminals, strict=True):
            shell.send_signal(signal.SIGKILL)
            shell.wait()
            os.close(terminal)
        return Ending([int(code.read_text()) for code in codes], seconds, len(living), self.output())
