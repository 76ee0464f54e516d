"""Reports as one HTML page that needs nothing else: images lie inside, and no request leaves the page."""

import base64
import io
import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from datasets import Dataset
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from seedling_hf.data.transforms import to_rgb

Saliency = Callable[[Sequence[Image.Image], Sequence[str]], Sequence[Image.Image]]
GALLERY_SIDE = 224
SIGNIFICANCE = 0.05
FIGURES = ("confusion_matrix", "reliability", "coverage_risk", "probes")


def render_report(
    report: dict[str, Any],
    output_dir: str | os.PathLike,
    dataset: Dataset | None = None,
    saliency: Saliency | None = None,
) -> str:
    """The page of a report of `evaluate_model`.

    Args:
        report: Figures, with `predictions` or without.
        output_dir: Folder that holds the figures' PNGs; one that is missing is left out.
        dataset: Columns `image` and `file`; without it the gallery has names only.
        saliency: Makes of images and the species that were answered as many overlays that show why.
    """
    mistakes = report["worst_mistakes"]
    images = load_images(dataset, [row["file"] for row in mistakes]) if dataset is not None else None
    overlays = None
    if saliency and images:
        overlays = saliency(images, [row["prediction"] for row in mistakes])
    nothing = [None] * len(mistakes)
    return _template("report.html").render(
        report=report,
        even_loss=math.log(len(report["class_names"])),
        figures={name: _figure_uri(Path(output_dir) / f"{name}.png") for name in FIGURES},
        mistakes=[
            {**row, "image": image and image_uri(image), "overlay": overlay and image_uri(overlay)}
            for row, image, overlay in zip(mistakes, images or nothing, overlays or nothing, strict=True)
        ],
    )


def render_comparison(comparison: dict[str, Any], dataset: Dataset) -> str:
    """The page of a comparison of `compare_models`; `dataset` has columns `image` and `file`."""
    rows = comparison["differences"]
    images = load_images(dataset, [row["file"] for row in rows])
    return _template("comparison.html").render(
        comparison=comparison,
        differences=[{**row, "image": image_uri(p)} for row, p in zip(rows, images, strict=True)],
    )


def load_images(dataset: Dataset, files: Sequence[str]) -> list[Image.Image]:
    """The images of some files, in RGB."""
    numbers = {file: number for number, file in enumerate(dataset["file"])}
    return [to_rgb(dataset[numbers[file]]["image"]) for file in files]


def image_uri(image: Image.Image) -> str:
    """An image as a data URI, JPEG, no longer than `GALLERY_SIDE` pixels."""
    image = image.convert("RGB")
    image.thumbnail((GALLERY_SIDE, GALLERY_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=88)
    return _data_uri(stream.getvalue(), "image/jpeg")


def percent(share: float) -> str:
    """A share with one decimal, which never rounds to the certain or the impossible."""
    if 0 < share < 0.001:
        return "<0.1%"
    return ">99.9%" if 0.999 < share < 1 else f"{share:.1%}"


def describe_fit(calibration: dict[str, Any]) -> str:
    """On which images the temperature was fitted, and what that means for the figures."""
    temperature, count = calibration["temperature"], calibration["num_fitted"]
    start = (
        f"The temperature is {temperature:.2f} ({'too sure of itself' if temperature > 1 else 'too modest'} before), "
        f"fitted on {count:,} images: {calibration['fitted_on']}."
    )
    if calibration["cross_fitted"]:
        return (
            f"{start} Those are the images that are judged here, so the figures after scaling are cross-fitted: one "
            "half of the images, drawn by chance, is scaled by the temperature of the other half, and the other way "
            "round; no image judges its own fit. The temperature of all of them, which the report keeps, is "
            "optimistic for these same images. If they also chose which weights were kept, as the validation "
            "images of a training run do, all figures here are a little too good."
        )
    return f"{start} They are none of the images that are judged here, unless a file lies in both folders."


def describe_not_sure(not_sure: dict[str, Any]) -> str:
    """Which answers to hold back, and what the rest is worth."""
    target = f"{not_sure['target_accuracy']:.0%}"
    if not_sure["threshold"] is None:
        return f"No threshold leaves answers of which {target} are right."
    text = (
        f"Where the probability of the answer is below {not_sure['threshold']:.3f} it should say that it is not sure: "
        f"of the {not_sure['coverage']:.1%} that are kept, {not_sure['accuracy']:.1%} are right ({target} were asked "
        "for)."
    )
    other = not_sure["cross_fitted"]
    if other and other["accuracy"] is not None:
        text += (
            " The threshold was chosen on these very images, which is optimistic; one chosen on half of them keeps "
            f"{other['coverage']:.1%} of the other half, of which {other['accuracy']:.1%} are right."
        )
    return text


def describe_pair(pair: dict[str, Any]) -> str:
    """How often two species are taken for each other."""
    first, second = pair["pair"]
    return (
        f"{first} is taken for {second} {pair['first_as_second']:,} times, {second} for {first} "
        f"{pair['second_as_first']:,} times: {pair['share']:.1%} of the {pair['total']:,} images of the two, and "
        f"{pair['share_of_mistakes']:.0%} of all mistakes."
    )


def describe_augmentation(augmented: dict[str, Any]) -> str:
    """What the mean over eight symmetries gains and costs."""
    return (
        f"The mean of the probabilities over four turns and their reflections mends {augmented['mended']:,} answers "
        f"and spoils {augmented['spoilt']:,}: {100 * augmented['accuracy_gain']:+.1f} points of accuracy, "
        f"{augmented['macro_f1_gain']:+.3f} of macro-F1, for {augmented['cost']:.1f} times the seconds."
    )


def describe_pair_of_models(pair: dict[str, Any]) -> str:
    """Who of two is better, and how easily chance would do that."""
    better, worse = (pair["second"], pair["first"]) if pair["difference"] > 0 else (pair["first"], pair["second"])
    apart = pair["only_first"] + pair["only_second"]
    if not pair["difference"]:
        return f"{pair['first']} and {pair['second']} are right equally often; {apart:,} images tell them apart."
    p_value = pair["corrected_p_value"]
    verdict = "more than chance explains" if p_value < SIGNIFICANCE else "which may well be chance"
    return (
        f"{better} is right {100 * abs(pair['difference']):.1f} points more often than {worse}, {verdict} (p = "
        f"{p_value:.2g}): of the {apart:,} images that one of the two alone gets right, it gets "
        f"{max(pair['only_first'], pair['only_second']):,}."
    )


@cache
def _template(name: str) -> Any:
    # A name that is missing is an error, not nothing; file names and species are text, not markup.
    environment = Environment(
        loader=PackageLoader("seedling_hf.evaluation", "pages"), undefined=StrictUndefined, autoescape=True,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "short_name": lambda name: Path(name).name or name}
    environment.globals |= {
        "describe_fit": describe_fit,
        "describe_not_sure": describe_not_sure,
        "describe_pair": describe_pair,
        "describe_pair_of_models": describe_pair_of_models,
        "describe_augmentation": describe_augmentation,
    }
    return environment.get_template(name)


def _figure_uri(path: Path) -> str | None:
    return _data_uri(path.read_bytes(), "image/png") if path.exists() else None


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
