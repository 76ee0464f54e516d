"""Trains every row of a plan with each seed, for an equal number of CPU minutes; `results` says how."""

import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
import yaml
from results import describe_right, read_results, write_results

from seedling_hf.errors import InputError
from seedling_hf.files import write_text
from seedling_hf.progress import follow

CALIBRATION_STEPS = 40  # so many that the first ones, which also prepare the kernels, hardly matter
# Flags that change what is learned but not how long a step takes: rows that differ only by them share a measurement.
FREE_FLAGS = (
    "learning_rate", "weight_decay", "warmup_ratio", "label_smoothing_factor", "drop_path_rate", "mixup_prob",
    "min_crop_scale", "crop_pct", "color_jitter",
)  # fmt: skip


def read_plan(path: str | Path) -> dict:
    """A plan: `name`, `minutes` of CPU time, `seeds`, `base` flags, `rows` of the flags that differ, and optionally
    `evaluations`.

    Raises:
        InputError: for a file that is not a plan.
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
            or evaluation.get("combine", "predictions") not in ("predictions", "weights")
        ):
            raise InputError(
                f"expected a row of the plan with `symmetries: true`, `combine: predictions` or `combine: weights` for "
                f"the evaluation {name} in {path}, found {evaluation}"
            )
    return plan


def run_plan(plan: dict, results_file: Path, train_dir: str, work_dir: Path, *, num_jobs: int = 1) -> list[dict]:
    """Trains what the results lack, seed by seed, and writes each result at once.

    Args:
        plan: As `read_plan` gives it.
        results_file: CSV of the results so far; it may not exist yet.
        train_dir: Folder of class folders.
        work_dir: Folder for the runs.
        num_jobs: Runs at a time, each on one thread.

    Returns:
        All results, including those of other plans.

    Raises:
        InputError: with the error of `train`, if a run fails.
    """
    done = read_results(results_file)
    known = {(result["plan"], result["row"], result["seed"]) for result in done}
    wanted = [(row, seed) for seed in plan["seeds"] for row in plan["rows"] if (plan["name"], row, seed) not in known]
    lock, measuring = Lock(), Lock()

    def work(item: tuple[str, int]) -> None:
        row, seed = item
        with measuring:  # not before, since its teachers are earlier rows; and once for all seeds
            costs = measure_costs({**plan, "rows": {row: plan["rows"][row]}}, results_file, train_dir, work_dir)
        result = train_row(plan, row, seed, train_dir, work_dir, costs[row])
        with lock:
            done.append(result)
            write_results(results_file, done)
            print(f"{result['row']}, seed {result['seed']}: {result['accuracy']:.2%}", flush=True)

    with ThreadPoolExecutor(num_jobs) as pool:
        list(follow(pool.map(work, wanted), "training", len(wanted), unit="run"))
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
                print(f"{name}: skipped, there is no model in {', '.join(missing)}", flush=True)
                continue
            done.append({**evaluate_again(evaluation, members, folders, train_dir), "row": name})
            write_results(results_file, done)
            print(f"{name}, seed {seeds[0]}: {done[-1]['accuracy']:.2%}", flush=True)
    return done


def flags_of(plan: dict, row: str, seed: int | None, work_dir: Path) -> list[str]:
    """The flags of `train` for a row; null in the row removes a flag of the base.

    In texts, `{runs}` stands for the folder of the runs and `{seed}` for the seed.
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
    """The CPU seconds of a step of each row, on one thread; costs that are kept beside the results are not measured.

    Args:
        plan: As `read_plan` gives it.
        results_file: CSV of the results; the costs are kept beside it.
        train_dir: Folder of class folders.
        work_dir: Folder for the short runs.
        num_jobs: Runs at a time, each on one thread.
        again: Measure kept costs too, and keep the smaller: what disturbs a machine only adds time.

    Raises:
        InputError: with the error of `train`, if a run fails.
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
        # Without a GPU, since CPU time is to be equal.
        _train([*flags, *short, *more, "--output_dir", str(folder)], CUDA_VISIBLE_DEVICES="")
        return json.loads((folder / "train_results.json").read_text())["train_cpu_time"] / CALIBRATION_STEPS

    first = cost()
    if not values.get("image_size_start"):
        return first
    last = cost("--image_size_start", str(values["image_size"]))
    return 2 / 3 * (first + last) / 2 + last / 3  # images grow over two thirds of the epochs


def train_row(plan: dict, row: str, seed: int, train_dir: str, work_dir: Path, cost: float) -> dict:
    """Trains a row for the plan's minutes, at `cost` CPU seconds a step, and returns its result."""
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
        **describe_right(answers["probabilities"], answers["labels"], answers["files"]),
    }  # fmt: skip


def evaluate_again(evaluation: dict, members: list[dict], folders: list[Path], train_dir: str) -> dict:
    """A result of trained models.

    Args:
        evaluation: `symmetries`, or `combine`: `predictions` or `weights`.
        members: Their results.
        folders: Their folders, all of the same split.
        train_dir: Folder of class folders.
    """
    import torch

    from seedling_hf.data.dataset import load_splits
    from seedling_hf.evaluation.metrics import classification_metrics
    from seedling_hf.inference.classifier import load_classifier
    from seedling_hf.inference.prediction import EightSymmetries, build_accelerator, build_dataloader, predict
    from seedling_hf.machine import device_name
    from seedling_hf.train_arguments import SplitArguments

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
        **describe_right(probabilities, labels, files),
    }  # fmt: skip


def _folder(plan: dict, row: str, seed: int, work_dir: Path) -> Path:
    return work_dir / "".join(c if c.isalnum() else "_" for c in f"{plan['name']} {row} {seed}")


def _train(flags: list[str], **variables: str) -> None:
    code = "import sys; from seedling_hf.commands import main; sys.exit(main())"
    # One thread each: two runs at a time do more than one run on two threads, and CPU time means the same for all.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    # Weights are compared and averaged as training leaves them.
    flags = [*flags, "--overwrite_output_dir", "--no_calibration"]
    done = subprocess.run(
        [sys.executable, "-c", code, "train", *flags], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise InputError(f"expected a run, found exit code {done.returncode}: {done.stderr[-2000:]}")
