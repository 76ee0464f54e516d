"""A classifier as one file for other systems: written, compared with PyTorch on real images, timed.

A file holds the merged and folded model for images of one size in batches of any size. Its metadata hold all that a
program needs to predict with it: the classes, and how an image becomes an input.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from torch import Tensor, nn
from transformers import BaseImageProcessor

from seedling_hf.data.pool import image_sources
from seedling_hf.errors import InputError
from seedling_hf.evaluation.metrics import wilson_interval
from seedling_hf.export import SUFFIXES
from seedling_hf.export.onnx_program import halve_onnx, quantize_onnx, run_onnx, write_onnx
from seedling_hf.export.preprocessing import BATCH_SIZE, describe_export, input_batches
from seedling_hf.export.torch_program import ExportedClassifier, Run, run_torch_export, write_torch_export
from seedling_hf.files import replacing
from seedling_hf.inference.batch_memory import check_memory, image_side
from seedling_hf.inference.judgement import without_familiarity
from seedling_hf.inference.prediction import forward
from seedling_hf.machine import time_in_turns
from seedling_hf.progress import Progress

PYTORCH, ONNX_FLOAT, ONNX_HALF, ONNX_INT8, TORCH_EXPORT = (
    "PyTorch", "ONNX float32", "ONNX float16", "ONNX int8", "torch.export",
)  # fmt: skip
REPEATS = 20


class Outputs(NamedTuple):
    """What a program computes for N images: `logits` (N, C), and `unfamiliarity` (N,) where it is known."""

    logits: np.ndarray
    unfamiliarity: np.ndarray | None = None

    @property
    def is_familiar(self) -> np.ndarray:
        """(N,), where unfamiliarity is known."""
        return self.unfamiliarity <= 1

    def differences(self, other: "Outputs") -> dict[str, float]:
        """The largest differences; of unfamiliarity, which has no upper limit, as a share of it above 1."""
        largest = {"logits": float(np.abs(self.logits - other.logits).max())}
        if other.unfamiliarity is not None:
            shares = np.abs(self.unfamiliarity - other.unfamiliarity) / np.maximum(other.unfamiliarity, 1)
            largest["unfamiliarity"] = float(shares.max())
        return largest


def export_classifier(
    model: nn.Module,
    image_processor: BaseImageProcessor,
    output_file: Path,
    *,
    check_files: Sequence[Path],
    calibration_files: Sequence[Path] | None = None,
    float16: bool = False,
    suffixes: Mapping[str, str] = SUFFIXES,
    labelled: Dataset | None = None,
    include_preprocessing: bool = False,
    tolerance: float = 1e-4,
) -> list[dict[str, Any]]:
    """Writes a classifier as a file, once its logits agree with PyTorch's.

    Args:
        model: Classifier in evaluation mode, merged for inference; as for `judgement.judge`.
        output_file: The file to write, `.onnx` or `.pt2`.
        check_files: Images on which the file is compared with PyTorch.
        calibration_files: Training images that give the ranges of activations: writes `NAME.int8.onnx` too.
        float16: Writes `NAME.float16.onnx` too; `suffixes` gives these two other names.
        labelled: Dataset with the columns `file` and `label`, for the accuracy of each row.
        include_preprocessing: See `ExportedClassifier`.
        tolerance: Largest allowed difference of the float32 logits, and of unfamiliarity above 1 as a share of it.

    Returns:
        A row for PyTorch and for each file: `name`, `file` (None for PyTorch) and `milliseconds` (the shortest run on
        one image); for a file also `megabytes`, and its comparison with PyTorch on `images` images: `max_difference` of
        the logits and `same_predictions`, a fraction, as is `same_familiarity` where the model knows it; with labelled
        images `accuracy` and `accuracy_interval` (95%, Wilson).

    Raises:
        InputError: for an image processor that cannot be described, or if the outputs differ; nothing is written then.
    """
    metadata = describe_export(model, image_processor, include_preprocessing=include_preprocessing)
    num_images, side = len(check_files) + len(calibration_files or []), image_side(image_processor)
    check_memory(without_familiarity(model), min(BATCH_SIZE, num_images), side, "use a model for smaller images")
    prepare = partial(input_batches, image_processor=image_processor, include_preprocessing=include_preprocessing)
    program = ExportedClassifier(model, metadata["mean"], metadata["std"], include_preprocessing).eval()
    pixel_values, example = next(prepare(2 * list(check_files[:1])))
    forward(model, pixel_values)  # before the slow part, for a model that overflows
    name = ONNX_FLOAT if (is_onnx := output_file.suffix == ".onnx") else TORCH_EXPORT
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, output_file.name)}
        with Progress(f"writing {name}"):
            (write_onnx if is_onnx else write_torch_export)(program, example, files[name], metadata)
        inputs = None if calibration_files is None else (batch for _, batch in prepare(calibration_files))
        files |= _write_smaller(files[name], suffixes, metadata, float16, inputs)
        runs = {name: (run_onnx if is_onnx else run_torch_export)(path) for name, path in files.items()}
        found = collect_outputs(model, runs, prepare(check_files), len(check_files))
        check_outputs(found, name, tolerance)
        timed = {PYTORCH: lambda: forward(model, pixel_values[:1])}
        timed |= {name: partial(run, example[:1]) for name, run in runs.items()}
        with Progress("timing"):
            rows = _compare(found, files, output_file, time_in_turns(timed, REPEATS))
        if labelled is not None:
            found = collect_outputs(model, runs, prepare(list(image_sources(labelled))), len(labelled))
            _score(rows, found, np.array(labelled["label"]))
        _place(files.values(), output_file.parent)
    return rows


def _write_smaller(
    path: Path,
    suffixes: Mapping[str, str],
    metadata: Mapping[str, Any],
    float16: bool,
    inputs: Iterator[np.ndarray] | None,
) -> dict[str, Path]:
    """Writes an ONNX file in float16, and in int8 if there are `inputs` to calibrate on; the paths by their names."""
    files = {}
    if float16:
        files[ONNX_HALF] = path.with_name(path.stem + suffixes["float16"])
        with Progress(f"writing {ONNX_HALF}"):
            halve_onnx(path, files[ONNX_HALF], metadata)
    if inputs is not None:
        files[ONNX_INT8] = path.with_name(path.stem + suffixes["int8"])
        with Progress(f"writing {ONNX_INT8}"):
            quantize_onnx(path, files[ONNX_INT8], inputs, metadata)
    return files


def _place(files: Iterable[Path], folder: Path) -> None:
    """Puts files that were checked where they belong, each of them whole or not at all."""
    for path in files:
        with replacing(folder / path.name) as temporary:
            shutil.copyfile(path, temporary)


def collect_outputs(
    model: nn.Module,
    runs: Mapping[str, Run],
    batches: Iterator[tuple[Tensor, np.ndarray]],
    total: int | None = None,
) -> dict[str, Outputs]:
    """The outputs of the model, under the name `PYTORCH`, and of each file, for `input_batches`.

    Args:
        total: How many images are in the batches.

    Raises:
        InputError: for outputs that are not finite.
    """
    collected = {name: [] for name in (PYTORCH, *runs)}
    with Progress("comparing with PyTorch", total) as progress:
        for pixel_values, inputs in batches:
            outputs = forward(model, pixel_values)
            told = getattr(outputs, "unfamiliarity", None)
            collected[PYTORCH].append([output.numpy() for output in (outputs.logits, told) if output is not None])
            for name, run in runs.items():
                collected[name].append(run(inputs))
                if not all(np.isfinite(output).all() for output in collected[name][-1]):
                    raise InputError(
                        f"expected finite logits of {name}, found NaN or infinity, unlike PyTorch's; nothing was "
                        "written, use another --format or another checkpoint"
                    )
            progress.update(len(inputs))
    return {name: Outputs(*map(np.concatenate, zip(*parts, strict=True))) for name, parts in collected.items()}


def check_outputs(found: Mapping[str, Outputs], name: str, tolerance: float) -> None:
    """Raises InputError if outputs of a file differ from PyTorch's by more than `tolerance`, or are not numbers."""
    for what, difference in found[name].differences(found[PYTORCH]).items():
        if not difference <= tolerance:
            raise InputError(
                f"expected {what} of {name} within {tolerance:g} of PyTorch's, found a difference of {difference:.2g} "
                f"on {len(found[name].logits):,} images; nothing was written, and --tolerance allows more"
            )


def _compare(
    found: Mapping[str, Outputs], files: Mapping[str, Path], output_file: Path, seconds: Mapping[str, list[float]]
) -> list[dict[str, Any]]:
    rows, expected = [], found[PYTORCH]
    for name, outputs in found.items():
        # Not the median: other work on the machine only adds time.
        row = {"name": name, "file": None, "milliseconds": 1000 * min(seconds[name])}
        if name in files:
            row |= {
                "file": str(output_file.with_name(files[name].name)),
                "megabytes": files[name].stat().st_size / 1e6,
                "images": len(outputs.logits),
                "max_difference": outputs.differences(expected)["logits"],
                "same_predictions": float((outputs.logits.argmax(1) == expected.logits.argmax(1)).mean()),
            }
            if expected.unfamiliarity is not None:
                row["same_familiarity"] = float((outputs.is_familiar == expected.is_familiar).mean())
        rows.append(row)
    return rows


def _score(rows: list[dict[str, Any]], found: Mapping[str, Outputs], labels: np.ndarray) -> None:
    for row in rows:
        correct = found[row["name"]].logits.argmax(1) == labels
        row["accuracy"] = float(correct.mean())
        row["accuracy_interval"] = wilson_interval(int(correct.sum()), len(labels))


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `export_classifier` as a Markdown table."""
    difference = f"largest difference of logits on {rows[1]['images']:,} images"
    familiarity = ["same familiarity"] if "same_familiarity" in rows[1] else []
    accuracy = ["accuracy"] if "accuracy" in rows[0] else []
    head = ["", "size", "one image", difference, "same predictions", *familiarity, *accuracy]
    lines = [f"| {' | '.join(head)} |", "|:--|" + "--:|" * (len(head) - 1)]
    for row in rows:
        cells = [row["name"], f"{row['megabytes']:.1f} MB" if row["file"] else "", f"{row['milliseconds']:.1f} ms"]
        cells += [f"{row['max_difference']:.1e}", f"{row['same_predictions']:.1%}"] if row["file"] else ["", ""]
        if familiarity:
            cells.append(f"{row['same_familiarity']:.1%}" if row["file"] else "")
        if "accuracy" in row:
            low, high = row["accuracy_interval"]
            cells.append(f"{row['accuracy']:.1%} ({100 * low:.1f} to {100 * high:.1f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
