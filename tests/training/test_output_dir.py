"""What a run says at its start about the cores that it computes on."""

import os
import subprocess
import sys

import pytest

from seedling_hf.machine import free_cores
from seedling_hf.training.output_dir import describe_better_threads


@pytest.mark.parametrize(
    ("threads", "num_processes", "free", "advice"),
    [
        (2, 1, 1.9, ""),
        (2, 1, 1.0, "OMP_NUM_THREADS=1"),
        (2, 1, 0.0, "OMP_NUM_THREADS=1"),
        (8, 1, 5.2, "OMP_NUM_THREADS=5"),
        (4, 2, 5.0, "OMP_NUM_THREADS=2"),
        (1, 1, 1.9, "--num_cpu_threads_per_process 2"),
        (1, 2, 8.0, "--num_cpu_threads_per_process 4"),
        (1, 1, 1.1, ""),
        (1, 2, 0.3, ""),
    ],
)
def test_a_run_names_the_threads_that_free_cores_are_best_used_by(threads, num_processes, free, advice):
    line = describe_better_threads(threads, num_processes, free)
    assert advice in line and bool(advice) == bool(line)


def test_a_busy_program_takes_its_share_of_the_free_cores():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert free_cores() < os.cpu_count() - 0.2  # with others beside it, even fewer
    finally:
        busy.kill()
        busy.wait()
