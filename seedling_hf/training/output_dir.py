"""The output folder of a run: prepared before it, described at its start, completed with the report at its end."""

import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from datasets import Dataset, Image

from seedling_hf.data.dataset import describe_splits
from seedling_hf.data.images import num_cores
from seedling_hf.errors import InputError
from seedling_hf.escaping import format_count
from seedling_hf.evaluation.evaluator import open_evaluator
from seedling_hf.evaluation.report import Report, evaluate_model
from seedling_hf.evaluation.report_files import format_report, write_report
from seedling_hf.hub.model_card import write_card
from seedling_hf.hub.outbox import CARD, LAST_CHECKPOINT, PUSHED, Outbox
from seedling_hf.inference.familiarity import FAMILIARITY
from seedling_hf.inference.members import fold_folder, list_folds
from seedling_hf.inference.model_files import CONFIG
from seedling_hf.inference.prediction import on_main_process
from seedling_hf.locks import lock_folder
from seedling_hf.machine import has_bfloat16_instructions, precision_name
from seedling_hf.origin import REPORT_FILES, check_outputs
from seedling_hf.plots.curves import plot_curves
from seedling_hf.signals import RESUMABLE_EXIT_CODE
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training.balance import describe_balance
from seedling_hf.training.certainty import describe_certainty, settle_certainty
from seedling_hf.training.checkpointing import (
    LATEST,
    UNSAVED_EXIT_CODE,
    discard_checkpoints,
    holds_checkpoint,
    holds_pointer,
)
from seedling_hf.training.finetuning import describe_start
from seedling_hf.training.freezing import count_trained, describe_freezing
from seedling_hf.training.loop import Training
from seedling_hf.training.precedents import Precedents, describe_final_model, settle_by_precedents
from seedling_hf.training.run_log import RESULTS
from seedling_hf.training.threads import VARIABLE

ARGUMENTS = "arguments.yaml"


def prepare_output_dir(arguments: TrainArguments, accelerator: Accelerator) -> None:
    """Makes the output folder, locks it for this run, and clears it for `--overwrite_output_dir`.

    Raises:
        InputError: if it holds another run, or one that still writes to it, or cannot be written to.
    """
    output_dir = Path(arguments.output_dir)
    holds_a_run = any(map(_holds_a_run, (output_dir, *list_folds(output_dir))))
    former = _former_folds(output_dir)
    accelerator.wait_for_everyone()  # every process has looked before the main process writes
    if holds_a_run and not (arguments.overwrite_output_dir or arguments.resume_from_checkpoint):
        raise InputError(
            f"expected a new folder for --output_dir, found a run in {output_dir}; continue it with "
            "--resume_from_checkpoint latest, or discard it with --overwrite_output_dir"
        )
    if holds_a_run and arguments.resume_from_checkpoint and former != arguments.num_folds:
        raise InputError(
            f"expected to resume {_describe_folds(former)}, as begun in {output_dir}, found "
            f"{_describe_folds(arguments.num_folds)}; give the same --fold, or another --output_dir"
        )
    clear = arguments.overwrite_output_dir and not arguments.resume_from_checkpoint
    on_main_process(accelerator, partial(_take_all, arguments, output_dir, clear))


def _holds_a_run(output_dir: Path) -> bool:
    # A run that was stopped before its first entry and its first evaluation has a checkpoint only.
    return any((output_dir / name).exists() for name in ("metrics.jsonl", CONFIG)) or holds_checkpoint(
        output_dir / "checkpoints", output_dir / LAST_CHECKPOINT
    )


def _former_folds(output_dir: Path) -> int | None:
    """How many folds the run in a folder trains one after another; None for an ordinary run."""
    try:
        fold = str(yaml.safe_load((output_dir / ARGUMENTS).read_text(encoding="utf-8"))["fold"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        return None
    _, is_all, number = fold.partition("all/")
    return int(number) if is_all and number.isdecimal() else None


def _describe_folds(number: int | None) -> str:
    return "an ordinary run" if number is None else f"--fold all/{number}"


def _take_all(arguments: TrainArguments, output_dir: Path, clear: bool) -> None:
    """Takes the folder, and those of its folds, which are locked and checked before the first of them is trained."""
    _take(output_dir, clear)
    if clear and arguments.num_folds is not None:
        _discard_model(output_dir)
    folds = [fold_folder(output_dir, number) for number in range(1, (arguments.num_folds or 0) + 1)]
    for fold in sorted({*folds, *(list_folds(output_dir) if clear else [])}):
        _take(fold, clear)
        if clear:
            _discard_model(fold)


def _discard_model(output_dir: Path) -> None:
    """Deletes what a run leaves at its end; not a card, in which the text of people stays."""
    if _holds_our_run(output_dir):
        for name in _run_files(output_dir):
            (output_dir / name).unlink()


def _take(output_dir: Path, clear: bool) -> None:
    is_ours = _holds_our_run(output_dir)
    foreign = [] if is_ours else _files_in_the_way(output_dir)
    if foreign:
        raise InputError(
            f"expected a new folder for --output_dir, or one that train has written, found {foreign[0]} in "
            f"{output_dir}, which a run would replace; choose another folder, or move it away"
        )
    check_outputs(output_dir, [*REPORT_FILES, "curves.png"], "--output_dir")
    lock_folder(output_dir)
    if clear and is_ours:
        for name in ("metrics.jsonl", RESULTS):
            (output_dir / name).unlink(missing_ok=True)
        discard_checkpoints(output_dir / "checkpoints")
        Outbox(output_dir).clear(keep=None)


def _holds_our_run(output_dir: Path) -> bool:
    """Whether a run of ours has written to the folder: its arguments, its log or a checkpoint is there."""
    return (
        _parses(output_dir / ARGUMENTS, yaml.safe_load, {"output_dir", "train_val_split", "learning_rate"})
        or _parses(output_dir / "metrics.jsonl", lambda text: json.loads(text.partition("\n")[0]), {"step", "epoch"})
        or holds_checkpoint(output_dir / "checkpoints", output_dir / LAST_CHECKPOINT)
    )


def _parses(path: Path, parse: Callable[[str], Any], keys: set[str]) -> bool:
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return False
    return isinstance(found, dict) and keys <= found.keys()


def _files_in_the_way(output_dir: Path) -> list[str]:
    pointer = output_dir / "checkpoints" / LATEST
    return _run_files(output_dir) + (
        [f"checkpoints/{LATEST}"] if pointer.exists() and not holds_pointer(pointer) else []
    )


def _run_files(output_dir: Path) -> list[str]:
    """What a run would replace; not a card, in which the text of people stays."""
    patterns = {*PUSHED, FAMILIARITY, "report.html", "probabilities.npz"} - {CARD}
    return sorted(path.name for path in output_dir.glob("*") if any(fnmatchcase(path.name, each) for each in patterns))


def report_start(training: Training) -> None:
    """Prints what the run starts from: its images, those that are in both splits, and its size."""
    arguments, splits = training.arguments, training.splits
    if not arguments.resume_from_checkpoint:  # else once the checkpoint has shown that it is the same run
        training.folder.write_start()
    if training.accelerator.is_main_process:
        print(describe_splits({"validation": splits["validation"]} if arguments.streaming else splits))
        if arguments.starts_from_shipped:
            print(describe_start(arguments, splits))
        print(describe_run(training))
        if balance := describe_balance(arguments, splits["train"]):
            print(balance)
    training.accelerator.wait_for_everyone()


def describe_run(training: Training) -> str:
    """The run in a few lines, before it starts."""
    arguments, accelerator, batches = training.arguments, training.accelerator, training.batches
    threads = hint = trained = ""
    if frozen := describe_freezing(training.learner.bare_model, arguments):
        trained = f", {count_trained(training.learner.model):,} of them trained"
        hint = f"\n{frozen}"
    if accelerator.device.type == "cpu":
        threads = f" of {format_count(torch.get_num_threads(), 'thread')}"
        share = num_cores() // accelerator.num_processes
        if torch.get_num_threads() == 1 < share and VARIABLE in os.environ:  # accelerate's default
            hint += f"\nfaster with more threads: accelerate launch --num_cpu_threads_per_process {share}"
        if accelerator.mixed_precision == "no" and arguments.mixed_precision is None and has_bfloat16_instructions():
            hint += "\nfaster on this CPU, which multiplies bfloat16 numbers itself: --mixed_precision bf16"
    return (
        f"{arguments.variant or arguments.timm_architecture or arguments.model_name_or_path or 'nano'}: "
        f"{sum(p.numel() for p in training.learner.model.parameters()) / 1e6:.1f} M parameters{trained}, "
        f"{batches.image_size}×{batches.image_size} pixels, "
        f"{accelerator.num_processes} × {accelerator.device.type}{threads}"
        f"{', sharded by FSDP' if accelerator.is_fsdp2 else ''}, {precision_name(accelerator.mixed_precision)}\n"
        f"{format_count(batches.num_steps, 'step')} of {format_count(batches.global_batch_size, 'image')}, "
        f"{'streamed' if arguments.streaming else format_count(batches.steps_per_epoch, 'step') + ' per epoch'}{hint}"
    )


def report_stop(training: Training, output_dir: Path) -> int:
    """Prints how to continue a run that a signal stopped, alone or among the folds in `output_dir`; its exit code."""
    if training.unsaved:
        return UNSAVED_EXIT_CODE
    if training.accelerator.is_main_process:
        print(f"Stopped at step {training.counters['step']} of {training.batches.num_steps}. Continue with\n")
        print(f"  {resume_command(output_dir)}\n")
    return RESUMABLE_EXIT_CODE


def report_run(training: Training, precedents: Precedents | None = None) -> None:
    """Evaluates the saved model of a finished run, and writes and prints report, curves, timing and card.

    The folder is loaded as its users will load it, so the report describes what was saved. A model that was trained on
    all images gets no report, but what its `precedents` have found. Every process must call it.
    """
    output_dir, images = training.output_dir, training.splits["validation"]
    training.keep_best_model()
    distances = {}
    if len(images):
        certainty, distances = settle_certainty(training)
        report = _evaluate(training)
    else:
        certainty, report, images = settle_by_precedents(training, precedents), None, training.splits["train"]
    if not training.accelerator.is_main_process:
        return
    if report is not None:
        write_report(report, output_dir, images, arrays=distances)
    plot_curves(training.run_log.read(), output_dir / "curves.png")
    values = training.timing, training.counters, training.resumed_at_step
    training.run_log.write_results(*values, certainty and asdict(certainty))
    try:
        write_card(output_dir)
    except ValueError as error:  # a model without a card is still a model
        print(f"warning: no card could be written into {output_dir}: {error}", file=sys.stderr)
    if report is None:
        print(f"\n{describe_final_model(training, precedents)}")
    else:
        print(f"{format_report(report)}\n\n{describe_certainty(certainty)}")
    print(f"\n{training.timing.share_waiting:.1%} of the training time was spent waiting for images.")
    where = (
        f" and its report are in {output_dir}: open {output_dir / 'report.html'}" if report else f" is in {output_dir}"
    )
    print(f"\nThe model{where}.")
    print(f"Classify an image with\n\n  {predict_command(output_dir, example_image(images))}\n")
    training.stage_push("end")


def _evaluate(training: Training) -> Report:
    arguments = training.arguments
    loading = arguments.per_device_eval_batch_size, arguments.dataloader_num_workers
    return evaluate_model(
        open_evaluator(str(training.output_dir), training.accelerator, *loading),
        training.splits["validation"],
        data_name=f"the validation images of {arguments.train_dir or arguments.dataset_name}",
    )


def example_image(images: Dataset) -> str:
    """Path of one of the images, for a first prediction; a placeholder for a dataset without files."""
    images = images.cast_column("image", Image(decode=False))
    path = images[len(images) // 2]["image"]["path"]
    return path if path and Path(path).is_file() else "IMAGE.jpg"


def predict_command(output_dir: Path, image: str) -> str:
    """The command that classifies one image with the trained model."""
    words = ["python", "scripts/predict.py"] if _is_script() else ["seedling-hf", "predict"]
    return shlex.join([*words, "--model_name_or_path", str(output_dir), "--images", image])


def resume_command(output_dir: Path) -> str:
    """The command that continues a stopped run."""
    words = ["accelerate", "launch", "scripts/train.py"] if _is_script() else ["seedling-hf", "train"]
    return shlex.join([*words, "--config", str(output_dir / ARGUMENTS), "--resume_from_checkpoint", "latest"])


def _is_script() -> bool:
    return Path(sys.argv[0]).parent.name == "scripts"
