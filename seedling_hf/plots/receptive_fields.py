"""Effective receptive fields side by side, and their sizes as lines."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seedling_hf.plots.fonts import draw_names
from seedling_hf.plots.style import INK, SERIES, TRAIN_COLOR, bare, new_figure, save, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


def plot_erf(scores: dict[str, np.ndarray], rows: Sequence[dict[str, Any]], path: str | os.PathLike) -> None:
    """Draws effective receptive fields with the squares of their area ratios, and the ratios as lines.

    `scores` are (H, W) contribution scores by model; `rows` have `model`, `threshold`, `side` and `area_ratio`.
    """
    num_columns = min(4, len(scores))
    num_rows = -(-len(scores) // num_columns)
    figure = new_figure(3.3 * num_columns + 3.6, 3.5 * num_rows + 0.4)
    left, right = figure.subfigures(1, 2, width_ratios=[3.3 * num_columns, 3.6])
    grid = left.subplots(num_rows, num_columns, squeeze=False).ravel()
    lines = right.subplots()
    for axes in grid[len(scores) :]:
        axes.set_visible(False)
    titles = draw_names([*scores], "model")
    for number, (axes, (name, field), title) in enumerate(zip(grid, scores.items(), titles, strict=False)):
        own = sorted((row for row in rows if row["model"] == name), key=lambda row: row["threshold"])
        image = _draw_field(axes, field, own)
        axes.set_title(title, fontsize=10, color=INK)
        lines.plot(
            [100 * row["threshold"] for row in own], [100 * row["area_ratio"] for row in own],
            marker="o", markersize=4, color=SERIES[number % len(SERIES)], label=title,
        )  # fmt: skip
    left.colorbar(image, ax=list(grid), orientation="horizontal", shrink=0.4, aspect=40, pad=0.02).set_label(
        "contribution, log10(score + 1), largest = 1", fontsize=7, color=INK
    )
    lines.plot([0, 100], [0, 100], color="#999999", linewidth=0.8, linestyle=":", label="uniform")
    lines.set_title("Area that holds a share of the contribution", fontsize=9, color=INK)
    lines.set_xlabel("share of the contribution", fontsize=8)
    lines.set_xticks([100 * row["threshold"] for row in own])
    lines.xaxis.set_major_formatter("{x:g}%")
    lines.yaxis.set_major_formatter("{x:g}%")
    lines.tick_params(labelsize=8)
    lines.set(xlim=(8, 103), ylim=(0, 103))
    lines.legend(frameon=False, fontsize=7, loc="upper left")
    tidy(lines)
    save(figure, path)


def _draw_field(axes: "Axes", field: np.ndarray, rows: Sequence[dict[str, Any]]) -> "AxesImage":
    """Draws one field, and for each row the square that holds its share of the contribution."""
    from matplotlib.patches import Rectangle

    scaled, pixels = np.log10(field + 1), field.shape[0]
    image = axes.imshow(scaled / scaled.max(), cmap="YlGn", vmin=0, vmax=1, interpolation="nearest")
    for row in rows:
        side = row["side"]
        start = pixels // 2 - side // 2 - 0.5
        axes.add_patch(Rectangle((start, start), side, side, fill=False, edgecolor=TRAIN_COLOR, linewidth=1.1))
        if side > 0.12 * pixels:
            axes.text(
                start + 0.012 * pixels, start + 0.015 * pixels, f"{row['threshold']:.0%}",
                ha="left", va="top", fontsize=6.5, color=INK,
            )  # fmt: skip
    axes.set(xlim=(-0.02 * pixels, 1.02 * pixels), ylim=(1.02 * pixels, -0.02 * pixels))
    axes.set_xlabel(f"{pixels}×{pixels} pixels", fontsize=7, color=INK)
    bare(axes)
    return image
