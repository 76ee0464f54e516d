"""All folds as one run: ordinary runs in `fold_1` … `fold_n`, and the figures of every image beside them.

Each image is predicted by the network that was not trained on it. A fold that is finished is not trained again when the
run is resumed, and the one that was interrupted continues from its own checkpoints.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import yaml
from accelerate import Accelerator
from datasets import Dataset, DatasetDict, concatenate_datasets

from seedling_hf.arguments import write_arguments
from seedling_hf.data.corrections import has_kept, read_labels
from seedling_hf.data.dataset import load_splits
from seedling_hf.data.images import a_few
from seedling_hf.data.splits import list_lines, read_split_csv
from seedling_hf.errors import InputError
from seedling_hf.escaping import format_count
from seedling_hf.evaluation.out_of_fold import pool_folds, report_folds
from seedling_hf.evaluation.report_files import format_report, write_report
from seedling_hf.inference.members import fold_folder
from seedling_hf.inference.model_files import CONFIG
from seedling_hf.inference.prediction import on_main_process
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training.resuming import FREE_ARGUMENTS, ROUNDING_ARGUMENTS
from seedling_hf.training.run_log import RESULTS
from seedling_hf.training.threads import restore_threads

FINISHED = (CONFIG, "report.json", "probabilities.npz", RESULTS)

logger = logging.getLogger(__name__)


class Folds:
    """The runs of `--fold all/n`; every process has one, and the main process decides what is finished.

    Args:
        arguments: Of all folds, whose output folder is prepared.
        accelerator: Of any run of these processes.
    """

    def __init__(self, arguments: TrainArguments, accelerator: Accelerator) -> None:
        self.arguments, self.accelerator = arguments, accelerator
        self.output_dir = Path(arguments.output_dir)
        self.labels = None if arguments.label_file is None else read_labels(arguments.label_file)
        numbers = range(1, arguments.num_folds + 1)
        self.folders = [fold_folder(self.output_dir, number) for number in numbers]
        self.runs = [self._run(number, folder) for number, folder in zip(numbers, self.folders, strict=True)]
        on_main_process(accelerator, partial(write_arguments, arguments, self.output_dir / "arguments.yaml"))

    def _run(self, number: int, folder: Path) -> TrainArguments:
        name = f"{self.arguments.run_name}-{folder.name}" if self.arguments.run_name else self.arguments.run_name
        fold = f"{number}/{len(self.folders)}"
        return replace(self.arguments, fold=fold, output_dir=str(folder), run_name=name)

    def unfinished(self) -> Iterator[TrainArguments]:
        """The flags of each run that is still to be trained; the others are announced."""
        for number, (run, folder) in enumerate(zip(self.runs, self.folders, strict=True), 1):
            threads = on_main_process(self.accelerator, partial(self._threads_of_finished, run, folder))
            if threads is None:
                if self.accelerator.is_main_process:
                    print(f"\nFold {number} of {len(self.runs)}, in {folder}\n", flush=True)
                yield run
            else:
                restore_threads(self.accelerator, threads)
                if self.accelerator.is_main_process:
                    print(f"Fold {number} of {len(self.runs)} is finished, in {folder}.", flush=True)

    def _threads_of_finished(self, run: TrainArguments, folder: Path) -> int | None:
        """With how many threads a finished run of the same flags was trained; None if there is none."""
        if not run.resume_from_checkpoint or not all((folder / name).is_file() for name in FINISHED):
            return None
        if not any(folder.glob("model*.safetensors")):
            return None
        try:
            former = yaml.safe_load((folder / "arguments.yaml").read_text(encoding="utf-8"))
            threads = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["torch_threads"]
            pool_folds([folder])
        except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError, InputError):
            return None  # it is resumed as any run, and written again
        now = json.loads(json.dumps(asdict(run)))
        if not has_kept(self.labels, folder):
            return None
        compared = (former.keys() & now.keys()) - FREE_ARGUMENTS - ROUNDING_ARGUMENTS
        is_same = isinstance(threads, int) and all(former[name] == now[name] for name in compared)
        return threads if is_same else None

    def check_images(self, splits: DatasetDict) -> None:
        """Refuses a fold of other images than those of the folds before it.

        Raises:
            InputError: names some that are new or missing.
        """
        if self.arguments.max_train_samples is not None or self.arguments.max_eval_samples is not None:
            return
        # Corrected or left out in a fold that they train, as they were given in one that they validate.
        labels = self.labels or {}
        left_out = {file for file, label in labels.items() if not label}
        now = {(file, label) for file, label, _ in list_lines(splits, "train", "validation") if file not in labels}
        now |= {(file, "") for name in ("train", "validation") for file in splits[name]["file"] if file in labels}
        for folder in self.folders:
            if not (folder / RESULTS).is_file() or not (folder / "split.csv").is_file():
                continue
            lines = read_split_csv(folder / "split.csv").items()
            former = {(file, "" if file in labels else label) for (file, label), name in lines if name != "test"}
            if changed := sorted({file for file, _ in former ^ now} - left_out):
                raise InputError(
                    f"expected the images that {folder} was trained on, found {format_count(len(changed), 'image')} "
                    f"new, missing or of another class: {a_few(changed)}; restore them, or train all folds again with "
                    "--overwrite_output_dir"
                )

    def report(self) -> None:
        """Writes and prints the figures of all images, on the main process.

        Raises:
            InputError: if the folds are not those of the same images.
        """
        if not self.accelerator.is_main_process:
            return
        pooled = pool_folds(self.folders)
        images = self.arguments.train_dir or self.arguments.dataset_name
        report = report_folds(pooled, self.folders, images, seed=self.arguments.seed)
        write_report(report, self.output_dir, self._load_images(), arrays=pooled.arrays)
        print(f"\n{format_report(report)}")
        print(f"\nThe folds and their report are in {self.output_dir}: open {self.output_dir / 'report.html'}.\n")

    def _load_images(self) -> Dataset:
        """All images of all folds as they are labelled, by whichever split is drawn the fastest."""
        every = {"fold": None, "split_strategy": "random", "label_file": None}
        every |= {"max_train_samples": None, "max_eval_samples": None}
        splits = load_splits(replace(self.runs[0], **every))
        return concatenate_datasets([splits["train"], splits["validation"]])
