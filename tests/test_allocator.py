"""Freed memory is kept for the next step."""

import subprocess
import sys

import pytest

from seedling_hf.allocator import keep_freed_memory

PROGRAM = """
import resource, sys, torch
from seedling_hf.allocator import keep_freed_memory
is_kept = sys.argv[1] == "kept" and keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    before = faults()
    for _ in range(5):
        torch.ones(10_000_000)  # 40 MB: glibc asks the system for each block above 32 MB
print(is_kept, faults() - before)
"""


def run(mode):
    words = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True).stdout
    is_kept, faults = words.split()
    return is_kept == "True", int(faults)


def test_freed_memory_is_used_again_without_asking_the_system():
    is_kept, faults = run("kept")
    if not is_kept:
        pytest.skip("this C library is not glibc")
    _, faults_otherwise = run("returned")
    assert faults < 50 < faults_otherwise  # a tensor has 10,000 pages of 4 kB; huge pages would be fewer


def test_a_library_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
