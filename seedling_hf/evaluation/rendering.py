"""Reports as pages: in HTML, with all images inside and no requests, and in Markdown."""

import base64
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from datasets import Dataset
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image

from seedling_hf.data.images import a_few, to_rgb
from seedling_hf.escaping import Markdown, finish_html, finish_markdown, format_count, one_line, pad, width_of
from seedling_hf.evaluation import sentences
from seedling_hf.evaluation.comparison import Comparison
from seedling_hf.evaluation.probing import format_probes
from seedling_hf.evaluation.report import Report

Saliency = Callable[[Sequence[Image.Image], Sequence[str]], Sequence[Image.Image | None]]
GALLERY_SIDE = 224
FIGURES = ("confusion_matrix", "reliability", "coverage_risk", "probes")


def render_report(
    report: Report, output_dir: str | os.PathLike, dataset: Dataset | None = None, saliency: Saliency | None = None
) -> str:
    """The page of a report in HTML.

    Args:
        output_dir: Folder with the PNGs of the figures; the page skips missing ones.
        dataset: Columns `image` and `file`; without it the gallery has only names.
        saliency: Makes an overlay for each image and its predicted class that shows what spoke for it; None where
            no region decides.
    """
    mistakes = report.worst_mistakes
    images = load_images(dataset, [row.file for row in mistakes]) if dataset is not None else None
    overlays = saliency(images, [row.prediction for row in mistakes]) if saliency and images else None
    nothing = [None] * len(mistakes)
    return render_page(
        "report.html",
        report=report,
        even_loss=math.log(len(report.class_names)),
        figures={name: _figure_uri(Path(output_dir) / f"{name}.png") for name in FIGURES},
        with_saliency=overlays is not None,
        mistakes=[
            {**asdict(row), "image": image and image_uri(image), "overlay": overlay and image_uri(overlay)}
            for row, image, overlay in zip(mistakes, images or nothing, overlays or nothing, strict=True)
        ],
    )


def markdown_report(report: Report) -> str:
    """The report as Markdown; its figures are the PNGs beside it."""
    return render_page("report.md", report=report)


def render_comparison(comparison: Comparison, dataset: Dataset) -> str:
    """The page of a comparison in HTML; `dataset` has columns `image` and `file`."""
    rows = comparison.differences
    images = load_images(dataset, [row["file"] for row in rows])
    differences = [{**row, "image": image_uri(image)} for row, image in zip(rows, images, strict=True)]
    return render_page("comparison.html", comparison=comparison, differences=differences)


def render_page(template: str, **values: Any) -> str:
    """A template of `pages/`, filled."""
    return _environment(Path(template).suffix).get_template(template).render(values)


def format_confusion_matrix(matrix: Sequence[Sequence[int]], class_names: Sequence[str]) -> str:
    """Counts in text, rows are the truth; columns have numbers, and a dot is zero."""
    numbers, class_names = range(1, len(class_names) + 1), [one_line(name) for name in class_names]
    name_width = max(map(width_of, class_names))
    number_width = len(str(len(class_names)))
    cell = max(len(f"{max(map(max, matrix))}"), number_width) + 1
    lines = [" " * (number_width + 2 + name_width) + "".join(f"{number:>{cell}}" for number in numbers)]
    for number, name, row in zip(numbers, class_names, matrix, strict=True):
        counts = "".join(f"{count or '·':>{cell}}" for count in row)
        lines.append(f"{number:>{number_width}}  {pad(name, name_width)}{counts}")
    return "\n".join(lines)


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


@cache
def _environment(suffix: str) -> Environment:
    """Of the templates in `pages/` with a suffix. A missing name is an error; file and class names are only text."""
    environment = Environment(
        loader=PackageLoader("seedling_hf.evaluation", "pages"), undefined=StrictUndefined,
        autoescape=select_autoescape(), finalize=finish_markdown if suffix == ".md" else finish_html,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        "percent": sentences.percent,
        "short_name": lambda name: Path(name).name or name,
        "cells": lambda values: Markdown.join_all(values, " | "),
    }
    environment.globals |= {name: value for name, value in vars(sentences).items() if name.startswith("describe_")}
    environment.globals |= {
        "headline": sentences.headline,
        "a_few": a_few,
        "format_count": format_count,
        "format_probes": lambda probing: Markdown(format_probes(probing)),
        "format_confusion_matrix": lambda *figures: Markdown(format_confusion_matrix(*figures)),
    }
    return environment


def _figure_uri(path: Path) -> str | None:
    return _data_uri(path.read_bytes(), "image/png") if path.exists() else None


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
