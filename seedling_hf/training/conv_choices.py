"""Which candidate of the large convolution a GPU uses for each shape: timed once for a run, and then always the same.

Candidates round differently, and which one is the fastest is measured. So the first process measures, before the first
step and before anything is compiled, and the others do as it does. A checkpoint keeps the choices, so that a resumed
run computes the same bits. SEEDLING_HF_CONV_CHOICES, in the environment, names a file that keeps them for other runs.
"""

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from seedling_hf.files import writing
from seedling_hf.inference.prediction import CHOICES_VARIABLE
from seedling_hf.progress import Progress
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification
from seedling_hf.replknet.large_kernel_conv import choices, save_choices, set_choices
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training.freezing import freeze, train_unfrozen
from seedling_hf.training.loop import Training


def settle_choices(training: Training) -> None:
    """Times the candidates for the training batches of a run on GPUs, as far as their choices are not known.

    Raises:
        WriteError: if the file of the environment variable cannot be written.
    """
    accelerator, config = training.accelerator, training.learner.bare_model.config
    if accelerator.device.type != "cuda" or config.model_type != RepLKNetConfig.model_type:
        return
    found = [None]
    if accelerator.is_main_process:
        with Progress("timing the convolution"):
            for side in training.batches.list_image_sizes():
                _try_step(config, training.arguments, side, accelerator)
        found = [choices()]
    broadcast_object_list(found)
    set_choices(found[0])
    path = os.environ.get(CHOICES_VARIABLE)
    if path and accelerator.is_main_process and not Path(path).exists():
        with writing(path):
            save_choices(path)


def _try_step(config: RepLKNetConfig, arguments: TrainArguments, side: int, accelerator: Accelerator) -> None:
    """Forward and backward of a model like that of the run, which itself stays as it is, as do the random numbers."""
    device, batch_size = accelerator.device, arguments.per_device_train_batch_size
    with torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else []):
        model = RepLKNetForImageClassification(config).to(device)
        freeze(model, arguments)
        train_unfrozen(model)
        images = torch.zeros(batch_size, config.num_channels, side, side, device=device)
        with accelerator.autocast():
            loss = model(pixel_values=images, labels=torch.zeros(batch_size, dtype=torch.int64, device=device)).loss
        loss.backward()
