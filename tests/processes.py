"""Processes forked from one that has the imports done: alone, or together as `torchrun` starts them."""

import gc
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from seedling_hf.commands import run as run_command

FORKS = multiprocessing.get_context("forkserver")
# All tests share one fork server, so this is the only list.
MODULES = [
    "pytest", "seedling_hf.training.loop", "seedling_hf.evaluation.report_files",
    "seedling_hf.evaluation.seedling_metric", "seedling_hf.plots", "timm.data", "matplotlib.pyplot", "sklearn.metrics",
    "seedling_hf.training.checkpointing", "seedling_hf.replknet.modeling_replknet", "seedling_hf.inference.prediction",
]  # fmt: skip
# The server passes over a module that it does not find.
assert all(find_spec(name) for name in MODULES if name.startswith("seedling_hf."))
FORKS.set_forkserver_preload(MODULES)


def start(target: Callable, *arguments, num_processes: int = 1) -> list:
    """Starts `target(rank, *arguments)` in processes that find each other; what it returns is their exit code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # In a child of a fork server, loading workers would come from another server, which has imported nothing.
    start_method = multiprocessing.get_start_method()
    processes = []
    for rank in range(num_processes):
        settings = (start_method, rank, num_processes, port)
        processes.append(FORKS.Process(target=_work, args=(settings, target, arguments)))
        processes[-1].start()
    return processes


def _work(settings: tuple[str, int, int, int], target: Callable, arguments: tuple) -> None:
    start_method, rank, num_processes, port = settings
    os.setsid()
    gc.freeze()  # no collection goes through what the imports made
    multiprocessing.set_start_method(start_method, force=True)
    torch.set_num_threads(1)
    if num_processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes),
            "LOCAL_WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    code = target(rank, *arguments)
    if num_processes > 1:
        from accelerate import PartialState

        assert PartialState().num_processes == num_processes
        PartialState().destroy_process_group()
    sys.exit(code)


def command_on_two_processes(main: Callable, words: Sequence[str], folder: Path) -> subprocess.CompletedProcess:
    """Runs a command on two processes; `folder` keeps what they print."""
    processes = start(_command, main, words, folder, num_processes=2)
    return _completed(processes, folder)


def run_python(command: Sequence[str], env: dict[str, str], folder: Path) -> subprocess.CompletedProcess:
    """Runs `python -c program words` in a fork; `folder` keeps what it prints."""
    assert command[:2] == [sys.executable, "-c"]
    return _completed(start(_program, command[2], command[3:], env, folder), folder)


STREAMS = {"stdout": 1, "stderr": 2}


def _command(rank: int, main: Callable, words: Sequence[str], folder: Path) -> int:
    _print_into(folder, rank)
    return run_command(main, words)


def _program(rank: int, program: str, words: Sequence[str], environment: dict[str, str], folder: Path) -> None:
    _print_into(folder, rank)
    os.environ.clear()
    os.environ |= environment
    sys.argv = ["-c", *words]
    exec(program, {"__name__": "__main__"})


def _print_into(folder: Path, rank: int) -> None:
    for name, number in STREAMS.items():
        os.dup2(os.open(folder / f"{name}-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)


def _completed(processes: list, folder: Path) -> subprocess.CompletedProcess:
    for process in processes:
        process.join()
    ranks = range(len(processes))
    outputs = ("".join((folder / f"{name}-{rank}.txt").read_text() for rank in ranks) for name in STREAMS)
    return subprocess.CompletedProcess((), max(abs(process.exitcode) for process in processes), *outputs)
