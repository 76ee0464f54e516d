"""Makes a batch of examples, with soft labels for MixUp, CutMix and label smoothing."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from seedling_hf.data.seeds import mix
from seedling_hf.errors import InputError
from seedling_hf.train_arguments import AugmentationArguments


class Collator:
    """Stacks examples, and mixes them in training.

    MixUp (arXiv 1710.09412) and CutMix (arXiv 1905.04899) are timm's `Mixup`. How a batch is mixed depends only on
    (seed, epoch, images of the batch). Without `augmentation` nothing is mixed and no label smoothed.

    Raises:
        InputError: for an unknown `mixup_mode`.
    """

    def __init__(self, num_labels: int, augmentation: AugmentationArguments | None = None, *, seed: int = 0) -> None:
        self.num_labels, self.seed, self.epoch = num_labels, seed, 0
        self.label_smoothing, self.mixup = 0.0, None
        if augmentation is None:
            return
        if augmentation.mixup_mode not in ("batch", "pair", "elem"):  # timm takes any other word for batch
            raise InputError(f"expected mixup_mode batch, pair or elem, found {augmentation.mixup_mode!r}")
        self.label_smoothing = augmentation.label_smoothing_factor
        if (augmentation.mixup_alpha or augmentation.cutmix_alpha) and augmentation.mixup_prob:
            from timm.data import Mixup  # takes a second to import

            self.mixup = Mixup(
                mixup_alpha=augmentation.mixup_alpha,
                cutmix_alpha=augmentation.cutmix_alpha,
                prob=augmentation.mixup_prob,
                switch_prob=augmentation.mixup_switch_prob,
                mode=augmentation.mixup_mode,
                label_smoothing=self.label_smoothing,
                num_classes=num_labels,
            )

    def set_epoch(self, epoch: int) -> None:
        """Call it before the loader starts its workers, which get a copy."""
        self.epoch = epoch

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Makes a batch.

        Args:
            examples: N of `pixel_values` (3, H, W), `labels` and `index`.

        Returns:
            `pixel_values` (N, 3, H, W); `labels` (N,) int64, or (N, num_labels) float32 if they are mixed or smoothed;
            `index` (N,) int64.
        """
        pixel_values = torch.stack([example["pixel_values"] for example in examples])
        labels = torch.tensor([example["labels"] for example in examples])
        index = torch.tensor([example["index"] for example in examples])
        if self.mixup is not None:
            pixel_values, labels = self._mix(pixel_values, labels, index)
        elif self.label_smoothing:
            labels = self._soften(labels)
        return {"pixel_values": pixel_values, "labels": labels, "index": index}

    def _mix(self, pixel_values: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        # timm uses NumPy's global generator.
        state = np.random.get_state()
        np.random.seed(mix(self.seed, self.epoch, *index.tolist()))
        try:
            # timm pairs the first image with the last: of an odd number, the last stays as it is.
            even = len(labels) // 2 * 2
            mixed, soft = pixel_values[:0], self._soften(labels[:0])
            if even:
                mixed, soft = self.mixup(pixel_values[:even].clone(), labels[:even])
        finally:
            np.random.set_state(state)
        rest = self._soften(labels[even:])
        return torch.cat([mixed, pixel_values[even:]]), torch.cat([soft.float(), rest])

    def _soften(self, labels: Tensor) -> Tensor:
        """Smoothed targets (N, num_labels), as in timm's `Mixup`."""
        off = self.label_smoothing / self.num_labels
        return torch.nn.functional.one_hot(labels, self.num_labels).float() * (1 - self.label_smoothing) + off
