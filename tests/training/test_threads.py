"""A run takes as many threads as other programs leave cores free, and keeps them when it is resumed."""

import json
import logging
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from faults import assert_well, command

from seedling_hf.training import threads
from seedling_hf.training.threads import VARIABLE, choose_threads, free_cores, restore_threads


@pytest.fixture
def alone(monkeypatch):
    """One process on a CPU whose number of threads nobody has set."""
    monkeypatch.delenv(VARIABLE, raising=False)
    number = torch.get_num_threads()
    yield SimpleNamespace(device=torch.device("cpu"), num_processes=1)
    torch.set_num_threads(number)


@pytest.mark.parametrize(
    ("before", "free", "after"), [(2, 1.9, 2), (2, 1.0, 1), (2, 0.0, 1), (8, 5.2, 5), (8, 7.8, 8), (1, 9.0, 1)]
)
def test_a_run_takes_as_many_threads_as_cores_are_free(before, free, after, alone, monkeypatch, caplog):
    torch.set_num_threads(before)
    monkeypatch.setattr(threads, "free_cores", lambda: free)
    with caplog.at_level(logging.INFO):
        choose_threads(alone)
    assert torch.get_num_threads() == after
    assert (VARIABLE in caplog.text) == (before != after)


def test_a_number_that_was_set_stays(alone, monkeypatch, caplog):
    monkeypatch.setenv(VARIABLE, "2")
    monkeypatch.setattr(threads, "free_cores", lambda: 0.0)
    torch.set_num_threads(2)
    choose_threads(alone)
    assert torch.get_num_threads() == 2
    restore_threads(alone, 1)
    assert torch.get_num_threads() == 2
    assert "not bit-equal" in caplog.text


def test_a_busy_program_takes_its_share_of_the_free_cores():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert free_cores() < threads.num_cores() - 0.2  # with others beside it, even fewer
    finally:
        busy.kill()
        busy.wait()


def _with_free_cores(number: float) -> None:
    os.environ.pop(VARIABLE, None)
    torch.set_num_threads(2)
    threads.free_cores = lambda: number


def test_a_resumed_run_computes_in_as_many_threads_as_before(images, tmp_path):
    words = [
        "train", "--train_dir", images, "--output_dir", "run", "--variant", "tiny", "--image_size", 32,
        "--per_device_train_batch_size", 4, "--save_steps", 1, "--lr_scheduler_type", "constant",
    ]  # fmt: skip
    first = command([*words, "--max_steps", 1], tmp_path, before=partial(_with_free_cores, 1.0))
    assert_well(first)
    assert "1 × cpu of 1 thread" in first.stdout
    resumed = command(
        [*words, "--max_steps", 2, "--resume_from_checkpoint", "latest", "--allow_changed_arguments"], tmp_path,
        before=partial(_with_free_cores, 2.0),
    )  # fmt: skip
    assert_well(resumed)
    assert "computing in 1 thread, as before" in resumed.stderr
    assert json.loads((tmp_path / "run" / "train_results.json").read_text())["torch_threads"] == 1
