"""How good the predictions of a model are: confusions, calibration, and accuracy on altered images."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seedling_hf.escaping import width_of
from seedling_hf.plots.fonts import draw_names
from seedling_hf.plots.style import EVAL_COLOR, INK, SERIES, TRAIN_COLOR, column, new_figure, readable_on, save, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLASSES = 40  # in a figure; more could not be read


def plot_confusion_matrix(
    matrix: Sequence[Sequence[int]] | np.ndarray, class_names: Sequence[str], path: str | os.PathLike
) -> None:
    """Draws (C, C) counts, rows are true classes, colored by their share of the row: recall green, mistakes orange.

    Of more than `MOST_CLASSES` classes it draws those with the most mistakes.
    """
    matrix = np.asarray(matrix)
    correct, totals = int(np.trace(matrix)), matrix.sum(1)
    title = f"{correct:,} of {totals.sum():,} images correct: {100 * correct / max(totals.sum(), 1):.1f}%"
    shown = most_confused(matrix)
    if len(shown) < len(matrix):
        title += f"\nthe {len(shown)} of {len(matrix):,} classes with the most mistakes"
    names = draw_names(class_names)
    rows = [f"{names[i]}  ({totals[i]:,})" for i in shown]
    names = [names[i] for i in shown]
    counts = matrix[np.ix_(shown, shown)]
    side = max(0.56 * len(shown), 2.4) + 0.4 + 0.085 * max(map(width_of, names))
    figure = new_figure(side + 0.4, side)
    axes = figure.subplots()
    axes.set_xticks(range(len(shown)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(shown)), rows)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class (images)")
    axes.set_title(title, loc="left")
    axes.spines[:].set_color("#dddddd")
    axes.tick_params(which="both", length=0)
    axes.set_xticks(np.arange(1, len(shown)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(shown)) - 0.5, minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.6)
    _draw_cells(axes, counts, counts / np.maximum(totals[shown], 1)[:, None])
    save(figure, path)


def most_confused(matrix: np.ndarray) -> np.ndarray:
    """The numbers, in their order, of the at most `MOST_CLASSES` classes with the most mistakes in (C, C) counts."""
    mistakes = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    return np.sort(np.argsort(-mistakes, kind="stable")[:MOST_CLASSES])


def _draw_cells(axes: "Axes", counts: np.ndarray, shares: np.ndarray) -> None:
    diagonal = np.eye(len(counts), dtype=bool)
    for cells, colors, most in ((~diagonal, "Oranges", 0.5), (diagonal, "Greens", 1)):
        cells = cells & (counts > 0)
        image = axes.imshow(np.ma.array(shares, mask=~cells), cmap=colors, vmin=0, vmax=most)
        for y, x in np.argwhere(cells):
            axes.text(
                x, y, f"{counts[y, x]:,}", ha="center", va="center", fontsize=9,
                color=readable_on(image.to_rgba(shares[y, x])), fontweight="bold" if x == y else "normal",
            )  # fmt: skip


def plot_probes(rows: Sequence[dict[str, Any]], path: str | os.PathLike, *, chance: float) -> None:
    """Draws the accuracy of each probe with its interval, and lines for the unaltered images and for chance.

    Each row has `title`, `group`, `accuracy`, `interval` and `num_examples`; the first holds the unaltered images.
    """
    figure = new_figure(8.2, 0.27 * len(rows) + 1.3)
    axes = figure.subplots()
    groups = [*dict.fromkeys(row["group"] for row in rows)]
    plain, places = rows[0], []
    for row in rows:  # half a bar of room between groups
        places.append(1 + len(places) + 0.5 * groups.index(row["group"]))
    for place, row in zip(places, rows, strict=True):
        low, high = row["interval"]
        color = INK if row is plain else SERIES[(groups.index(row["group"]) - 1) % len(SERIES)]
        axes.barh(place, 100 * row["accuracy"], height=0.72, color=color, alpha=0.75)
        axes.plot([100 * low, 100 * high], [place, place], color=INK, linewidth=1.0)
        axes.text(100 * high + 0.8, place, f"{100 * row['accuracy']:.1f}", va="center", fontsize=7, color=INK)
    axes.axvline(100 * plain["accuracy"], color=INK, linewidth=0.8, linestyle=":", label="plain")
    axes.axvline(100 * chance, color="#777777", linewidth=0.8, linestyle="--", label="chance")
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=7, loc="outside lower right", ncols=2)
    axes.set_yticks(places, [row["title"] for row in rows], fontsize=8)
    axes.set_ylim(places[-1] + 0.7, 0.3)
    axes.set_xlim(0, 106)
    axes.xaxis.set_major_formatter("{x:g}%")
    axes.set_title(f"Accuracy on {plain['num_examples']:,} altered images", loc="left", fontsize=10, color=INK)
    tidy(axes, axis="x")
    axes.tick_params(axis="y", length=0)
    save(figure, path)


def plot_reliability(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], errors: Sequence[float], path: str | os.PathLike
) -> None:
    """Draws accuracy against confidence, and the images of each bin, before and after temperature scaling.

    Bins have `low`, `high`, `count`, `confidence` and `accuracy`; `errors` are the two expected calibration errors.
    """
    figure = new_figure(9, 4.6)
    upper, lower = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[3.2, 1])
    names, colors = ("unscaled", "temperature scaled"), (TRAIN_COLOR, EVAL_COLOR)
    for axes, counts, *panel in zip(upper, lower, (before, after), errors, names, colors, strict=True):
        bins, error, name, color = panel
        centers = [(row["low"] + row["high"]) / 2 for row in bins]
        width = 0.92 * (bins[0]["high"] - bins[0]["low"])
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
        axes.bar(centers, column(bins, "accuracy"), width, color=color, alpha=0.25)
        axes.plot(column(bins, "confidence"), column(bins, "accuracy"), color=color, marker="o", markersize=4)
        axes.set_title(f"{name}: calibration error {error:.3f}", loc="left", fontsize=10)
        axes.set_ylim(0, 1.02)
        counts.bar(centers, column(bins, "count"), width, color=color, alpha=0.6)
        counts.set_xlabel("probability of the predicted class")
        for each in (axes, counts):
            each.set_xlim(0, 1)
            tidy(each)
    upper[0].set_ylabel("accuracy")
    lower[0].set_ylabel("images")
    save(figure, path)


def plot_coverage_risk(curve: Sequence[dict[str, float]], not_sure: dict[str, Any], path: str | os.PathLike) -> None:
    """Draws the error rate of the most confident predictions against the fraction of predictions kept.

    Points have `coverage` and `risk`; `not_sure` has `target_accuracy`, and `threshold`, `coverage` and `accuracy`,
    None without a threshold. One that keeps everything is not marked.
    """
    figure = new_figure(6.2, 4.0)
    axes = figure.subplots()
    coverage, risk = 100 * column(curve, "coverage"), 100 * column(curve, "risk")
    axes.plot(coverage, risk, color=EVAL_COLOR, linewidth=1.8)
    axes.fill_between(coverage, risk, color=EVAL_COLOR, alpha=0.1)
    allowed = 100 * (1 - not_sure["target_accuracy"])
    axes.axhline(allowed, color=TRAIN_COLOR, linewidth=0.9, linestyle="--")
    if not_sure["threshold"] is not None and not_sure["coverage"] < 1:
        at, wrong = 100 * not_sure["coverage"], 100 * (1 - not_sure["accuracy"])
        axes.plot([at], [wrong], color=TRAIN_COLOR, marker="o")
        axes.annotate(
            f"keep {at:.0f}% (probability ≥ {not_sure['threshold']:.2f})", (at, wrong),
            (-8, 10) if at > 45 else (10, -16), textcoords="offset points", ha="right" if at > 45 else "left",
            color=INK,
        )  # fmt: skip
    axes.set_xlabel("predictions kept, most confident first (%)")
    axes.set_ylabel("wrong among them (%)")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, max(1.15 * float(np.nanmax(risk)), 1.4 * allowed, 1))
    tidy(axes)
    save(figure, path)
