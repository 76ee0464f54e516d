"""The style that all figures share."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seedling_hf.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN_COLOR, EVAL_COLOR, INK = "#c8782c", "#1b6e4a", "#333333"
SALIENCY_COLORS = "cool"  # colors that neither seedlings nor soil have
SERIES = ("#1b6e4a", "#c8782c", "#3b6fb6", "#8c4a9e", "#b23a48", "#6b8e23", "#5f6b73", "#b8940b")


def new_figure(width: float, height: float) -> "Figure":
    """A figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def save(figure: "Figure", path: str | os.PathLike) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.12)


def tidy(axes: "Axes", axis: str = "both") -> None:
    """A light grid behind the data, and no frame on the top and the right."""
    axes.grid(color="#e6e6e6", linewidth=0.6, axis=axis)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def bare(axes: "Axes") -> None:
    """No ticks and no frame, for images."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def column(records: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """The values of one key, NaN where it is missing."""
    return np.array([record.get(key, np.nan) for record in records], dtype=float)
