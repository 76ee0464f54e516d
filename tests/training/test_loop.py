"""Runs of `train`: two processes train as one, and a process that dies ends the run clearly."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training_runs import FLAGS, Run, kill

from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training.checkpointing import Checkpoints
from seedling_hf.training.loop import Training

UNCHANGING = {"drop_path_rate": 0.0, "max_steps": 20, "resume_from_checkpoint": "latest"}


def losses(run: Run) -> list[float]:
    lines = [json.loads(line) for line in (run.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_two_processes_have_the_losses_of_one_with_the_same_global_batch(tmp_path, images):
    # BatchNorm sees 4 images at a time in both, since one process accumulates two batches.
    one = Run(tmp_path / "one", images, num_processes=1, accumulation=2, **UNCHANGING)
    two = Run(tmp_path / "two", images, num_processes=2, accumulation=1, **UNCHANGING)
    for run in (one, two):
        run.finish()
    found, expected = torch.tensor(losses(two)), torch.tensor(losses(one))
    assert len(expected) == 20
    # Sums in another order, 1e-7 at first; 20 steps at this learning rate let that grow.
    torch.testing.assert_close(found[:3], expected[:3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert len(set(losses(one))) == 20
    written = [path for path in (one.folder / "run").rglob("*.safetensors") if "checkpoints" in path.parts]
    for path in [one.folder / "run" / "model.safetensors", *written]:
        assert path.stat().st_mode == (one.folder / "run" / "metrics.jsonl").stat().st_mode


def test_a_missing_image_is_named_and_the_run_can_resume(tmp_path, images):
    run = Run(tmp_path / "run", images, num_workers=1)
    own = tmp_path / "images"
    own.mkdir()
    subprocess.run(["cp", "-r", f"{images}/.", str(own)], check=True)
    (run.folder / "images").unlink()
    (run.folder / "images").symlink_to(own)
    missing = sorted((own / "Maize").iterdir())[0]
    content = missing.read_bytes()

    run.finish(before=partial(_remove_after_the_first_save, str(missing)), expected=2)
    (message,) = re.findall(r"error: expected images that stay unchanged.*", run.output)
    assert missing.name in message
    assert "--resume_from_checkpoint latest" in message
    missing.write_bytes(content)
    run.finish()
    assert "resumed at step" in run.output


def test_a_run_that_was_stopped_before_its_first_entry_is_a_run(tmp_path, images):
    run = Run(tmp_path / "run", images, logging_steps=50, eval_steps=50)
    at = run.flags.index("--resume_from_checkpoint")
    del run.flags[at : at + 2]
    run.finish(before=_stop_at_the_first_step, expected=75)
    assert not (run.folder / "run" / "metrics.jsonl").exists()
    run.finish(expected=2)
    assert "error: expected a new folder for --output_dir, found a run in run; continue it with" in run.output


def _stop_at_the_first_step() -> None:
    take_step = Training.optimization_step

    def take_step_and_stop(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return take_step(*args)

    Training.optimization_step = take_step_and_stop


def _remove_after_the_first_save(path: str) -> None:
    save = Checkpoints.save

    def save_and_remove(*args, **kwargs):
        try:
            return save(*args, **kwargs)
        finally:
            Path(path).unlink(missing_ok=True)

    Checkpoints.save = save_and_remove


@pytest.mark.slow
def test_a_process_that_dies_stops_the_others_and_its_rank_is_named(tmp_path, images):
    (tmp_path / "images").symlink_to(images)
    script = Path(__file__).parents[2] / "scripts" / "train.py"
    flags = [
        *FLAGS,
        "--train_dir",
        "images",
        "--per_device_train_batch_size",
        "4",
        "--max_steps",
        "100000",
        "--eval_steps",
        "100000",
    ]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), *flags],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists():
        assert launcher.poll() is None
        time.sleep(0.2)
    victim = _process_of_rank(1, launcher.pid)
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    output, _ = launcher.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert launcher.returncode == 1
    cause = output[output.index("Root Cause") :]
    assert re.search(r"rank +: 1 ", cause)
    assert f"-9 (pid: {victim})" in cause


def _process_of_rank(rank: int, parent: int) -> int:
    """The child of a launcher that has this rank in its environment."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (found,) = [c for c in children if f"\0RANK={rank}\0" in Path(f"/proc/{c}/environ").read_text()]
    return int(found)


def test_epochs_are_saved_only_while_saving_is_cheap(monkeypatch):
    training = Training.__new__(Training)
    training.arguments = TrainArguments(output_dir="run", train_dir="images", variant="tiny")
    training.batches = SimpleNamespace(steps_per_epoch=10, num_steps=40)
    training.checkpoints = SimpleNamespace(are_affordable=lambda: False)
    due = []
    for step in range(1, 41):
        training.counters = {"step": step}
        due.append(training._is_save_due())
    assert [step for step, is_due in enumerate(due, 1) if is_due] == [40]  # the last state is always saved
    training.checkpoints = SimpleNamespace(are_affordable=lambda: True)
    training.counters = {"step": 10}
    assert training._is_save_due()


def _note_sizes() -> None:
    step = Training.optimization_step

    def note_and_step(self, batches):
        with open("sizes.txt", "a") as file:
            file.write(f"{self.counters['step']} {batches[0]['pixel_values'].shape[-1]}\n")
        return step(self, batches)

    Training.optimization_step = note_and_step


def test_images_grow_over_the_epochs_and_after_resuming_too(tmp_path, images):
    grow = {"image_size": 64, "image_size_start": 32, "max_steps": 24}  # 4 steps per epoch, so 6 epochs
    whole, cut = Run(tmp_path / "whole", images, **grow), Run(tmp_path / "cut", images, **grow)
    whole.finish(before=_note_sizes)
    sizes = dict(line.split() for line in (whole.folder / "sizes.txt").read_text().splitlines())
    assert [sizes[str(step)] for step in range(0, 24, 4)] == ["32", "32", "48", "48", "64", "64"]
    processes = cut.start(before=_note_sizes)
    while len(list((cut.folder / "run" / "checkpoints").glob("step-*"))) < 2 and processes[0].is_alive():
        time.sleep(0.05)
    kill(processes)
    cut.finish("--resume_from_checkpoint", "latest", before=_note_sizes)
    assert "resumed at step" in cut.output
    assert dict(line.split() for line in (cut.folder / "sizes.txt").read_text().splitlines()) == sizes
    assert losses(cut) == losses(whole)
