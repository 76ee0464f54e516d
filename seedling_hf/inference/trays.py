"""Photographs of whole trays in, the species of each plant out, and the photographs with boxes and names drawn."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from seedling_hf.data.images import IMAGE_SUFFIXES
from seedling_hf.files import replacing
from seedling_hf.inference.answers import NOT_SURE, Answer, Plant, Species, certainty
from seedling_hf.inference.prediction import ImageLoader
from seedling_hf.inference.tiles import Box, draw_boxes, find_plants


class Tray(NamedTuple):
    """A photograph, upright and in RGB, and the boxes around its plants."""

    photograph: Image.Image
    boxes: list[Box]


class TrayLoader(ImageLoader):
    """Reads photographs and finds their plants; one that cannot be used is a reason, and never an error.

    Args:
        image_processor: What each plant goes through, cut out of the photograph.
        min_side: See `find_plants`.
    """

    def __init__(self, image_processor: BaseImageProcessor, min_side: float) -> None:
        super().__init__(image_processor)
        self.min_side = min_side

    def prepare(self, image: Image.Image) -> Tray:
        return Tray(image, find_plants(image, min_side=self.min_side))

    def collate(self, files: Sequence[str], trays: Sequence[Tray | str]) -> dict[str, Any]:
        """Of all photographs `file`, `tray` (None where it cannot be used) and `reason`."""
        return {
            "file": list(files),
            "tray": [None if isinstance(tray, str) else tray for tray in trays],
            "reason": [tray if isinstance(tray, str) else None for tray in trays],
        }

    def cut_out(self, tray: Tray, batch_size: int) -> Iterator[Tensor]:
        """`pixel_values` (N, C, H, W) of the plants, `batch_size` of them after the others."""
        for start in range(0, len(tray.boxes), batch_size):
            boxes = tray.boxes[start : start + batch_size]
            yield torch.stack([self.transform(tray.photograph.crop(box)) for box in boxes])


def name_plants(
    name: Callable[[Tensor], list[Species]], load: TrayLoader, batch_size: int, batch: dict[str, Any]
) -> list[Answer]:
    """The answers to a batch of `TrayLoader`, one a photograph.

    Args:
        name: Gives the species of each of `pixel_values` (N, C, H, W).
        load: Cuts out the plants.
        batch_size: Plants that are named at once.
        batch: Photographs.
    """
    answers = []
    for file, tray, reason in zip(batch["file"], batch["tray"], batch["reason"], strict=True):
        plants = []
        if tray is not None:
            species = [named for pixel_values in load.cut_out(tray, batch_size) for named in name(pixel_values)]
            plants = [Plant(box, named) for box, named in zip(tray.boxes, species, strict=True)]
        answers.append(Answer(file, [], reason, plants))
    return answers


def draw_answer(tray: Tray, answer: Answer, threshold: float | None = None) -> Image.Image:
    """The photograph with a box around each plant: its number, its species, and a question mark if that is not sure."""
    names = []
    for number, (_, species) in enumerate(answer.plants, 1):
        doubt = "?" if threshold is not None and certainty(species, threshold) == NOT_SURE else ""
        names.append(f"{number} {species[0][0]}{doubt}")
    return draw_boxes(tray.photograph, tray.boxes, names)


def write_image(image: Image.Image, path: Path) -> None:
    """Writes an image, whole or not at all, in the format of its suffix; as JPEG where that is no image's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower()
    with replacing(path) as temporary:
        image.save(temporary, format=Image.registered_extensions()[suffix] if suffix in IMAGE_SUFFIXES else "JPEG")
