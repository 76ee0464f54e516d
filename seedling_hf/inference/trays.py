"""Photographs of whole trays in, the class of each plant out, and the photographs with boxes and classes drawn."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from PIL import ExifTags, Image
from torch import Tensor
from transformers import BaseImageProcessor

from seedling_hf.data.formats import image_formats, is_image
from seedling_hf.data.listing import list_images
from seedling_hf.errors import InputError
from seedling_hf.escaping import one_line
from seedling_hf.files import replacing
from seedling_hf.inference.answers import NOT_SURE, UNFAMILIAR, Answer, Plant
from seedling_hf.inference.batch_memory import EVAL_ADVICE, check_memory, image_side
from seedling_hf.inference.classifier import list_classes
from seedling_hf.inference.judgement import SAYS_NOTHING, Certainty, add_familiarity, choose_certainty, describe_silence
from seedling_hf.inference.predict_arguments import PredictArguments
from seedling_hf.inference.prediction import EightSymmetries
from seedling_hf.inference.predictor import Classify, ImageLoader, ImagePredictor, classify_batch
from seedling_hf.inference.tiles import MIN_SIDE, Box, draw_boxes, find_plants
from seedling_hf.origin import SOFTWARE, TEXT_MARK, check_ours, is_ours
from seedling_hf.plots.fonts import draw_names

logger = logging.getLogger(__name__)

# The mark is behind their pixels, where readers do not look.
WITHOUT_METADATA = ("BMP", "DIB", "PPM")


class Tray(NamedTuple):
    """A photograph, upright and in RGB, and the boxes around its plants."""

    photograph: Image.Image
    boxes: list[Box]


class TrayLoader(ImageLoader):
    """Reads photographs and finds their plants; `min_side` as for `find_plants`."""

    def __init__(self, image_processor: BaseImageProcessor, min_side: float) -> None:
        super().__init__(image_processor)
        self.min_side = min_side

    def prepare(self, image: Image.Image) -> Tray:
        return Tray(image, find_plants(image, min_side=self.min_side))

    def collate(self, files: Sequence[str], trays: Sequence[Tray | str]) -> dict[str, Any]:
        """Of all photographs `file`, `tray` (None if it cannot be decoded) and `reason`."""
        return {
            "file": list(files),
            "tray": [None if isinstance(tray, str) else tray for tray in trays],
            "reason": [tray if isinstance(tray, str) else None for tray in trays],
        }

    def cut_out(self, tray: Tray, batch_size: int) -> Iterator[Tensor]:
        """`pixel_values` (N, C, H, W) of the plants, in batches."""
        for start in range(0, len(tray.boxes), batch_size):
            boxes = tray.boxes[start : start + batch_size]
            yield torch.stack([self.transform(tray.photograph.crop(box)) for box in boxes])


class TrayPredictor(ImagePredictor):
    """Answers photographs of trays one by one, plant by plant.

    Args:
        plants_at_once: Plants that are classified in one batch.
        draw: Called for each photograph before its answer is returned, so that a run that is killed draws it again.
    """

    def __init__(
        self,
        classify: Classify,
        loader: TrayLoader,
        plants_at_once: int,
        draw: Callable[[Tray, Answer], None] | None = None,
        certainty: Certainty = SAYS_NOTHING,
    ) -> None:
        super().__init__(classify, loader, 1, certainty)
        self.plants_at_once, self.draw = plants_at_once, draw

    def __call__(self, batch: dict[str, Any]) -> list[Answer]:
        answers = []
        for file, tray, reason in zip(batch["file"], batch["tray"], batch["reason"], strict=True):
            answers.append(Answer(file, [], reason, [] if tray is None else self._classify_plants(tray)))
            if self.draw and tray is not None:
                self.draw(tray, answers[-1])
        return answers

    def _classify_plants(self, tray: Tray) -> list[Plant]:
        batches = self.loader.cut_out(tray, self.plants_at_once)
        judged = [judgement for pixel_values in batches for judgement in self.classify(pixel_values)]
        return [Plant(box, *judgement) for box, judgement in zip(tray.boxes, judged, strict=True)]


def draw_answer(tray: Tray, answer: Answer, labels: Mapping[str, str]) -> Image.Image:
    """The photograph with a box around each plant: its number, its class, and a question mark if that is not sure.

    An unfamiliar plant has no class. `labels` are the names of classes as figures show them.
    """
    names = []
    for number, (_, ranking, certainty) in enumerate(answer.plants, 1):
        name = UNFAMILIAR if certainty == UNFAMILIAR else labels[ranking[0][0]]
        # Two spaces, since one of a small font is hardly seen.
        names.append(f"{number}  {name}{'?' if certainty == NOT_SURE else ''}")
    return draw_boxes(tray.photograph, tray.boxes, names)


def save_boxes(arguments: PredictArguments, labels: Mapping[str, str], tray: Tray, answer: Answer) -> None:
    """Writes a photograph with its boxes, unless somebody has put another file into its place."""
    path = boxes_path(arguments, answer.file)
    if is_ours(path, read=has_mark):
        write_image(draw_answer(tray, answer, labels), path)
    else:
        print(
            f"warning: the boxes of {one_line(answer.file)} were not drawn: {one_line(path)} is a file of another "
            "origin",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def boxes_path(arguments: PredictArguments, file: str | os.PathLike) -> Path:
    """Where a photograph is drawn: under its own name, in the same folders below `boxes_dir`."""
    paths = map(os.path.abspath, arguments.images)
    shared = os.path.commonpath([path if os.path.isdir(path) else os.path.dirname(path) for path in paths])
    return Path(arguments.boxes_dir, os.path.relpath(os.path.abspath(file), shared))


def write_image(image: Image.Image, path: Path) -> None:
    """Writes an image, whole or not at all, in the format of its suffix; as JPEG where that is no image's.

    It carries the mark that `has_mark` looks for.
    """
    format = Image.registered_extensions()[path.suffix.lower()] if is_image(path.name) else "JPEG"
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = SOFTWARE
    metadata = {"comment": TEXT_MARK} if format in ("GIF", "JPEG2000") else {"exif": exif}
    with replacing(path) as temporary:
        image.save(temporary, format=format, **metadata)
        if format in WITHOUT_METADATA:
            with open(temporary, "ab") as stream:
                stream.write(TEXT_MARK)


def has_mark(path: Path) -> bool:
    """Whether `write_image` has written a file."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=image_formats()) as image:
            if image.format in WITHOUT_METADATA:
                with open(path, "rb") as stream:
                    stream.seek(-len(TEXT_MARK), os.SEEK_END)
                    return stream.read() == TEXT_MARK
            return image.info.get("comment") == TEXT_MARK or image.getexif().get(ExifTags.Base.Software) == SOFTWARE
    except Exception:  # Pillow raises many kinds of errors for broken files
        return False


def check_boxes(arguments: PredictArguments) -> None:
    """Refuses a run that would draw over photographs of somebody else.

    Raises:
        InputError: names the first.
    """
    if arguments.boxes_dir and os.path.isdir(arguments.boxes_dir):
        for file in list_images(arguments.images):
            check_ours(boxes_path(arguments, file), "--boxes_dir", read=has_mark)


def build_predictor(arguments: PredictArguments, accelerator: Accelerator) -> ImagePredictor:
    """The predictor of images, or of photographs of trays, that the flags describe.

    Raises:
        InputError: for a `top_k` above the number of classes.
    """
    model, image_processor = arguments.load()
    class_names = list_classes(model.config)
    if arguments.top_k > len(class_names):
        raise InputError(f"expected --top_k of at most the model's {len(class_names)} classes, found {arguments.top_k}")
    model.to(accelerator.device)
    images, count = arguments.per_device_eval_batch_size, partial(_count_images, arguments)
    check_memory(model, images, image_side(image_processor), EVAL_ADVICE, count=count)
    certainty = SAYS_NOTHING
    if arguments.says_certainty:
        model = add_familiarity(model, arguments.source)
        certainty = choose_certainty(model, arguments.threshold)
        if arguments.threshold is None and (silence := describe_silence(certainty)):
            logger.info(silence)
    arguments.compile(model, accelerator)
    if arguments.test_time_augmentation:
        model = EightSymmetries(model)
    classify = partial(classify_batch, model, accelerator, class_names, certainty, arguments.top_k)
    if not arguments.tiles:
        return ImagePredictor(classify, ImageLoader(image_processor), images, certainty)
    loader = TrayLoader(image_processor, arguments.min_plant_side or MIN_SIDE)
    draw = None
    if arguments.boxes_dir:
        draw = partial(save_boxes, arguments, dict(zip(class_names, draw_names(class_names), strict=True)))
    return TrayPredictor(classify, loader, images, draw, certainty)


def _count_images(arguments: PredictArguments) -> int:
    """How many images or plants there are in a batch, as far as that is known beforehand."""
    if arguments.watch or arguments.tiles:
        return 1
    return sum(1 for _ in islice(list_images(arguments.images), arguments.per_device_eval_batch_size))
