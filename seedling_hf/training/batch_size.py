"""The largest batch that fits into memory, with the same images in a step."""

import copy
import logging
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size, gather_object
from transformers import PreTrainedModel

from seedling_hf.errors import InputError
from seedling_hf.escaping import format_count
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training.freezing import train_unfrozen
from seedling_hf.training.models import needs_two_images

logger = logging.getLogger(__name__)


def fit_batch_size(
    arguments: TrainArguments, model: PreTrainedModel, image_size: int, accelerator: Accelerator
) -> TrainArguments:
    """The arguments with a batch that fits, and more of them per step, so that the global batch stays equal.

    A trial is one step on black images, with a copy of the model and as much additional memory as AdamW and the
    averaged weights will need: the run's own weights, statistics and random numbers do not change. All processes use
    the smallest batch that any of them found.

    Raises:
        InputError: if not even the smallest batch fits.
    """
    requested = arguments.per_device_train_batch_size
    least = 2 if needs_two_images(model, image_size) else 1
    sizes = iter([size for size in range(requested - 1, least - 1, -1) if requested % size == 0])

    @find_executable_batch_size(starting_batch_size=requested, reduce_batch_size_fn=lambda: next(sizes, 0))
    def largest(batch_size: int) -> int:
        _try_step(arguments, model, batch_size, image_size, accelerator)
        return batch_size

    try:
        found = largest()
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        found = 0
    found = min(gather_object([found]))
    if found == 0:
        raise InputError(
            f"expected memory for a batch of {least}, {image_size}×{image_size} pixels, found too little; use a "
            "smaller --variant or --image_size, or --gradient_checkpointing"
        )
    if found < requested:
        accumulation = arguments.gradient_accumulation_steps * requested // found
        logger.info(
            "batches of %d do not fit into memory: using batches of %d, %d per step; BatchNorm sees %s at a time",
            requested, found, accumulation, format_count(found, "image"),
        )  # fmt: skip
        arguments = replace(arguments, per_device_train_batch_size=found, gradient_accumulation_steps=accumulation)
    return arguments


def _try_step(
    arguments: TrainArguments, model: PreTrainedModel, batch_size: int, image_size: int, accelerator: Accelerator
) -> None:
    device = accelerator.device
    with torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else []):
        model = train_unfrozen(copy.deepcopy(model).to(device))
        if arguments.gradient_checkpointing:
            model.activation_checkpointing_enable()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        held = [torch.zeros_like(p) for p in trained for _ in range(2)]  # AdamW's moments; Muon has fewer
        held += [torch.zeros_like(p) for p in model.parameters()] if arguments.ema_decay else []
        pixel_values = torch.zeros(batch_size, model.config.num_channels, image_size, image_size, device=device)
        labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
        with accelerator.autocast():
            loss = model(pixel_values=pixel_values, labels=labels).loss
        loss.backward()
        del held  # only now
