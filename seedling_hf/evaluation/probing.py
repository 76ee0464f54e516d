"""What a classifier relies on and what it is robust to: its accuracy on images altered in one way at a time.

What the accuracy loses under a probe of `probes` is what the model owes to the thing that the probe takes away. All
that is random depends only on the seed and the image's number, so that two models see the same images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from seedling_hf.data.backgrounds import find_grounds
from seedling_hf.data.transforms import EvalTransform, to_rgb
from seedling_hf.evaluation.calibration import BOOTSTRAP_RESAMPLES
from seedling_hf.evaluation.evaluator import Evaluator
from seedling_hf.evaluation.metrics import wilson_interval
from seedling_hf.evaluation.probes import Probe, list_probes, shuffle_patches
from seedling_hf.evaluation.surfaces import Grounds
from seedling_hf.progress import follow


@dataclass(frozen=True)
class Probing:
    """The accuracy under each probe against the first, the plain accuracy; `guess` is that of a random guess.

    `probes` have `name`, `title`, `group`, `num_examples`, `accuracy` with its 95% `interval` (Wilson), and `change`
    against the first with its 95% `change_interval` (bootstrap over the images). Where the model tells, `unfamiliar` is
    the share of the images that it calls so.
    """

    num_examples: int
    guess: float
    seed: int
    probes: list[dict[str, Any]]


class ProbeTransform:
    """Makes `pixel_values` and `index` of the rows of a dataset, altered by a probe, for `Dataset.with_transform`."""

    def __init__(self, probe: Probe, image_processor: BaseImageProcessor, seed: int = 0, grounds: Grounds = ()) -> None:
        self.probe, self.transform, self.seed = probe, EvalTransform(image_processor), seed
        self.grounds = [grounds] if probe.grounds else []

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        images = zip(rows["image"], rows["index"], strict=True)
        return {"pixel_values": [self._make(image, index) for image, index in images], "index": rows["index"]}

    def _make(self, image: Image.Image, index: int) -> Tensor:
        generator = np.random.default_rng([self.seed, index])
        image = to_rgb(image)
        if self.probe.alter is not None:
            image = self.probe.alter(image, generator, *self.grounds)
        pixel_values = self.transform(image)
        if self.probe.patches > 1:
            pixel_values = shuffle_patches(pixel_values, self.probe.patches, generator)
        return pixel_values


def probe(evaluator: Evaluator, dataset: Dataset, *, seed: int = 0, probes: Sequence[Probe] | None = None) -> Probing:
    """The accuracy of a classifier on labelled images (as for `Evaluator.predict`) under each of `probes`.

    `probes` are by default those of `list_probes`.
    """
    probes = list_probes() if probes is None else probes
    grounds = list_grounds(dataset) if any(each.grounds for each in probes) else []
    found = [
        evaluator.predict(dataset, transform=ProbeTransform(each, evaluator.image_processor, seed, grounds))
        for each in follow(probes, "probing", unit="probe")
    ]
    correct = [each.correct for each in found]
    rows = [
        {
            "name": each.name,
            "title": each.title,
            "group": each.group,
            "num_examples": len(right),
            "accuracy": float(right.mean()),
            "interval": list(wilson_interval(int(right.sum()), len(right))),
            "change": float(right.mean() - correct[0].mean()),
            "change_interval": list(bootstrap_interval(right.astype(float) - correct[0], seed)),
            **({} if said.unfamiliarity is None else {"unfamiliar": float((said.unfamiliarity > 1).mean())}),
        }
        for each, right, said in zip(probes, correct, found, strict=True)
    ]
    return Probing(len(dataset), 1 / evaluator.model.config.num_labels, seed, rows)


def list_grounds(dataset: Dataset) -> list[Image.Image]:
    """The ground of images at equal distances, their plants covered."""
    grounds = find_grounds(dataset)
    return [] if grounds is None else [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in grounds]


def bootstrap_interval(differences: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of the mean of (N,) differences by the percentiles of its bootstrap.

    Efron 1979, Annals of Statistics 7(1), p. 1.
    """
    generator = np.random.default_rng(seed)
    means = [generator.choice(differences, len(differences)).mean() for _ in range(BOOTSTRAP_RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def format_probes(probing: Probing) -> str:
    """The figures as a table in Markdown that is also readable in a terminal."""
    plain = probing.probes[0]
    width = max(len(row["title"]) for row in probing.probes)
    is_told = "unfamiliar" in plain
    lines = [
        f"| {'image':{width}} | accuracy | 95% interval   | change, points | 95% interval   |"
        f"{' unfamiliar |' if is_told else ''}",
        f"|:{'-' * (width + 1)}|---------:|:---------------|---------------:|:---------------|"
        f"{'-----------:|' if is_told else ''}",
    ]
    for row in probing.probes:
        low, high = row["interval"]
        interval = f"{low:.1%} to {high:.1%}"
        change, change_interval = "", ""
        if row is not plain:
            change = f"{100 * row['change']:+.1f}"
            change_interval = "{:+.1f} to {:+.1f}".format(*(100 * end for end in row["change_interval"]))
        unfamiliar = f" {row['unfamiliar']:>10.1%} |" if is_told else ""
        lines.append(
            f"| {row['title']:{width}} | {row['accuracy']:>8.1%} | {interval:14} | {change:>14} | "
            f"{change_interval:14} |{unfamiliar}"
        )
    return "\n".join(lines)


def example_images(dataset: Dataset, image_processor: BaseImageProcessor, seed: int = 0) -> list[list[np.ndarray]]:
    """What the model sees of the columns `image` and `index`: a row of (H, W, 3) of 8 bits for each probe."""
    transform = EvalTransform(image_processor)
    black, white = (
        transform(Image.new("RGB", (64, 64), color)).mean((1, 2))[:, None, None] for color in ("black", "white")
    )
    sheet, grounds = [], list_grounds(dataset)
    for each in list_probes():
        images = dataset.with_transform(ProbeTransform(each, image_processor, seed, grounds))[:]["pixel_values"]
        shares = [((image - black) / (white - black)).clamp(0, 1) for image in images]
        sheet.append([(255 * share).round().byte().permute(1, 2, 0).numpy() for share in shares])
    return sheet
