"""`estimate_memory`: what a training step will take on one GPU, part by part, without one."""

from collections.abc import Sequence
from dataclasses import dataclass

from seedling_hf.arguments import ArgumentGroup, check_range, option, parse_arguments
from seedling_hf.train_arguments import TrainArguments

NUM_CLASSES = 12  # of Plant Seedlings; the flags name data that need not be here
PARTS = {
    "weights": "weights, float32",
    "average": "averaged weights",
    "moments": "the optimizer's moments",
    "exchange": "exchange between processes",
    "step": "gradients, activations and temporaries, the most at one time",
    "peak": "**together**",
    "gradients": "of them gradients",
    "activations": "of them activations after the forward pass",
}


@dataclass(kw_only=True)
class LaunchArguments(ArgumentGroup):
    _argument_group_name = "Launch"

    num_processes: int = option(1, "processes, as `accelerate launch` has it")
    use_fsdp: bool = option(False, "whether the model is divided among them, as `accelerate launch` has it")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "num_processes", least=1)


@dataclass(kw_only=True)
class EstimateMemoryArguments(LaunchArguments, TrainArguments):
    """The flags of `train`, and how many processes there will be."""


def main(argv: Sequence[str] | None = None) -> int | None:
    """Flags of a run → bytes of its parts, with and without gradient checkpointing."""
    arguments = parse_arguments(
        EstimateMemoryArguments, argv, prog="estimate_memory",
        description="Tells the memory that training will take on one GPU, by the flags of train.",
    )  # fmt: skip
    import torch

    from seedling_hf.training.memory import MemoryEstimate, estimate_memory
    from seedling_hf.training.models import load_replknet_config
    from seedling_hf.training.optimization import build_optimizer

    config, image_size = load_replknet_config(arguments, num_labels=NUM_CLASSES)
    config.conv_implementation = "plain"  # of those that a GPU times and chooses from, the one with no copies
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    estimates: dict[bool, MemoryEstimate] = {
        checkpointing: estimate_memory(
            config,
            image_size=image_size,
            batch_size=arguments.per_device_train_batch_size,
            dtype=dtypes.get(arguments.mixed_precision, torch.float32),
            gradient_checkpointing=checkpointing,
            gradient_accumulation_steps=arguments.gradient_accumulation_steps,
            ema=arguments.ema_decay > 0,
            optimizer_of=lambda model: build_optimizer(model, arguments),
            num_processes=arguments.num_processes,
            use_fsdp=arguments.use_fsdp,
        )
        for checkpointing in (False, True)
    }
    print(
        f"{arguments.per_device_train_batch_size} images of {image_size}×{image_size} at a time, "
        f"{arguments.gradient_accumulation_steps} times a step, on {arguments.num_processes} processes"
        f"{', divided by FSDP' if arguments.use_fsdp else ''}; {arguments.mixed_precision or 'no'} autocast\n"
    )
    print("| GB on each | without | with --gradient_checkpointing |\n|:--|--:|--:|")
    for name, words in PARTS.items():
        print(f"| {words} | {' | '.join(f'{getattr(e, name) / 1e9:.2f}' for e in estimates.values())} |")
    print("\nThe context of CUDA, workspaces and losses of the allocator come on top: leave 2 GB and a tenth free.")
