"""What the page says about a model: its name, size, classes and accuracy, and images to try."""

import json
import math
import os
from pathlib import Path
from typing import NamedTuple

from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf.data.formats import is_image
from seedling_hf.inference.batch_memory import image_side
from seedling_hf.inference.classifier import Pretrained, list_classes

EXAMPLES = "examples"  # in a model folder: an image of each class, named after it
TRAYS = "trays"  # in that folder: photographs of whole trays
REPORT = "report.json"
OUT_OF_FOLD = "out_of_fold.json"  # of a model that was trained on all images
CARD = "README.md"


class Facts(NamedTuple):
    """About a model; `accuracy`, from 0 to 1, and the number of images that it was measured on are None if unknown.

    `of_folds`: the accuracy is that of networks like it, each on images that it was not trained on.
    """

    name: str
    parameters: int
    side: int | None  # of its images, in pixels
    class_names: list[str]
    accuracy: float | None
    num_images: int | None
    of_folds: bool
    examples: dict[str, Path]  # an image of a class
    trays: list[Path]


def read_facts(source: Pretrained, model: PreTrainedModel, image_processor: BaseImageProcessor) -> Facts:
    folder, class_names = Path(source.name), list_classes(model.config)
    is_folder = folder.is_dir()
    accuracy, num_images, of_folds = read_accuracy(source)
    examples, trays = read_examples(folder / EXAMPLES, class_names) if is_folder else ({}, [])
    return Facts(
        folder.resolve().name if is_folder else source.name,
        sum(parameter.numel() for parameter in model.parameters()),
        image_side(image_processor),
        class_names,
        accuracy,
        num_images,
        of_folds,
        examples,
        trays,
    )


def read_examples(folder: Path, class_names: list[str]) -> tuple[dict[str, Path], list[Path]]:
    """The images named after a class, in the order of the classes, and those of whole trays."""
    named, trays = (
        [path for path in sorted(where.glob("*")) if is_image(path.name)] for where in (folder, folder / TRAYS)
    )
    of_class = {path.stem: path for path in named}
    return {name: of_class[name] for name in class_names if name in of_class}, trays


def example_files(folder: Path) -> list[Path]:
    """What the page reads of a model folder besides the model: images to try, and where they come from."""
    examples = folder / EXAMPLES
    found = [*examples.glob("*"), *examples.glob(f"{TRAYS}/*")]
    return sorted(path for path in found if path.is_file() and (is_image(path.name) or path.name == CARD))


def read_accuracy(source: Pretrained) -> tuple[float | None, int | None, bool]:
    """The accuracy by report.json, by the folds or by the card, on how many images, and whether by the folds.

    The first two are None where no file states them.
    """
    try:
        for name in (REPORT, OUT_OF_FOLD):
            if (path := source.find(name)) is not None:
                report = json.loads(path.read_text(encoding="utf-8"))
                return _fraction(report["accuracy"]), int(report["num_examples"]), name == OUT_OF_FOLD
        if (path := source.find(CARD)) is not None:
            return _read_card(path), None, False
    except Exception:  # a stranger's file can hold anything
        pass
    return None, None, False


def _read_card(path: str | os.PathLike) -> float | None:
    from huggingface_hub import ModelCard

    results = ModelCard.load(path).data.eval_results or []
    return next((_fraction(each.metric_value) for each in results if each.metric_type == "accuracy"), None)


def _fraction(value: object) -> float | None:
    number = float(value)
    return number if math.isfinite(number) and 0 <= number <= 1 else None
