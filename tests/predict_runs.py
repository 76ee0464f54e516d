"""Real runs of the `predict` command, in processes of their own, with the modules loaded in advance."""

import csv
import subprocess
from pathlib import Path

from hub_client import Client, Process, wait_until

# VmHWM, because ru_maxrss starts with that of the parent process.
MODULES = (
    "seedling_hf.inference.listed_run", "seedling_hf.inference.watched_run", "seedling_hf.inference.trays",
)  # fmt: skip
PREDICT = """
import sys
from pathlib import Path
from seedling_hf.commands import run
from seedling_hf.commands.predict import main

code = run(main, sys.argv[1:])
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line))
sys.exit(code)
"""


def flags(**values) -> list[str]:
    words = []
    for name, value in values.items():
        words.append(f"--{name}")
        if value is not True:
            words += map(str, value) if isinstance(value, list) else [str(value)]
    return words


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def start(folder: Path, arguments: list[str]) -> Process:
    """Starts the command with the modules loaded; its output is kept in `folder`."""
    return Client(None, folder / "home", token=None).start(PREDICT, *arguments, modules=MODULES)


def finish(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess:
    return start(folder, arguments).finish(timeout=500)


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wait_for_rows(process: Process, output: Path, count: int) -> None:
    wait_until(lambda: lines_in(output) > count or process.status is not None)
    assert process.status is None, process.read()
