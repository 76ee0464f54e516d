"""What helps at equal CPU time: every row of a plan, trained with each seed for so many CPU minutes, in one table.

A row of the plan is a name and the flags of `seedling-hf train` that differ from the base. How many steps fit into its
minutes is measured first, in a short run of the same flags; then it trains for those steps, so that the schedule ends
with the time, and validates once, at the last step: no best of many is chosen. CPU time is that of the training
process, on one thread; validation is not counted. Rows that `results.csv` holds already are not trained again, so that
an interrupted study goes on. `results.md` is written anew from it, every row with its command.
"""

import csv
import io
import json
import math
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
import yaml
from scipy import stats

from seedling_hf.errors import InputError
from seedling_hf.files import write_text
from seedling_hf.metrics import wilson_interval

FIELDS = [
    "plan", "row", "seed", "cpu_minutes", "steps", "pictures", "pictures_per_cpu_second", "validation_pictures",
    "right", "accuracy", "macro_f1", "loss", "command",
]  # fmt: skip
CALIBRATION_STEPS = 40  # the first ones also prepare the kernels, and are a small part of these


def read_plan(path: str | Path) -> dict:
    """A plan: `name`, `minutes` of CPU time, `seeds`, `base` flags, and `rows`, each the flags that differ.

    Raises:
        InputError: for a file that is no such plan.
    """
    try:
        plan = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"expected a plan in {path}, found none: {error}") from error
    keys = {"name": str, "minutes": (int, float), "seeds": list, "base": dict, "rows": dict}
    found = plan if isinstance(plan, dict) else {}
    bad = [key for key, kind in keys.items() if not isinstance(found.get(key), kind)]
    if bad or set(found) - set(keys):
        raise InputError(
            f"expected the keys {', '.join(keys)} in the plan {path}, found {', '.join(map(str, found)) or 'none'}; "
            f"check {', '.join(bad or sorted(set(found) - set(keys)))}"
        )
    return plan


def run_plan(plan: dict, results_file: Path, train_dir: str, work_dir: Path, *, num_jobs: int = 1) -> list[dict]:
    """Trains what the results do not hold yet, seed by seed, and writes each result as it comes.

    Args:
        plan: As `read_plan` gives it.
        results_file: CSV of the results so far; it need not exist.
        train_dir: Folder of class folders.
        work_dir: Folder for the runs.
        num_jobs: Runs at a time, each on one thread.

    Returns:
        All results, those of other plans too.

    Raises:
        InputError: with what `train` said, if a run fails.
    """
    done = read_results(results_file)
    known = {(result["plan"], result["row"], result["seed"]) for result in done}
    wanted = [(row, seed) for seed in plan["seeds"] for row in plan["rows"] if (plan["name"], row, seed) not in known]
    work_dir.mkdir(parents=True, exist_ok=True)
    lock = Lock()

    def work(item: tuple[str, int]) -> None:
        result = train_row(plan, *item, train_dir, work_dir)
        with lock:
            done.append(result)
            write_results(results_file, done)
            print(f"{result['row']}, seed {result['seed']}: {result['accuracy']:.2%}", flush=True)

    with ThreadPoolExecutor(num_jobs) as pool:
        list(pool.map(work, wanted))
    return done


def flags_of(plan: dict, row: str, seed: int) -> list[str]:
    """The flags of `train` that a row stands for; null in the row takes a flag of the base away."""
    values = {**plan["base"], **(plan["rows"][row] or {}), "seed": seed}
    flags = []
    for name, value in values.items():
        if value is True:
            flags.append(f"--{name}")
        elif value is not None and value is not False:
            flags += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return flags


def train_row(plan: dict, row: str, seed: int, train_dir: str, work_dir: Path) -> dict:
    """Measures how many steps fit into the plan's minutes, trains for as many, and says how it ended."""
    folder = work_dir / "".join(c if c.isalnum() else "_" for c in f"{plan['name']} {row} {seed}")
    flags = ["--train_dir", train_dir, *flags_of(plan, row, seed)]
    cost = _cpu_seconds_of_a_step(flags, folder)
    values = {**plan["base"], **(plan["rows"][row] or {})}
    if values.get("image_size_start"):
        last = _cpu_seconds_of_a_step([*flags, "--image_size_start", str(values["image_size"])], folder)
        cost = 2 / 3 * (cost + last) / 2 + last / 3  # pictures grow over two thirds of the passes
    steps = max(1, int(plan["minutes"] * 60 / cost))
    flags += ["--max_steps", str(steps), "--eval_steps", str(steps), "--save_steps", str(steps)]
    _train([*flags, "--output_dir", str(folder)])
    timing = json.loads((folder / "train_results.json").read_text())
    report = json.loads((folder / "report.json").read_text())
    count = report["num_examples"]
    pictures = round(timing["train_samples_per_second"] * timing["train_runtime"])
    return {
        "plan": plan["name"], "row": row, "seed": seed, "cpu_minutes": timing["train_cpu_time"] / 60, "steps": steps,
        "pictures": pictures, "pictures_per_cpu_second": pictures / timing["train_cpu_time"],
        "validation_pictures": count, "right": round(report["accuracy"] * count), "accuracy": report["accuracy"],
        "macro_f1": report["macro_f1"], "loss": timing["best_loss"],
        "command": shlex.join(["seedling-hf", "train", *flags]).replace(shlex.quote(train_dir), "seedlings"),
    }  # fmt: skip


def _cpu_seconds_of_a_step(flags: list[str], folder: Path) -> float:
    folder = Path(f"{folder}_calibration")
    short = ["--max_steps", str(CALIBRATION_STEPS), "--eval_steps", "1000000", "--max_eval_samples", "12"]
    _train([*flags, *short, "--output_dir", str(folder)])
    return json.loads((folder / "train_results.json").read_text())["train_cpu_time"] / CALIBRATION_STEPS


def _train(flags: list[str]) -> None:
    code = "import sys; from seedling_hf.commands import main; sys.exit(main())"
    # One thread each: two runs at a time give more than one run on two threads, and CPU time means the same for all.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    flags = [*flags, "--overwrite_output_dir"]
    done = subprocess.run(
        [sys.executable, "-c", code, "train", *flags], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise InputError(f"expected a run, found that it ended with {done.returncode}: {done.stderr[-2000:]}")


def read_results(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {k: v if k in ("plan", "row", "command") else json.loads(v) for k, v in row.items()}
            for row in csv.DictReader(file)
        ]


def write_results(path: Path, results: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in results)
    write_text(path, text.getvalue())


def interval_of(rows: list[dict]) -> tuple[float, float]:
    """The 95 % interval of the mean accuracy: Student's over three seeds or more, else Wilson's over the pictures."""
    accuracies = [row["accuracy"] for row in rows]
    if len(rows) < 3:
        return wilson_interval(sum(r["right"] for r in rows), sum(r["validation_pictures"] for r in rows))
    half = stats.t.ppf(0.975, len(rows) - 1) * np.std(accuracies, ddof=1) / math.sqrt(len(rows))
    return float(np.mean(accuracies) - half), float(np.mean(accuracies) + half)


def format_results(results: list[dict]) -> str:
    """One table a plan, the best row first, and the command of the first seed of every row."""
    blocks = ["# What helps at equal CPU time", __doc__.split("\n\n", 1)[1].strip()]
    for plan in dict.fromkeys(r["plan"] for r in results):
        groups: dict[str, list[dict]] = {}
        for result in results:
            if result["plan"] == plan:
                groups.setdefault(result["row"], []).append(result)
        order = sorted(groups.items(), key=lambda item: -np.mean([r["accuracy"] for r in item[1]]))
        lines = [
            "| row | seeds | accuracy | 95 % | macro-F1 | pictures | pictures / CPU s | CPU min |",
            "|:--|--:|--:|:--|--:|--:|--:|--:|",
        ]
        for row, rows in order:
            low, high = interval_of(rows)
            mean = {k: float(np.mean([r[k] for r in rows])) for k in FIELDS[3:] if k != "command"}
            lines.append(
                f"| {row} | {len(rows)} | {mean['accuracy']:.1%} | {low:.1%} to {high:.1%} | {mean['macro_f1']:.3f} | "
                f"{mean['pictures']:,.0f} | {mean['pictures_per_cpu_second']:.1f} | {mean['cpu_minutes']:.1f} |"
            )
        commands = [f"- {row}: `{rows[0]['command']}`" for row, rows in order]
        blocks += [f"## {plan}", "\n".join(lines), "\n".join(commands)]
    return "\n\n".join(blocks) + "\n"
