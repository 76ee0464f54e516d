"""What a run records while it trains: metrics.jsonl with the trackers, and train_results.json."""

import itertools
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from seedling_hf.errors import WriteError
from seedling_hf.files import replacing, write_text, writing
from seedling_hf.machine import device_name
from seedling_hf.training.trackers import Trackers

RESULTS = "train_results.json"
# Of a line.
BEGINNING = b'{"step": '

logger = logging.getLogger(__name__)


@dataclass
class Timing:
    """Seconds since the run was started or resumed.

    Attributes:
        train: In optimizer steps.
        wait: Waiting for training images.
        evaluation: In evaluations, `evaluation_wait` included.
        evaluation_wait: Waiting for validation images.
        cpu: CPU time of this process and its threads while it trained and waited, without data-loading workers.
        images: Images trained on, of all processes.
    """

    train: float = 0.0
    wait: float = 0.0
    evaluation: float = 0.0
    evaluation_wait: float = 0.0
    cpu: float = 0.0
    images: int = 0

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time of its block to `train` or `wait`."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        setattr(self, name, getattr(self, name) + time.perf_counter() - wall)
        self.cpu += time.process_time() - cpu

    @property
    def seconds(self) -> float:
        """In steps, including the time waiting for their images."""
        return max(1e-9, self.train + self.wait)

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds

    @property
    def share_waiting(self) -> float:
        return self.wait / self.seconds


def _parse(line: bytes) -> dict[str, Any] | None:
    """The entry of a line; None for what is none."""
    try:
        record = json.loads(line.decode("utf-8"))
        whole = isinstance(record["step"], int) and isinstance(record["epoch"], int | float)
        whole = whole and all(value is None or isinstance(value, int | float) for value in record.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record if whole else None


class RunLog:
    """The log of a run: one line of metrics.jsonl per entry, and the same to its trackers."""

    def __init__(self, output_dir: Path, accelerator: Accelerator) -> None:
        self.path, self.accelerator = output_dir / "metrics.jsonl", accelerator
        self.trackers = Trackers(accelerator)
        self.lines: list[str] = []  # the whole file, in case that it is deleted
        self.num_written = 0  # of them; a full disk may have refused the others

    def append(self, step: int, epoch: float, values: Mapping[str, float | None]) -> None:
        """Logs `values`, of which trackers get those that are not None."""
        if self.accelerator.is_main_process:
            self.lines.append(json.dumps({"step": step, "epoch": epoch, **values}) + "\n")
            try:
                self.flush()
            except WriteError as error:
                if self.num_written == len(self.lines) - 1:
                    logger.warning("%s; the run continues and tries again at the next entry", error)
        self.trackers.log({k: v for k, v in values.items() if v is not None}, step)

    def flush(self) -> None:
        """Writes the entries that are not on the disk yet, all or none of them.

        Raises:
            WriteError: if the disk fails.
        """
        with writing(self.path):
            size = self.path.stat().st_size if self.path.exists() else None
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.writelines(self.lines[0 if size is None else self.num_written :])
            except OSError:
                with suppress(OSError):
                    os.truncate(self.path, size or 0)
                raise
        self.num_written = len(self.lines)

    def cut(self, step: int) -> None:
        """Removes the entries after `step`: those steps will be repeated.

        The line that a kill has cut goes too; what is no entry of ours is kept in a copy beside the file.
        """
        if not self.accelerator.is_main_process:
            return
        if self.path.exists() and not self.path.is_file():
            aside = self._aside()
            self.path.rename(aside)
            logger.warning("expected a file at %s, found something else: it is now %s", self.path, aside)
        content = self.path.read_bytes().rstrip(b"\0") if self.path.exists() else b""  # zeros after a power cut
        *lines, cut = content.split(b"\n")
        records = [(line, _parse(line)) for line in lines]
        if any(record is None for _, record in records) or not cut.startswith(BEGINNING[: len(cut)]):
            aside = self._aside()
            with replacing(aside) as temporary:
                temporary.write_bytes(content)
            logger.warning(
                "%s has lines that are not entries of a run; a copy of it is %s, and the entries go on",
                self.path,
                aside,
            )
        kept = [line + b"\n" for line, record in records if record is not None and record["step"] <= step]
        self.lines = [line.decode() for line in kept]
        self.num_written = len(self.lines)
        write_text(self.path, "".join(self.lines))

    def read(self) -> list[dict[str, Any]]:
        """All entries, also where somebody has deleted the file."""
        return [json.loads(line) for line in self.lines]

    def _aside(self) -> Path:
        """A free name for what was found in the place of metrics.jsonl."""
        names = (self.path.with_name(f"metrics.damaged-{i}.jsonl") for i in itertools.count(1))
        return next(path for path in names if not path.exists())

    def write_results(
        self, timing: Timing, counters: Mapping[str, Any], resumed_at_step: int, certainty: Mapping[str, Any] | None
    ) -> None:
        """Writes train_results.json: what depends on the machine and the day, separate from the figures that do not."""
        self.flush()
        device = self.accelerator.device
        results = {
            "train_runtime": timing.train + timing.wait,
            "train_cpu_time": timing.cpu,
            "train_samples_per_second": timing.images_per_second,
            "train_steps_per_second": (counters["step"] - resumed_at_step) / timing.seconds,
            "share_of_time_waiting_for_images": timing.share_waiting,
            "eval_runtime": timing.evaluation,
            "share_of_evaluation_waiting_for_images": timing.evaluation_wait / max(1e-9, timing.evaluation),
            "resumed_at_step": resumed_at_step,
            "num_processes": self.accelerator.num_processes,
            "device": device_name(device),
            "peak_gpu_memory": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
            "torch_threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("torch", "transformers", "accelerate", "datasets", "timm")},
            "date": time.strftime("%Y-%m-%d"),
            **{name: value for name, value in counters.items() if value not in (math.inf, -1.0)},  # none validated
            "certainty": certainty,
        }
        write_text(self.path.with_name(RESULTS), json.dumps(results, indent=2) + "\n")
