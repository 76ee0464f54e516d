"""Loaders: the same batches with and without workers, and no wait that is in vain."""

import os
import random
import signal
import time
from itertools import islice

import numpy as np
import pytest
import torch

from seedling_hf.data import loading
from seedling_hf.data.loading import Loader, Waiting
from seedling_hf.errors import InputError
from seedling_hf.signals import Stopped, StopSignal


class Numbers(torch.utils.data.Dataset):
    """Batches by their number; some are made slowly, or end their worker."""

    def __init__(self, count: int, slow: int | None = None, deadly: int | None = None) -> None:
        self.count, self.slow, self.deadly = count, slow, deadly

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict:
        if number >= self.count:
            raise IndexError
        if number == self.slow:
            torch.rand(3), random.random(), np.random.random()
            time.sleep(60)
        if number == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        values = torch.full((3, 5), float(number))
        return {"pixel_values": values, "empty": values[:0], "names": [f"{number}.jpg"] * 1000, "reason": None}


@pytest.fixture
def load():
    loaders = []

    def make(*numbers, workers: int = 2, **options) -> Loader:
        loaders.append(Loader(Numbers(*numbers), batch_size=None, num_workers=workers, **options))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


@pytest.mark.parametrize("memory", [True, False])
def test_workers_give_what_the_process_itself_gives(load, monkeypatch, memory):
    if not memory:
        monkeypatch.delattr(os, "memfd_create")  # as elsewhere than on Linux
    for found, expected in zip(load(9), load(9, workers=0), strict=True):
        assert found["pixel_values"].equal(expected["pixel_values"])
        assert found["empty"].shape == (0, 5)
        assert (found["names"], found["reason"]) == (expected["names"], None)
        found["pixel_values"] += 1  # it may be written to


def test_batches_that_are_kept_stay_as_they_are(load):
    kept = list(load(20))
    assert [batch["pixel_values"][0, 0].item() for batch in kept] == list(range(20))


def test_workers_persist_and_leave_no_open_files(load):
    loader = load(9)
    processes, files = set(), set()
    for _ in range(3):
        for _ in loader:
            processes.add(tuple(worker.pid for worker in loader._iterator._workers))
        files.add(len(os.listdir("/proc/self/fd")))
    assert len(processes) == len(files) == 1


def test_an_iteration_that_is_left_does_not_spoil_the_next(load):
    loader = load(30)
    for _ in range(3):
        list(islice(loader, 5))
    assert [batch["pixel_values"][0, 0].item() for batch in loader] == list(range(30))


def test_a_worker_that_is_killed_is_a_sentence(load):
    started = time.monotonic()
    with pytest.raises(InputError, match="ended by SIGKILL, as it happens where memory runs out; lower"):
        list(load(9, None, 5))
    assert time.monotonic() - started < 5


def test_batches_that_went_with_their_worker_are_a_sentence(load):
    loader = load(9, workers=1)
    batches = iter(loader)
    next(batches)
    time.sleep(0.5)  # in which it makes the next two
    [worker] = loader._iterator._workers
    worker.kill()
    with pytest.raises(InputError, match=f"worker {worker.pid} ended by SIGKILL"):
        list(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_ends_a_wait_and_leaves_the_random_state(load, workers):
    loader = load(9, 4, workers=workers)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with StopSignal() as stop:
        loader.waiting.stop = stop
        batches = iter(loader)
        for _ in range(4):
            next(batches)
        child = os.fork()
        if child == 0:
            time.sleep(0.5)
            os.kill(os.getppid(), signal.SIGTERM)
            os._exit(0)
        started = time.monotonic()
        with pytest.raises(Stopped):
            next(batches)
        loader.close()
        assert time.monotonic() - started < 3
        os.waitpid(child, 0)
    assert before[0].equal(torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_close_does_not_wait_for_workers_that_hang(load):
    loader = load(9, 2)
    next(iter(loader))
    for worker in loader._iterator._workers:
        os.kill(worker.pid, signal.SIGSTOP)
    started = time.monotonic()
    loader.close()
    assert time.monotonic() - started < 3


def test_without_workers_the_process_loads_itself_with_one_notice(load, monkeypatch, caplog):
    def refuse(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loading, "_WorkersIterator", refuse)
    loader = load(5)
    assert len(list(loader)) == len(list(loader)) == 5
    assert [record.message for record in caplog.records] == [
        "cannot start 2 workers ([Errno 28] No space left on device): images are loaded in the process itself"
    ]


@pytest.mark.parametrize(
    ("asked", "processes", "cores", "used"),
    [(0, 1, 2, 0), (8, 1, 2, 8), (9, 1, 2, 8), (1000, 1, 2, 8), (1000, 1, 16, 64), (64, 8, 16, 8), (8, 4, 2, 2),
     (4, 100, 2, 1), (0, 100, 2, 0)],
)  # fmt: skip
def test_workers_are_bounded_by_the_machine_and_its_processes(caplog, asked, processes, cores, used):
    loading.usable_workers.cache_clear()
    for _ in range(2):
        assert loading.usable_workers(asked, processes, cores) == used
    assert len(caplog.records) == (asked != used)
    assert asked == used or f"--dataloader_num_workers {asked} is more" in caplog.text
    assert ("shared by" in caplog.text) == (asked != used and processes > 1)


def test_a_long_wait_is_mentioned_once(load, monkeypatch, caplog):
    monkeypatch.setattr(loading, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(loading, "POLL_SECONDS", 0.1)

    class Patience(Waiting):
        asked = 0

        def agree(self, state, error=None):
            self.asked += 1
            if self.asked > 10:
                raise Stopped

    with pytest.raises(Stopped):
        list(load(9, 0, waiting=Patience()))
    assert len(caplog.records) == 1 and "no batch came for" in caplog.text


def test_errors_of_a_dataset_come_as_they_are(load):
    loader = load(3)
    loader.dataset.__class__ = type("Broken", (Numbers,), {"__getitem__": lambda self, number: 1 / 0})
    with pytest.raises(ZeroDivisionError):
        list(loader)
