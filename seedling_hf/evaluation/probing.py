"""What a classifier relies on and what it bears: its accuracy on images that were altered in one way at a time.

Each probe takes one thing away, and what the accuracy loses by it is what the model owes to that thing.

- Shape against texture. Patch shuffling (as in arXiv 1905.09797, section 4, and arXiv 2105.10497, section 3.2): the
  image, as the image processor gives it, is cut into g×g equal patches, which change places at random so that none
  stays where it was; g = 1 is the plain image. Within a patch everything is kept, colours and texture as well, while
  the shape of the plant is gone the more, the larger g is. A model that relies on texture (a bag of local features,
  arXiv 1904.00760) keeps its accuracy, one that relies on shape falls to that of a guess. The opposite probe is the
  silhouette: the plant in its one mean colour on the background's one mean colour, so that shape is all that is left.
- Plant against background. The plant is where the excess green 2g - r - b of the chromatic coordinates (Woebbecke et
  al., 1995, Transactions of the ASAE 38(1), p. 259) is above Otsu's threshold (1979, IEEE Transactions on Systems, Man,
  and Cybernetics 9(1), p. 62). For `plant only` the rest becomes grey; for `background only` the plant, with a margin,
  is covered by background of the same image, shifted over it, so that no outline of one colour gives the shape away.
- Robustness: blur, JPEG, brightness, colour cast, scale and rotation, of the image as it was taken.

All that is random depends on the seed and the image's number alone, so that two models see the same images.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf.data.transforms import build_eval_transform, to_rgb
from seedling_hf.errors import InputError
from seedling_hf.evaluation.metrics import wilson_interval
from seedling_hf.inference.tiles import excess_green

GREY = 128
MARGIN = 0.03  # of the side: leaves have pale edges that no threshold catches
BOOTSTRAP_SAMPLES = 2000

Alteration = Callable[[Image.Image, np.random.Generator], Image.Image]


@dataclass(frozen=True)
class Probe:
    """One way to alter an image.

    Attributes:
        name: Key in reports.
        title: What people read.
        group: Probes that are drawn together.
        alter: What is done to the image, in RGB, before the image processor.
        patches: Patches a side that are shuffled after the image processor.
    """

    name: str
    title: str
    group: str
    alter: Alteration | None = None
    patches: int = 1


def otsu_threshold(values: np.ndarray, bins: int = 256) -> float:
    """The threshold that parts values into two classes with the largest variance between them (Otsu 1979)."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), counts.sum() - np.cumsum(counts)
    sums = np.cumsum(counts * centres)
    means_below, means_above = sums / np.maximum(below, 1), (sums[-1] - sums) / np.maximum(above, 1)
    return float(edges[1:][np.argmax(below * above * (means_below - means_above) ** 2)])


def plant_mask(image: Image.Image) -> np.ndarray:
    """Where the plant is: (H, W) of bool."""
    green = excess_green(np.asarray(image.convert("RGB").filter(ImageFilter.GaussianBlur(1))))
    return green > otsu_threshold(green)


def keep_plant(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    pixels = np.array(image)
    pixels[~plant_mask(image)] = GREY
    return Image.fromarray(pixels)


def keep_background(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Covers the plant by the image itself, shifted at random again and again until no plant is seen."""
    pixels = np.array(image)
    hidden = _widen(plant_mask(image), max(1, round(MARGIN * min(image.size))))
    original, open_ground = pixels.copy(), ~hidden
    mean = original[open_ground].mean(0) if open_ground.any() else np.full(3, GREY)
    for _ in range(100):
        if not hidden.any():
            break
        shift = tuple(int(generator.integers(side)) for side in hidden.shape)
        covered = hidden & np.roll(open_ground, shift, (0, 1))
        pixels[covered] = np.roll(original, shift, (0, 1))[covered]
        hidden &= ~covered
    pixels[hidden] = mean
    return Image.fromarray(pixels)


def keep_silhouette(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    pixels, mask = np.array(image), plant_mask(image)
    for part in (mask, ~mask):
        if part.any():
            pixels[part] = pixels[part].mean(0)
    return Image.fromarray(pixels)


def remove_color(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    return image.convert("L").convert("RGB")


def blur(share: float) -> Alteration:
    """A Gaussian blur with a standard deviation of a share of the shorter side."""
    return lambda image, generator: image.filter(ImageFilter.GaussianBlur(share * min(image.size)))


def compress(quality: int) -> Alteration:
    """What JPEG of a quality leaves."""

    def alter(image: Image.Image, generator: np.random.Generator) -> Image.Image:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        return Image.open(stream).convert("RGB")

    return alter


def brighten(factor: float) -> Alteration:
    """Every value times a factor."""
    return lambda image, generator: ImageEnhance.Brightness(image).enhance(factor)


def tint(red: float, green: float, blue: float) -> Alteration:
    """Every channel times a factor of its own: another light."""
    factors = (red, green, blue)

    def alter(image: Image.Image, generator: np.random.Generator) -> Image.Image:
        return Image.fromarray((np.asarray(image) * np.array(factors)).clip(0, 255).round().astype(np.uint8))

    return alter


def zoom(factor: float) -> Alteration:
    """The middle enlarged, or for a factor below 1 the whole made smaller, in a frame of the border's mean colour."""

    def alter(image: Image.Image, generator: np.random.Generator) -> Image.Image:
        width, height = image.size
        size = max(1, round(width * factor)), max(1, round(height * factor))
        canvas = Image.new("RGB", image.size, _border_color(image))
        resized = image.resize(size, Image.Resampling.BICUBIC)
        canvas.paste(resized, ((width - size[0]) // 2, (height - size[1]) // 2))
        return canvas

    return alter


def turn(degrees: float) -> Alteration:
    """Rotates about the middle; corners take the border's mean colour."""
    return lambda image, generator: image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=_border_color(image))


def shuffle_patches(pixel_values: Tensor, patches: int, generator: np.random.Generator) -> Tensor:
    """Cuts an image into patches × patches equal squares that change places, so that none stays where it was.

    Args:
        pixel_values: (C, H, W), as the image processor gives it.
        patches: Patches a side, 2 or more; what H or W leave over by division stays, at the lower and right border.
        generator: Draws the order.

    Raises:
        InputError: for more patches than pixels.
    """
    channels, height, width = pixel_values.shape
    if not 2 <= patches <= min(height, width):
        raise InputError(
            f"expected 2 patches a side or more, each of a pixel or more, found {patches} in {height}×{width} pixels"
        )
    high, wide = height // patches, width // patches
    places = np.arange(patches**2)
    order = generator.permutation(places)
    while (order == places).any():
        order = generator.permutation(places)
    inner = pixel_values[:, : high * patches, : wide * patches]
    cut = inner.reshape(channels, patches, high, patches, wide).transpose(2, 3).reshape(channels, -1, high, wide)
    moved = cut[:, order].reshape(channels, patches, patches, high, wide).transpose(2, 3)
    output = pixel_values.clone()
    output[:, : high * patches, : wide * patches] = moved.reshape(inner.shape)
    return output


PROBES = (
    Probe("plain", "plain", "plain"),
    Probe("patches_2", "2×2 patches shuffled", "shape", patches=2),
    Probe("patches_4", "4×4 patches shuffled", "shape", patches=4),
    Probe("patches_8", "8×8 patches shuffled", "shape", patches=8),
    Probe("silhouette", "silhouette of the plant", "shape", keep_silhouette),
    Probe("plant_only", "plant only", "background", keep_plant),
    Probe("background_only", "background only", "background", keep_background),
    Probe("grey", "no colour", "color", remove_color),
    Probe("warm", "warm light (red +20 %, blue −20 %)", "color", tint(1.2, 1.0, 0.8)),
    Probe("cool", "cool light (red −20 %, blue +20 %)", "color", tint(0.8, 1.0, 1.2)),
    Probe("dark", "brightness × 0.6", "brightness", brighten(0.6)),
    Probe("bright", "brightness × 1.5", "brightness", brighten(1.5)),
    Probe("blur_1", "blur, σ = 1 % of the side", "sharpness", blur(0.01)),
    Probe("blur_3", "blur, σ = 3 % of the side", "sharpness", blur(0.03)),
    Probe("jpeg_30", "JPEG of quality 30", "sharpness", compress(30)),
    Probe("jpeg_10", "JPEG of quality 10", "sharpness", compress(10)),
    Probe("scale_0.6", "scale × 0.6", "geometry", zoom(0.6)),
    Probe("scale_1.4", "scale × 1.4", "geometry", zoom(1.4)),
    Probe("rotation_45", "rotation by 45°", "geometry", turn(45)),
    Probe("rotation_90", "rotation by 90°", "geometry", turn(90)),
    Probe("rotation_180", "rotation by 180°", "geometry", turn(180)),
)


class ProbeTransform:
    """Makes `pixel_values` and `index` of the rows of a data set, altered by a probe, for `Dataset.with_transform`."""

    def __init__(self, probe: Probe, image_processor: BaseImageProcessor, seed: int = 0) -> None:
        self.probe, self.transform, self.seed = probe, build_eval_transform(image_processor), seed

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        images = zip(rows["image"], rows["index"], strict=True)
        return {"pixel_values": [self._make(image, index) for image, index in images], "index": rows["index"]}

    def _make(self, image: Image.Image, index: int) -> Tensor:
        generator = np.random.default_rng([self.seed, index])
        image = to_rgb(image)
        if self.probe.alter is not None:
            image = self.probe.alter(image, generator)
        pixel_values = self.transform(image)
        if self.probe.patches > 1:
            pixel_values = shuffle_patches(pixel_values, self.probe.patches, generator)
        return pixel_values


def probe(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    dataset: Dataset,
    accelerator: Accelerator,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    seed: int = 0,
    probes: Sequence[Probe] = PROBES,
) -> dict[str, Any]:
    """The accuracy of a classifier on labelled images under each probe, against the plain accuracy.

    Args:
        model: Classifier.
        image_processor: What the images go through.
        dataset: Columns `image`, `label` (numbered as the model's classes) and `index`.
        accelerator: Shares the images out among the processes.
        batch_size: Images in a batch of one process.
        num_workers: Processes that load images, for each process.
        seed: Of what is random about probes.
        probes: Those to run; the first is what the others are compared with.

    Returns:
        Of plain numbers and lists: `num_examples`, `guess` (accuracy of an even guess), `seed` and `probes`: for each
        `name`, `title`, `group`, `num_examples`, `accuracy` with its 95 % `interval` (Wilson), `change` against the
        first with its 95 % `change_interval` (bootstrap over the images, which are the same ones).
    """
    model.to(accelerator.device)
    labels = np.array(dataset["label"])
    correct = [
        _answers(model, ProbeTransform(each, image_processor, seed), dataset, accelerator, batch_size, num_workers)
        == labels
        for each in probes
    ]
    rows = []
    for each, right in zip(probes, correct, strict=True):
        rows.append(
            {
                "name": each.name,
                "title": each.title,
                "group": each.group,
                "num_examples": len(labels),
                "accuracy": float(right.mean()),
                "interval": list(wilson_interval(int(right.sum()), len(labels))),
                "change": float(right.mean() - correct[0].mean()),
                "change_interval": list(bootstrap_interval(right.astype(float) - correct[0], seed)),
            }
        )
    return {"num_examples": len(labels), "guess": 1 / model.config.num_labels, "seed": seed, "probes": rows}


def bootstrap_interval(differences: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean by the percentiles of its bootstrap (Efron 1979, Annals of Statistics 7(1), p. 1).

    Args:
        differences: (N,).
        seed: Of the samples.
    """
    generator = np.random.default_rng(seed)
    means = [generator.choice(differences, len(differences)).mean() for _ in range(BOOTSTRAP_SAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def format_probes(result: dict[str, Any]) -> str:
    """The figures of `probe` as a table in Markdown, which a terminal shows as well."""
    plain = result["probes"][0]
    width = max(len(row["title"]) for row in result["probes"])
    lines = [
        f"| {'image':{width}} | accuracy | 95 % interval  | change, points | 95 % interval  |",
        f"|:{'-' * (width + 1)}|---------:|:---------------|---------------:|:---------------|",
    ]
    for row in result["probes"]:
        low, high = row["interval"]
        interval = f"{low:.1%} to {high:.1%}"
        change, change_interval = "", ""
        if row is not plain:
            change = f"{100 * row['change']:+.1f}"
            change_interval = "{:+.1f} to {:+.1f}".format(*(100 * end for end in row["change_interval"]))
        lines.append(
            f"| {row['title']:{width}} | {row['accuracy']:>8.1%} | {interval:14} | {change:>14} | "
            f"{change_interval:14} |"
        )
    return "\n".join(lines)


def markdown_probes(result: dict[str, Any]) -> str:
    """The report of the command: the table, the figure beside it, and how it was made."""
    return "\n".join(
        [
            f"# What {result['model']} relies on",
            "",
            f"{result['num_examples']:,} images of {result['data']}, altered in one way at a time; seed "
            f"{result['seed']}. An even guess is right in {result['guess']:.1%}.",
            "",
            format_probes(result),
            "",
            "![Accuracy under each probe](probes.png)",
            "",
            "![What the model was shown](examples.png)",
            "",
            "- Shuffled patches keep texture and colour and lose the shape of the plant; a silhouette keeps the shape "
            "alone. A model that relies on texture keeps its accuracy under the former and loses it under the latter.",
            "- Plant and background are told apart by excess green and Otsu's threshold: a rough mask. Background only "
            "above the even guess means that soil, pots and light give species away.",
            "- Interval of the accuracy: Wilson's. Interval of the change: bootstrap over the images, which are the "
            "same in every row.",
            "",
        ]
    )


def example_images(dataset: Dataset, image_processor: BaseImageProcessor, seed: int = 0) -> list[list[np.ndarray]]:
    """What the model sees of a few images: for each of `PROBES` a row of (H, W, 3) of 8 bits.

    Args:
        dataset: Columns `image` and `index`.
        image_processor: What the images go through.
        seed: As for `probe`.
    """
    transform = build_eval_transform(image_processor)
    black, white = (
        transform(Image.new("RGB", (64, 64), color)).mean((1, 2))[:, None, None] for color in ("black", "white")
    )
    sheet = []
    for each in PROBES:
        images = dataset.with_transform(ProbeTransform(each, image_processor, seed))[:]["pixel_values"]
        shares = [((image - black) / (white - black)).clamp(0, 1) for image in images]
        sheet.append([(255 * share).round().byte().permute(1, 2, 0).numpy() for share in shares])
    return sheet


def _answers(
    model: PreTrainedModel, transform: ProbeTransform, dataset: Dataset, accelerator: Accelerator, batch_size: int,
    num_workers: int,
) -> np.ndarray:  # fmt: skip
    """The class that the model names for each image, in the order of the data set; the same on every process."""
    dataset = dataset.select_columns(["image", "index"])
    dataloader = accelerator.prepare(
        DataLoader(dataset.with_transform(transform), batch_size=batch_size, num_workers=num_workers)
    )
    was_training = model.training
    model.eval()
    answer_of: dict[int, int] = {}
    try:
        for batch in dataloader:
            with torch.inference_mode(), accelerator.autocast():
                answers = model(pixel_values=batch["pixel_values"]).logits.argmax(-1)
            answers, index = accelerator.gather_for_metrics((answers, batch["index"]))
            answer_of.update(zip(index.tolist(), answers.tolist(), strict=True))
    finally:
        model.train(was_training)
    return np.array([answer_of[index] for index in dataset["index"]])


def _widen(mask: np.ndarray, pixels: int) -> np.ndarray:
    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.MaxFilter(2 * pixels + 1))) > 0


def _border_color(image: Image.Image) -> tuple[int, ...]:
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(round(float(value)) for value in border.mean(0))
