"""What helps at equal CPU time.

A row of the plan is a name and the flags of `seedling-hf train` that differ from the base. The CPU time of a step is
measured first, in a short run with the same flags on one thread, including loading and augmentation; it determines how
many steps fit into the row's minutes. The row trains for those, so that the schedule ends with the time, and validates
once, at the last step: nothing is chosen as the best of many, and validation is not counted. The measurements are kept
in `results_costs.json`: since a network learns by its steps and not by the clock, the rows may then be trained
anywhere, also on a GPU, and still be compared at equal CPU time. Rows that `results.csv` already has are not trained
again, so that an interrupted study continues. `results.md` is regenerated from it, every row with its command.

A plan may also have `evaluations` of trained rows: the mean over the eight symmetries of the square (`symmetries`),
and over the seeds of a row the mean of the `predictions` or of the `weights` (`combine`; a soup, Wortsman et al., arXiv
2203.05482). They count the time of everything that they combine.

Every result records which images were right, so that any two are compared on the same images: `against base` counts
those that only the row and only the base gets right, with the p of McNemar's exact test, for each seed.
"""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
from scipy import stats

from seedling_hf.evaluation.comparison import mcnemar_test
from seedling_hf.evaluation.metrics import wilson_interval
from seedling_hf.files import write_text

FIELDS = [
    "plan", "row", "seed", "cpu_minutes", "steps", "images", "images_per_cpu_second", "validation_images",
    "right", "accuracy", "macro_f1", "loss", "device", "command", "right_images",
]  # fmt: skip
TEXTS = ("plan", "row", "device", "command", "right_images")


def read_results(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [{k: v if k in TEXTS else json.loads(v) for k, v in row.items()} for row in csv.DictReader(file)]


def write_results(path: Path, results: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in results)
    write_text(path, text.getvalue())


def interval_of(rows: list[dict]) -> tuple[float, float]:
    """The 95% interval of the mean accuracy: Student's over three seeds or more, else Wilson's over the images."""
    accuracies = [row["accuracy"] for row in rows]
    if len(rows) < 3:
        return wilson_interval(sum(r["right"] for r in rows), sum(r["validation_images"] for r in rows))
    half = stats.t.ppf(0.975, len(rows) - 1) * np.std(accuracies, ddof=1) / math.sqrt(len(rows))
    return float(np.mean(accuracies) - half), float(np.mean(accuracies) + half)


def _against(base: dict, result: dict) -> str:
    test = mcnemar_test(_bits(base), _bits(result))
    return f"+{test['only_second']} −{test['only_first']}, p {test['p_value']:.2g}"


def format_results(results: list[dict]) -> str:
    """A table for each plan, the best row first, and the command of the first seed of every row."""
    title, description = __doc__.rstrip().split(".\n\n", 1)
    blocks = [f"# {title}", description]
    for plan in dict.fromkeys(r["plan"] for r in results):
        groups: dict[str, list[dict]] = {}
        for result in results:
            if result["plan"] == plan:
                groups.setdefault(result["row"], []).append(result)
        order = sorted(groups.items(), key=lambda item: -np.mean([r["accuracy"] for r in item[1]]))
        lines = [
            "| row | seeds | accuracy | 95% | macro-F1 | against base | images | per CPU s | CPU min | device |",
            "|:--|--:|--:|:--|--:|:--|--:|--:|--:|:--|",
        ]
        base = {r["seed"]: r for r in groups.get("base", [])}
        for row, rows in order:
            low, high = interval_of(rows)
            mean = {k: float(np.mean([r[k] for r in rows])) for k in FIELDS[3:-3]}
            lines.append(
                f"| {row} | {len(rows)} | {mean['accuracy']:.1%} | {low:.1%} to {high:.1%} | {mean['macro_f1']:.3f} | "
                f"{'; '.join(_against(base[r['seed']], r) for r in rows if r['seed'] in base and row != 'base')} | "
                f"{mean['images']:,.0f} | {mean['images_per_cpu_second']:.1f} | {mean['cpu_minutes']:.1f} | "
                f"{', '.join(dict.fromkeys(r['device'] for r in rows))} |"
            )
        commands = [f"- {row}: `{rows[0]['command']}`" for row, rows in order]
        blocks += [f"## {plan}", "\n".join(lines), "\n".join(commands)]
    return "\n\n".join(blocks) + "\n"


def describe_right(probabilities: np.ndarray, labels: np.ndarray, files: np.ndarray) -> dict:
    """How many images are right, and which: a bit for each, in the order of their names, in hexadecimal digits."""
    right = (probabilities.argmax(1) == labels)[np.argsort(files)]
    return {
        "validation_images": len(right),
        "right": int(right.sum()),
        "right_images": np.packbits(right).tobytes().hex(),
    }


def _bits(result: dict) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(result["right_images"]), np.uint8))
    return bits[: result["validation_images"]].astype(bool)
