"""Training batches by their keys, so that workers that live for many epochs need not be told of a new one."""

from collections.abc import Callable
from typing import NamedTuple

import datasets
import torch
from torch import Tensor

from seedling_hf.data.collator import Collator
from seedling_hf.data.transforms import ExampleTransform, Transform


class BatchKey(NamedTuple):
    """All that a training batch depends on, besides the arguments of the run.

    Attributes:
        start: Where an image may come again in an epoch, the place of the batch in its order; else None.
    """

    epoch: int
    image_size: int
    indices: list[int]
    start: int | None = None


class TrainingImages(torch.utils.data.Dataset):
    """Batches by their `BatchKey`, for a DataLoader with `batch_size=None`.

    Args:
        images: Rows with `transform` as their format.
        build_transform: Makes the augmentation for images of a size.
    """

    def __init__(
        self, images: datasets.Dataset, transform: ExampleTransform, collator: Collator,
        build_transform: Callable[..., Transform],
    ) -> None:  # fmt: skip
        self.images, self.transform, self.collator, self.build_transform = images, transform, collator, build_transform
        self.image_size: int | None = None

    def __getitem__(self, key: BatchKey) -> dict[str, Tensor]:
        """The batch as the collator makes it."""
        if key.image_size != self.image_size:
            self.image_size = key.image_size
            self.transform.transform = self.build_transform(image_size=key.image_size)
        self.transform.set_epoch(key.epoch, key.start)
        self.collator.set_epoch(key.epoch)
        return self.collator(self.images.__getitems__(key.indices))
