"""`torch.compile` in training: what cannot be compiled together, and what is said before the first step.

accelerate compiles the model that it prepares, for our flags as for `accelerate launch --dynamo_backend`. What learns,
is averaged, evaluated and saved is the model inside, under its own names. Evaluations run it uncompiled: their figures
are then those of `evaluate`, and no other mode and no last, smaller batch is compiled.
"""

import logging
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DynamoBackend, TorchDynamoPlugin

from seedling_hf.compiling import INDUCTOR, REMEDY, REPLAYING_MODES, check_compiler
from seedling_hf.errors import InputError
from seedling_hf.train_arguments import TrainArguments

logger = logging.getLogger(__name__)


def compile_plugin(arguments: TrainArguments) -> TorchDynamoPlugin | None:
    """How accelerate is to compile; None leaves that to the launcher."""
    if not arguments.torch_compile:
        return None
    return TorchDynamoPlugin(backend=INDUCTOR, mode=arguments.torch_compile_mode or "default")


def compile_options(accelerator: Accelerator) -> dict[str, Any]:
    """The options of `torch.compile` that the flags or the launcher ask for; none without compiling."""
    plugin = accelerator.state.dynamo_plugin
    if plugin.backend == DynamoBackend.NO:
        return {}
    return plugin.to_kwargs()


def configure_compilation(accelerator: Accelerator, arguments: TrainArguments) -> None:
    """Tries the compiler and announces it, if the model is to be compiled.

    Raises:
        InputError: for what cannot be compiled together, or a machine that cannot compile.
    """
    if not compile_options(accelerator):
        return
    plugin = accelerator.state.dynamo_plugin
    refused = {
        "--gradient_checkpointing": (arguments.gradient_checkpointing, "whose layers would stay uncompiled"),
        "--sync_bn": (arguments.sync_bn and accelerator.num_processes > 1, "whose exchange cannot be compiled"),
        "FSDP": (accelerator.is_fsdp2, "which is not tried"),
        "--image_size_start": (arguments.image_size_start is not None, "whose every size would be compiled anew"),
    }
    if plugin.mode in REPLAYING_MODES and accelerator.device.type == "cuda":
        refused |= {  # pytorch/pytorch#169545 and #96693: an error, or the gradients of the last batch alone
            "--gradient_accumulation_steps above 1": (
                arguments.gradient_accumulation_steps > 1,
                "whose sums CUDA graphs overwrite",
            ),
            "--auto_find_batch_size": (arguments.auto_find_batch_size, "which may add up gradients"),
        }
    for found, (is_there, reason) in refused.items():
        if is_there:
            mode = f" in mode {plugin.mode}" if plugin.mode != "default" else ""
            raise InputError(
                f"expected what can be compiled by torch.compile{mode}, found {found}, {reason}; remove it, {REMEDY}"
            )
    check_compiler(accelerator, plugin.backend.value.lower())
    logger.info(
        "compiling by torch.compile (%s, %s): the first step takes one to five minutes longer%s",
        plugin.backend.value.lower(), plugin.mode,
        "; on a CPU the others are seldom faster" if accelerator.device.type == "cpu" else "",
    )  # fmt: skip
