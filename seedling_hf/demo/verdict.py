"""An image in, a verdict out: one species with its map, or the plants of a tray with their boxes."""

import importlib.util
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf.data.formats import image_formats
from seedling_hf.data.images import ImageError, read_image, to_rgb
from seedling_hf.data.transforms import EvalTransform
from seedling_hf.demo.words import Words
from seedling_hf.errors import InputError, NonFiniteError
from seedling_hf.inference.answers import Plant, is_sure
from seedling_hf.inference.classifier import list_classes
from seedling_hf.inference.prediction import forward, rank_classes
from seedling_hf.inference.tiles import Box, draw_boxes, find_plants

# Larger images are refused by their header; decoding takes 4 bytes a pixel, resizing in floats 15 more.
MOST_PIXELS = 64_000_000
MOST_PIXELS_AT_ONCE = 16_000_000
SHOWN_SIDE, MOST_SHOWN = 384, 1200  # shortest and longest side of what the page shows of an image
PLANTS_AT_ONCE = 4
# On 480 photographs of single seedlings, the boxes of at least a tenth of the side are 1 to 7; 0 or 1 of smaller ones
# never occurs.
MANY_PLANTS, PART_OF_MANY = 8, 0.1


class Row(NamedTuple):
    """A line under the sentence: a name, a figure, a note, and how long a bar is, from 0 to 1; None for no bar."""

    name: str
    figure: str
    note: str = ""
    share: float | None = None


class Verdict(NamedTuple):
    """What the page shows of an image: a heading, a sentence, hints, a row for each species, and an image.

    `legend` says what the image shows: `map`, `boxes`, or nothing without one.
    """

    heading: str = ""
    sentence: str = ""
    hint: str = ""
    rows: Sequence[Row] = ()
    image: Image.Image | None = None
    legend: str | None = None


class Demo:
    """Answers one image after another with a classifier in evaluation mode, in the language of `words`.

    Args:
        threshold: Probability below which an answer is not sure.
        top_k: Species to show for a single plant.
    """

    def __init__(
        self, model: PreTrainedModel, image_processor: BaseImageProcessor, threshold: float, top_k: int = 5
    ) -> None:
        self.model, self.image_processor, self.threshold, self.top_k = model, image_processor, threshold, top_k
        self.transform = EvalTransform(image_processor)
        self.class_names = list_classes(model.config)
        self.finds_plants = importlib.util.find_spec("skimage") is not None

    def __call__(self, path: str | None, words: Words, *, tray: bool = False) -> Verdict:
        """What to show for a file: only a heading and a sentence if there is no answer."""
        if path is None:
            return Verdict()
        width, height = read_size(path)
        if width * height > MOST_PIXELS:
            most = MOST_PIXELS // 1_000_000
            why = words("too large why", width=f"{width:,}", height=f"{height:,}", most=most)
            return Verdict(words("too large"), why)
        try:
            image = shrink(to_rgb(read_image(Path(path))))
        except ImageError as error:
            return Verdict(words("broken"), words("broken why", reason=error.reason))
        try:
            return self.answer_tray(image, words) if tray else self.answer_plant(image, words)
        except NonFiniteError:
            return Verdict(words("overflow"), words("overflow why"))

    def answer_plant(self, image: Image.Image, words: Words) -> Verdict:
        """The species of a photograph of one plant, and what speaks for it."""
        pixel_values = self.transform(image)[None].to(self.model.device)
        (ranking,) = self.rank(pixel_values, len(self.class_names))
        species, probability = ranking[0]
        if is_sure(ranking, self.threshold):
            heading, sentence = words.name(species), words("answer", probability=f"{probability:.0%}")
        else:
            sentence = words(
                "unsure why",
                name=words.name(species),
                probability=f"{probability:.0%}",
                threshold=f"{self.threshold:.0%}",
            )
            heading = words("unsure")
        rows = [Row(words.name(name), f"{p:.0%}", share=p) for name, p in ranking[: self.top_k]]
        shown = self.overlay(image, pixel_values)
        return Verdict(heading, sentence, self.hint(image, words), rows, shown, "map" if shown else None)

    def answer_tray(self, image: Image.Image, words: Words) -> Verdict:
        """How many plants of each species a photograph shows, and where they are."""
        boxes = find_plants(image)
        if not boxes:
            return Verdict(words("none found"), words("none found why"))
        plants = [Plant(box, ranking) for box, ranking in zip(boxes, self.rank_plants(image, boxes), strict=True)]
        numbers, names = defaultdict(list), []
        for number, (_, ranking) in enumerate(plants, 1):
            names.append(f"{number}{'' if is_sure(ranking, self.threshold) else '?'}")
            numbers[ranking[0][0]].append(names[-1])
        rows = [
            Row(words.name(name), str(len(found)), words("numbers of", numbers=", ".join(found)))
            for name, found in sorted(numbers.items(), key=lambda item: (-len(item[1]), item[0]))
        ]
        unsure, threshold = sum(name.endswith("?") for name in names), f"{self.threshold:.0%}"
        heading = words("found one") if len(plants) == 1 else words("found", count=len(plants))
        sentence = (
            words("found why", unsure=unsure, threshold=threshold)
            if unsure
            else words("found sure", threshold=threshold)
        )
        return Verdict(heading, sentence, "", rows, draw_numbers(image, boxes, names), "boxes")

    def hint(self, image: Image.Image, words: Words) -> str:
        """What is odd about a photograph of one plant; empty where nothing is."""
        if not self.finds_plants:
            return ""
        count = len(find_plants(image, min_side=PART_OF_MANY))
        if count >= MANY_PLANTS:
            return words("many plants", count=count)
        return "" if count or find_plants(image) else words("no plant")

    def rank_plants(self, image: Image.Image, boxes: Sequence[Box]) -> Iterator[list[tuple[str, float]]]:
        for start in range(0, len(boxes), PLANTS_AT_ONCE):
            plants = [self.transform(image.crop(box)) for box in boxes[start : start + PLANTS_AT_ONCE]]
            yield from self.rank(torch.stack(plants).to(self.model.device), 1)

    def rank(self, pixel_values: torch.Tensor, top_k: int) -> list[list[tuple[str, float]]]:
        """Of each of `pixel_values` (N, C, H, W) the `top_k` most probable classes."""
        return rank_classes(forward(self.model, pixel_values).logits.float().cpu(), self.class_names, top_k)

    def overlay(self, image: Image.Image, pixel_values: torch.Tensor) -> Image.Image | None:
        """The image with what supports its prediction, darkened where the model does not see it; None without a map."""
        try:
            from seedling_hf.interpretation.saliency import find_view, overlay, saliency_maps

            (saliency,) = saliency_maps(self.model, pixel_values)
        except (ImportError, InputError):
            return None
        shown = fit(image)
        box = find_view(shown.size, self.image_processor)
        result = Image.blend(shown, Image.new("RGB", shown.size), 0.5)
        result.paste(overlay(shown.crop(box), saliency), box[:2])
        return result


def read_size(path: str) -> tuple[int, int]:
    """Width and height of an image by its header; (0, 0) for what `read_image` will refuse with its reason."""
    try:
        with Image.open(path, formats=image_formats()) as image:
            return image.size
    except Exception:  # decoders of damaged files raise all kinds of errors
        return 0, 0


def shrink(image: Image.Image) -> Image.Image:
    """A very large image, averaged down to at most `MOST_PIXELS_AT_ONCE`; others as they are."""
    factor = math.ceil(math.sqrt(image.width * image.height / MOST_PIXELS_AT_ONCE))
    return image.reduce(factor) if factor > 1 and min(image.size) >= factor else image


def fit(image: Image.Image) -> Image.Image:
    """An image in a size to look at, in its proportions."""
    scale = min(MOST_SHOWN / max(image.size), max(1.0, SHOWN_SIDE / min(image.size)))
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


def draw_numbers(image: Image.Image, boxes: Sequence[Box], names: Sequence[str]) -> Image.Image:
    """A photograph in a size to look at, with the boxes of its plants and their short names in large letters."""
    shown = fit(image)
    scale = shown.width / image.width
    scaled = [tuple(round(edge * scale) for edge in box) for box in boxes]
    return draw_boxes(shown, scaled, names, text_size=max(shown.size) // 40)
