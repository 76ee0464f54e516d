"""An image in, a verdict out: one species with its map, or the plants of a tray with their boxes."""

import importlib.util
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import nn
from transformers import BaseImageProcessor

from seedling_hf.data.formats import image_formats
from seedling_hf.data.images import ImageError, read_image, to_rgb
from seedling_hf.data.transforms import EvalTransform
from seedling_hf.demo.words import Words
from seedling_hf.errors import InputError, NonFiniteError
from seedling_hf.inference.answers import NOT_SURE, SURE, UNFAMILIAR
from seedling_hf.inference.classifier import list_classes
from seedling_hf.inference.judgement import Certainty, Judgement, explained_network, judge
from seedling_hf.inference.prediction import forward
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

    `legend` says what the image shows: `map`, `boxes`, `no map` where no region decides, or nothing without one. Rows
    that are no answer are grey.
    """

    heading: str = ""
    sentence: str = ""
    hint: str = ""
    rows: Sequence[Row] = ()
    image: Image.Image | None = None
    legend: str | None = None
    is_answer: bool = True


class Demo:
    """Answers one image after another with a classifier in evaluation mode, in the language of `words`.

    Args:
        model: As for `judgement.judge`.
        certainty: With a threshold.
        top_k: Species to show for a single plant.
    """

    def __init__(
        self, model: nn.Module, image_processor: BaseImageProcessor, certainty: Certainty, top_k: int = 5
    ) -> None:
        self.model, self.image_processor, self.certainty, self.top_k = model, image_processor, certainty, top_k
        self.threshold = f"{certainty.threshold:.0%}"
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
        pixel_values = self.transform(image)[None]
        ((ranking, certainty),) = self.judge(pixel_values, len(self.class_names))
        species, probability = words.name(ranking[0][0]), f"{ranking[0][1]:.0%}"
        rows = [Row(words.name(name), f"{p:.0%}", share=p) for name, p in ranking[: self.top_k]]
        if certainty == UNFAMILIAR:
            hint = self.hint(image, words, is_answer=False)
            return Verdict(words("unfamiliar"), words("unfamiliar why"), hint, rows, is_answer=False)
        if certainty == SURE:
            heading, sentence = species, words("answer", probability=probability)
        else:
            heading = words("unsure")
            sentence = words("unsure why", name=species, probability=probability, threshold=self.threshold)
        shown, legend = self.overlay(image, pixel_values, ranking[0][0])
        return Verdict(heading, sentence, self.hint(image, words), rows, shown, legend)

    def answer_tray(self, image: Image.Image, words: Words) -> Verdict:
        """How many plants of each species a photograph shows, and where they are."""
        boxes = find_plants(image)
        if not boxes:
            return Verdict(words("none found"), words("none found why"))
        numbers, names, certainties = defaultdict(list), [], []
        for number, (ranking, certainty) in enumerate(self.judge_plants(image, boxes), 1):
            certainties.append(certainty)
            names.append(f"{number}{'?' if certainty == NOT_SURE else ''}")
            species = words("unfamiliar") if certainty == UNFAMILIAR else words.name(ranking[0][0])
            numbers[species].append(names[-1])
        rows = [
            Row(name, str(len(found)), words("numbers of", numbers=", ".join(found)))
            for name, found in sorted(numbers.items(), key=lambda item: (-len(item[1]), item[0]))
        ]
        heading = words("found one") if len(boxes) == 1 else words("found", count=len(boxes))
        sentence = self.describe_plants(certainties, words)
        return Verdict(heading, sentence, "", rows, draw_numbers(image, boxes, names), "boxes")

    def describe_plants(self, certainties: Sequence[str | None], words: Words) -> str:
        """How far the answers for the plants of a tray can be trusted."""
        sentences = []
        if unsure := certainties.count(NOT_SURE):
            sentences.append(words("found why", unsure=unsure, threshold=self.threshold))
        if unfamiliar := certainties.count(UNFAMILIAR):
            sentences.append(words("found unfamiliar", unfamiliar=unfamiliar))
        return words("space").join(sentences) or words("found sure", threshold=self.threshold)

    def hint(self, image: Image.Image, words: Words, *, is_answer: bool = True) -> str:
        """What is odd about a photograph of one plant, and about an answer; empty where nothing is."""
        if not self.finds_plants:
            return ""
        count = len(find_plants(image, min_side=PART_OF_MANY))
        if count >= MANY_PLANTS:
            return words("many plants", count=count)
        return "" if count or not is_answer or find_plants(image) else words("no plant")

    def judge_plants(self, image: Image.Image, boxes: Sequence[Box]) -> Iterator[Judgement]:
        for start in range(0, len(boxes), PLANTS_AT_ONCE):
            plants = [self.transform(image.crop(box)) for box in boxes[start : start + PLANTS_AT_ONCE]]
            yield from self.judge(torch.stack(plants), 1)

    def judge(self, pixel_values: torch.Tensor, top_k: int) -> list[Judgement]:
        """What the model says of each of `pixel_values` (N, C, H, W)."""
        return judge(forward(self.model, pixel_values), self.class_names, self.certainty, top_k)

    def overlay(
        self, image: Image.Image, pixel_values: torch.Tensor, species: str
    ) -> tuple[Image.Image | None, str | None]:
        """The image with what speaks for a species, darkened where the model does not see it, and its legend.

        Both are None where maps cannot be computed.
        """
        try:
            from seedling_hf.interpretation.saliency import decisive_maps, find_view, overlay

            classifier = explained_network(self.model)
            target = torch.tensor([self.class_names.index(species)])
            (saliency,) = decisive_maps(classifier, pixel_values.to(classifier.device), target)
        except (ImportError, InputError):
            return None, None
        shown = fit(image)
        box = find_view(shown.size, self.image_processor)
        result = Image.blend(shown, Image.new("RGB", shown.size), 0.5)
        seen = shown.crop(box)
        result.paste(seen if saliency is None else overlay(seen, saliency), box[:2])
        return result, "no map" if saliency is None else "map"


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
