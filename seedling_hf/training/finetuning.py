"""Starting from the shipped model: what is said of it, and steps that a folder of a few images can fill."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from statistics import median

from accelerate import Accelerator
from datasets import DatasetDict

from seedling_hf.data.images import a_few
from seedling_hf.escaping import format_count
from seedling_hf.train_arguments import FINETUNE, TrainArguments

# Lowest and highest accuracy of three draws of so many training images of each of two species, in docs/training.md.
MEASURED = {10: (0.819, 0.915), 20: (0.928, 0.951), 50: (0.916, 0.962)}
SMALLEST = min(MEASURED)

logger = logging.getLogger(__name__)


def fit_batch_to_images(arguments: TrainArguments, splits: DatasetDict, accelerator: Accelerator) -> TrainArguments:
    """The arguments with a batch that the training images fill, where training starts from the shipped model.

    Only where they leave two images to a batch, which BatchNorm needs; fewer are refused as elsewhere.
    """
    if not arguments.starts_from_shipped or arguments.streaming:
        return arguments
    most = len(splits["train"]) // (arguments.gradient_accumulation_steps * accelerator.num_processes)
    if not 2 <= most < arguments.per_device_train_batch_size:
        return arguments
    logger.info(
        "%d training images do not fill a batch of %d: using batches of %d",
        len(splits["train"]), arguments.per_device_train_batch_size, most,
    )  # fmt: skip
    return replace(arguments, per_device_train_batch_size=most)


def describe_start(arguments: TrainArguments, splits: DatasetDict) -> str:
    """What training starts from, and what to expect of that many images; a stream does not tell their number."""
    names = splits["validation"].features["label"].names
    start = (
        f"Starts from nano, the model shipped with seedling_hf, with a new head for these {len(names)} classes and the "
        f"settings of {FINETUNE}.\nFlags override the settings; --variant, --model_name_or_path or --timm_architecture "
        "starts from something else."
    )
    if arguments.streaming:
        return start
    counts = Counter(splits["train"]["label"])
    return f"{start}\n{describe_expectation({name: counts[i] for i, name in enumerate(names)})}"


def describe_expectation(counts: Mapping[str, int]) -> str:
    """The accuracy that was measured with so many training images of a class, and how to get more.

    Args:
        counts: Training images of each class.
    """
    typical = int(median(counts.values()))
    number = max((count for count in MEASURED if count <= typical), default=SMALLEST)
    low, high = (f"{100 * figure:.0f}" for figure in MEASURED[number])
    lines = [
        f"{format_count(typical, 'training image')} of a class. Measured with {number} of each of two "
        f"species that nano did not know: {low} to {high}% right,",
        "and more classes are harder. What helps most is more images: other plants, days, cameras (docs/training.md).",
    ]
    few = [name for name, count in counts.items() if count < SMALLEST]
    if few:
        lines.append(f"Fewer than {SMALLEST} training images, so expect less: {a_few(few)}.")
    return "\n".join(lines)
