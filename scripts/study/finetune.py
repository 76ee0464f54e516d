"""A few images of species that a model does not know → what fine-tuning makes of them, beside training from scratch.

Takes a model that was trained without these species. For each seed and each number of images a class, that many images
are drawn for training, with near-duplicates on one side, and all others test. Both trainings take the same number of
steps and the same batches; the model is evaluated once, after the last step, so that nothing is chosen by the test
images. Results that are in the CSV already are not measured again.

python scripts/study/finetune.py --train_dir seedlings --model_name_or_path outputs/without_two
"""

import json
import multiprocessing
import os
import random
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from seedling_hf.arguments import ArgumentGroup, option, parse_arguments
from seedling_hf.commands import run
from seedling_hf.errors import InputError
from seedling_hf.progress import follow

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["seedling_hf.training.output_dir", "matplotlib.pyplot", "sklearn.metrics", "timm.optim"])
FINE_TUNED, FROM_SCRATCH = "fine-tuned", "from scratch"


@dataclass(kw_only=True)
class FinetuneArguments(ArgumentGroup):
    """Fine-tunes on few images of species that the model was not trained on, and trains from scratch on the same."""

    train_dir: str = option("seedlings", "folder of class folders", images=True)
    model_name_or_path: str | None = option(
        None, "model trained without these species; without it only the table is printed"
    )
    classes: list[str] = option(list, "species that it does not know (default: Scentless Mayweed, Shepherds Purse)")
    counts: list[int] = option(list, "training images of each species (default: 10 20 50)", least=2)
    seeds: list[int] = option(list, "seeds of the draw and of the training (default: 0 1 2)", least=0)
    recipe: str = option("scripts/recipes/finetune.yaml", "recipe of fine-tuning", path=True)
    scratch_recipe: str = option("scripts/recipes/nano_cpu.yaml", "recipe of training from scratch", path=True)
    output_dir: str = option("outputs/finetune", "folder for the runs", writable=True)
    results_file: str = option("scripts/study/finetune.csv", "CSV of the results", path=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.classes = self.classes or ["Scentless Mayweed", "Shepherds Purse"]
        self.counts, self.seeds = self.counts or [10, 20, 50], self.seeds or [0, 1, 2]
        missing = [name for name in self.classes if not (Path(self.train_dir) / name).is_dir()]
        if self.model_name_or_path is not None and missing:
            raise InputError(f"expected the class folder {missing[0]} in {self.train_dir}, found none; check --classes")


def main(argv: Sequence[str] | None = None) -> int | None:
    """Draws → runs → table."""
    arguments = parse_arguments(FinetuneArguments, argv, prog="finetune.py")

    from results import read_results, write_results

    results_file = Path(arguments.results_file)
    results = read_results(results_file)
    if arguments.model_name_or_path is not None:
        known = {(result["row"], result["seed"]) for result in results}
        images = link_classes(arguments)
        rows, clusters = list_rows(images)
        for seed, count in follow(list(product(arguments.seeds, arguments.counts)), "training", unit="run pair"):
            steps = None
            for row in (f"{count} images, {FINE_TUNED}", f"{count} images, {FROM_SCRATCH}"):
                if (row, seed) not in known:
                    chosen = draw(rows, clusters, count, seed)
                    results.append(train_row(arguments, row, seed, images, rows, chosen, steps))
                    write_results(results_file, results)
                    known.add((row, seed))
                    print(f"{row}, seed {seed}: {results[-1]['accuracy']:.2%}", flush=True)
                steps = next(r["steps"] for r in results if (r["row"], r["seed"]) == (row, seed))
    print(format_table(results))


def link_classes(arguments: FinetuneArguments) -> Path:
    """A folder with a link to the folder of each species."""
    folder = Path(arguments.output_dir) / "images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in arguments.classes:
        (folder / name).symlink_to((Path(arguments.train_dir) / name).resolve())
    return folder


def list_rows(images: Path) -> tuple[list[tuple[str, str]], list[int]]:
    """The (file, class) of each image, and the number of its cluster of duplicates."""
    from seedling_hf.data.duplicates import cluster_duplicates
    from seedling_hf.data.folders import list_labelled_images
    from seedling_hf.data.pool import image_sources

    pool = list_labelled_images(images)
    return pool.rows, cluster_duplicates(image_sources(pool.images))


def draw(rows: Sequence[tuple[str, str]], clusters: Sequence[int], count: int, seed: int) -> set[tuple[str, str]]:
    """`count` rows of each class, in whole clusters.

    Raises:
        InputError: if a class has too few.
    """
    members: dict[int, list[tuple[str, str]]] = {}
    for row, cluster in zip(rows, clusters, strict=True):
        members.setdefault(cluster, []).append(row)
    order = [members[cluster] for cluster in sorted(members)]
    random.Random(f"{seed} {count}").shuffle(order)
    left = {label: count for _, label in rows}
    chosen: set[tuple[str, str]] = set()
    for cluster in order:
        needed = {label: sum(other == label for _, other in cluster) for _, label in cluster}
        if all(number <= left[label] for label, number in needed.items()):
            chosen |= set(cluster)
            left |= {label: left[label] - number for label, number in needed.items()}
    short = [label for label, number in left.items() if number]
    if short or len(chosen) == len(rows):
        raise InputError(f"expected more than {count} images of {short or 'each class'}, found too few; lower --counts")
    return chosen


def train_row(
    arguments: FinetuneArguments,
    row: str,
    seed: int,
    images: Path,
    rows: Sequence[tuple[str, str]],
    chosen: set[tuple[str, str]],
    steps: int | None,
) -> dict:
    """One run on the chosen images, tested on the others; from scratch it takes `steps`."""
    import numpy as np
    import yaml
    from results import describe_right

    from seedling_hf.files import write_csv

    folder = Path(arguments.output_dir) / "".join(c if c.isalnum() else "_" for c in f"{row} {seed}")
    split = Path(f"{folder}_split.csv")
    lines = [(file, label, "train" if (file, label) in chosen else "validation") for file, label in rows]
    write_csv(split, ["file", "label", "split"], lines)
    flags = ["--train_dir", str(images), "--split_file", str(split), "--seed", str(seed)]
    flags += ["--eval_steps", "1000000", "--no_duplicate_check"]
    if row.endswith(FINE_TUNED):
        flags += ["--config", arguments.recipe, "--model_name_or_path", str(arguments.model_name_or_path)]
        flags += ["--ignore_mismatched_sizes"]
    else:
        recipe = yaml.safe_load(Path(arguments.recipe).read_text(encoding="utf-8"))
        flags += ["--config", arguments.scratch_recipe, "--max_steps", str(steps)]
        flags += ["--per_device_train_batch_size", str(recipe["per_device_train_batch_size"])]
    train([*flags, "--overwrite_output_dir", "--output_dir", str(folder)], Path(f"{folder}.log"))
    timing = json.loads((folder / "train_results.json").read_text())
    report = json.loads((folder / "report.json").read_text())
    answers = np.load(folder / "probabilities.npz")
    shown = round(timing["train_samples_per_second"] * timing["train_runtime"])
    return {
        "plan": "finetune", "row": row, "seed": seed, "cpu_minutes": timing["train_cpu_time"] / 60,
        "steps": timing["step"], "images": shown,
        "images_per_cpu_second": shown / timing["train_cpu_time"], "device": timing["device"],
        "accuracy": report["accuracy"], "macro_f1": report["macro_f1"], "loss": timing["best_loss"],
        "command": shlex.join(["seedling-hf", "train", *flags])
        .replace(arguments.output_dir, "outputs/finetune")
        .replace(str(arguments.model_name_or_path), "outputs/without_two"),
        **describe_right(answers["probabilities"], answers["labels"], answers["files"]),
    }  # fmt: skip


def train(flags: list[str], log: Path) -> None:
    """One run on one thread, in a process forked from one that has the imports done; `log` gets what it prints.

    Raises:
        InputError: with the end of `log`, if it fails.
    """
    process = FORKS.Process(target=_train, args=(flags, str(log)))
    process.start()
    process.join()
    if process.exitcode:
        raise InputError(f"expected a run, found exit code {process.exitcode}: {log.read_text()[-2000:]}")


def _train(flags: list[str], log: str) -> None:
    import torch

    from seedling_hf.commands.train import main as train_main

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(output, stream.fileno())
    torch.set_num_threads(1)
    sys.exit(run(train_main, flags))


def format_table(results: Sequence[dict]) -> str:
    """A line for each number of images: the mean over the seeds, its 95% interval, and the lowest and highest."""
    groups: dict[int, dict[str, list[dict]]] = {}
    for result in results:
        count, _, kind = result["row"].partition(" images, ")
        groups.setdefault(int(count), {}).setdefault(kind, []).append(result)
    lines = [
        "| training images of each | test images | steps | fine-tuned (95% interval) | each seed | macro-F1 | "
        "from scratch (95% interval) | macro-F1 | CPU time of fine-tuning |",
        "|--:|--:|--:|--:|:-:|--:|--:|--:|--:|",
    ]
    for count, kinds in sorted(groups.items()):
        tuned = kinds[FINE_TUNED]
        accuracies = [row["accuracy"] for row in tuned]
        cells = [count, tuned[0]["validation_images"], tuned[0]["steps"], _accuracy(tuned)]
        cells += [f"{100 * min(accuracies):.1f} to {100 * max(accuracies):.1f}%", f"{_mean(tuned, 'macro_f1'):.3f}"]
        scratch = kinds.get(FROM_SCRATCH)
        cells += [_accuracy(scratch), f"{_mean(scratch, 'macro_f1'):.3f}"] if scratch else ["", ""]
        lines.append(f"| {' | '.join(map(str, cells))} | {60 * _mean(tuned, 'cpu_minutes'):.0f} s |")
    return "\n".join(lines)


def _accuracy(rows: Sequence[dict]) -> str:
    from results import interval_of

    low, high = (min(1.0, max(0.0, bound)) for bound in interval_of(list(rows)))
    return f"{100 * _mean(rows, 'accuracy'):.1f}% ({100 * low:.1f} to {100 * high:.1f})"


def _mean(rows: Sequence[dict], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


if __name__ == "__main__":
    sys.exit(run(main))
