"""The output folder while a run goes on: if somebody deletes it, it is made again with what the memory still has."""

import logging
from contextlib import suppress
from pathlib import Path

from accelerate import Accelerator
from datasets import DatasetDict

from seedling_hf.arguments import write_arguments
from seedling_hf.data.corrections import keep_corrections, read_labels
from seedling_hf.data.inspection import SHARED_IMAGES, report_shared_images
from seedling_hf.data.recognition import write_hashes
from seedling_hf.data.splits import Line, hash_split, list_lines, read_hashes, write_split_csv
from seedling_hf.errors import InputError, without_advice
from seedling_hf.files import write_text
from seedling_hf.inference.model_files import CONFIG, read_forms
from seedling_hf.locks import keeps_lock, lock_again
from seedling_hf.train_arguments import TrainArguments

logger = logging.getLogger(__name__)


class RunFolder:
    """The folder of a run, and the files that the run starts with; only the main process writes.

    Attributes:
        device: Of the file system that it lies on.
    """

    def __init__(self, arguments: TrainArguments, splits: DatasetDict, accelerator: Accelerator) -> None:
        self.path, self.is_main_process = Path(arguments.output_dir), accelerator.is_main_process
        self.arguments, self.splits = arguments, splits
        self.shared_images: str | None = None
        self.hashes: dict[Line, str] = {}  # of the images, for split.csv; none unless they were compared
        self.device: int | None = None
        self.corrections = None if arguments.label_file is None else read_labels(arguments.label_file)

    def write_start(self) -> None:
        """Writes arguments.yaml, split.csv, corrections.csv and near_duplicates.json.

        Of a resumed run, once it is known to be the same.
        The comparison of images is not repeated where its result is in the folder, or still in the memory.
        """
        if not self.is_main_process:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_arguments(self.arguments, self.path / "arguments.yaml")
        if not self.arguments.streaming:
            self._write_split()
        self.device = self.path.stat().st_dev

    def _write_split(self) -> None:
        split, shared = self.path / "split.csv", self.path / SHARED_IMAGES
        keep = bool(self.arguments.resume_from_checkpoint) or self.shared_images is not None
        if keep and not self.hashes and split.exists():
            with suppress(InputError):  # it is written again
                self.hashes = read_hashes(split)
        write_split_csv(self.splits, split, self.hashes)
        keep_corrections(self.corrections, self.path)
        if self.shared_images is not None:
            write_text(shared, self.shared_images)
        look = not self.arguments.no_duplicate_check
        keep &= bool(self.hashes) or not look
        compared = report_shared_images(self.splits, shared, hash_split(split), look=look, keep=keep)
        if compared is not None:
            self.hashes = write_hashes(list_lines(self.splits, "train", "validation"), compared)
            write_split_csv(self.splits, split, self.hashes)
        self.shared_images = shared.read_text(encoding="utf-8") if shared.exists() else None

    def holds_model(self) -> bool:
        """Whether the best weights so far are there, and whole as far as can be seen without reading the tensors.

        A configuration that is damaged beside whole weights is no reason to replace these.
        """
        weights = sorted(self.path.glob("model*.safetensors"))
        if not weights or not (self.path / CONFIG).exists():
            return False
        try:
            read_forms(weights)
        except InputError as error:
            logger.warning("%s: the best model is lost, and the next one takes its place", without_advice(error))
            return False
        return True

    def keep(self) -> None:
        """Makes the folder again if it was deleted, and locks it; not in place of a disk that is missing.

        Raises:
            InputError: if another run has taken its place.
        """
        if not self.is_main_process or self.device is None or keeps_lock(self.path):
            return
        above = next(path for path in self.path.absolute().parents if path.exists())
        if above.stat().st_dev != self.device or (self.path.exists() and not self.path.is_dir()):
            return
        was_there = (self.path / "arguments.yaml").exists()
        lock_again(self.path)
        if not was_there:
            logger.warning("%s was deleted during the run: it is made again, without earlier checkpoints", self.path)
            self.write_start()
