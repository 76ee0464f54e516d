"""Files in, answers out: files are read and classified in batches; one that cannot be decoded gets a reason."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from seedling_hf.data.images import ImageError, read_image, to_rgb
from seedling_hf.data.transforms import EvalTransform
from seedling_hf.inference.answers import Answer
from seedling_hf.inference.judgement import SAYS_NOTHING, Certainty, Judgement, judge
from seedling_hf.inference.prediction import forward

Classify = Callable[[Tensor], list[Judgement]]


def classify_batch(
    model: torch.nn.Module, accelerator: Accelerator, class_names: Sequence[str], certainty: Certainty, top_k: int,
    pixel_values: Tensor,
) -> list[Judgement]:  # fmt: skip
    """What the model says of each of `pixel_values` (N, C, H, W); this process works alone."""
    return judge(forward(model, pixel_values, accelerator.autocast), class_names, certainty, top_k)


class ImageLoader:
    """Reads and prepares images; one that cannot be decoded gives a reason, never an error."""

    def __init__(self, image_processor: BaseImageProcessor) -> None:
        self.transform = EvalTransform(image_processor)

    def __call__(self, file: str) -> Tensor | str:
        """`pixel_values` (C, H, W) of one image, or the reason why there are none."""
        try:
            return self.prepare(to_rgb(read_image(Path(file))))
        except ImageError as error:
            return error.reason
        except Exception as error:  # one image in a million must not end the run
            return str(error) or type(error).__name__

    def prepare(self, image: Image.Image) -> Tensor:
        """`pixel_values` (C, H, W) of an image in RGB."""
        return self.transform(image)

    def collate(self, files: Sequence[str], images: Sequence[Tensor | str]) -> dict[str, Any]:
        """`pixel_values` (N, C, H, W) of the decoded images (None if N = 0), and of all `file` and `reason`."""
        decoded = [image for image in images if not isinstance(image, str)]
        return {
            "pixel_values": torch.stack(decoded) if decoded else None,
            "file": list(files),
            "reason": [image if isinstance(image, str) else None for image in images],
        }

    def load_batch(self, files: Sequence[str]) -> dict[str, Any]:
        return self.collate(files, [self(file) for file in files])


class ImagePredictor:
    """Answers batches of images; `classify` judges each of `pixel_values` (N, C, H, W), by `certainty`."""

    def __init__(
        self, classify: Classify, loader: ImageLoader, batch_size: int, certainty: Certainty = SAYS_NOTHING
    ) -> None:
        self.classify, self.loader, self.batch_size, self.certainty = classify, loader, batch_size, certainty

    def __call__(self, batch: dict[str, Any]) -> list[Answer]:
        judged = iter(() if batch["pixel_values"] is None else self.classify(batch["pixel_values"]))
        answers = []
        for file, reason in zip(batch["file"], batch["reason"], strict=True):
            ranking, certainty = next(judged) if reason is None else Judgement([])
            answers.append(Answer(file, ranking, reason, certainty=certainty))
        return answers
