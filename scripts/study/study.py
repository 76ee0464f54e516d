"""What helps at equal CPU time: every row of a plan, trained with each seed for so many CPU minutes, in one table.

A row of the plan is a name and the flags of `seedling-hf train` that differ from the base. What a step of it costs on
the CPU is measured first, in a short run of the same flags on one thread, loading and augmentation among it; from that
follows how many steps fit into its minutes. It trains for those, so that the schedule ends with the time, and validates
once, at the last step: no best of many is chosen, and validation is not counted. What was measured is kept in
`results_costs.json`: since a network learns by its steps and not by the clock, the rows may then be trained anywhere,
on a GPU too, and still be compared at equal CPU time. Rows that `results.csv` holds already are not trained again, so
that an interrupted study goes on. `results.md` is written anew from it, every row with its command.

A plan may also name `evaluations` of rows that were trained: the mean over the eight symmetries of the square
(`symmetries`), and over the seeds of a row the mean of the `answers` or of the `weights` (`combine`; a soup, Wortsman
et al., arXiv 2203.05482). They take the time of all that they are made of.

Which images were right is kept with every result, so that any two are compared on the same images: `against base`
counts those that only the row and only the base has right, with the p of McNemar's exact test, for each seed.
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
from seedling_hf.evaluation.comparison import mcnemar_test
from seedling_hf.evaluation.metrics import wilson_interval
from seedling_hf.files import write_text

FIELDS = [
    "plan", "row", "seed", "cpu_minutes", "steps", "images", "images_per_cpu_second", "validation_images",
    "right", "accuracy", "macro_f1", "loss", "device", "command", "right_images",
]  # fmt: skip
WORDS = ("plan", "row", "device", "command", "right_images")
CALIBRATION_STEPS = 40  # the first ones also prepare the kernels, and are a small part of these
# Flags that change what is learned and not how long a step takes: rows that differ by them alone share a measurement.
FREE_FLAGS = (
    "learning_rate", "weight_decay", "warmup_ratio", "label_smoothing_factor", "drop_path_rate", "mixup_prob",
    "min_crop_scale", "crop_pct", "color_jitter",
)  # fmt: skip


def read_plan(path: str | Path) -> dict:
    """A plan: `name`, `minutes` of CPU time, `seeds`, `base` flags, `rows`, each the flags that differ, and perhaps
    `evaluations`.

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
    if bad or set(found) - {*keys, "evaluations"}:
        raise InputError(
            f"expected the keys {', '.join(keys)} in the plan {path}, found {', '.join(map(str, found)) or 'none'}; "
            f"check {', '.join(bad or sorted(set(found) - set(keys)))}"
        )
    plan["evaluations"] = plan.get("evaluations") or {}
    for name, evaluation in plan["evaluations"].items():
        if (
            not isinstance(evaluation, dict)
            or evaluation.get("row") not in plan["rows"]
            or set(evaluation) not in ({"row", "symmetries"}, {"row", "combine"})
            or evaluation.get("combine", "answers") not in ("answers", "weights")
        ):
            raise InputError(
                f"expected a row of the plan with `symmetries: true` or `combine: answers` or `combine: weights` for "
                f"the evaluation {name} in {path}, found {evaluation}"
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
    lock, measuring = Lock(), Lock()

    def work(item: tuple[str, int]) -> None:
        row, seed = item
        with measuring:  # when its turn comes, since its teachers are rows before it; and once for all seeds
            costs = measure_costs({**plan, "rows": {row: plan["rows"][row]}}, results_file, train_dir, work_dir)
        result = train_row(plan, row, seed, train_dir, work_dir, costs[row])
        with lock:
            done.append(result)
            write_results(results_file, done)
            print(f"{result['row']}, seed {result['seed']}: {result['accuracy']:.2%}", flush=True)

    with ThreadPoolExecutor(num_jobs) as pool:
        list(pool.map(work, wanted))
    for name, evaluation in plan["evaluations"].items():
        groups = [plan["seeds"]] if "combine" in evaluation else [[seed] for seed in plan["seeds"]]
        for seeds in groups:
            if (plan["name"], name, seeds[0]) in known:
                continue
            members = [
                r for r in done if r["plan"] == plan["name"] and r["row"] == evaluation["row"] and r["seed"] in seeds
            ]
            folders = [_folder(plan, evaluation["row"], seed, work_dir) for seed in seeds]
            missing = [str(folder) for folder in folders if not (folder / "config.json").exists()]
            if missing:
                print(f"{name}: left out, since there is no model in {', '.join(missing)}", flush=True)
                continue
            done.append({**evaluate_again(evaluation, members, folders, train_dir), "row": name})
            write_results(results_file, done)
            print(f"{name}, seed {seeds[0]}: {done[-1]['accuracy']:.2%}", flush=True)
    return done


def flags_of(plan: dict, row: str, seed: int | None, work_dir: Path) -> list[str]:
    """The flags of `train` that a row stands for; null in the row takes a flag of the base away.

    In words, `{runs}` stands for the folder of the runs and `{seed}` for the seed.
    """
    values = {**plan["base"], **(plan["rows"][row] or {}), "seed": seed}
    flags = []
    for name, value in values.items():
        if value is True:
            flags.append(f"--{name}")
        elif value is not None and value is not False:
            words = value if isinstance(value, list) else [value]
            flags += [f"--{name}", *(str(word).format(runs=work_dir, seed=seed) for word in words)]
    return flags


def measure_costs(
    plan: dict, results_file: Path, train_dir: str, work_dir: Path, *, num_jobs: int = 1, again: bool = False
) -> dict[str, float]:
    """The CPU seconds of a step of each row, on one thread; those that are kept beside the results are not measured.

    Args:
        plan: As `read_plan` gives it.
        results_file: CSV of the results; the costs are kept beside it.
        train_dir: Folder of class folders.
        work_dir: Folder for the short runs.
        num_jobs: Runs at a time, each on one thread.
        again: Measure those too that are kept; the smaller stays, since what disturbs a machine only adds time.

    Raises:
        InputError: with what `train` said, if a run fails.
    """
    path = results_file.with_name(f"{results_file.stem}_costs.json")
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    base = {name: value for name, value in plan["base"].items() if name not in FREE_FLAGS}
    names, wanted = {}, {}
    for row, values in plan["rows"].items():
        values = {name: value for name, value in (values or {}).items() if name not in FREE_FLAGS}
        names[row] = shlex.join(flags_of({"base": base, "rows": {row: values}}, row, None, Path("outputs/study")))
        if again or names[row] not in kept:
            wanted.setdefault(names[row], row)
    work_dir.mkdir(parents=True, exist_ok=True)
    lock = Lock()

    def measure(name: str) -> None:
        cost = _cpu_seconds_of_a_step(plan, wanted[name], train_dir, work_dir)
        with lock:
            kept[name] = round(min(cost, kept.get(name, cost)), 4)
            write_text(path, json.dumps(kept, indent=1, sort_keys=True) + "\n")
            print(f"{wanted[name]}: {cost:.3f} s of CPU a step", flush=True)

    with ThreadPoolExecutor(num_jobs) as pool:
        list(pool.map(measure, wanted))
    return {row: kept[name] for row, name in names.items()}


def _cpu_seconds_of_a_step(plan: dict, row: str, train_dir: str, work_dir: Path) -> float:
    flags = ["--train_dir", train_dir, *flags_of(plan, row, plan["seeds"][0], work_dir)]
    values = {**plan["base"], **(plan["rows"][row] or {})}
    folder = Path(f"{_folder(plan, row, plan['seeds'][0], work_dir)}_cost")
    short = ["--max_steps", str(CALIBRATION_STEPS), "--eval_steps", "1000000", "--max_eval_samples", "12"]

    def cost(*more: str) -> float:
        # Without a GPU that may be there, since it is the CPU's time that is to be equal.
        _train([*flags, *short, *more, "--output_dir", str(folder)], CUDA_VISIBLE_DEVICES="")
        return json.loads((folder / "train_results.json").read_text())["train_cpu_time"] / CALIBRATION_STEPS

    first = cost()
    if not values.get("image_size_start"):
        return first
    last = cost("--image_size_start", str(values["image_size"]))
    return 2 / 3 * (first + last) / 2 + last / 3  # images grow over two thirds of the passes


def train_row(plan: dict, row: str, seed: int, train_dir: str, work_dir: Path, cost: float) -> dict:
    """Trains a row for the plan's minutes, at `cost` CPU seconds a step, and says how it ended."""
    folder = _folder(plan, row, seed, work_dir)
    steps = max(1, int(plan["minutes"] * 60 / cost))
    flags = ["--train_dir", train_dir, *flags_of(plan, row, seed, work_dir)]
    flags += ["--max_steps", str(steps), "--eval_steps", str(steps), "--save_steps", str(steps)]
    _train([*flags, "--output_dir", str(folder)])
    timing = json.loads((folder / "train_results.json").read_text())
    report = json.loads((folder / "report.json").read_text())
    answers = np.load(folder / "probabilities.npz")
    images = round(timing["train_samples_per_second"] * timing["train_runtime"])
    return {
        "plan": plan["name"], "row": row, "seed": seed, "cpu_minutes": steps * cost / 60, "steps": steps,
        "images": images, "images_per_cpu_second": images / steps / cost, "device": timing["device"],
        "accuracy": report["accuracy"], "macro_f1": report["macro_f1"], "loss": timing["best_loss"],
        "command": shlex.join(["seedling-hf", "train", *flags])
        .replace(shlex.quote(train_dir), "seedlings")
        .replace(str(work_dir), "outputs/study"),
        **_right_images(answers["probabilities"], answers["labels"], answers["files"]),
    }  # fmt: skip


def evaluate_again(evaluation: dict, members: list[dict], folders: list[Path], train_dir: str) -> dict:
    """A result of models that were trained already.

    Args:
        evaluation: `symmetries`, or `combine`: `answers` or `weights`.
        members: The results of their trainings.
        folders: Their folders, all of the same split.
        train_dir: Folder of class folders.
    """
    import torch

    from seedling_hf.arguments import SplitArguments
    from seedling_hf.data.dataset import load_splits
    from seedling_hf.evaluation.metrics import classification_metrics
    from seedling_hf.inference.classifier import load_classifier
    from seedling_hf.inference.prediction import EightSymmetries, build_accelerator, build_dataloader, predict
    from seedling_hf.machine import device_name

    validation = load_splits(SplitArguments(train_dir=train_dir, split_file=folders[0] / "split.csv"))["validation"]
    models, processors = zip(*(load_classifier(str(folder), merge=False) for folder in folders), strict=True)
    if evaluation.get("combine") == "weights":
        states = [model.state_dict() for model in models]
        models = models[:1]
        models[0].load_state_dict(
            {
                key: torch.stack([state[key].float() for state in states]).mean(0).to(states[0][key].dtype)
                for key in states[0]
            }
        )
    if evaluation.get("symmetries"):
        models = [EightSymmetries(model) for model in models]
    accelerator = build_accelerator()
    models = [model.to(accelerator.device) for model in models]
    loader = build_dataloader(validation, processors[0], accelerator, batch_size=64, num_workers=0)
    probabilities = np.mean([predict(m, loader, accelerator)[0].double().softmax(-1).numpy() for m in models], axis=0)
    labels, files = np.array(validation["label"]), np.array(validation["file"])
    metrics = classification_metrics(probabilities, labels, validation.features["label"].names)
    sums = {key: sum(member[key] for member in members) for key in ("cpu_minutes", "steps", "images")}
    what = "the eight symmetries" if evaluation.get("symmetries") else f"the {evaluation['combine']}"
    seeds = ", ".join(str(member["seed"]) for member in members)
    return {
        "plan": members[0]["plan"], "seed": members[0]["seed"], **sums,
        "images_per_cpu_second": sums["images"] / sums["cpu_minutes"] / 60,
        "device": device_name(accelerator.device),
        **{key: metrics[key] for key in ("accuracy", "macro_f1", "loss")},
        "command": f"scripts/study/run.py: the mean over {what} of {evaluation['row']}, seed {seeds}",
        **_right_images(probabilities, labels, files),
    }  # fmt: skip


def _right_images(probabilities: np.ndarray, labels: np.ndarray, files: np.ndarray) -> dict:
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


def _folder(plan: dict, row: str, seed: int, work_dir: Path) -> Path:
    return work_dir / "".join(c if c.isalnum() else "_" for c in f"{plan['name']} {row} {seed}")


def _train(flags: list[str], **variables: str) -> None:
    code = "import sys; from seedling_hf.commands import main; sys.exit(main())"
    # One thread each: two runs at a time give more than one run on two threads, and CPU time means the same for all.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
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
        return [{k: v if k in WORDS else json.loads(v) for k, v in row.items()} for row in csv.DictReader(file)]


def write_results(path: Path, results: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in results)
    write_text(path, text.getvalue())


def interval_of(rows: list[dict]) -> tuple[float, float]:
    """The 95 % interval of the mean accuracy: Student's over three seeds or more, else Wilson's over the images."""
    accuracies = [row["accuracy"] for row in rows]
    if len(rows) < 3:
        return wilson_interval(sum(r["right"] for r in rows), sum(r["validation_images"] for r in rows))
    half = stats.t.ppf(0.975, len(rows) - 1) * np.std(accuracies, ddof=1) / math.sqrt(len(rows))
    return float(np.mean(accuracies) - half), float(np.mean(accuracies) + half)


def _against(base: dict, result: dict) -> str:
    test = mcnemar_test(_bits(base), _bits(result))
    return f"+{test['only_second']} −{test['only_first']}, p {test['p_value']:.2g}"


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
            "| row | seeds | accuracy | 95 % | macro-F1 | against base | images | per CPU s | CPU min | device |",
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
