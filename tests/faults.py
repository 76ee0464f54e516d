"""Commands that meet bad input or bad luck, in processes of their own: what they print, and what they leave behind."""

import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from processes import STREAMS, start

from seedling_hf.commands import main

PTH = Path(__file__).resolve().parent / "golden" / "small_kernel_5.pth"
# Each command that writes, in a folder with `images` and the models `model` and `other`; it writes into `out` only.
COMMANDS = {
    "train": "train --train_dir images --output_dir out --variant tiny --image_size 32 --max_steps 3 --save_steps 1 "
    "--per_device_train_batch_size 8 --eval_steps 2 --logging_steps 1",
    "train, cached": "train --train_dir images --output_dir out --variant tiny --image_size 32 --max_steps 3 "
    "--per_device_train_batch_size 8 --logging_steps 1 --cache_images 40",
    "predict": "predict --model_name_or_path model --images images --output_file out/answers.csv",
    "predict, tiles": "predict --model_name_or_path model --images images --output_file out/a.csv --tiles "
    "--boxes_dir out/boxes",
    "evaluate": "evaluate --model_name_or_path model --test_dir images --output_dir out",
    "compare": "compare --models model other --data_dir images --output_dir out",
    "probe": "probe --model_name_or_path model --test_dir images --output_dir out --max_samples 4",
    "embed": "embed --model_name_or_path model --images images --embeddings_file out/features.parquet",
    "saliency": "saliency --model_name_or_path model --images images --output_dir out --max_samples 1",
    "visualize_erf": "visualize_erf --model_name_or_path model --images images --output_dir out --image_size 64 "
    "--max_samples 1",
    "export, half": "export --model_name_or_path model --format half --output_file out/half",
    "export, torch": "export --model_name_or_path model --format torch_export --output_file out/m.pt2 --images images "
    "--max_check_samples 2",
    "convert_checkpoint": f"convert_checkpoint --checkpoint_path {PTH} --output_dir out/converted",
    "inspect_dataset": "inspect_dataset --train_dir images --output_dir out",
    "describe_dataset": "describe_dataset --train_dir images --output_file out/statistics.json",
    "make_split": "make_split --train_dir images --output_dir out",
    "preview_augmentation": "preview_augmentation --train_dir images --output_dir out --image_size 32 --num_examples 1",
    "benchmark": "benchmark --output_dir out --parts layers --variant nano --image_size 32 --batch_size 1 --repeats 1",
}


class Outcome(NamedTuple):
    """How a command ended; `code` is None if it had to be killed after `timeout` seconds."""

    code: int | None
    stdout: str
    stderr: str
    seconds: float


def command(
    words: Sequence[object], folder: Path, *, timeout: float = 120, before: Callable[[], None] | None = None,
    environment: dict[str, str] | None = None, num_processes: int = 1,
) -> Outcome:  # fmt: skip
    """Runs `seedling-hf words…` in `folder`, after `before()` in its process, a function at the top of a module."""
    return Started(words, folder, before=before, environment=environment, num_processes=num_processes).finish(timeout)


class Started:
    """A command that runs, so that a test can disturb it."""

    def __init__(
        self, words: Sequence[object], folder: Path, *, before=None, environment=None, num_processes=1
    ) -> None:
        self.output = folder.with_name(f"{folder.name}.output")
        self.output.mkdir(exist_ok=True)
        arguments = ([str(word) for word in words], folder, self.output, before, environment or {})
        self.started = time.monotonic()
        self.processes = start(_run, *arguments, num_processes=num_processes)

    def printed(self, name: str) -> str:
        """What came out of "stdout" or "stderr" so far."""
        files = sorted(self.output.glob(f"{name}-*.txt"))
        return "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)

    def wait_for(self, condition: Callable[[], bool], timeout: float = 60) -> None:
        """Waits until `condition()` holds; the command must still be running then."""
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end and self.processes[0].is_alive(), self.printed("stderr")
            time.sleep(0.02)

    def send(self, number: int) -> None:
        """Sends a signal to the first process."""
        os.kill(self.processes[0].pid, number)

    def finish(self, timeout: float = 120) -> Outcome:
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        hangs = [process for process in self.processes if process.is_alive()]
        for process in hangs:  # each leads a session, with its workers
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        code = None if hangs else max((process.exitcode for process in self.processes), key=abs)
        return Outcome(code, self.printed("stdout"), self.printed("stderr"), time.monotonic() - self.started)


def assert_sentence(outcome: Outcome, *parts: str, code: int = 2) -> None:
    """The command ended with `code` and one sentence on stderr, which contains `parts`, and no traceback."""
    everything = f"exit code {outcome.code} after {outcome.seconds:.0f} s\n{outcome.stdout}\n{outcome.stderr}"
    assert outcome.code == code, everything
    assert "Traceback" not in outcome.stderr + outcome.stdout, everything
    sentences = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, everything
    for part in parts:
        assert part in sentences[0], everything


def assert_well(outcome: Outcome) -> None:
    """The command did its work, without a traceback."""
    everything = f"exit code {outcome.code} after {outcome.seconds:.0f} s\n{outcome.stdout}\n{outcome.stderr}"
    assert outcome.code == 0 and "Traceback" not in outcome.stderr + outcome.stdout, everything


def contents(folder: Path) -> dict[str, str]:
    """A digest of each file under `folder`, to see what a command changed or left behind."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        for path in sorted(folder.rglob("*"))
        if not path.is_dir() or path.is_symlink()
    }


def _run(rank: int, words: list[str], folder: Path, output: Path, before, environment: dict[str, str]) -> int:
    for name, number in STREAMS.items():
        os.dup2(os.open(output / f"{name}-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets tests in its background ignore it
    os.chdir(folder)
    os.environ |= environment
    tempfile.tempdir = None  # another may have been asked for before the fork
    if before is not None:
        before()
    return main(words)
