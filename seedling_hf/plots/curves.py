"""Curves of a training run and of a benchmark."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seedling_hf.plots.style import EVAL_COLOR, INK, TRAIN_COLOR, column, new_figure, save, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_curves(records: Sequence[dict[str, Any]], path: str | os.PathLike) -> None:
    """Draws loss, accuracy and learning rate against the epoch.

    `records` are the lines of metrics.jsonl; of two lines of one kind and step, as a resumed run may write, the later
    counts.
    """
    training = _latest_by_step([r for r in records if "loss" in r])
    evaluation = _latest_by_step([r for r in records if "eval_loss" in r])
    marker = {"marker": "o", "markersize": 3} if len(evaluation) <= 40 else {}
    figure = new_figure(12.6, 3.7)
    loss, accuracy, rate = figure.subplots(1, 3)

    epochs, losses = column(training, "epoch"), column(training, "loss")
    loss.set_title("Loss")
    loss.plot(epochs, losses, color=TRAIN_COLOR, alpha=0.25, linewidth=0.8)
    loss.plot(epochs, _smooth(losses), color=TRAIN_COLOR, label="training, smoothed")
    loss.plot(column(evaluation, "epoch"), column(evaluation, "eval_loss"), color=EVAL_COLOR, label="validation",
              **marker)  # fmt: skip
    loss.legend(frameon=False)
    _draw_accuracy(accuracy, evaluation, marker)
    rate.set_title("Learning rate")
    rate.plot(epochs, column(training, "learning_rate"), color=TRAIN_COLOR)
    rate.yaxis.set_major_formatter("{x:g}")
    rate.set_ylim(bottom=0)
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        tidy(axes)
        if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
            axes.text(0.5, 0.5, "no data yet", transform=axes.transAxes, ha="center", color="#999999")
            axes.tick_params(labelleft=False, labelbottom=False)
    save(figure, path)


def _draw_accuracy(axes: "Axes", evaluation: list[dict[str, Any]], marker: dict[str, Any]) -> None:
    epochs, percent = column(evaluation, "epoch"), 100 * column(evaluation, "eval_accuracy")
    macro_f1 = 100 * column(evaluation, "eval_macro_f1")
    axes.set_title("Validation")
    axes.plot(epochs, percent, color=EVAL_COLOR, label="accuracy", **marker)
    axes.plot(epochs, macro_f1, color=EVAL_COLOR, alpha=0.5, linestyle="--", label="macro F1")
    axes.yaxis.set_major_formatter("{x:g}%")
    if np.isfinite(percent).any():
        best = int(np.nanargmax(percent))
        axes.axhline(percent[best], color=INK, linewidth=0.6, linestyle=":")
        axes.set_title(f"Validation: best accuracy {percent[best]:.1f}%, epoch {epochs[best]:.3g}")
        axes.legend(frameon=False, loc="lower right")


def plot_growth(growth: dict[str, list[dict[str, float]]], path: str | os.PathLike) -> None:
    """Draws the `milliseconds_per_image` of the rows of each axis against their `value`."""
    labels = {"batch": "batch size", "resolution": "image size, px", "kernel": "kernel size"}
    figure = new_figure(4.2 * len(growth), 3.7)
    for axes, (name, rows) in zip(figure.subplots(1, len(growth), squeeze=False)[0], growth.items(), strict=True):
        axes.plot(column(rows, "value"), column(rows, "milliseconds_per_image"), color=EVAL_COLOR, marker="o")
        axes.set_title("training step, ms per image")
        axes.set_xlabel(labels[name])
        axes.set_ylim(bottom=0)
        tidy(axes)
    save(figure, path)


def _latest_by_step(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_step = {record["step"]: record for record in records}
    return [by_step[step] for step in sorted(by_step)]


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean over a centered window of a fifteenth of all values; unlike a decaying mean it has no lag."""
    half = len(values) // 30
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.minimum(np.arange(len(values)) + half + 1, len(values))
    starts = np.maximum(np.arange(len(values)) - half, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
