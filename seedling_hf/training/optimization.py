"""Parameter groups with layer decay, the schedule, and the averaged weights (EMA)."""

import copy
import math
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from seedling_hf.train_arguments import OptimizationArguments


def layer_depths(model: nn.Module) -> dict[str, int]:
    """The depth of each parameter: 0 before the first block, then the number of its block, one more for the head.

    Blocks are the modules whose classes the model lists in `_no_split_modules`; a module between two blocks, such as a
    transition, belongs to the later one.
    """
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    blocks = [name for name, module in model.named_modules() if type(module).__name__ in kinds]
    depths, depth = {}, 0
    for name, _ in model.named_parameters():
        block = next((i for i, b in enumerate(blocks, start=1) if name.startswith(f"{b}.")), None)
        depth = depth if block is None else block
        between = block is None and depth > 0
        depths[name] = depth + 1 if between else depth
    return depths


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for AdamW: no decay on one-dimensional parameters, and `layer_decay` once for each block below the head.

    Layer decay is BEiT's (arXiv 2106.08254, appendix), which RepLKNet's fine-tuning follows (arXiv 2203.06717, A).
    """
    depths = layer_depths(model)
    top = max(depths.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1
        depth = top if layer_decay == 1.0 else depths[name]
        group = groups.setdefault(
            (depth, decays),
            {
                "params": [],
                "lr": learning_rate * layer_decay ** (top - depth),
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(model: nn.Module, arguments: OptimizationArguments, *, fused: bool = False) -> Optimizer:
    """AdamW or Muon over `parameter_groups`, with the settings of `arguments`.

    `fused` is AdamW in a kernel of its own, which rounds differently and takes a third of the time; Muon has none.

    Muon (https://kellerjordan.github.io/posts/muon/) is timm's: the update of a matrix is made orthogonal, and scaled
    to the size of AdamW's (arXiv 2502.16982), so that learning rate and decay mean the same. Depthwise kernels, which
    are not matrices between channels, and vectors are updated by AdamW with Nesterov momentum.
    """
    groups = parameter_groups(model, arguments.learning_rate, arguments.weight_decay, arguments.layer_decay)
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    if arguments.optim == "muon":
        from timm.optim import Muon  # takes a second to import

        return Muon(groups, lr=arguments.learning_rate, betas=betas, nesterov=True)
    return AdamW(groups, lr=arguments.learning_rate, betas=betas, eps=arguments.adam_epsilon, fused=fused or None)


@torch.no_grad()
def step_if(is_finite: Tensor, optimizer: AcceleratedOptimizer) -> None:
    """Updates the weights if the gradients are finite, without asking a GPU whether they are.

    A GradScaler decides that itself. Muon on a GPU, which takes no such order, gets zeros for gradients that are not
    finite: its weights then move on by their momentum.

    Args:
        is_finite: (), bool, on the device of the gradients.
    """
    bare = optimizer.optimizer
    if optimizer.scaler is None and bare.defaults.get("fused"):
        bare.found_inf = (~is_finite).float()  # as GradScaler says it
    elif optimizer.scaler is None and is_finite.device.type == "cpu":
        if not is_finite:
            return
    elif optimizer.scaler is None:
        for gradient in (p.grad for group in bare.param_groups for p in group["params"] if p.grad is not None):
            gradient.masked_fill_(~is_finite, 0)
    optimizer.step()


def learning_rate_factor(step: int, *, num_steps: int, num_warmup_steps: int, kind: str) -> float:
    """The factor of the learning rate at optimizer step `step` (0 is the first).

    The warm-up is linear and reaches 1 at step `num_warmup_steps`. It does not start at 0, which would waste a step.
    """
    if step < num_warmup_steps:
        return (step + 1) / (num_warmup_steps + 1)
    progress = min(1.0, (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps))
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if kind == "linear" else 1.0


def build_scheduler(optimizer: Optimizer, arguments: OptimizationArguments, num_steps: int) -> LambdaLR:
    """The schedule of `arguments` over `num_steps`; step it once per optimizer step, on any number of processes."""
    warmup = arguments.warmup_steps or math.ceil(arguments.warmup_ratio * num_steps)
    kind = arguments.lr_scheduler_type
    return LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(step, num_steps=num_steps, num_warmup_steps=warmup, kind=kind),
    )


def place_schedule(scheduler: LambdaLR, step: int) -> None:
    """Goes to optimizer step `step`, as if the schedule had been in use from the first one."""
    factors = [factor(step) for factor in scheduler.lr_lambdas]
    rates = [rate * factor for rate, factor in zip(scheduler.base_lrs, factors, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler.load_state_dict(scheduler.state_dict() | {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates})


class ExponentialMovingAverage:
    """A copy of a model whose weights and BatchNorm statistics slowly follow the original's.

    The decay warms up as `min(decay, (1 + updates) / (10 + updates))`: otherwise a short run would keep much of its
    random initialisation. Integer buffers are copied.

    Args:
        model: Unwrapped; it is copied.
        decay: In (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the unwrapped `model`."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages, values = _own_tensors(self.model), _own_tensors(model)
        moving = [name for name, value in values.items() if value.is_floating_point()]
        torch._foreach_lerp_([averages[n] for n in moving], [values[n] for n in moving], 1 - decay)
        if counters := averages.keys() - set(moving):
            torch._foreach_copy_([averages[n] for n in counters], [values[n] for n in counters])


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model; of a sharded model, the part of this process."""
    return {
        name: value.to_local() if isinstance(value, DTensor) else value for name, value in model.state_dict().items()
    }
