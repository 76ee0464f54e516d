"""The memory of a training step, measured on tensors that have a shape but no content.

What a step holds all the time is counted: weights, the optimizer's moments, averaged weights, and what processes need
to exchange gradients. What comes and goes is observed: the real model runs forward and backward on fake tensors
(`FakeTensorMode`), the real optimizer updates it, and each storage is counted from the operation that creates it until
it is freed. So views, what autograd saves, what is freed early, and the weights that autocast casts are all counted
correctly.

Not counted, since no operation of PyTorch shows it: CUDA's own context (about half a GB), the workspaces of cuDNN and
cuBLAS, and fragmentation in the allocator.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

# Private: torch gives tensors without content no public name.
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import AdamW, Optimizer
from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf.inference.batch_memory import LiveStorages, check_memory, image_side
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification
from seedling_hf.train_arguments import OptimizationArguments, TrainArguments
from seedling_hf.training.freezing import freeze, train_unfrozen
from seedling_hf.training.optimization import build_optimizer

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device.

    Attributes:
        weights: Parameters and buffers.
        average: Averaged weights (EMA).
        moments: AdamW's two; for matrices that Muon updates, its one; none of what is frozen.
        exchange: Buffers between processes: DDP's buckets, or the blocks that FSDP holds unsharded at one time.
        gradients: Of all parameters that are trained.
        activations: What the forward pass keeps for the backward pass, including the weights that autocast has cast.
        step: The most that gradients, activations and temporaries take at one time. It can be less than the sum of
            gradients and activations, since activations are freed while gradients appear.
    """

    weights: int
    average: int
    moments: int
    exchange: int
    gradients: int
    activations: int
    step: int

    @property
    def peak(self) -> int:
        """The most that is alive at one time."""
        return self.weights + self.average + self.moments + self.exchange + self.step


def check_step_memory(
    arguments: TrainArguments, model: PreTrainedModel, image_processor: BaseImageProcessor, splits: Mapping[str, Any],
    accelerator: Accelerator,
) -> None:  # fmt: skip
    """Refuses a run whose steps or evaluations cannot fit into the memory, on the device that it will use.

    Raises:
        InputError: with the memory that is needed and that there is.
    """
    side, train = image_side(image_processor), splits["train"]
    batch_size = 1 if arguments.auto_find_batch_size else arguments.per_device_train_batch_size
    advice = "lower --image_size or --per_device_train_batch_size, or use a smaller --variant"
    if not arguments.gradient_checkpointing:
        advice += " or --gradient_checkpointing"
    check_memory(
        model,
        batch_size if arguments.streaming else min(batch_size, len(train)),
        side,
        advice,
        trains=not arguments.gradient_checkpointing,
        share=0.5 if accelerator.mixed_precision in DTYPES else 1.0,
        device=accelerator.device,
    )
    images = min(arguments.per_device_eval_batch_size, len(splits["validation"]) or len(train))
    advice = "lower --image_size or --per_device_eval_batch_size, or use a smaller --variant"
    check_memory(model, images, side, advice, device=accelerator.device)


def estimate_memory(
    config: RepLKNetConfig,
    arguments: OptimizationArguments,
    image_size: int,
    *,
    num_processes: int = 1,
    use_fsdp: bool = False,
) -> MemoryEstimate:
    """The memory of a training step on one device.

    Args:
        image_size: Side of the images in pixels.
        num_processes: Above 1, gradients are exchanged.
        use_fsdp: Whether FSDP shards the weights, and everything of their size, across the processes.
    """
    with torch.device("meta"):
        model = RepLKNetForImageClassification(config)
    freeze(model, arguments)
    parameters, buffers, trained = _bytes(model.parameters()), _bytes(model.buffers()), _bytes(_trained(model))
    optimizer = build_optimizer(model, arguments)
    moments, update = _observe_update(model, optimizer)
    if isinstance(optimizer, AdamW):
        update = 0  # fused, which it cannot be on tensors without content
    exchange, share = trained if num_processes > 1 else 0, 1
    if use_fsdp:
        exchange, share = _unsharded_blocks(model), num_processes
    gradients = trained // share
    # Sharded gradients, and those of earlier batches, are always there; others come one by one.
    kept = gradients if use_fsdp or arguments.gradient_accumulation_steps > 1 else 0
    activations, most = _observe_step(model, arguments, image_size, drop_gradients=kept > 0)
    return MemoryEstimate(
        weights=parameters // share + buffers,
        average=(parameters // share + buffers) if arguments.ema_decay else 0,
        moments=moments // share,
        exchange=exchange,
        gradients=gradients,
        activations=activations,
        step=max(kept + most, gradients + update // share),
    )


def _observe_step(
    model: nn.Module, arguments: OptimizationArguments, image_size: int, *, drop_gradients: bool
) -> tuple[int, int]:
    """Bytes that a forward pass leaves behind, and the most that forward and backward need besides the weights.

    The latter includes the gradients, unless each is dropped as soon as it is computed.
    """
    batch_size, dtype = arguments.per_device_train_batch_size, DTYPES.get(arguments.mixed_precision, torch.float32)
    live = LiveStorages()
    with FakeTensorMode():
        model = train_unfrozen(model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype)))
        if arguments.gradient_checkpointing:
            model.activation_checkpointing_enable()
        for parameter in _trained(model):
            if drop_gradients:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
        for tensor in (*model.parameters(), *model.buffers()):
            live.exclude(tensor)
        with live:
            images = torch.empty(batch_size, model.config.num_channels, image_size, image_size)
            labels = torch.empty(batch_size, model.config.num_labels)
            with torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext():
                loss = model(pixel_values=images, labels=labels).loss
            activations = live.now
            loss.backward()
    return activations, live.most


def _observe_update(model: nn.Module, optimizer: Optimizer) -> tuple[int, int]:
    """Bytes that an optimizer keeps from step to step, and the most that a step needs besides them."""
    for parameter in _trained(model):
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()  # the first step creates the moments
    kept = (value for state in optimizer.state.values() for value in state.values())
    moments = [value for value in kept if torch.is_tensor(value) and value.ndim]  # without the step counters on the CPU
    live = LiveStorages()
    for tensor in (*model.parameters(), *(parameter.grad for parameter in _trained(model)), *moments):
        live.exclude(tensor)
    with live:
        optimizer.step()
    model.zero_grad()
    return _bytes(moments), live.most


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _unsharded_blocks(model: nn.Module) -> int:
    """What FSDP holds unsharded, at most: two blocks and their receive buffer, the gradients of a block and their send
    buffer, and the parameters outside of blocks with their gradients."""
    kinds = set(model._no_split_modules)
    blocks = [m for m in model.modules() if type(m).__name__ in kinds]
    outside, trained = (
        _bytes(of(model)) - sum(_bytes(of(block)) for block in blocks) for of in (nn.Module.parameters, _trained)
    )
    held, with_gradients = (max(_bytes(of(block)) for block in blocks) for of in (nn.Module.parameters, _trained))
    return 3 * held + 2 * with_gradients + outside + trained
