"""Classes of different size: the weights of their losses, and what balancing does to them, in words."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from seedling_hf.escaping import format_count
from seedling_hf.train_arguments import TrainArguments


def balanced_weights(labels: Sequence[int], num_labels: int) -> Tensor:
    """The weight of each class, (num_labels,) float32: scikit-learn's "balanced", n / (classes × n of the class).

    Their mean over the images is 1. A class without images, of which label smoothing and teachers speak, has weight 1.
    """
    from sklearn.utils.class_weight import compute_class_weight

    weights, present = torch.ones(num_labels), np.unique(labels)
    weights[present] = torch.from_numpy(compute_class_weight("balanced", classes=present, y=labels)).float()
    return weights


def class_weights(arguments: TrainArguments, train: Dataset, device: torch.device) -> Tensor | None:
    """The weights that `--class_weights` asks for, on a device; None without it."""
    if not arguments.class_weights:
        return None
    return balanced_weights(train["label"], len(train.features["label"].names)).to(device)


def weigh_targets(labels: Tensor, weights: Tensor) -> Tensor:
    """Targets of which the cross-entropy is weighted: each class counts by its share of a target times its weight.

    The loss of a batch of N images is then -1/N · Σ_images Σ_classes weight · target · log(probability), PyTorch's
    `cross_entropy` with `weight` for soft targets. Division by N, and not by the weights in the batch as for its class
    indices, leaves the gradient of a step the same however the step is divided among batches and processes.

    Args:
        labels: (N,) int64, or targets (N, num_labels), mixed, smoothed or of teachers.
        weights: (num_labels,).

    Returns:
        (N, num_labels), float32, whose rows do not sum to 1.
    """
    if labels.ndim == 1:
        labels = torch.nn.functional.one_hot(labels, len(weights))
    return labels * weights


def describe_balance(arguments: TrainArguments, train: Dataset) -> str | None:
    """What the flags do to the smallest and the largest class; None without one of them."""
    if not arguments.class_weights and not arguments.balanced_sampler:
        return None
    names, counts = train.features["label"].names, Counter(train["label"])
    ends = [min(counts, key=counts.get), max(counts, key=counts.get)]
    images = [f"{names[label]} ({format_count(counts[label], 'image')})" for label in ends]
    factors = [len(train) / len(counts) / counts[label] for label in ends]
    if arguments.class_weights:
        return f"training loss weighted by class: {factors[0]:.2f} for {images[0]}, {factors[1]:.2f} for {images[1]}"
    return (
        f"balanced sampler: in an epoch an image of {images[0]} is drawn {factors[0]:.2f} times on average, one of "
        f"{images[1]} {factors[1]:.2f} times"
    )
