"""`estimate_memory`: the memory that a training step needs on one GPU, part by part, without a GPU."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from seedling_hf.arguments import ArgumentGroup, option, parse_arguments
from seedling_hf.escaping import format_count
from seedling_hf.machine import precision_name
from seedling_hf.train_arguments import TrainArguments

NUM_CLASSES = 12  # of Plant Seedlings, since the data need not be here
PARTS = {
    "weights": "weights, float32",
    "average": "averaged weights",
    "moments": "the optimizer's moments",
    "exchange": "exchange between processes",
    "step": "gradients, activations and temporaries, at their peak",
    "peak": "**total**",
    "gradients": "gradients alone",
    "activations": "activations alone, after the forward pass",
}


@dataclass(kw_only=True)
class LaunchArguments(ArgumentGroup):
    _argument_group_name = "Launch"

    num_processes: int = option(1, "processes, as for `accelerate launch`", least=1)
    use_fsdp: bool = option(False, "shard the model across them, as with `accelerate launch`")


@dataclass(kw_only=True)
class EstimateMemoryArguments(LaunchArguments, TrainArguments):
    """Estimates the memory of training on one GPU; takes the flags of train.

    Examples:
        seedling-hf estimate_memory --variant 31B --image_size 224 --per_device_train_batch_size 32
        seedling-hf estimate_memory --config scripts/recipes/replknet_31b.yaml --num_processes 8 --use_fsdp
    """

    output_dir: str | None = option(None, "ignored, since nothing is written")

    def __post_init__(self) -> None:
        if self.dataset_name is None:
            self.train_dir = self.train_dir or "."  # train wants one; it is not read here
        super().__post_init__()


def main(argv: Sequence[str] | None = None) -> int | None:
    """Flags of a run → memory of its parts, with and without gradient checkpointing."""
    arguments = parse_arguments(EstimateMemoryArguments, argv, prog="estimate_memory")
    from seedling_hf.training.memory import estimate_memory
    from seedling_hf.training.models import load_replknet_config

    config, image_size = load_replknet_config(arguments, num_labels=NUM_CLASSES)
    config.conv_implementation = "plain"  # of the implementations that a GPU chooses from, the one without copies
    number = arguments.num_processes
    launch = {"num_processes": number, "use_fsdp": arguments.use_fsdp}
    estimates = [
        estimate_memory(config, replace(arguments, gradient_checkpointing=checkpointing), image_size, **launch)
        for checkpointing in (False, True)
    ]
    print(
        f"batches of {format_count(arguments.per_device_train_batch_size, 'image')}, {image_size}×{image_size} pixels, "
        f"{arguments.gradient_accumulation_steps} per step, on {format_count(number, 'process')}"
        f"{', sharded by FSDP' if arguments.use_fsdp else ''}, {precision_name(arguments.mixed_precision)}\n"
    )
    print("| GB per process | without | with --gradient_checkpointing |\n|:--|--:|--:|")
    for name, words in PARTS.items():
        print(f"| {words} | {' | '.join(f'{getattr(e, name) / 1e9:.2f}' for e in estimates)} |")
    print("\nCUDA's context, workspaces and fragmentation come on top: leave 2 GB and a tenth free.")
