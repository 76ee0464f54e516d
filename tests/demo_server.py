"""The command `demo` in a process of its own."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def serve(model: Path, *flags: str, environment: Mapping[str, str]) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address that the command prints, and its process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "seedling_hf", "demo", "--model_name_or_path", str(model), *flags],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(environment),
    )  # fmt: skip
    try:
        said = ""
        while not (address := re.search(r"http://127\.0\.0\.1:\d+", said)):
            line = process.stdout.readline()
            assert line, said  # it has ended
            said += line
        yield address[0], process
    finally:
        process.kill()
        process.wait()
