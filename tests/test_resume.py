"""A run that was killed, at any moment, ends as if nothing had happened: every file the same, to the last bit.

The runs are real ones of the `train` command in processes of their own, forked from one that has the imports done. A
random number of seconds after its start each is killed by SIGKILL, and resumed, again and again.
"""

import hashlib
import itertools
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

from seedling_hf.commands import run as run_command
from seedling_hf.commands.train import main

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["pytest", "seedling_hf.training", "seedling_hf.evaluation", "seedling_hf.plots", "timm.data", "matplotlib.pyplot",
     "sklearn.metrics", "seedling_hf.checkpointing", "seedling_hf.replknet.modeling_replknet"]
)  # fmt: skip

NUM_STEPS = 30
# Saves, evaluations and ends of epochs (4 steps) fall together and apart.
FLAGS = f"""
    --train_dir pictures --output_dir run --variant tiny --image_size 32 --drop_path_rate 0.3
    --max_steps {NUM_STEPS} --save_steps 2 --eval_steps 3 --logging_steps 1
    --ema_decay 0.9 --mixup_prob 0.7 --learning_rate 3e-3 --warmup_steps 3 --resume_from_checkpoint latest
""".split()
# What tells the day and the speed of a run; all else must be equal.
TIMED = re.compile(
    rb'"(date|seconds|images_per_second)": .*|- \d{4}-\d\d-\d\dT.* pictures a second.*|On .* of training \(.*'
)


@pytest.fixture(scope="module")
def pictures(sample_dir, tmp_path_factory) -> Path:
    """Three classes of sixteen pictures: 32 of them train, 4 steps of 8 an epoch."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    for name in ("Black-grass", "Charlock", "Maize"):
        (folder / name).mkdir(parents=True)
        for file in sorted((sample_dir / name).iterdir())[:16]:
            shutil.copy(file, folder / name)
    return folder


class Run:
    """Runs of `train` in one folder, with paths relative to it, so that all they write may be equal."""

    def __init__(self, folder: Path, pictures: Path, num_processes: int = 1, num_workers: int = 0, **settings) -> None:
        folder.mkdir(parents=True)
        (folder / "pictures").symlink_to(pictures)
        self.folder, self.num_processes = folder, num_processes
        accumulation = settings.pop("accumulation", 2)
        batch_size = settings.pop("batch_size", 8 // accumulation // num_processes)
        self.flags = [
            *FLAGS, "--per_device_train_batch_size", str(batch_size),
            "--gradient_accumulation_steps", str(accumulation), "--dataloader_num_workers", str(num_workers),
            *(str(word) for name, value in settings.items() for word in (f"--{name}", value)),
        ]  # fmt: skip

    def start(self, *flags: str, before=None) -> list:
        """Starts the processes of a run; `before` is called in each of them first."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = []
        for rank in range(self.num_processes):
            arguments = (self.folder, [*self.flags, *flags], rank, self.num_processes, port, before)
            processes.append(FORKS.Process(target=_train, args=arguments))
            processes[-1].start()
        return processes

    def finish(self, *flags: str, before=None, expected: int = 0) -> None:
        processes = self.start(*flags, before=before)
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [expected] * self.num_processes, self.output

    @property
    def output(self) -> str:
        return "\n".join(file.read_text() for file in sorted(self.folder.glob("output-*.txt")))

    def contents(self) -> dict[str, str]:
        """A digest of every file that must be equal: of the checkpoints, the last one."""
        last = f"checkpoints/step-{NUM_STEPS:08d}/"
        paths = {str(path.relative_to(self.folder / "run")): path for path in self.folder.glob("run/**/*")}
        return {
            name: hashlib.sha256(TIMED.sub(b"", path.read_bytes())).hexdigest()
            for name, path in paths.items()
            if path.is_file() and name != "train_results.json" and (last in name or "checkpoints/step-" not in name)
        }

    @property
    def resumed_steps(self) -> list[int]:
        return [int(step) for step in re.findall(r"resumed at step (\d+)", self.output)]


def _train(folder: Path, flags: list[str], rank: int, num_processes: int, port: int, before) -> None:
    """What `torchrun` starts, in this process."""
    os.chdir(folder)
    sys.argv = ["seedling-hf"]
    torch.set_num_threads(1)
    if num_processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes),
            "LOCAL_WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    with open(f"output-{rank}.txt", "a", buffering=1) as output, redirect_stdout(output), redirect_stderr(output):
        if before is not None:
            before()
        code = run_command(main, flags)
        if num_processes > 1:
            from accelerate import PartialState

            assert PartialState().num_processes == num_processes
            PartialState().destroy_process_group()
    sys.exit(code)


def _kill(processes: list) -> bool:
    """Takes the machine away; returns whether the run was still going."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    assert {process.exitcode for process in processes} <= {0, -signal.SIGKILL}
    return any(process.exitcode for process in processes)


def _killed_again_and_again(make_run, kills: int, seed: int) -> list[int]:
    """Kills and resumes runs until `kills` have died; each that reaches its end must equal one never killed.

    Returns:
        The steps at which runs were resumed.
    """
    reference = make_run("reference")
    started = time.monotonic()
    reference.finish()
    duration = time.monotonic() - started
    expected = reference.contents()
    assert f"checkpoints/step-{NUM_STEPS:08d}/ema.safetensors" in expected
    moments, resumed_steps = random.Random(seed), []
    for attempt in itertools.count():
        run = make_run(f"attempt-{attempt}")
        while kills > 0:
            processes = run.start()
            # Few in the imports, most in the steps, evaluations and saves, a few in the report.
            time.sleep(moments.uniform(0.2, 0.7) * duration)
            if not _kill(processes):
                break
            kills -= 1
        run.finish()
        assert run.contents() == expected
        resumed_steps += run.resumed_steps
        if kills == 0:
            return resumed_steps


SETTINGS = {
    "one process": {},
    "one process, two workers": {"num_workers": 2},
    "two processes": {"num_processes": 2},
    "two processes, two workers": {"num_processes": 2, "num_workers": 2},
}


@pytest.mark.parametrize("name", [
    "one process", pytest.param("one process, two workers", marks=pytest.mark.slow),
    pytest.param("two processes", marks=pytest.mark.slow), "two processes, two workers",
])  # fmt: skip
def test_a_run_killed_a_few_times_ends_as_if_nothing_had_happened(tmp_path, pictures, name):
    assert _killed_again_and_again(lambda folder: Run(tmp_path / folder, pictures, **SETTINGS[name]), kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_killed_at_thirty_moments_ends_as_if_nothing_had_happened(tmp_path, pictures, name):
    steps = _killed_again_and_again(lambda folder: Run(tmp_path / folder, pictures, **SETTINGS[name]), kills=30, seed=1)
    print(sorted(steps))
    assert len({*steps}) > 5  # the kills were spread
