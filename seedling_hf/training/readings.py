"""Losses and norms of gradients, which stay on the device until all processes read them together."""

import math
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor

from seedling_hf.errors import InputError
from seedling_hf.training.distillation import Teachers

MOST_UNREAD = 100  # steps; a run that has diverged ends then also where it logs more seldom


class NonFiniteLossError(InputError):
    """A loss or a gradient is infinite or not a number; the message names the step and the images of its batches."""


class Step(NamedTuple):
    """What an optimizer step leaves behind.

    Attributes:
        number: From 1 on.
        loss: Of this process, (), on its device.
        grad_norm: Of the gradients of all processes before clipping, (), on the device.
        index: Of the images in each of its batches, (N,), on the CPU.
    """

    number: int
    loss: Tensor
    grad_norm: Tensor
    index: list[Tensor]


class Readings:
    """The steps that nobody has looked at yet.

    Whoever looks at a number that a GPU computes waits for all that the GPU has still to do before, and then the GPU
    waits for its next work. So steps only `add` theirs, and processes exchange nothing for it.

    Args:
        list_images: Names the images of all processes, by their `index` in each batch of one of them.

    Attributes:
        loss: The mean over all processes in the step that was read last; None before.
        grad_norm: Of the same step.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        list_images: Callable[[list[Tensor]], list[str]],
        teachers: Teachers | None = None,
    ) -> None:
        self.accelerator, self.list_images, self.teachers = accelerator, list_images, teachers
        self.unread: list[Step] = []
        self.loss: float | None = None
        self.grad_norm: float | None = None

    def add(self, step: Step) -> None:
        self.unread.append(step)

    @property
    def are_due(self) -> bool:
        """Whether to read although nothing asks for it: one process on a CPU waits for nobody."""
        accelerator = self.accelerator
        is_free = accelerator.device.type == "cpu" and accelerator.num_processes == 1
        return is_free or len(self.unread) >= MOST_UNREAD

    def read(self) -> None:
        """Waits until all steps are done; every process must call it.

        Raises:
            NonFiniteLossError: on every process, for the first step with a loss, of any process, or a gradient that is
                not finite. What is raised once is raised by every later reading.
            NonFiniteError: where it may come from a teacher.
        """
        if not self.unread:
            return
        losses = torch.stack([step.loss for step in self.unread])
        losses = self.accelerator.gather(losses[None]).T.contiguous()  # (steps, processes)
        norms = torch.stack([step.grad_norm for step in self.unread])
        are_finite = losses.isfinite().all(1)
        if self.accelerator.scaler is None:  # whose business it is otherwise: it tries a smaller scale
            are_finite &= norms.isfinite()
        for step, is_finite, found in zip(self.unread, are_finite.tolist(), losses.tolist(), strict=True):
            if not is_finite:
                self._refuse(step, found)
        self.loss, self.grad_norm = losses[-1].mean().item(), norms[-1].item()
        self.unread.clear()

    def _refuse(self, step: Step, losses: list[float]) -> NoReturn:
        if self.teachers:
            self.teachers.check(self.accelerator.gather)
        wanted, found = "a finite loss", losses
        if all(map(math.isfinite, losses)):
            wanted, found = "finite gradients", f"their norm {step.grad_norm.item()}"
        raise NonFiniteLossError(
            f"expected {wanted}, found {found} at step {step.number} on the images "
            f"{', '.join(self.list_images(step.index))}; look at these images, lower --learning_rate or use "
            "--mixed_precision bf16"
        )
