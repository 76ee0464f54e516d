"""What reports leave behind: a folder of files, and a few lines on the terminal."""

import json
import os
from collections.abc import Mapping
from dataclasses import astuple, fields
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from datasets import Dataset

from seedling_hf.data.images import a_few
from seedling_hf.escaping import one_line, pad, width_of
from seedling_hf.evaluation.comparison import Comparison
from seedling_hf.evaluation.rendering import Saliency, markdown_report, render_comparison, render_page, render_report
from seedling_hf.evaluation.report import Prediction, Report
from seedling_hf.evaluation.sentences import (
    describe_confusion,
    describe_pair_of_models,
    describe_trained_on,
    describe_training_of_models,
    headline,
)
from seedling_hf.files import write_arrays, write_csv, write_text
from seedling_hf.origin import REPORT_FILES, check_outputs
from seedling_hf.plots.quality import (
    MOST_CLASSES,
    plot_confusion_matrix,
    plot_coverage_risk,
    plot_probes,
    plot_reliability,
)

BAR_WIDTH = 20
WHOLE_WORDS = {"break_on_hyphens": False, "break_long_words": False}


def write_report(
    report: Report,
    output_dir: str | os.PathLike,
    dataset: Dataset | None = None,
    saliency: Saliency | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes report.html, report.md, report.json, predictions.csv, probabilities.npz and figures, each atomically.

    probabilities.npz (`probabilities` in float64, `labels`, `files`, `class_names`) reproduces every figure of the
    report; predictions.csv those without temperature. `dataset` and `saliency` are as for `render_report`;
    `arrays` (N, …) are added to probabilities.npz.

    Raises:
        InputError: if somebody has put another file into the place of one of them; nothing is written then.
    """
    output_dir = Path(output_dir)
    check_outputs(output_dir, REPORT_FILES, "--output_dir")
    _plot_figures(report, output_dir)
    header = [column.name for column in fields(Prediction) if report.trust or column.name != "certainty"]
    rows = (astuple(row)[: len(header)] for row in report.predictions)
    write_csv(output_dir / "predictions.csv", header, rows)
    number_of = {name: number for number, name in enumerate(report.class_names)}
    arrays = {
        **(arrays or {}),
        "probabilities": report.probabilities,
        "labels": np.array([number_of[row.label] for row in report.predictions]),
        "files": np.array([row.file for row in report.predictions]),
        "class_names": np.array(report.class_names),
    }
    write_arrays(output_dir / "probabilities.npz", arrays)
    write_text(output_dir / "report.html", render_report(report, output_dir, dataset, saliency))
    write_text(output_dir / "report.md", markdown_report(report))
    _write_json(output_dir / "report.json", report.to_json())


def write_comparison(comparison: Comparison, dataset: Dataset, output_dir: str | os.PathLike) -> None:
    """Writes comparison.html, comparison.md, comparison.json and predictions.csv, each atomically."""
    output_dir = Path(output_dir)
    columns = [f"{kind}: {model['name']}" for model in comparison.models for kind in ("prediction", "probability")]
    rows = (
        [row["file"], row["label"], *(a[kind] for a in row["predictions"] for kind in ("prediction", "probability"))]
        for row in comparison.predictions
    )
    write_csv(output_dir / "predictions.csv", ["file", "label", *columns], rows)
    write_text(output_dir / "comparison.html", render_comparison(comparison, dataset))
    write_text(output_dir / "comparison.md", render_page("comparison.md", comparison=comparison))
    _write_json(output_dir / "comparison.json", comparison.to_json())


def format_report(report: Report) -> str:
    """The report for a terminal: the figures, a line for each class with a bar of its F1, and the confusions."""
    shown = [*report.per_class.items()]
    if len(shown) > MOST_CLASSES:
        shown = sorted(shown, key=lambda item: item[1]["f1"])[:MOST_CLASSES]
    names = {name: one_line(name) for name in report.class_names}
    width = max(len("class"), *(width_of(names[name]) for name, _ in shown))
    lines = [
        one_line(f"{report.provenance.model}  on  {report.provenance.data}"),
        "",
        *(f"  {name:<17} {value:>8}   {remark}".rstrip() for name, value, remark in headline(report)),
        *_format_trained_on(report),
        *_format_folds(report),
        "",
        f"  {pad('class', width)}  precision   recall      F1    images",
    ]
    for name, row in shown:
        recall = f"{row['recall']:.1%}" if row["support"] else "–"
        lines.append(
            f"  {pad(names[name], width)}  {row['precision']:>9.1%}  {recall:>7}  {row['f1']:>6.3f}  "
            f"{row['support']:>8,}  {_bar(row['f1'])}".rstrip()
        )
    if len(shown) < len(names):
        lines.append(f"  the {len(shown)} of {len(names):,} classes with the lowest F1; report.md has all of them")
    if report.top_confusions:
        truth = max(width_of(names[c.label]) for c in report.top_confusions)
        taken = max(width_of(names[c.prediction]) for c in report.top_confusions)
        lines += ["", "  most confused"]
        lines += [
            f"  {pad(names[c.label], truth)}  taken for  {pad(names[c.prediction], taken)}  "
            f"{describe_confusion(report, c)}"
            for c in report.top_confusions
        ]
    return "\n".join(lines)


def _format_trained_on(report: Report) -> list[str]:
    if report.trained_on is None or not report.trained_on.count:
        return []
    what = "Left out" if report.trained_on.excluded else "Trained on"
    named = f"{what}: {a_few(report.trained_on.files)}; report.json lists all."
    lines = [line for text in (describe_trained_on(report), named) for line in wrap(text, 98, **WHOLE_WORDS)]
    return ["", *(f"  {line}" for line in lines)]


def _format_folds(report: Report) -> list[str]:
    if report.folds is None:
        return []
    lines = ["", "  fold   images  accuracy  95% interval       macro-F1  calibration error"]
    return lines + [
        f"  {fold.fold:>4}  {fold.num_examples:>7,}  {fold.accuracy:>8.1%}  "
        f"{'{:.1%} to {:.1%}'.format(*fold.accuracy_interval):<17}  {fold.macro_f1:>8.3f}  "
        f"{fold.expected_calibration_error:>17.3f}"
        for fold in report.folds
    ]


def format_comparison(comparison: Comparison) -> str:
    """The comparison for a terminal."""
    names = [one_line(model["name"]) for model in comparison.models]
    width = max(map(width_of, names))
    lines = [
        f"  {pad(name, width)}  accuracy {m['accuracy']:6.1%} ({m['accuracy_interval'][0]:.1%} to "
        f"{m['accuracy_interval'][1]:.1%})  macro-F1 {m['macro_f1']:.3f}  {m['images_per_second']} images/s"
        for name, m in zip(names, comparison.models, strict=True)
    ]
    sentences = [*map(describe_pair_of_models, comparison.pairs), *describe_training_of_models(comparison)]
    return "\n".join([*lines, "", *(f"  {one_line(sentence)}" for sentence in sentences)])


def _plot_figures(report: Report, output_dir: Path) -> None:
    plot_confusion_matrix(report.confusion_matrix, report.class_names, output_dir / "confusion_matrix.png")
    if report.calibration:
        before, after = report.calibration.before, report.calibration.after
        errors = [before.expected_calibration_error, after.expected_calibration_error]
        plot_reliability(before.bins, after.bins, errors, output_dir / "reliability.png")
    plot_coverage_risk(report.coverage_risk.curve, vars(report.not_sure), output_dir / "coverage_risk.png")
    if report.probing:
        plot_probes(report.probing.probes, output_dir / "probes.png", chance=report.probing.guess)


def _write_json(path: Path, figures: dict[str, Any]) -> None:
    write_text(path, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


def _bar(share: float) -> str:
    eighths = round(share * BAR_WIDTH * 8)
    return "█" * (eighths // 8) + ["", *"▏▎▍▌▋▊▉"][eighths % 8]
