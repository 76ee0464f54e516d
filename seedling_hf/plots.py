"""Figures: arrays in, PNG out. Nothing here touches pyplot's global state or needs a display."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seedling_hf.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN_COLOR, EVAL_COLOR, INK = "#c8782c", "#1b6e4a", "#333333"
LARGEST_MATRIX_WITH_COUNTS = 40
SALIENCY_COLORS = "cool"  # of which seedlings and soil have nothing
_SERIES = ("#1b6e4a", "#c8782c", "#3b6fb6", "#8c4a9e", "#b23a48", "#6b8e23", "#5f6b73", "#b8940b")


def plot_curves(records: Sequence[dict[str, Any]], path: str | os.PathLike) -> None:
    """Draws loss, accuracy and learning rate against the epoch.

    Args:
        records: The lines of metrics.jsonl. Of two lines of one kind and step, as a resumed run may write, the later
            one counts.
        path: PNG to write.
    """
    training = _latest_by_step([r for r in records if "loss" in r])
    evaluation = _latest_by_step([r for r in records if "eval_loss" in r])
    figure = _figure(12.6, 3.7)
    loss, accuracy, rate = figure.subplots(1, 3)

    epochs, losses = _column(training, "epoch"), _column(training, "loss")
    loss.set_title("Loss")
    loss.plot(epochs, losses, color=TRAIN_COLOR, alpha=0.25, linewidth=0.8)
    loss.plot(epochs, _smooth(losses), color=TRAIN_COLOR, label="training, smoothed")
    marker = {"marker": "o", "markersize": 3} if len(evaluation) <= 40 else {}
    evaluated = _column(evaluation, "epoch")
    loss.plot(evaluated, _column(evaluation, "eval_loss"), color=EVAL_COLOR, label="validation", **marker)
    loss.legend(frameon=False)

    accuracy.set_title("Validation")
    shares = 100 * _column(evaluation, "eval_accuracy")
    accuracy.plot(evaluated, shares, color=EVAL_COLOR, label="accuracy", **marker)
    macro_f1 = 100 * _column(evaluation, "eval_macro_f1")
    accuracy.plot(evaluated, macro_f1, color=EVAL_COLOR, alpha=0.5, linestyle="--", label="macro-F1")
    accuracy.yaxis.set_major_formatter("{x:g} %")
    if np.isfinite(shares).any():
        best = int(np.nanargmax(shares))
        accuracy.axhline(shares[best], color=INK, linewidth=0.6, linestyle=":")
        accuracy.set_title(f"Validation: best accuracy {shares[best]:.1f} %, epoch {evaluated[best]:.3g}")
        accuracy.legend(frameon=False, loc="lower right")

    rate.set_title("Learning rate")
    rate.plot(epochs, _column(training, "learning_rate"), color=TRAIN_COLOR)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    rate.set_ylim(bottom=0)

    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
            axes.text(0.5, 0.5, "nothing yet", transform=axes.transAxes, ha="center", color="#999999")
            axes.tick_params(labelleft=False, labelbottom=False)
    _save(figure, path)


def plot_growth(growth: dict[str, list[dict[str, float]]], path: str | os.PathLike) -> None:
    """Draws the milliseconds for each image against batch, resolution and kernel size.

    Args:
        growth: By axis, lines with `value` and `milliseconds_per_image`.
        path: PNG to write.
    """
    figure = _figure(4.2 * len(growth), 3.7)
    for axes, (name, lines) in zip(figure.subplots(1, len(growth), squeeze=False)[0], growth.items(), strict=True):
        axes.plot(_column(lines, "value"), _column(lines, "milliseconds_per_image"), color=EVAL_COLOR, marker="o")
        axes.set_title("ms of training for each image")
        axes.set_xlabel({"resolution": "side of the images, px", "kernel": "side of the kernels"}.get(name, name))
        axes.set_ylim(bottom=0)
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
    _save(figure, path)


def plot_confusion_matrix(
    matrix: Sequence[Sequence[int]] | np.ndarray, class_names: Sequence[str], path: str | os.PathLike
) -> None:
    """Draws counts in cells coloured by their share of the row: recall in green, mistakes in orange up to a half.

    Args:
        matrix: (C, C) counts, rows are the truth.
        class_names: C names.
        path: PNG to write.
    """
    matrix, count = np.asarray(matrix), len(class_names)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    counted = count <= LARGEST_MATRIX_WITH_COUNTS
    side = max((0.56 if counted else 0.2) * count, 2.4) + 0.4 + 0.085 * max(map(len, class_names))
    figure = _figure(side + 0.4, side)
    axes = figure.subplots()
    diagonal = np.eye(count, dtype=bool)
    axes.imshow(np.ma.array(shares, mask=diagonal | (matrix == 0)), cmap="Oranges", vmin=0, vmax=0.5)
    axes.imshow(np.ma.array(shares, mask=~diagonal), cmap="Greens", vmin=0, vmax=1)
    totals = matrix.sum(1).tolist()
    rows = [f"{name}  ({total:,})" for name, total in zip(class_names, totals, strict=True)]
    axes.set_xticks(range(count), class_names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), rows)
    axes.set_xlabel("answer of the model")
    axes.set_ylabel("truth (images)")
    correct, total = int(np.trace(matrix)), sum(totals)
    axes.set_title(f"{correct:,} of {total:,} images right: {100 * correct / max(total, 1):.1f} %", loc="left")
    axes.spines[:].set_color("#dddddd")
    axes.tick_params(which="both", length=0)
    if counted:
        axes.set_xticks(np.arange(1, count) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, count) - 0.5, minor=True)
        axes.grid(which="minor", color="#dddddd", linewidth=0.6)
        _write_counts(axes, matrix, shares)
    _save(figure, path)


def plot_erf(scores: dict[str, np.ndarray], rows: Sequence[dict[str, Any]], path: str | os.PathLike) -> None:
    """Draws effective receptive fields side by side, with the squares of the area ratios, and the ratios as lines.

    Args:
        scores: By model, (H, W) contribution scores, not negative.
        rows: `model`, `threshold`, `side` and `area_ratio`.
        path: PNG to write.
    """
    from matplotlib.patches import Rectangle

    names = [*scores]
    columns = min(4, len(names))
    height = -(-len(names) // columns)
    figure = _figure(3.3 * columns + 3.6, 3.5 * height + 0.4)
    maps, lines = figure.subfigures(1, 2, width_ratios=[3.3 * columns, 3.6])
    grid = maps.subplots(height, columns, squeeze=False).ravel()
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    axes_of_lines = lines.subplots()
    for number, (name, axes) in enumerate(zip(names, grid, strict=False)):
        scaled = np.log10(scores[name] + 1)
        image = axes.imshow(scaled / scaled.max(), cmap="YlGn", vmin=0, vmax=1, interpolation="nearest")
        pixels = scores[name].shape[0]
        own = sorted((row for row in rows if row["model"] == name), key=lambda row: row["threshold"])
        for row in own:
            start = pixels // 2 - row["side"] // 2 - 0.5
            axes.add_patch(
                Rectangle((start, start), row["side"], row["side"], fill=False, edgecolor=TRAIN_COLOR, linewidth=1.1)
            )
            if row["side"] > 0.12 * pixels:
                axes.text(
                    start + 0.012 * pixels, start + 0.015 * pixels, f"{row['threshold']:.0%}",
                    ha="left", va="top", fontsize=6.5, color=INK,
                )  # fmt: skip
        axes.set(xlim=(-0.02 * pixels, 1.02 * pixels), ylim=(1.02 * pixels, -0.02 * pixels))
        axes.set_title(name, fontsize=10, color=INK)
        axes.set_xlabel(f"{pixels}×{pixels} pixels", fontsize=7, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes_of_lines.plot(
            [100 * row["threshold"] for row in own], [100 * row["area_ratio"] for row in own],
            marker="o", markersize=4, color=_SERIES[number % len(_SERIES)], label=name,
        )  # fmt: skip
    maps.colorbar(image, ax=list(grid), orientation="horizontal", shrink=0.4, aspect=40, pad=0.02).set_label(
        "contribution, log10(score + 1), largest = 1", fontsize=7, color=INK
    )
    axes_of_lines.plot([0, 100], [0, 100], color="#999999", linewidth=0.8, linestyle=":", label="all pixels alike")
    axes_of_lines.set_title("Area that holds a share of the contribution", fontsize=9, color=INK)
    axes_of_lines.set_xlabel("share of the contribution", fontsize=8)
    axes_of_lines.set_xticks([100 * row["threshold"] for row in own])
    axes_of_lines.xaxis.set_major_formatter("{x:g} %")
    axes_of_lines.yaxis.set_major_formatter("{x:g} %")
    axes_of_lines.tick_params(labelsize=8)
    axes_of_lines.set(xlim=(8, 103), ylim=(0, 103))
    axes_of_lines.legend(frameon=False, fontsize=7, loc="upper left")
    _tidy(axes_of_lines)
    _save(figure, path)


def plot_saliency(
    image: Any, saliency: np.ndarray, overlay: Any, path: str | os.PathLike, *, title: str, subtitle: str = ""
) -> None:
    """Draws an image, where the model looked, and both together.

    Args:
        image: PIL image or (H, W, 3) of 8 bits.
        saliency: (h, w) from 0 to 1.
        overlay: As `image`.
        path: PNG to write.
        title: The answer of the model.
        subtitle: A second line.
    """
    figure = _figure(8.6, 3.3)
    figure.suptitle(f"{title}\n{subtitle}".rstrip(), x=0.01, ha="left", fontsize=10, color=INK)
    left, middle, right = figure.subplots(1, 3)
    left.imshow(image)
    heat = middle.imshow(saliency, cmap=SALIENCY_COLORS, vmin=0, vmax=1, interpolation="bilinear")
    right.imshow(overlay)
    for axes, heading in ((left, "image"), (middle, "Grad-CAM"), (right, "overlay")):
        axes.set_title(heading, fontsize=8, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    bar = figure.colorbar(heat, ax=[left, middle, right], shrink=0.75, aspect=25, pad=0.01, ticks=[0, 1])
    bar.ax.set_yticklabels(["nothing", "most"], fontsize=7)
    bar.outline.set_visible(False)
    _save(figure, path)


def plot_probes(rows: Sequence[dict[str, Any]], path: str | os.PathLike, *, guess: float) -> None:
    """Draws the accuracy under each probe with its interval, beside the plain accuracy and an even guess.

    Args:
        rows: `title`, `group`, `accuracy` and `interval`; the first is the plain one.
        path: PNG to write.
        guess: Accuracy of an even guess.
    """
    figure = _figure(8.2, 0.27 * len(rows) + 1.3)
    axes = figure.subplots()
    groups = [*dict.fromkeys(row["group"] for row in rows)]
    plain, place, places = rows[0], 0.0, []
    for before, row in zip([None, *rows], rows, strict=False):
        place += 1.0 if before is None or before["group"] == row["group"] else 1.5
        places.append(place)
    for place, row in zip(places, rows, strict=True):
        low, high = row["interval"]
        color = INK if row is plain else _SERIES[(groups.index(row["group"]) - 1) % len(_SERIES)]
        axes.barh(place, 100 * row["accuracy"], height=0.72, color=color, alpha=0.75)
        axes.plot([100 * low, 100 * high], [place, place], color=INK, linewidth=1.0)
        axes.text(100 * high + 0.8, place, f"{100 * row['accuracy']:.1f}", va="center", fontsize=7, color=INK)
    axes.axvline(100 * plain["accuracy"], color=INK, linewidth=0.8, linestyle=":", label="plain")
    axes.axvline(100 * guess, color="#777777", linewidth=0.8, linestyle="--", label="an even guess")
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=7, loc="outside lower right", ncols=2)
    axes.set_yticks(places, [row["title"] for row in rows], fontsize=8)
    axes.set_ylim(places[-1] + 0.7, 0.3)
    axes.set_xlim(0, 106)
    axes.xaxis.set_major_formatter("{x:g} %")
    axes.set_title(f"Accuracy on {plain['num_examples']:,} images, altered", loc="left", fontsize=10, color=INK)
    _tidy(axes, axis="x")
    axes.tick_params(axis="y", length=0)
    _save(figure, path)


def plot_reliability(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], errors: Sequence[float], path: str | os.PathLike
) -> None:
    """Draws accuracy against stated probability, before and after temperature scaling, with the images of each bin.

    Args:
        before: Bins with `low`, `high`, `count`, `confidence` and `accuracy`.
        after: The same after scaling.
        errors: Expected calibration error before and after.
        path: PNG to write.
    """
    figure = _figure(9, 4.6)
    upper, lower = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[3.2, 1])
    for axes, counts, bins, error, name, color in zip(
        upper, lower, (before, after), errors, ("as the model says", "temperature scaled"), (TRAIN_COLOR, EVAL_COLOR),
        strict=True,
    ):  # fmt: skip
        middles = [(row["low"] + row["high"]) / 2 for row in bins]
        width = 0.92 * (bins[0]["high"] - bins[0]["low"])
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
        axes.bar(middles, _column(bins, "accuracy"), width, color=color, alpha=0.25)
        axes.plot(_column(bins, "confidence"), _column(bins, "accuracy"), color=color, marker="o", markersize=4)
        axes.set_title(f"{name}: calibration error {error:.3f}", loc="left", fontsize=10)
        axes.set_ylim(0, 1.02)
        counts.bar(middles, _column(bins, "count"), width, color=color, alpha=0.6)
        counts.set_xlabel("probability of the answer")
        for each in (axes, counts):
            each.set_xlim(0, 1)
            each.grid(color="#e6e6e6", linewidth=0.6)
            each.set_axisbelow(True)
            each.spines[["top", "right"]].set_visible(False)
    upper[0].set_ylabel("share that is right")
    lower[0].set_ylabel("images")
    _save(figure, path)


def plot_coverage_risk(curve: Sequence[dict[str, float]], not_sure: dict[str, Any], path: str | os.PathLike) -> None:
    """Draws the share of wrong answers among those that are kept, against the share kept, the surest first.

    Args:
        curve: Points with `coverage` and `risk`.
        not_sure: `target_accuracy`, and `threshold`, `coverage` and `accuracy` (None if there is no threshold).
        path: PNG to write.
    """
    figure = _figure(6.2, 4.0)
    axes = figure.subplots()
    coverage, risk = 100 * _column(curve, "coverage"), 100 * _column(curve, "risk")
    axes.plot(coverage, risk, color=EVAL_COLOR, linewidth=1.8)
    axes.fill_between(coverage, risk, color=EVAL_COLOR, alpha=0.1)
    allowed = 100 * (1 - not_sure["target_accuracy"])
    axes.axhline(allowed, color=TRAIN_COLOR, linewidth=0.9, linestyle="--")
    if not_sure["threshold"] is not None:
        at, wrong = 100 * not_sure["coverage"], 100 * (1 - not_sure["accuracy"])
        axes.plot([at], [wrong], color=TRAIN_COLOR, marker="o")
        axes.annotate(
            f"keep {at:.0f} % (probability ≥ {not_sure['threshold']:.2f})", (at, wrong),
            (-8, 10) if at > 45 else (10, -16), textcoords="offset points", ha="right" if at > 45 else "left",
            color=INK,
        )  # fmt: skip
    axes.set_xlabel("answers kept, the surest first (%)")
    axes.set_ylabel("wrong among them (%)")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, max(1.15 * float(np.nanmax(risk)), 1.4 * allowed, 1))
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def plot_contact_sheet(
    images: Sequence[Sequence[Any]],
    path: str | os.PathLike,
    *,
    title: str,
    columns: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
) -> None:
    """Draws images side by side.

    Args:
        images: Rows of as many images, each (H, W, 3) of 8 bits or a PIL image.
        path: PNG to write.
        title: Heading.
        columns: A heading for each column.
        rows: A heading for each row.
        captions: A text below each image.
    """
    height, width = len(images), len(images[0])
    below = 0.45 if captions else 0.0
    figure = _figure(1.35 * width + (1.6 if rows else 0), (1.35 + below) * height + 0.6)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", color=INK)
    grid = figure.subplots(height, width, squeeze=False)
    for y, row in enumerate(images):
        for x, image in enumerate(row):
            axes = grid[y, x]
            axes.imshow(image, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if columns and y == 0:
                axes.set_title(columns[x], fontsize=8, color=INK)
            if rows and x == 0:
                axes.set_ylabel(rows[y], rotation=0, ha="right", va="center", fontsize=8, color=INK)
            if captions:
                axes.set_xlabel(captions[y][x], fontsize=6, color=INK)
    _save(figure, path)


def _write_counts(axes: "Axes", matrix: np.ndarray, shares: np.ndarray) -> None:
    for row, column in np.argwhere(matrix > 0):
        axes.text(
            column, row, f"{matrix[row, column]:,}", ha="center", va="center", fontsize=9,
            color="white" if shares[row, column] > (0.55 if row == column else 0.35) else INK,
            fontweight="bold" if row == column else "normal",
        )  # fmt: skip


def _figure(width: float, height: float) -> "Figure":
    """A figure of so many inches, which belongs to nobody else."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def _save(figure: "Figure", path: str | os.PathLike) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.12)


def _tidy(axes: "Axes", axis: str = "both") -> None:
    axes.grid(color="#e6e6e6", linewidth=0.6, axis=axis)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _latest_by_step(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_step = {record["step"]: record for record in records}
    return [by_step[step] for step in sorted(by_step)]


def _column(records: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([record.get(key, np.nan) for record in records], dtype=float)


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean over a centred window of a fifteenth of all values: unlike a decaying mean it does not lag."""
    half = len(values) // 30
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.minimum(np.arange(len(values)) + half + 1, len(values))
    starts = np.maximum(np.arange(len(values)) - half, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
