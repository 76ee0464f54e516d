"""Classifiers whose full batches `torch.compile` computes; the flags that ask for it."""

import logging
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

from seedling_hf.compiling import CompilingArguments, check_compiler
from seedling_hf.escaping import format_count
from seedling_hf.inference.classifier_arguments import InferenceArguments

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class CompiledInferenceArguments(CompilingArguments, InferenceArguments):
    def compile(self, model: "nn.Module", accelerator: "Accelerator") -> None:
        """Has the full batches of a model, on its device, compiled if the flags say so.

        Raises:
            InputError: for a machine that cannot compile.
        """
        if not self.torch_compile:
            return
        check_compiler(accelerator)
        mode = self.torch_compile_mode or "default"
        compile_batches(model, self.per_device_eval_batch_size, mode=mode)
        logger.info(
            "batches of %s are compiled by torch.compile (%s): the first one takes one to five minutes; smaller ones, "
            "such as the last one, run uncompiled",
            format_count(self.per_device_eval_batch_size, "image"), mode,
        )  # fmt: skip


def compile_batches(module: "nn.Module", batch_size: int, **options: Any) -> None:
    """Has a module compute batches of this size compiled, in place, under its own names.

    Only without gradients, and of images of the size of the first such batch: whatever else, such as the last batch,
    would be compiled again, in minutes, for what takes seconds.

    Args:
        module: Takes `pixel_values` (N, C, H, W) by that name.
        options: Of `torch.compile`.
    """
    import torch

    plain, shape = module.forward, None
    compiled = torch.compile(plain, dynamic=False, **options)

    @wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal shape
        images = kwargs.get("pixel_values")
        if images is None or len(images) != batch_size or not torch.is_inference_mode_enabled():
            return plain(*args, **kwargs)
        shape = shape or images.shape
        return (compiled if images.shape == shape else plain)(*args, **kwargs)

    module.forward = forward
