"""A batch on its way from a worker to its process, without /dev/shm.

A worker writes its batch into anonymous memory (`memfd_create`) that the process opens through /proc, so neither the
size of /dev/shm matters nor whether there is one. Where the system has no such memory, PyTorch's own way is used.
"""

import mmap
import os
import pickle
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import get_worker_info

PREFETCH = 2  # batches of each worker that are on their way, as PyTorch's default
ALIGNMENT = 64


class BatchLostError(Exception):
    """The memory of a batch went with the worker that had made it."""


class HandingOver:
    """Collates, and in a worker puts the batch where the process finds it."""

    def __init__(self, collate: Callable[..., dict[str, Any]]) -> None:
        self.collate = collate
        # A worker gets the task after the next when its batch before is unpacked: so many are to be kept.
        self.kept: deque[_InMemory] = deque(maxlen=PREFETCH)

    def __call__(self, examples: Any) -> Any:
        batch = self.collate(examples)
        if get_worker_info() is None or not hasattr(os, "memfd_create"):
            return batch
        try:
            self.kept.append(_InMemory(batch))
        except OSError:  # a system that forbids it
            return batch
        return self.kept[-1]


class _InMemory:
    """A batch in anonymous memory, which is a dictionary again where it is unpickled, while this object lives."""

    def __init__(self, batch: dict[str, Any]) -> None:
        arrays: list[pickle.PickleBuffer] = []
        tensors = [name for name, value in batch.items() if isinstance(value, torch.Tensor)]
        plain = batch | {name: batch[name].numpy() for name in tensors}
        head = pickle.dumps((tensors, plain), protocol=5, buffer_callback=arrays.append)
        self.spans, end = [], 0
        self.file = open(os.memfd_create("batch"), "wb")  # noqa: SIM115  closed with this object
        for part in (head, *(array.raw() for array in arrays)):
            self.file.seek(end)
            self.file.write(part)
            self.spans.append((end, end + len(part)))
            end += len(part) + -len(part) % ALIGNMENT
        self.file.truncate(end)
        self.path = f"/proc/{os.getpid()}/fd/{self.file.fileno()}"
        os.close(os.open(self.path, os.O_RDWR))  # where /proc is hidden, it is an OSError here

    def __reduce__(self) -> tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]:
        return _read, (self.path, self.spans)


def _read(path: str, spans: list[tuple[int, int]]) -> dict[str, Any]:
    # Not sent through a socket as PyTorch does: a worker that is stopped would not answer.
    try:
        with open(path, "r+b") as file:
            memory = memoryview(mmap.mmap(file.fileno(), 0))
    except FileNotFoundError as error:
        raise BatchLostError from error
    head, *arrays = (memory[start:end] for start, end in spans)
    tensors, batch = pickle.loads(head, buffers=arrays)
    return batch | {name: torch.from_numpy(batch[name]) for name in tensors}
