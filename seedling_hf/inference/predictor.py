"""Files in, answers out: each file is loaded, its batch classified; what cannot be decoded gets a reason instead."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from seedling_hf.data.images import read_image, to_rgb
from seedling_hf.data.transforms import build_eval_transform
from seedling_hf.errors import InputError
from seedling_hf.inference.answers import Answer, Ranking
from seedling_hf.inference.prediction import forward, rank_classes

Classify = Callable[[Tensor], list[Ranking]]


def classify_batch(
    model: torch.nn.Module, accelerator: Accelerator, class_names: Sequence[str], top_k: int, pixel_values: Tensor
) -> list[Ranking]:
    """The `top_k` most probable classes of each of `pixel_values` (N, C, H, W); this process works alone."""
    logits = forward(model, pixel_values, accelerator.autocast).logits.float()
    return rank_classes(logits.cpu(), class_names, top_k)


class ImageLoader:
    """Reads and prepares images; one that cannot be used gives a reason, and never an error.

    Args:
        image_processor: What the images go through.
    """

    def __init__(self, image_processor: BaseImageProcessor) -> None:
        self.transform = build_eval_transform(image_processor)

    def __call__(self, file: str) -> Tensor | str:
        """`pixel_values` (C, H, W) of one image, or the reason why there are none."""
        try:
            return self.prepare(to_rgb(read_image(Path(file))))
        except InputError as error:
            return str(error)
        except Exception as error:  # an image in a million must not cost the answers to the others
            return str(error) or type(error).__name__

    def prepare(self, image: Image.Image) -> Tensor:
        """`pixel_values` (C, H, W) of an image in RGB."""
        return self.transform(image)

    def collate(self, files: Sequence[str], images: Sequence[Tensor | str]) -> dict[str, Any]:
        """`pixel_values` (N, C, H, W) of the usable ones (None if N = 0), and of all `file` and `reason`."""
        usable = [image for image in images if not isinstance(image, str)]
        return {
            "pixel_values": torch.stack(usable) if usable else None,
            "file": list(files),
            "reason": [image if isinstance(image, str) else None for image in images],
        }

    def load(self, files: Sequence[str]) -> dict[str, Any]:
        """The batch of `files`, one after another."""
        return self.collate(files, [self(file) for file in files])


class ImagePredictor:
    """Answers batches of images.

    Args:
        classify: Ranks the classes of each of `pixel_values` (N, C, H, W).
        load: Reads the files of a batch.
        batch_size: Files in a batch.
    """

    def __init__(self, classify: Classify, load: ImageLoader, batch_size: int) -> None:
        self.classify, self.load, self.batch_size = classify, load, batch_size

    def __call__(self, batch: dict[str, Any]) -> list[Answer]:
        """One answer for each file of a batch."""
        ranked = iter(() if batch["pixel_values"] is None else self.classify(batch["pixel_values"]))
        return [
            Answer(file, next(ranked) if reason is None else [], reason)
            for file, reason in zip(batch["file"], batch["reason"], strict=True)
        ]
