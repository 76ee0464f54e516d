"""The style that all figures share."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seedling_hf.escaping import visible
from seedling_hf.files import replacing
from seedling_hf.origin import SOFTWARE
from seedling_hf.plots.fonts import DEFAULT, find_fonts

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
    _take_texts_literally(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.12, metadata={"Software": SOFTWARE})


def _take_texts_literally(figure: "Figure") -> None:
    r"""No text is TeX or has controls; characters are from fonts that hold them, or written out, as `\u5c0f`."""
    from matplotlib.text import Text

    for axes in figure.findobj(lambda artist: hasattr(artist, "xaxis")):
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_ticklabels()  # makes them, so that they are found
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    fonts, missing = find_fonts("".join(visible(text.get_text()) for text in texts))
    for text in texts:
        text.set_parse_math(False)
        shown = visible(text.get_text())
        if missing:
            shown = "".join(ascii(each)[1:-1] if each in missing else each for each in shown)
        if shown != text.get_text():
            text.set_text(shown)
        if not shown.isascii() and fonts:
            text.set_fontfamily([DEFAULT, *(font.family for font in fonts)])


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


def readable_on(color: Sequence[float]) -> str:
    """Black or white, whichever has the higher contrast on a color of 0 to 1: at least 4.5 (WCAG 2.2, 1.4.3)."""
    channels = np.asarray(color[:3], dtype=float)
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def column(records: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """The values of one key, NaN where it is missing."""
    return np.array([record.get(key, np.nan) for record in records], dtype=float)
