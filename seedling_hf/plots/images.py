"""Images side by side."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from seedling_hf.plots.fonts import wrap
from seedling_hf.plots.style import INK, SALIENCY_COLORS, bare, new_figure, save

HEADING_COLUMNS, CAPTION_COLUMNS = 18, 24  # of a terminal; as many as are above or below an image


def plot_saliency(
    image: Any, saliency: np.ndarray, overlay: Any, path: str | os.PathLike, *, title: str, subtitle: str = ""
) -> None:
    """Draws an image, its saliency map, and both together.

    Images are PIL images or (H, W, 3) of 8 bits, the map is (h, w) from 0 to 1.
    """
    figure = new_figure(8.6, 3.3)
    figure.suptitle(f"{title}\n{subtitle}".rstrip(), x=0.01, ha="left", fontsize=10, color=INK)
    left, middle, right = figure.subplots(1, 3)
    left.imshow(image)
    heat = middle.imshow(saliency, cmap=SALIENCY_COLORS, vmin=0, vmax=1, interpolation="bilinear")
    right.imshow(overlay)
    for axes, heading in ((left, "image"), (middle, "what speaks for it"), (right, "overlay")):
        axes.set_title(heading, fontsize=8, color=INK)
        bare(axes)
    bar = figure.colorbar(heat, ax=[left, middle, right], shrink=0.75, aspect=25, pad=0.01, ticks=[0, 1])
    bar.ax.set_yticklabels(["low", "high"], fontsize=7)
    bar.outline.set_visible(False)
    save(figure, path)


def plot_contact_sheet(
    images: Sequence[Sequence[Any]],
    path: str | os.PathLike,
    *,
    title: str,
    columns: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
    note: str = "",
) -> None:
    """Draws rows of images, each a PIL image or (H, W, 3) of 8 bits, with headings and a caption below each image.

    `note` is a sentence below all of them.
    """
    height, width = len(images), len(images[0])
    below = 0.45 if captions else 0.0
    figure = new_figure(1.35 * width + (1.6 if rows else 0), (1.35 + below) * height + 0.6)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", color=INK)
    if note:
        # About so many columns fit into an inch at this size.
        figure.supxlabel(wrap(note, int(15 * figure.get_figwidth())), x=0.01, ha="left", fontsize=7, color=INK)
    grid = figure.subplots(height, width, squeeze=False)
    for y, row in enumerate(images):
        for x, image in enumerate(row):
            axes = grid[y, x]
            axes.imshow(image, interpolation="nearest")
            bare(axes)
            if columns and y == 0:
                axes.set_title(wrap(columns[x], HEADING_COLUMNS), fontsize=8, color=INK)
            if rows and x == 0:
                axes.set_ylabel(
                    wrap(rows[y], HEADING_COLUMNS), rotation=0, ha="right", va="center", fontsize=8, color=INK
                )
            if captions:
                axes.set_xlabel(wrap(captions[y][x], CAPTION_COLUMNS), fontsize=6, color=INK)
    save(figure, path)
