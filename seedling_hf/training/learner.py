"""What an optimizer step changes: the model, its averaged weights, the optimizer and the schedule."""

import copy
import math
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, fsdp2_prepare_model
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf.files import share_as_usual, writing
from seedling_hf.inference.familiarity import FAMILIARITY
from seedling_hf.inference.model_files import CONFIG
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training.balance import weigh_targets
from seedling_hf.training.checkpoint_files import RunState
from seedling_hf.training.compilation import compile_options
from seedling_hf.training.distillation import Teachers
from seedling_hf.training.freezing import keep_frozen
from seedling_hf.training.optimization import (
    ExponentialMovingAverage,
    build_optimizer,
    build_scheduler,
    place_schedule,
    step_if,
)
from seedling_hf.training.resuming import check_same_shape
from seedling_hf.training.sharding import gather, load_model_state, load_optimizer_state

CERTAINTY = (
    "calibration_temperature",
    "confidence_threshold",
)  # fields of a configuration that belong to certain weights


class Learner:
    """A model that learns, on all processes; it is given in float32 and not yet on its device.

    Args:
        class_weights: By which the loss counts each class, (num_labels,), on the device.
    """

    def __init__(
        self,
        arguments: TrainArguments,
        model: PreTrainedModel,
        accelerator: Accelerator,
        num_steps: int,
        teachers: Teachers | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        self.accelerator, self.max_grad_norm, self.teachers = accelerator, arguments.max_grad_norm, teachers
        self.class_weights = class_weights
        if arguments.gradient_checkpointing:
            model.activation_checkpointing_enable()
        self.ema = ExponentialMovingAverage(model, arguments.ema_decay) if arguments.ema_decay else None
        # Sharding changes the class of a model, which then cannot be saved as what it was.
        self.blank = copy.deepcopy(model).to("meta") if accelerator.is_fsdp2 else None
        if self.ema and accelerator.is_fsdp2:
            fsdp2_prepare_model(accelerator, self.ema.model)
        elif self.ema:
            self.ema.model.to(accelerator.device)
        if arguments.sync_bn and accelerator.device.type == "cuda" and accelerator.num_processes > 1:
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        optimizer = build_optimizer(model, arguments, fused=accelerator.device.type in ("cpu", "cuda"))
        self.scheduler = build_scheduler(optimizer, arguments, num_steps)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        options = compile_options(accelerator)
        if teachers and options:  # they see the same batches, and may be the larger part
            teachers.compile(**options)

    @property
    def bare_model(self) -> PreTrainedModel:
        """The trained model, without what accelerate and `torch.compile` wrap around it, so with its own names."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def evaluated_model(self) -> PreTrainedModel:
        """The averaged weights if there are any, else the trained ones, unwrapped and in evaluation mode."""
        return self.ema.model if self.ema else self.bare_model.eval()

    @property
    def learning_rate(self) -> float:
        """Of the next update, the highest of all parameter groups."""
        return max(self.scheduler.get_last_lr())

    def accumulate_gradients(self, batches: list[dict[str, Tensor]]) -> Tensor:
        """Forward and backward passes over the batches of one optimizer step on this process.

        Nothing waits for the device, and a loss that is not finite spoils the gradients of all processes: `update`,
        which then changes no weight, needs no other news of it.

        Returns:
            The mean loss of this process, (), on its device.
        """
        self.model.train()
        keep_frozen(self.bare_model)
        total = torch.zeros((), device=self.accelerator.device)
        for i, batch in enumerate(batches):
            # Gradients travel between processes once a step, with the last of its batches; under FSDP with each of
            # them, since gradients that have not travelled are not sharded.
            is_last = i == len(batches) - 1
            with nullcontext() if is_last or self.accelerator.is_fsdp2 else self.accelerator.no_sync(self.model):
                pixel_values, labels = batch["pixel_values"], batch["labels"]
                with self.accelerator.autocast():  # FSDP leaves it to us
                    if self.teachers:
                        labels = self.teachers.soften(pixel_values, labels)
                    if self.class_weights is not None:
                        labels = weigh_targets(labels, self.class_weights)
                    loss = self.model(pixel_values=pixel_values, labels=labels).loss / len(batches)
                total += loss.detach()
                if is_last:
                    loss = loss * (1 + 0 * total)  # 1, or NaN: an infinite loss may have finite gradients
                self.accelerator.backward(loss)
        return total

    def update(self) -> Tensor:
        """Clips the gradients, and updates weights and averages; the weights only if the gradients are finite.

        Returns:
            The norm of the gradients before clipping, (), on the device.
        """
        grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm or math.inf)
        grad_norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
        step_if(grad_norm.isfinite(), self.optimizer)
        self.optimizer.zero_grad()
        self.scheduler.step()
        if self.ema:
            self.ema.update(self.bare_model)
        return grad_norm

    def share_statistics(self) -> None:
        """Gives the evaluated model of every process the BatchNorm statistics of the first, which are saved."""
        for buffer in self.evaluated_model().buffers():
            broadcast(buffer)

    def evaluated_weights(self) -> dict[str, Tensor]:
        """The state dict of the evaluated model, on the main process; every process must call it."""
        return gather(self.evaluated_model().state_dict(), keep=self.accelerator.is_main_process)

    def write_model(
        self, weights: dict[str, Tensor], output_dir: Path, image_processor: BaseImageProcessor, **certainty: float
    ) -> None:
        """Puts the model with these weights and its processor into the output folder, file by file, each complete.

        Its configuration gets temperature and confidence threshold of these weights, `certainty`, or neither; what
        tells unfamiliar images from those that other weights were trained on is deleted.

        Raises:
            WriteError: if the disk fails; the files that were there before are then still complete.
        """
        staging = output_dir / ".model.tmp"
        with writing(output_dir / "model.safetensors"):
            shutil.rmtree(staging, ignore_errors=True)
            try:
                staging.mkdir()  # not its parents: a missing disk must not be replaced by a folder
                model = self.blank or self.evaluated_model()
                for name in CERTAINTY:
                    setattr(model.config, name, certainty.get(name))
                # A copy of the dict, which save_pretrained empties.
                model.save_pretrained(staging, state_dict=dict(weights))
                image_processor.save_pretrained(staging)
                share_as_usual(staging)
                (output_dir / FAMILIARITY).unlink(missing_ok=True)
                # The configuration last: it says what the weights hold already.
                for file in sorted(staging.iterdir(), key=lambda file: file.name == CONFIG):
                    os.replace(file, output_dir / file.name)
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def state_dicts(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """What a checkpoint holds of it: state dicts by name, and the state of optimizer, schedule and scaler.

        Under FSDP every process must call it, and only the main process gets the tensors.
        """
        scaler, keep = self.accelerator.scaler, self.accelerator.is_main_process
        tensors = {"model": gather(self.bare_model.state_dict(), keep=keep)}
        if self.ema:
            tensors["ema"] = gather(self.ema.model.state_dict(), keep=keep)
        return tensors, {
            "optimizer": gather(self.optimizer.state_dict(), keep=keep),
            "scheduler": self.scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "ema_updates": self.ema.updates if self.ema else None,
        }

    def load(self, checkpoint: RunState) -> None:
        """Restores what `state_dicts` returned, under the schedule and the settings of this run's flags.

        Raises:
            ValueError, KeyError, TypeError, RuntimeError: for the state of another model or optimizer.
        """
        state, scaler = checkpoint.state, self.accelerator.scaler
        check_same_shape("scheduler", state["scheduler"], self.scheduler.state_dict())
        if state["scheduler"]["last_epoch"] != checkpoint.step:
            raise ValueError("the schedule is at another step")
        check_same_shape("scaler", state["scaler"], scaler and scaler.state_dict())
        check_same_shape("ema_updates", state["ema_updates"], 0)
        load_model_state(self.bare_model, checkpoint.tensors["model"])
        if self.ema:
            load_model_state(self.ema.model, checkpoint.tensors["ema"])
            self.ema.updates = state["ema_updates"]
        load_optimizer_state(self.optimizer, state["optimizer"])
        place_schedule(self.scheduler, state["scheduler"]["last_epoch"])
        if scaler and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
