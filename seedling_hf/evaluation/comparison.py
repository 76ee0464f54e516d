"""Several classifiers on the same images: who is better, whether it is chance, and where they differ."""

import csv
import json
import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from seedling_hf.errors import InputError
from seedling_hf.evaluation.html_report import describe_pair_of_models, percent, render_comparison
from seedling_hf.files import replacing, write_text

SHOWN_DIFFERENCES = 48


def mcnemar_test(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """McNemar's exact test: whether two classifiers differ by more than chance on the same images.

    Only images on which one alone is right say anything, and if both were equally good each of the two would be that
    one for half of them (McNemar 1947, Psychometrika 12, p. 153; the exact form is the binomial test).

    Args:
        first: (N,) whether the first is right.
        second: (N,) whether the second is right.

    Returns:
        `only_first`, `only_second`, `both` and `neither` (images that they get right), `difference` of the accuracies
        (second less first), and the two-sided `p_value`, 1 where no image tells them apart.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    apart = only_first + only_second
    return {
        "only_first": only_first,
        "only_second": only_second,
        "both": int((first & second).sum()),
        "neither": int((~first & ~second).sum()),
        "difference": (only_second - only_first) / len(first),
        "p_value": float(binomtest(only_first, apart, 0.5).pvalue) if apart else 1.0,
    }


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests at once (Holm 1979, Scandinavian Journal of Statistics 6, p. 65).

    The more pairs are compared, the sooner one looks different by chance; these hold for all of them together.
    """
    order, corrected, highest = np.argsort(p_values, kind="stable"), [0.0] * len(p_values), 0.0
    for rank, number in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[number]))
        corrected[number] = highest
    return corrected


def compare_models(names: Sequence[str], reports: Sequence[dict[str, Any]], data_name: str) -> dict[str, Any]:
    """Puts reports of `evaluate_model` about the same images side by side.

    Args:
        names: What to call the models, all different.
        reports: A report each.
        data_name: What to call the images.

    Returns:
        `models` (figures of each), `pairs` (`first`, `second`, what `mcnemar_test` gives, `corrected_p_value`),
        `agreement` (share of the images that all answer alike), `num_differences`, `num_telling` (those of them that
        not all get wrong), `differences` (the first of those, by how far apart the models are: `file`, `label`,
        `answers`), `answers` (the same for each image), `class_names` and `provenance`.

    Raises:
        InputError: for reports of different images or classes, or fewer than two.
    """
    if len(reports) < 2 or len(set(names)) < len(names):
        raise InputError(f"expected two or more models of different names, found {', '.join(names)}; give more folders")
    classes = reports[0]["class_names"]
    rows = [report["predictions"] for report in reports]
    truth = [(row["file"], row["label"]) for row in rows[0]]
    for name, report, own in zip(names, reports, rows, strict=True):
        if set(report["class_names"]) != set(classes):
            raise InputError(
                f"expected models of the same {len(classes)} classes, found {len(report['class_names'])} others in "
                f"{name}; compare models that were trained on the same species"
            )
        if [(row["file"], row["label"]) for row in own] != truth:
            raise InputError(f"expected answers to the same images, found others of {name}")
    right = np.array([[row["label"] == row["prediction"] for row in own] for own in rows])
    pairs = [
        {"first": names[i], "second": names[j], **mcnemar_test(right[i], right[j])}
        for i, j in combinations(range(len(names)), 2)
    ]
    for pair, p_value in zip(pairs, holm_correction([pair["p_value"] for pair in pairs]), strict=True):
        pair["corrected_p_value"] = p_value
    answers = [
        {
            "file": file,
            "label": label,
            "answers": [
                {
                    "model": name,
                    "prediction": own[number]["prediction"],
                    "probability": own[number]["probability"],
                    "label_probability": own[number]["label_probability"],
                }
                for name, own in zip(names, rows, strict=True)
            ],
        }
        for number, (file, label) in enumerate(truth)
    ]
    different = [row for row in answers if len({a["prediction"] for a in row["answers"]}) > 1]
    telling = sorted((row for row in different if _is_telling(row)), key=lambda row: (-_gap(row), row["file"]))
    return {
        "models": [_figures(name, report) for name, report in zip(names, reports, strict=True)],
        "pairs": pairs,
        "num_examples": len(truth),
        "agreement": 1 - len(different) / len(truth),
        "num_differences": len(different),
        "num_telling": len(telling),
        "differences": telling[:SHOWN_DIFFERENCES],
        "answers": answers,
        "class_names": classes,
        "provenance": {"data": data_name, **{k: reports[0]["provenance"][k] for k in ("date", "device", "versions")}},
    }


def write_comparison(comparison: dict[str, Any], dataset: Dataset, output_dir: str | os.PathLike) -> None:
    """Writes comparison.html, comparison.md, comparison.json and answers.csv, each whole or not at all."""
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    names = [model["name"] for model in comparison["models"]]
    path = output_dir / "answers.csv"
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["file", "label", *(f"{kind}: {name}" for name in names for kind in ("prediction", "probability"))]
        )
        for row in comparison["answers"]:
            own = [value for a in row["answers"] for value in (a["prediction"], a["probability"])]
            writer.writerow([row["file"], row["label"], *own])
    figures = {key: value for key, value in comparison.items() if key != "answers"}
    write_text(output_dir / "comparison.html", render_comparison(comparison, dataset))
    write_text(output_dir / "comparison.md", markdown_comparison(comparison))
    write_text(output_dir / "comparison.json", json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


def markdown_comparison(comparison: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    lines = [
        f"# {' against '.join(_cell(model['name']) for model in comparison['models'])}",
        "",
        f"On {_cell(comparison['provenance']['data'])}: {comparison['num_examples']:,} images.",
        "",
        "| model | accuracy | 95% interval | macro-F1 | 95% interval | loss | calibration error | parameters "
        "| images a second |",
        "|:--|--:|:--|--:|:--|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {_cell(m['name'])} | {m['accuracy']:.1%} | {_interval(m['accuracy_interval'], '.1%')} "
        f"| {m['macro_f1']:.3f} | {_interval(m['macro_f1_interval'], '.3f')} | {m['loss']:.3f} "
        f"| {m['expected_calibration_error']:.3f} | {m['num_parameters']:,} | {m['images_per_second']} |"
        for m in comparison["models"]
    ]
    lines += [
        "",
        "## Is it chance?",
        "",
        "| first | second | first alone right | second alone right | difference | p (McNemar, exact) "
        "| p (Holm, all pairs) |",
        "|:--|:--|--:|--:|--:|--:|--:|",
        *(
            f"| {_cell(p['first'])} | {_cell(p['second'])} | {p['only_first']:,} | {p['only_second']:,} "
            f"| {100 * p['difference']:+.1f} points | {p['p_value']:.3g} | {p['corrected_p_value']:.3g} |"
            for p in comparison["pairs"]
        ),
        "",
        *(f"- {describe_pair_of_models(pair)}" for pair in comparison["pairs"]),
        "",
        "## F1 of the species",
        "",
        f"| species | {' | '.join(_cell(m['name']) for m in comparison['models'])} |",
        f"|:--|{'--:|' * len(comparison['models'])}",
        *(
            f"| {_cell(name)} | {' | '.join(format(m['f1'][name], '.3f') for m in comparison['models'])} |"
            for name in comparison["class_names"]
        ),
        "",
        "## Where they differ",
        "",
        f"All answer {percent(comparison['agreement'])} of the images alike; {comparison['num_differences']:,} they "
        f"answer differently, {comparison['num_telling']:,} of them with one right.",
        "",
    ]
    if comparison["differences"]:
        lines += [
            f"| image | truth | {' | '.join(_cell(m['name']) for m in comparison['models'])} |",
            f"|:--|:--|{':--|' * len(comparison['models'])}",
            *(
                f"| {_cell(row['file'])} | {_cell(row['label'])} | "
                + " | ".join(f"{_cell(a['prediction'])} ({percent(a['probability'])})" for a in row["answers"])
                + " |"
                for row in comparison["differences"]
            ),
            "",
        ]
    return "\n".join(lines)


def format_comparison(comparison: dict[str, Any]) -> str:
    """The comparison for a terminal."""
    width = max(len(model["name"]) for model in comparison["models"])
    lines = [
        f"  {m['name']:<{width}}  accuracy {m['accuracy']:6.1%} ({m['accuracy_interval'][0]:.1%} to "
        f"{m['accuracy_interval'][1]:.1%})  macro-F1 {m['macro_f1']:.3f}  {m['images_per_second']} images/s"
        for m in comparison["models"]
    ]
    return "\n".join([*lines, "", *(f"  {describe_pair_of_models(pair)}" for pair in comparison["pairs"])])


def _figures(name: str, report: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        **{key: report[key] for key in ("accuracy", "macro_f1", "loss", "expected_calibration_error")},
        "accuracy_interval": report["bootstrap"]["accuracy"],
        "macro_f1_interval": report["bootstrap"]["macro_f1"],
        "f1": {species: row["f1"] for species, row in report["per_class"].items()},
        **{
            key: report["provenance"][key]
            for key in ("model", "architecture", "num_parameters", "seconds", "images_per_second")
        },
    }


def _is_telling(row: dict[str, Any]) -> bool:
    return any(answer["prediction"] == row["label"] for answer in row["answers"])


def _gap(row: dict[str, Any]) -> float:
    shares = [answer["label_probability"] for answer in row["answers"]]
    return max(shares) - min(shares)


def _interval(interval: Sequence[float], form: str) -> str:
    return f"{interval[0]:{form}} to {interval[1]:{form}}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
