"""The report: how good a classifier is on labelled pictures, which species it confuses, and how that was found."""

import csv
import json
import os
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf import __version__
from seedling_hf.files import replacing, write_text
from seedling_hf.metrics import classification_metrics
from seedling_hf.plots import plot_confusion_matrix
from seedling_hf.prediction import build_dataloader, predict

LIBRARIES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "scikit-learn")
TOP_CONFUSIONS = 10
LARGEST_TEXT_MATRIX = 30
BAR_WIDTH = 20


def evaluate_model(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    dataset: Dataset,
    accelerator: Accelerator,
    *,
    batch_size: int,
    num_workers: int = 0,
    data_name: str = "the validation split",
) -> dict[str, Any]:
    """Predicts labelled pictures and reports on the answers.

    Args:
        model: Classifier; its config has the class names.
        image_processor: What the pictures go through.
        dataset: Columns `image`, `file`, `label` (numbered as the model's classes) and `index`.
        accelerator: Shares the pictures out among the processes.
        batch_size: Pictures in a batch of one process.
        num_workers: Processes that load pictures, for each process.
        data_name: What the report calls the pictures.

    Returns:
        The figures of `classification_metrics`, `class_names`, `top_confusions`, `provenance` (model, data, date,
        speed, versions) and `predictions` (a row for each picture); the same on every process but for the times.
    """
    model.to(accelerator.device)
    dataloader = build_dataloader(dataset, image_processor, accelerator, batch_size=batch_size, num_workers=num_workers)
    started = time.perf_counter()
    logits, index = predict(model, dataloader, accelerator)
    seconds = time.perf_counter() - started

    class_names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    rows = {row["index"]: row for row in dataset.select_columns(["file", "label", "index"])}
    files = [rows[i]["file"] for i in index.tolist()]
    labels = np.array([rows[i]["label"] for i in index.tolist()])
    # In float64 a small probability does not become zero, whose logarithm is infinite.
    probabilities = logits.double().softmax(-1).numpy()
    figures = classification_metrics(probabilities, labels, class_names)
    return {
        **figures,
        "class_names": class_names,
        "top_confusions": top_confusions(figures["confusion_matrix"], class_names),
        "provenance": {
            "model": model.name_or_path or type(model).__name__,
            "architecture": type(model).__name__,
            "num_parameters": sum(p.numel() for p in model.parameters()),
            "data": data_name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 2),
            "images_per_second": round(len(labels) / seconds, 1),
            "device": _device_name(accelerator.device),
            "num_processes": accelerator.num_processes,
            "mixed_precision": accelerator.mixed_precision,
            "versions": {
                "seedling_hf": __version__,
                "python": platform.python_version(),
                **{name: version(name) for name in LIBRARIES},
            },
        },
        "predictions": [
            {
                "file": file,
                "label": class_names[label],
                "prediction": class_names[row.argmax()],
                "probability": float(row.max()),
                "label_probability": float(row[label]),
            }
            for file, label, row in zip(files, labels, probabilities, strict=True)
        ],
    }


def top_confusions(matrix: Sequence[Sequence[int]], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The most frequent mistakes: `label`, `prediction`, `count`, and `share` of the label's pictures."""
    matrix = np.asarray(matrix)
    mistakes = [
        {
            "label": class_names[row],
            "prediction": class_names[column],
            "count": int(matrix[row, column]),
            "share": float(matrix[row, column] / matrix[row].sum()),
        }
        for row, column in np.argwhere(matrix > 0)
        if row != column
    ]
    return sorted(mistakes, key=lambda m: (-m["count"], -m["share"]))[:TOP_CONFUSIONS]


def write_report(report: dict[str, Any], output_dir: str | os.PathLike) -> None:
    """Writes report.json, report.md, confusion_matrix.png and predictions.csv, each whole or not at all.

    The columns of predictions.csv (`probability` of the answer, `label_probability` of the truth) give back every
    figure of the report.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    plot_confusion_matrix(report["confusion_matrix"], report["class_names"], output_dir / "confusion_matrix.png")

    predictions = output_dir / "predictions.csv"
    with replacing(predictions) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, report["predictions"][0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(report["predictions"])

    figures = {key: value for key, value in report.items() if key != "predictions"}
    write_text(output_dir / "report.md", markdown_report(report))
    write_text(output_dir / "report.json", json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


def format_report(report: dict[str, Any]) -> str:
    """The report for a terminal: the figures, a line for each class with a bar of its F1, and the confusions."""
    width = max(len("species"), *map(len, report["class_names"]))
    lines = [
        f"{report['provenance']['model']}  on  {report['provenance']['data']}",
        "",
        *(f"  {name:<17} {value:>8}   {remark}".rstrip() for name, value, remark in _headline(report)),
        "",
        f"  {'species':<{width}}  precision   recall      F1  pictures",
    ]
    for name, row in report["per_class"].items():
        lines.append(
            f"  {name:<{width}}  {row['precision']:>9.1%}  {_recall(row):>7}  {row['f1']:>6.3f}  {row['support']:>8,}  "
            f"{_bar(row['f1'])}".rstrip()
        )
    if report["top_confusions"]:
        lines += ["", "  most confused"]
        label_width = max(len(c["label"]) for c in report["top_confusions"])
        answer_width = max(len(c["prediction"]) for c in report["top_confusions"])
        lines += [
            f"  {c['label']:<{label_width}}  taken for  {c['prediction']:<{answer_width}}  {_confusion(report, c)}"
            for c in report["top_confusions"]
        ]
    return "\n".join(lines)


def markdown_report(report: dict[str, Any]) -> str:
    """The report as Markdown, which shows `confusion_matrix.png` from beside it."""
    provenance = report["provenance"]
    lines = [
        f"# {provenance['model']} on {provenance['data']}",
        "",
        "| figure | value | |",
        "|:--|--:|:--|",
        *(f"| {name} | {value} | {remark} |" for name, value, remark in _headline(report)),
        "",
        "## Species",
        "",
        "| species | precision | recall | F1 | pictures |",
        "|:--|--:|--:|--:|--:|",
        *(
            f"| {_cell(name)} | {row['precision']:.1%} | {_recall(row)} | {row['f1']:.3f} | {row['support']:,} |"
            for name, row in report["per_class"].items()
        ),
        "",
        "## Confusions",
        "",
        "![Confusion matrix: rows are the truth, columns the model's answers](confusion_matrix.png)",
        "",
    ]
    if report["top_confusions"]:
        lines += [
            "| truth | taken for | pictures |",
            "|:--|:--|:--|",
            *(
                f"| {_cell(c['label'])} | {_cell(c['prediction'])} | {_confusion(report, c)} |"
                for c in report["top_confusions"]
            ),
            "",
        ]
    else:
        lines += ["No picture was taken for another species.", ""]
    if len(report["class_names"]) <= LARGEST_TEXT_MATRIX:
        matrix = format_confusion_matrix(report["confusion_matrix"], report["class_names"])
        lines += ["The same in text: rows are the truth, columns the answers.", "", "```text", matrix, "```", ""]
    lines += [
        "## How this was made",
        "",
        f"- Model: {provenance['model']} ({provenance['architecture']}, {provenance['num_parameters']:,} parameters "
        "as evaluated)",
        f"- Pictures: {provenance['data']}; the answer to each is in predictions.csv",
        f"- {provenance['date']}: {provenance['seconds']} s ({provenance['images_per_second']} pictures a second) on "
        f"{provenance['device']}, {provenance['num_processes']} process"
        f"{'es' if provenance['num_processes'] > 1 else ''}, mixed precision: {provenance['mixed_precision']}",
        f"- Versions: {', '.join(f'{name} {number}' for name, number in provenance['versions'].items())}",
        "- The interval is Wilson's of 95 %: how far chance in the choice of these pictures may have moved the "
        "accuracy. Macro-F1 is the mean of the species' F1. Calibration error: by how much the model's probability "
        "for its answers is off on average, over 15 bins (arXiv 1706.04599). Loss: mean negative log-probability of "
        "the truth.",
        "",
    ]
    return "\n".join(lines)


def format_confusion_matrix(matrix: Sequence[Sequence[int]], class_names: Sequence[str]) -> str:
    """Counts in text, rows are the truth; columns go by number, and a dot is nought."""
    numbers = range(1, len(class_names) + 1)
    name_width = max(map(len, class_names))
    cell = max(len(f"{max(map(max, matrix))}"), len(str(len(class_names)))) + 1
    number_width = len(str(len(class_names)))
    lines = [" " * (number_width + 2 + name_width) + "".join(f"{number:>{cell}}" for number in numbers)]
    for number, name, row in zip(numbers, class_names, matrix, strict=True):
        counts = "".join(f"{count or '·':>{cell}}" for count in row)
        lines.append(f"{number:>{number_width}}  {name:<{name_width}}{counts}")
    return "\n".join(lines)


def _headline(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    low, high = report["accuracy_interval"]
    correct = sum(report["confusion_matrix"][i][i] for i in range(len(report["class_names"])))
    return [
        (
            "accuracy",
            f"{report['accuracy']:.1%}",
            f"{correct:,} of {report['num_examples']:,} pictures; 95% interval {low:.1%} to {high:.1%}",
        ),
        ("macro-F1", f"{report['macro_f1']:.3f}", ""),
        (
            "calibration error",
            f"{report['expected_calibration_error']:.3f}",
            "0 where probabilities can be taken at their word",
        ),
        ("loss", f"{report['loss']:.3f}", f"an even guess gives {np.log(len(report['class_names'])):.3f}"),
    ]


def _recall(row: dict[str, Any]) -> str:
    return f"{row['recall']:.1%}" if row["support"] else "–"


def _confusion(report: dict[str, Any], confusion: dict[str, Any]) -> str:
    support = report["per_class"][confusion["label"]]["support"]
    return f"{confusion['count']:,} of {support:,} ({confusion['share']:.0%})"


def _bar(share: float) -> str:
    eighths = round(share * BAR_WIDTH * 8)
    return "█" * (eighths // 8) + ["", *"▏▎▍▌▋▊▉"][eighths % 8]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
