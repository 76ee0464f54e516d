"""Processes that wait for batches: all of them go on together, or stop together."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from seedling_hf.data.loading import Loader, State, Waiting
from seedling_hf.errors import InputError, first_line
from seedling_hf.signals import Stopped


class WaitingTogether(Waiting):
    """For loaders whose batches all processes need at the same time, as many each.

    Before they use a batch they ask each other: a signal to one of them stops all, and so does an error. Without it,
    the others would wait in the next exchange of tensors, which no signal ends.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.is_alone = accelerator.num_processes == 1
        # On the CPU: a message through the GPU would wait for the step before.
        on_gpu = not self.is_alone and accelerator.device.type != "cpu"
        self.group = torch.distributed.new_group(backend="gloo") if on_gpu else None

    def agree(self, state: State, error: InputError | None = None) -> None:
        """As in `Waiting`; with several processes it returns when all of them are ready, or if this one is not.

        Raises:
            InputError: if the batch of another process will never be there, with that one's sentence.
        """
        if self.is_alone:
            super().agree(state)
            return
        while True:
            stop = self.stop is not None and self.stop.received is not None
            flags = torch.tensor([stop, state is State.FAILED, state is State.WAITING], dtype=torch.int32)
            with _naming_the_dead():
                torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX, self.group)
            stopped, failed, waits = flags.tolist()
            if stopped:
                raise Stopped
            if failed:
                raise InputError(next(filter(None, gather_object([str(error) if error else None]))))
            if not waits or state is State.WAITING:
                return


def meet(accelerator: Accelerator) -> None:
    """Waits for all processes.

    Raises:
        InputError: if one of them ended.
    """
    with _naming_the_dead():
        accelerator.wait_for_everyone()


@contextmanager
def _naming_the_dead() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = first_line(error)
        raise InputError(
            f"expected all processes until the end, found that one ended ({reason}); see what it printed, and resume "
            "the run"
        ) from error


def deal(loader: Loader, accelerator: Accelerator) -> DataLoader:
    """The batches of a loader dealt to the processes by accelerate, each image once for `gather_for_metrics`."""
    prepared = accelerator.prepare(loader)
    prepared.base_dataloader = loader.with_batches(prepared.batch_sampler)
    return prepared
