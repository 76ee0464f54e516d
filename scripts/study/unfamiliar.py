"""Which images a model calls unfamiliar: its own, harmlessly changed ones, strongly changed ones, and other things.

Takes labelled images that the model was not trained on, with their species as class folders. Other things are the
photographs and textures that ship with scikit-image and scikit-learn, pieces cut from them, flat colours and noise; and
the class folders of species that the model does not know, if there are any. Prints a table in Markdown.

python scripts/study/unfamiliar.py --model_name_or_path outputs/nano_cpu --test_dir unseen --strangers_dir strangers
"""

import io
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from seedling_hf.arguments import option, parse_arguments
from seedling_hf.commands import run
from seedling_hf.data.images import to_rgb
from seedling_hf.data.light import stretch
from seedling_hf.errors import InputError, require_package
from seedling_hf.inference.answers import NOT_SURE, SURE, UNFAMILIAR
from seedling_hf.inference.classifier import Pretrained, list_classes
from seedling_hf.inference.classifier_arguments import ClassifierArguments
from seedling_hf.inference.judgement import FamiliarClassifier, add_familiarity, choose_certainty
from seedling_hf.progress import follow

Change = Callable[[Image.Image], Image.Image]

BATCH_SIZE = 64
PHOTOGRAPHS = ("astronaut.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png",
               "horse.png", "hubble_deep_field.jpg", "ihc.png", "logo.png", "microaneurysms.png", "moon.png",
               "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg", "text.png")  # fmt: skip
TEXTURES = ("brick.png", "chessboard_RGB.png", "color.png", "grass.png", "gravel.png")
FLAT_COLOURS = ((30, 120, 40), (110, 80, 60), (128, 128, 128))
PIECES = 12  # of each photograph and texture


@dataclass(kw_only=True)
class UnfamiliarArguments(ClassifierArguments):
    """Measures what a model calls sure, not sure and unfamiliar."""

    test_dir: str = option(MISSING, "class folders of images that it was not trained on", images=True)
    strangers_dir: str | None = option(None, "class folders of species that it does not know", images=True)
    max_samples: int = option(600, "images of each kind, evenly from all", least=1)


def main(argv: Sequence[str] | None = None) -> int | None:
    """Model and images → a table."""
    arguments = parse_arguments(UnfamiliarArguments, argv, prog="unfamiliar.py")
    require_package("skimage", "photographs of other things")
    model, image_processor = arguments.load()
    judged = add_familiarity(model, Pretrained(arguments.model_name_or_path, arguments.model_revision))
    if not isinstance(judged, FamiliarClassifier):
        raise InputError(f"expected a familiarity.safetensors in {arguments.model_name_or_path}, found none; train it")
    names = list_classes(model.config)
    images, labels = read_folder(arguments.test_dir, names, arguments.max_samples)
    rows, home = [], None
    for kind, name, changed, truth in sets(images, labels, arguments):
        figures = measure(judged, image_processor, changed, truth)
        home = figures["distances"] if home is None else home
        rows.append((kind, name, figures, area_under_curve(home, figures["distances"])))
    print(format_table(rows))


def sets(
    images: Sequence[Image.Image], labels: np.ndarray, arguments: UnfamiliarArguments
) -> Iterable[tuple[str, str, list[Image.Image], np.ndarray | None]]:
    """Kind, name, images, and labels where there are any; first the images as they are."""
    for kind, changes in (("home", {"as they are": lambda image: image}), ("harmless", HARMLESS), ("shift", SHIFTS)):
        for name, change in follow(list(changes.items()), kind, unit="change"):
            yield kind, name, [change(image) for image in images], labels
    whole = list(read_shipped(PHOTOGRAPHS)) + list(read_shipped(TEXTURES))
    noise = np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)
    drawn = [Image.fromarray(noise), *(Image.new("RGB", (150, 150), colour) for colour in FLAT_COLOURS)]
    yield "other things", "photographs, textures, noise, flat colours", whole + drawn, None
    yield "other things", f"{PIECES} pieces of each", list(cut_pieces(whole)), None
    if arguments.strangers_dir:
        yield (
            "other things",
            "unknown species",
            read_folder(arguments.strangers_dir, (), arguments.max_samples)[0],
            None,
        )


def read_folder(folder: str, names: Sequence[str], most: int) -> tuple[list[Image.Image], np.ndarray]:
    """At most so many images of class folders, evenly from all; -1 is the label of a class that has no name."""
    files = sorted(path for path in Path(folder).glob("*/*") if path.is_file())
    files = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, min(most, len(files))).round().astype(int))]
    labels = [names.index(path.parent.name) if path.parent.name in names else -1 for path in files]
    return [to_rgb(Image.open(path)) for path in follow(files, "reading", unit="image")], np.array(labels)


def read_shipped(names: Sequence[str]) -> Iterable[Image.Image]:
    folder = Path(find_spec("skimage").origin).parent / "data"
    yield from (to_rgb(Image.open(folder / name)) for name in names)
    if "astronaut.png" in names:
        folder = Path(find_spec("sklearn").origin).parent / "datasets" / "images"
        yield from (to_rgb(Image.open(folder / name)) for name in ("china.jpg", "flower.jpg"))


def cut_pieces(images: Iterable[Image.Image]) -> Iterable[Image.Image]:
    """Squares of half the shorter side, at random places."""
    generator = np.random.default_rng(1)
    for image in images:
        side = min(image.size) // 2
        for _ in range(PIECES):
            left, top = (int(generator.integers(0, length - side + 1)) for length in image.size)
            yield image.crop((left, top, left + side, top + side))


@torch.inference_mode()
def measure(
    model: FamiliarClassifier, image_processor: Any, images: Sequence[Image.Image], labels: np.ndarray | None
) -> dict[str, Any]:
    """The distances of images, the words on them, and how many of all and of the sure answers are right."""
    certainty, logits, distances = choose_certainty(model), [], []
    for start in range(0, len(images), BATCH_SIZE):
        pixel_values = image_processor(list(images[start : start + BATCH_SIZE]), return_tensors="pt")["pixel_values"]
        outputs = model(pixel_values=pixel_values)
        logits.append(outputs.logits)
        distances.append(outputs.unfamiliarity)
    probabilities, distances = torch.cat(logits).softmax(1).numpy(), torch.cat(distances).numpy()
    words = np.array([certainty.of(p, d) for p, d in zip(probabilities.max(1), distances, strict=True)])
    right = None if labels is None else probabilities.argmax(1) == labels
    shares = {word: float((words == word).mean()) for word in (SURE, NOT_SURE, UNFAMILIAR)}
    sure = words == SURE
    return {
        "distances": distances, "count": len(images), "shares": shares,
        "accuracy": None if right is None else float(right.mean()),
        "accuracy of the sure": float(right[sure].mean()) if right is not None and sure.any() else None,
    }  # fmt: skip


def area_under_curve(home: np.ndarray, others: np.ndarray) -> float:
    """The probability that another image is less familiar than one as they are (AUROC)."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score([0] * len(home) + [1] * len(others), np.concatenate([home, others])))


def format_table(rows: Sequence[tuple[str, str, dict[str, Any], float]]) -> str:
    lines = [
        "| images | count | accuracy | sure | right of the sure | not sure | unfamiliar | AUROC |",
        "|:--|" + "--:|" * 7,
    ]
    for kind, name, figures, area in rows:
        shares = figures["shares"]
        accuracy, of_sure = (
            "" if figures[key] is None else f"{figures[key]:.1%}" for key in ("accuracy", "accuracy of the sure")
        )
        cells = (f"{kind}: {name}", f"{figures['count']:,}", accuracy, f"{shares[SURE]:.1%}", of_sure,
                 f"{shares[NOT_SURE]:.1%}", f"{shares[UNFAMILIAR]:.1%}", f"{area:.2f}")  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# Changes, of images in RGB.


def as_jpeg(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return to_rgb(Image.open(file))

    return change


def with_gains(red: float, green: float, blue: float) -> Change:
    gains = np.array([red, green, blue])
    return lambda image: Image.fromarray(np.clip(np.asarray(image) * gains, 0, 255).astype(np.uint8))


def blurred(radius: float) -> Change:
    """Radius in pixels of an image of 150."""
    return lambda image: image.filter(ImageFilter.GaussianBlur(radius * min(image.size) / 150))


def cropped(share: float) -> Change:
    """The middle, of this share of both sides."""

    def change(image: Image.Image) -> Image.Image:
        left, top = (round(side * (1 - share) / 2) for side in image.size)
        return image.crop((left, top, image.width - left, image.height - top))

    return change


def stretched(image: Image.Image) -> Image.Image:
    values = stretch(torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1))
    return Image.fromarray((255 * values).round().byte().permute(1, 2, 0).numpy())


HARMLESS: dict[str, Change] = {
    "JPEG 75": as_jpeg(75),
    "JPEG 40": as_jpeg(40),
    "blur of 0.7 pixels": blurred(0.7),
    "brightness 0.7": with_gains(0.7, 0.7, 0.7),
    "brightness 1.3": with_gains(1.3, 1.3, 1.3),
    "100 pixels": lambda image: image.resize((100, 100), Image.Resampling.BICUBIC),
    "300 pixels": lambda image: image.resize((300, 300), Image.Resampling.BICUBIC),
    "middle 90%": cropped(0.9),
    "stretched to 0 and 255": stretched,
}
SHIFTS: dict[str, Change] = {
    "warm light": with_gains(1.3, 1, 0.6),
    "cool light": with_gains(0.7, 1, 1.35),
    "without colour": lambda image: image.convert("L").convert("RGB"),
    "negative": lambda image: Image.eval(image, lambda value: 255 - value),
    "red and blue swapped": lambda image: Image.fromarray(np.ascontiguousarray(np.asarray(image)[..., ::-1])),
    "blur of 3 pixels": blurred(3),
    "middle 50%": cropped(0.5),
}


if __name__ == "__main__":
    sys.exit(run(main))
