"""The report: how good a classifier is on labelled images, which species it confuses, and how that was found."""

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
from seedling_hf.evaluation.calibration import (
    BOOTSTRAP_RESAMPLES,
    area_under_risk,
    bootstrap_intervals,
    calibrate,
    coverage_risk,
    cross_fit_not_sure,
    not_sure_threshold,
    thin_curve,
)
from seedling_hf.evaluation.html_report import (
    Saliency,
    describe_augmentation,
    describe_fit,
    describe_not_sure,
    describe_pair,
    percent,
    render_report,
)
from seedling_hf.evaluation.metrics import (
    CALIBRATION_BINS,
    HARD_PAIR,
    classification_metrics,
    confused_pair,
    crop_weed_costs,
)
from seedling_hf.evaluation.probing import format_probes
from seedling_hf.files import replacing, write_text
from seedling_hf.inference.classifier import list_classes
from seedling_hf.inference.prediction import EightSymmetries, build_dataloader, predict
from seedling_hf.machine import device_name
from seedling_hf.plots import plot_confusion_matrix, plot_coverage_risk, plot_probes, plot_reliability

LIBRARIES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "scikit-learn")
TOP_CONFUSIONS = 10
WORST_MISTAKES = 24
TARGET_ACCURACY = 0.95
NOT_IN_JSON = ("predictions", "probabilities")
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
    calibration: tuple[Dataset, str] | None = None,
    target_accuracy: float = TARGET_ACCURACY,
    test_time_augmentation: bool = False,
    seed: int = 42,
) -> dict[str, Any]:
    """Predicts labelled images and reports on the answers.

    Args:
        model: Classifier; its config has the class names.
        image_processor: What the images go through.
        dataset: Columns `image`, `file`, `label` (numbered as the model's classes) and `index`.
        accelerator: Shares the images out among the processes.
        batch_size: Images in a batch of one process.
        num_workers: Processes that load images, for each process.
        data_name: What the report calls the images.
        calibration: Other labelled images to fit the temperature on, and what the report calls them. Without them
            it is fitted on one half of the images and judged on the other, and the other way round.
        target_accuracy: Share of right answers that "not sure" is to leave.
        test_time_augmentation: Predict again with the mean over the eight symmetries of the square.
        seed: Of the bootstrap and of the halves.

    Returns:
        The figures of `classification_metrics`, `class_names`, `top_confusions`, `provenance` (model, data, date,
        speed, versions), `predictions` (a row for each image), `probabilities` (N, C), and
        - `bootstrap`: `accuracy` and `macro_f1` intervals, `resamples`, `seed`;
        - `calibration`: of `calibrate`, and `fitted_on`; None for a single image;
        - `coverage_risk`: `area` and `curve`;
        - `not_sure`: `target_accuracy`, `threshold` for the most probable species' probability as `predict` states it,
          `coverage`, `accuracy`, and `cross_fitted`, the last two where a threshold of one half judges the other;
        - `worst_mistakes`: rows of `predictions`, the surest mistake first;
        - `hard_pair` and `crop_weed_costs`, for the seedlings' species, else None;
        - `test_time_augmentation`: figures and seconds, None without.
        The same on every process but for the times.
    """
    model.to(accelerator.device)
    class_names = list_classes(model.config)

    def answer(model: torch.nn.Module, dataset: Dataset) -> tuple[np.ndarray, np.ndarray, list[str], float]:
        dataloader = build_dataloader(
            dataset, image_processor, accelerator, batch_size=batch_size, num_workers=num_workers
        )
        started = time.perf_counter()
        logits, index = predict(model, dataloader, accelerator)
        seconds = time.perf_counter() - started
        rows = {row["index"]: row for row in dataset.select_columns(["file", "label", "index"])}
        files = [rows[i]["file"] for i in index.tolist()]
        labels = np.array([rows[i]["label"] for i in index.tolist()])
        # In float64 a small probability does not become zero, whose logarithm is infinite.
        return logits.double().softmax(-1).numpy(), labels, files, seconds

    probabilities, labels, files, seconds = answer(model, dataset)
    figures = classification_metrics(probabilities, labels, class_names)
    matrix, confidence = figures["confusion_matrix"], probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    predictions = [
        {
            "file": file,
            "label": class_names[label],
            "prediction": class_names[row.argmax()],
            "probability": float(row.max()),
            "label_probability": float(row[label]),
        }
        for file, label, row in zip(files, labels, probabilities, strict=True)
    ]
    fitted = answer(model, calibration[0])[:2] if calibration else None
    augmented = None
    if test_time_augmentation:
        turned, _, _, turned_seconds = answer(EightSymmetries(model), dataset)
        augmented = compare_augmented(turned, probabilities, labels, class_names, turned_seconds, seconds)
    return {
        **figures,
        "class_names": class_names,
        "bootstrap": {**bootstrap_intervals(matrix, seed), "resamples": BOOTSTRAP_RESAMPLES, "seed": seed},
        "top_confusions": top_confusions(matrix, class_names),
        "hard_pair": confused_pair(matrix, class_names, HARD_PAIR),
        "crop_weed_costs": crop_weed_costs(matrix, class_names),
        "calibration": None
        if fitted is None and len(labels) < 2
        else {
            **calibrate(probabilities, labels, seed=seed, num_bins=CALIBRATION_BINS, fitted=fitted),
            "fitted_on": calibration[1] if calibration else data_name,
        },
        "coverage_risk": {
            "area": area_under_risk(confidence, correct),
            "curve": thin_curve(coverage_risk(confidence, correct)),
        },
        "not_sure": {
            "target_accuracy": target_accuracy,
            **not_sure_threshold(confidence, correct, target_accuracy),
            "cross_fitted": cross_fit_not_sure(confidence, correct, target_accuracy, seed) if len(labels) > 1 else None,
        },
        "test_time_augmentation": augmented,
        "worst_mistakes": worst_mistakes(predictions),
        "provenance": {
            "model": model.name_or_path or type(model).__name__,
            "architecture": type(model).__name__,
            "num_parameters": sum(p.numel() for p in model.parameters()),
            "data": data_name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 2),
            "images_per_second": round(len(labels) / seconds, 1),
            "device": device_name(accelerator.device),
            "num_processes": accelerator.num_processes,
            "mixed_precision": accelerator.mixed_precision,
            "versions": {
                "seedling_hf": __version__,
                "python": platform.python_version(),
                **{name: version(name) for name in LIBRARIES},
            },
        },
        "predictions": predictions,
        "probabilities": probabilities,
    }


def worst_mistakes(predictions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows whose answer is wrong, the surest first."""
    mistakes = [row for row in predictions if row["label"] != row["prediction"]]
    return sorted(mistakes, key=lambda row: (-row["probability"], row["file"]))[:WORST_MISTAKES]


def compare_augmented(
    augmented: np.ndarray,
    plain: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    seconds: float,
    plain_seconds: float,
) -> dict[str, Any]:
    """What test-time augmentation gains and costs.

    Args:
        augmented: (N, C) probabilities with it.
        plain: (N, C) probabilities without.
        labels: (N,) true classes.
        class_names: C names.
        seconds: Time with it.
        plain_seconds: Time without.

    Returns:
        `accuracy`, `macro_f1`, `loss`, `expected_calibration_error`; `accuracy_gain` and `macro_f1_gain`; `mended` and
        `spoilt`, the images whose answer became right or wrong; `seconds`, `plain_seconds` and their ratio `cost`.
    """
    figures, before = (classification_metrics(p, labels, class_names) for p in (augmented, plain))
    right, was_right = augmented.argmax(1) == labels, plain.argmax(1) == labels
    return {
        **{name: figures[name] for name in ("accuracy", "macro_f1", "loss", "expected_calibration_error")},
        "accuracy_gain": figures["accuracy"] - before["accuracy"],
        "macro_f1_gain": figures["macro_f1"] - before["macro_f1"],
        "mended": int((right & ~was_right).sum()),
        "spoilt": int((~right & was_right).sum()),
        "seconds": round(seconds, 2),
        "plain_seconds": round(plain_seconds, 2),
        "cost": round(seconds / plain_seconds, 2),
    }


def top_confusions(matrix: Sequence[Sequence[int]], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The most frequent mistakes: `label`, `prediction`, `count`, and `share` of the label's images."""
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


def write_report(
    report: dict[str, Any],
    output_dir: str | os.PathLike,
    dataset: Dataset | None = None,
    saliency: Saliency | None = None,
) -> None:
    """Writes report.html, report.md, report.json, predictions.csv, probabilities.npz and figures, each whole or not.

    probabilities.npz (`probabilities` in float64, `labels`, `files`, `class_names`) gives back every figure of the
    report; predictions.csv those without temperature.

    Args:
        report: Of `evaluate_model`.
        output_dir: Folder to write to.
        dataset: The images, for the gallery of report.html.
        saliency: What makes of images and the species that were answered as many overlays that show why.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    plot_confusion_matrix(report["confusion_matrix"], report["class_names"], output_dir / "confusion_matrix.png")
    calibration = report["calibration"]
    if calibration:
        before, after = calibration["before"], calibration["after"]
        errors = [part["expected_calibration_error"] for part in (before, after)]
        plot_reliability(before["bins"], after["bins"], errors, output_dir / "reliability.png")
    plot_coverage_risk(report["coverage_risk"]["curve"], report["not_sure"], output_dir / "coverage_risk.png")
    if "probing" in report:
        plot_probes(report["probing"]["probes"], output_dir / "probes.png", guess=report["probing"]["guess"])

    predictions = output_dir / "predictions.csv"
    with replacing(predictions) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, report["predictions"][0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(report["predictions"])
    with replacing(output_dir / "probabilities.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            probabilities=report["probabilities"],
            labels=np.array([report["class_names"].index(row["label"]) for row in report["predictions"]]),
            files=np.array([row["file"] for row in report["predictions"]]),
            class_names=np.array(report["class_names"]),
        )

    figures = {key: value for key, value in report.items() if key not in NOT_IN_JSON}
    write_text(output_dir / "report.html", render_report(report, output_dir, dataset, saliency))
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
        f"  {'species':<{width}}  precision   recall      F1  images",
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
        "| species | precision | recall | F1 | images |",
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
            "| truth | taken for | images |",
            "|:--|:--|:--|",
            *(
                f"| {_cell(c['label'])} | {_cell(c['prediction'])} | {_confusion(report, c)} |"
                for c in report["top_confusions"]
            ),
            "",
        ]
    else:
        lines += ["No image was taken for another species.", ""]
    if len(report["class_names"]) <= LARGEST_TEXT_MATRIX:
        matrix = format_confusion_matrix(report["confusion_matrix"], report["class_names"])
        lines += ["The same in text: rows are the truth, columns the answers.", "", "```text", matrix, "```", ""]
    lines += [
        *_trust_sections(report),
        *_cost_section(report),
        *_augmentation_section(report),
        *_probing_section(report),
    ]
    lines += [
        "## How this was made",
        "",
        f"- Model: {provenance['model']} ({provenance['architecture']}, {provenance['num_parameters']:,} parameters "
        "as evaluated)",
        f"- Images: {provenance['data']}; the answer to each is in predictions.csv",
        f"- {provenance['date']}: {provenance['seconds']} s ({provenance['images_per_second']} images a second) on "
        f"{provenance['device']}, {provenance['num_processes']} process"
        f"{'es' if provenance['num_processes'] > 1 else ''}, mixed precision: {provenance['mixed_precision']}",
        f"- Versions: {', '.join(f'{name} {number}' for name, number in provenance['versions'].items())}",
        "- The first interval of the accuracy is Wilson's of 95 %, the others are those of the bootstrap "
        f"({report['bootstrap']['resamples']:,} resamples, seed {report['bootstrap']['seed']}): how far chance in the "
        "choice of these images may have moved the figures. Macro-F1 is the mean of the species' F1. Calibration "
        "error: by how much the model's probability for its answers is off on average, over 15 bins (arXiv "
        "1706.04599). Loss: mean negative log-probability of the truth.",
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
            f"{correct:,} of {report['num_examples']:,} images; 95% interval {low:.1%} to {high:.1%}, "
            f"bootstrap {_interval(report['bootstrap']['accuracy'], '.1%')}",
        ),
        (
            "macro-F1",
            f"{report['macro_f1']:.3f}",
            f"95% interval, bootstrap {_interval(report['bootstrap']['macro_f1'], '.3f')}",
        ),
        (
            "calibration error",
            f"{report['expected_calibration_error']:.3f}",
            "0 where probabilities can be taken at their word",
        ),
        ("loss", f"{report['loss']:.3f}", f"an even guess gives {np.log(len(report['class_names'])):.3f}"),
    ]


def _trust_sections(report: dict[str, Any]) -> list[str]:
    lines = []
    if report["calibration"]:
        calibration = report["calibration"]
        rows = (("as the model says", calibration["before"]), ("temperature scaled", calibration["after"]))
        lines += [
            "## Can its probabilities be believed?",
            "",
            "![Share of right answers against the stated probability, before and after scaling](reliability.png)",
            "",
            "| probabilities | calibration error | loss |",
            "|:--|--:|--:|",
            *(f"| {name} | {part['expected_calibration_error']:.3f} | {part['loss']:.3f} |" for name, part in rows),
            "",
            describe_fit(calibration),
            "",
        ]
    return [
        *lines,
        "## When to say that it is not sure",
        "",
        "![Share of wrong answers among those kept, against the share kept](coverage_risk.png)",
        "",
        describe_not_sure(report["not_sure"]),
        "",
        "## The worst mistakes",
        "",
        *(_mistake_table(report["worst_mistakes"]) or ["There is no mistake."]),
        "",
    ]


def _mistake_table(mistakes: Sequence[dict[str, Any]]) -> list[str]:
    if not mistakes:
        return []
    return [
        "| image | truth | answer | its probability | the truth's |",
        "|:--|:--|:--|--:|--:|",
        *(
            f"| {_cell(m['file'])} | {_cell(m['label'])} | {_cell(m['prediction'])} | {percent(m['probability'])} "
            f"| {percent(m['label_probability'])} |"
            for m in mistakes
        ),
    ]


def _cost_section(report: dict[str, Any]) -> list[str]:
    costs, pair = report["crop_weed_costs"], report["hard_pair"]
    lines = []
    if pair:
        lines += ["## The hard pair", "", describe_pair(pair), ""]
    if costs:
        lines += [
            "## Crop or weed",
            "",
            "| mistake | images | 95% interval |",
            "|:--|--:|--:|",
            *(
                f"| {name} | {cost['count']:,} of {cost['total']:,} ({cost['share']:.1%}) "
                f"| {_interval(cost['interval'], '.1%')} |"
                for name, cost in (
                    ("a crop taken for a weed", costs["crops_lost"]),
                    ("a weed taken for a crop", costs["weeds_missed"]),
                )
            ),
            "",
            f"Crop against weed alone, {costs['accuracy']:.1%} of the answers are right.",
            "",
        ]
    return lines


def _probing_section(report: dict[str, Any]) -> list[str]:
    if "probing" not in report:
        return []
    return [
        "## What it relies on",
        "",
        format_probes(report["probing"]),
        "",
        "![Accuracy on altered images](probes.png)",
        "",
    ]


def _augmentation_section(report: dict[str, Any]) -> list[str]:
    augmented = report["test_time_augmentation"]
    if not augmented:
        return []
    return [
        "## Test-time augmentation",
        "",
        "| | plain | eight symmetries |",
        "|:--|--:|--:|",
        f"| accuracy | {report['accuracy']:.1%} | {augmented['accuracy']:.1%} |",
        f"| macro-F1 | {report['macro_f1']:.3f} | {augmented['macro_f1']:.3f} |",
        f"| calibration error | {report['expected_calibration_error']:.3f} "
        f"| {augmented['expected_calibration_error']:.3f} |",
        f"| loss | {report['loss']:.3f} | {augmented['loss']:.3f} |",
        f"| seconds | {augmented['plain_seconds']} | {augmented['seconds']} |",
        "",
        describe_augmentation(augmented),
        "",
    ]


def _interval(interval: Sequence[float], form: str) -> str:
    low, high = interval
    return f"{low:{form}} to {high:{form}}"


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
