"""FSDP, which shards a model across the processes: what can be combined with it, and full tensors from its shards.

With version 2 of FSDP (`torch.distributed.fsdp.fully_shard`) each parameter, its gradient and AdamW's moments are
`DTensor`s, of which every process holds a shard; buffers, such as the statistics of BatchNorm, are complete on each.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, disable_fsdp_ram_efficient_loading
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from seedling_hf.errors import InputError
from seedling_hf.train_arguments import OptimizationArguments
from seedling_hf.training.resuming import check_same_shape


def configure_sharding(accelerator: Accelerator, arguments: OptimizationArguments) -> None:
    """Refuses what cannot be combined with a sharded model, and overrides two choices of accelerate.

    Weights stay in float32 and autocast decides about each operation, as without FSDP; accelerate would cast BatchNorm
    and the loss to bfloat16 as well. And every process reads the weights from the disk, since reading on a single one
    does not work for a model with buffers.

    Raises:
        InputError: for DeepSpeed and Megatron-LM, for version 1 of FSDP, and for what version 2 does not support here.
    """
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise InputError(
            f"expected a complete model on each process or FSDP, found {kind.value} in accelerate's configuration; "
            "use --multi_gpu, or --use_fsdp --fsdp_version 2"
        )
    if kind != DistributedType.FSDP:
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":  # accelerate would silently ignore it
            raise InputError("expected GPUs for FSDP, found none; remove --use_fsdp")
        return
    plugin = accelerator.state.fsdp_plugin
    refused = {
        f"version {plugin.fsdp_version} of FSDP": (plugin.fsdp_version != 2, "use --fsdp_version 2"),
        "weights kept on the CPU": (
            isinstance(plugin.cpu_offload, CPUOffloadPolicy),
            "use --fsdp_offload_params false",
        ),
        "accelerate's checkpointing of activations": (
            plugin.activation_checkpointing,
            "which would count each batch twice in BatchNorm's statistics; use --gradient_checkpointing of train",
        ),
        "modules that FSDP ignores": (plugin.ignored_modules, "whose gradients would not be synchronized; ignore none"),
        "other kinds of parallelism (--use_parallelism_config)": (accelerator.parallelism_config, "remove them"),
        "--mixed_precision fp16": (accelerator.mixed_precision == "fp16", "use bf16 or no"),
        "--auto_find_batch_size": (arguments.auto_find_batch_size, "give --per_device_train_batch_size yourself"),
        "--optim muon": (arguments.optim == "muon", "which needs complete matrices; use adamw"),
    }
    for found, (is_there, remedy) in refused.items():
        if is_there:
            raise InputError(f"expected options that FSDP supports here, found {found}; {remedy}")
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    plugin.cpu_ram_efficient_loading = False
    disable_fsdp_ram_efficient_loading()


def gather(values: Any, *, keep: bool = True) -> Any:
    """Nested dicts and lists with full tensors on the CPU in place of sharded ones, or None if not `keep`.

    Every process must call it. Other values are returned unchanged.
    """
    if isinstance(values, DTensor):
        full = values.full_tensor()
        return full.cpu() if keep else None
    if isinstance(values, Mapping):
        return {key: gather(value, keep=keep) for key, value in values.items()}
    if isinstance(values, list):
        return [gather(value, keep=keep) for value in values]
    return values


def load_model_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`model.load_state_dict(state)` for a model that may be sharded, from full tensors on every process.

    Raises:
        ValueError, RuntimeError: for the tensors of another model.
    """
    own = model.state_dict()
    if different := sorted(state.keys() ^ own.keys()):  # PyTorch forgives a missing counter of BatchNorm
        raise ValueError(f"{len(different)} tensors are missing or unknown, such as {different[0]}")
    for name in own:
        if state[name].dtype != own[name].dtype:
            raise ValueError(f"{name} is of {state[name].dtype} instead of {own[name].dtype}")
    model.load_state_dict({name: _shard_like(tensor, own.get(name)) for name, tensor in state.items()})


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """`optimizer.load_state_dict(state)` for parameters that may be sharded, from full tensors on every process.

    The optimizer keeps its own settings, by which PyTorch also decides where the counters of steps belong.

    Raises:
        ValueError, KeyError, IndexError, TypeError, AttributeError: for the state of another optimizer.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = optimizer.state_dict()["param_groups"]
    check_same_shape("param_groups", state["param_groups"], own)
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameters[index].shape:
                raise ValueError(f"{name} of parameter {index} is of shape {tuple(value.shape)}")
    moments = {
        index: {name: _shard_like(value, parameters[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments, "param_groups": own})


def _shard_like(value: Any, like: Tensor | None) -> Any:
    """This process's shard of `value`, if `like` is sharded and of the same shape; a step counter is not."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    # None: every process has the full tensor, so nothing is sent.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
