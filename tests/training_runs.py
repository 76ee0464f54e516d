"""Real runs of the `train` command, in processes of their own, forked from one that has the imports done."""

import contextlib
import hashlib
import itertools
import os
import random
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from processes import start

from seedling_hf.commands import run as run_command
from seedling_hf.commands.train import main

NUM_STEPS = 30
# Saves, evaluations and ends of epochs (4 steps) fall together and apart.
FLAGS = f"""
    --output_dir run --variant tiny --image_size 32 --drop_path_rate 0.3
    --max_steps {NUM_STEPS} --save_steps 2 --eval_steps 3 --logging_steps 1
    --ema_decay 0.9 --mixup_prob 0.7 --learning_rate 3e-3 --warmup_steps 3 --resume_from_checkpoint latest
""".split()
# Date and speed of a run; everything else must be equal.
TIMED = re.compile(
    rb'"(date|seconds|images_per_second)": .*|- \d{4}-\d\d-\d\dT.* images per second.*|On .* of training \(.*'
    rb"|\d{4}-\d\d-\d\d[T ][^<]*? s \([\d.,]+ images per second\)"
)


class Run:
    """Runs of `train` in one folder, with paths relative to it, so that all they write may be equal."""

    def __init__(
        self,
        folder: Path,
        images: Path,
        num_processes: int = 1,
        num_workers: int = 0,
        data: Sequence[str] = ("--train_dir", "images"),
        **settings,
    ) -> None:
        folder.mkdir(parents=True)
        (folder / "images").symlink_to(images)
        self.folder, self.num_processes = folder, num_processes
        accumulation = settings.pop("accumulation", 2)
        batch_size = settings.pop("batch_size", 8 // accumulation // num_processes)
        self.flags = [
            *FLAGS, *data, "--per_device_train_batch_size", str(batch_size),
            "--gradient_accumulation_steps", str(accumulation), "--dataloader_num_workers", str(num_workers),
            *(str(word) for name, value in settings.items() for word in (f"--{name}", value)),
        ]  # fmt: skip

    def start(self, *flags: str, before=None) -> list:
        """Starts the processes of a run; `before` is called in each of them first."""
        return start(_train, self.folder, [*self.flags, *flags], before, num_processes=self.num_processes)

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


def _train(rank: int, folder: Path, flags: list[str], before) -> int:
    os.chdir(folder)
    sys.argv = ["seedling-hf"]
    with open(f"output-{rank}.txt", "a", buffering=1) as output, redirect_stdout(output), redirect_stderr(output):
        if before is not None:
            before()
        return run_command(main, flags)


def kill(processes: list) -> bool:
    """Takes the machine away; returns whether the run was still going."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # it has just started, or has ended
            os.killpg(process.pid, signal.SIGKILL)  # its loading workers too
        process.kill()
    for process in processes:
        process.join()
    # 1: a process that saw the other one die before its own turn came.
    assert {process.exitcode for process in processes} <= {0, -signal.SIGKILL} | ({1} if len(processes) > 1 else set())
    return any(process.exitcode for process in processes)


def wait_for_a_moment(run: Run, processes: list, moments: random.Random, duration: float) -> None:
    """Mostly in the steps, evaluations and saves, some of them later; else anywhere, in imports or in the report."""
    if moments.random() < 0.25:
        time.sleep(moments.uniform(0.1, 0.7) * duration)
        return
    saved = [int(path.name.split("-")[1]) for path in run.folder.glob("run/checkpoints/step-*")]
    goal = max(saved, default=0) + moments.randint(1, 4)
    metrics = run.folder / "run" / "metrics.jsonl"
    while processes[0].is_alive() and not (metrics.exists() and f'"step": {goal},' in metrics.read_text()):
        time.sleep(0.01)
    time.sleep(moments.uniform(0, 0.3))


def killed_again_and_again(make_run, kills: int, seed: int) -> list[int]:
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
            wait_for_a_moment(run, processes, moments, duration)
            if not kill(processes):
                break
            kills -= 1
        run.finish()
        assert run.contents() == expected
        resumed_steps += run.resumed_steps
        if kills == 0:
            return resumed_steps
