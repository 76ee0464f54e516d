"""A classifier as one file for other systems: ONNX in float32 and int8, or a program of `torch.export`.

Or as a model folder of half the size. A file holds the merged and folded model for images of one size in batches of
any, and says in its metadata all that a program needs to predict with it: the classes, and how an image becomes an
input.
"""

import copy
import importlib.util
import io
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageOps
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedModel

from seedling_hf import __version__
from seedling_hf.data.dataset import image_paths
from seedling_hf.data.transforms import to_rgb
from seedling_hf.errors import InputError
from seedling_hf.evaluation.metrics import wilson_interval
from seedling_hf.files import replacing, write_text
from seedling_hf.inference.classifier import list_classes
from seedling_hf.speed.timing import time_in_turns

INPUT, OUTPUT = "pixel_values", "logits"
PYTORCH, ONNX_FLOAT, ONNX_INT8, TORCH_EXPORT = "PyTorch", "ONNX float32", "ONNX int8", "torch.export"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
BATCH_SIZE = 32
REPEATS = 20
METADATA_FILE = "metadata.json"

Run = Callable[[np.ndarray], np.ndarray]


def check_packages() -> None:
    """Refuses to begin where ONNX cannot be written and run.

    Raises:
        InputError: for packages of the extra `export` that are not installed.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"expected {', '.join(PACKAGES)} for ONNX, found no {', '.join(missing)}; pip install 'seedling-hf[export]'"
        )


def describe_preprocessing(image_processor: BaseImageProcessor) -> dict[str, Any]:
    """How an image becomes an input, in values that a program without transformers can follow.

    Returns:
        `shortest_edge`: the length to which the shortest edge is resized, or None where the whole image is squeezed
        into `image_size`; `resample`: Pillow's name of the filter; `image_size`: (height, width) of the centre that is
        cropped; `mean` and `std` of the three channels, for pixels from 0 to 1.

    Raises:
        InputError: for a processor that does something else.
    """
    values = image_processor.to_dict()
    size, crop_size = values.get("size") or {}, values.get("crop_size") or {}
    crops = bool(values.get("do_center_crop"))
    edge, target = size.get("shortest_edge"), crop_size if crops else size
    steps = all(values.get(step) for step in ("do_resize", "do_rescale", "do_normalize"))
    known = bool(edge) == crops and {"height", "width"} <= target.keys() and "crop_pct" not in values
    if not steps or not known or abs(values["rescale_factor"] * 255 - 1) > 1e-6:
        raise InputError(
            "expected an image processor that resizes, crops the centre, scales by 1/255 and normalises, found "
            f"{type(image_processor).__name__}, which does something else; export a RepLKNet that this package trained"
        )
    return {
        "shortest_edge": edge,
        "resample": Image.Resampling(values["resample"]).name,
        "image_size": [target["height"], target["width"]],
        "mean": [float(value) for value in values["image_mean"]],
        "std": [float(value) for value in values["image_std"]],
    }


def describe_export(
    model: PreTrainedModel, image_processor: BaseImageProcessor, *, include_preprocessing: bool
) -> dict[str, Any]:
    """The metadata of a file: `describe_preprocessing`, `classes` in the order of the logits, and the input's form."""
    return {
        "classes": list_classes(model.config),
        **describe_preprocessing(image_processor),
        "include_preprocessing": include_preprocessing,
        "input": "uint8 (N, height, width, 3), RGB" if include_preprocessing else "float32 (N, 3, height, width), RGB",
        "architecture": type(model).__name__,
        "seedling_hf": __version__,
    }


class ExportedClassifier(nn.Module):
    """What a file computes: the logits (N, num_labels) of inputs as the metadata describe them.

    Args:
        model: Classifier in evaluation mode.
        mean: Of the three channels, for pixels from 0 to 1.
        std: Likewise.
        include_preprocessing: Take pixels of uint8 (N, H, W, 3), as images are in memory, and normalise them here.
    """

    def __init__(
        self, model: PreTrainedModel, mean: Sequence[float], std: Sequence[float], include_preprocessing: bool
    ) -> None:
        super().__init__()
        self.model, self.include_preprocessing = model, include_preprocessing
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        if self.include_preprocessing:
            pixel_values = (pixel_values.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return self.model(pixel_values).logits


def input_batches(
    files: Sequence[str | os.PathLike], image_processor: BaseImageProcessor, *, include_preprocessing: bool
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Images as the image processor gives them, and the same as inputs of a file, batch by batch.

    Yields:
        `pixel_values` (N, 3, H, W) in float32, and these as an array, or uint8 (N, H, W, 3) with the preprocessing
        inside.
    """
    for start in range(0, len(files), BATCH_SIZE):
        images = [_open(file) for file in files[start : start + BATCH_SIZE]]
        pixel_values = image_processor(images, return_tensors="pt")["pixel_values"]
        if not include_preprocessing:
            yield pixel_values, pixel_values.numpy()
            continue
        pixels = image_processor(images, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
        yield pixel_values, pixels.permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()


def export_classifier(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    output_file: Path,
    *,
    check_files: Sequence[Path],
    calibration_files: Sequence[Path] | None = None,
    labelled: Dataset | None = None,
    include_preprocessing: bool = False,
    tolerance: float = 1e-4,
) -> list[dict[str, Any]]:
    """Writes a classifier as a file, once it gives PyTorch's answers.

    Args:
        model: Classifier in evaluation mode, merged for inference.
        image_processor: What its images go through.
        output_file: The file to write, `.onnx` or `.pt2`.
        check_files: Images on which PyTorch and the file are compared.
        calibration_files: Training images that show the ranges of activations: writes `NAME.int8.onnx` too.
        labelled: Images of the columns `image` and `label`, for the accuracy of each.
        include_preprocessing: As of `ExportedClassifier`.
        tolerance: Largest difference of the logits in float32.

    Returns:
        For PyTorch and each file `name`, `file` (None: PyTorch) and `milliseconds` (the shortest of some runs on one
        image); for a file `megabytes`, and beside PyTorch `max_difference` of the logits and `same_answers`, a share,
        on so many `images`; with labelled images `accuracy` and `accuracy_interval` (95 %, Wilson).

    Raises:
        InputError: for an image processor that cannot be described, or if the logits differ; nothing is written then.
    """
    metadata = describe_export(model, image_processor, include_preprocessing=include_preprocessing)
    prepare = partial(
        input_batches, image_processor=image_processor, include_preprocessing=include_preprocessing
    )  # fmt: skip
    classifier = ExportedClassifier(model, metadata["mean"], metadata["std"], include_preprocessing)
    pixel_values, example = next(prepare(2 * list(check_files[:1])))
    with tempfile.TemporaryDirectory() as folder:
        program = output_file.suffix == ".pt2"
        name = TORCH_EXPORT if program else ONNX_FLOAT
        files = {name: Path(folder, output_file.name)}
        (write_torch_export if program else write_onnx)(classifier, example, files[name], metadata)
        if calibration_files is not None:
            files[ONNX_INT8] = files[name].with_suffix(".int8.onnx")
            inputs = (batch for _, batch in prepare(calibration_files))
            quantize_onnx(files[name], files[ONNX_INT8], inputs, metadata)
        runs = {name: (run_torch_export if program else run_onnx)(path) for name, path in files.items()}
        logits = collect_logits(model, runs, prepare(check_files))
        check_logits(logits, name, tolerance)
        rows = _compare(logits, files, output_file.parent)
        _time(rows, {PYTORCH: lambda: _logits_of(model, pixel_values[:1])}
              | {name: partial(run, example[:1]) for name, run in runs.items()})  # fmt: skip
        if labelled is not None:
            _score(rows, collect_logits(model, runs, prepare(image_paths(labelled))), np.array(labelled["label"]))
        output_file.parent.mkdir(parents=True, exist_ok=True)
        for path in files.values():
            with replacing(output_file.with_name(path.name)) as temporary:
                shutil.copyfile(path, temporary)
    return rows


def export_half(
    model: PreTrainedModel, image_processor: BaseImageProcessor, card: Path | None, output_dir: Path
) -> int:
    """Writes a model folder whose weights take half the room; `from_pretrained` makes float32 of them again.

    Args:
        model: Neither merged nor folded, so that it can be trained further.
        image_processor: What its images go through.
        card: The README.md that goes with it, if there is one.
        output_dir: A folder that does not exist or is empty; it appears when it is whole.

    Returns:
        The size of the weights in bytes.

    Raises:
        InputError: if a weight is too large for float16, or the folder holds something; nothing is written then.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise InputError(f"expected --output_file to be a new folder, found {output_dir}; name another")
    half = copy.deepcopy(model).half()
    large = [name for name, tensor in half.state_dict().items() if not tensor.isfinite().all()]
    if large:
        raise InputError(f"expected weights within float16, up to 65504, found larger ones in {large[0]}")
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent) as temporary:
        folder = Path(temporary, output_dir.name)
        half.save_pretrained(folder)
        image_processor.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = "float32"  # what it is loaded as: CPUs are slow in float16
        write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
        if card:
            shutil.copyfile(card, folder / "README.md")
        os.replace(folder, output_dir)
    return (output_dir / "model.safetensors").stat().st_size


def _compare(logits: Mapping[str, np.ndarray], files: Mapping[str, Path], folder: Path) -> list[dict[str, Any]]:
    rows = [{"name": PYTORCH, "file": None}]
    for name, path in files.items():
        difference = np.abs(logits[name] - logits[PYTORCH]).max()
        same = (logits[name].argmax(1) == logits[PYTORCH].argmax(1)).mean()
        rows.append({
            "name": name, "file": str(folder / path.name), "megabytes": path.stat().st_size / 1e6,
            "images": len(logits[name]), "max_difference": float(difference), "same_answers": float(same),
        })  # fmt: skip
    return rows


def _time(rows: list[dict[str, Any]], runs: dict[str, Callable[[], object]]) -> None:
    seconds = time_in_turns(runs, REPEATS)
    for row in rows:
        # Not the median: other work on the machine only adds.
        row["milliseconds"] = 1000 * min(seconds[row["name"]])


def _score(rows: list[dict[str, Any]], logits: Mapping[str, np.ndarray], labels: np.ndarray) -> None:
    for row in rows:
        correct = logits[row["name"]].argmax(1) == labels
        row["accuracy"] = float(correct.mean())
        row["accuracy_interval"] = wilson_interval(int(correct.sum()), len(labels))


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """What `export_classifier` returns, as a Markdown table."""
    head = [
        "",
        "size",
        "one image",
        f"largest difference of logits on {rows[1]['images']:,} images",
        "same answers",
    ]
    if "accuracy" in rows[0]:
        head.append("accuracy")
    lines = [f"| {' | '.join(head)} |", "|:--|" + "--:|" * (len(head) - 1)]
    for row in rows:
        cells = [row["name"], f"{row['megabytes']:.1f} MB" if row["file"] else "", f"{row['milliseconds']:.1f} ms"]
        cells += [f"{row['max_difference']:.1e}", f"{row['same_answers']:.1%}"] if row["file"] else ["", ""]
        if "accuracy" in row:
            low, high = row["accuracy_interval"]
            cells.append(f"{row['accuracy']:.1%} ({100 * low:.1f} to {100 * high:.1f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_onnx(classifier: ExportedClassifier, example: np.ndarray, path: Path, metadata: Mapping[str, Any]) -> None:
    """Writes a classifier as ONNX, all in one file, its batch of any size.

    Args:
        classifier: What is written.
        example: Two or more inputs; their height and width are fixed.
        path: The file.
        metadata: Values that JSON can hold; each is a property of the model, in JSON.
    """
    import onnx

    batch = torch.export.Dim("batch", min=1)
    with _quiet():
        program = torch.onnx.export(
            classifier.eval(), (torch.from_numpy(example),), dynamo=True, verbose=False, input_names=[INPUT],
            output_names=[OUTPUT], dynamic_shapes=({0: batch},),
        )  # fmt: skip
    exported = program.model_proto
    _forget_origin(exported)
    _write_metadata(exported, metadata)
    onnx.checker.check_model(exported)
    onnx.save(exported, path)


def quantize_onnx(float_path: Path, path: Path, inputs: Iterator[np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Writes an ONNX file again with the convolutions of its stages in int8 (static quantisation, QDQ).

    Weights are quantised channel by channel, activations by the range that they have on `inputs`. Depthwise
    convolutions, the stem and the classifier stay in float32: in 8 bits they cost answers, and large kernels take ONNX
    Runtime longer than in float32.

    Args:
        float_path: The file in float32.
        path: The file to write.
        inputs: Batches of inputs that are like those to come: training images.
        metadata: As of `write_onnx`.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(inputs, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder, "prepared.onnx")
        quant_pre_process(float_path, prepared, skip_symbolic_shape=True)
        nodes = [node for node in onnx.load(prepared).graph.node if node.op_type == "Conv"]
        names = [node.name for node in nodes if _groups(node) == 1 and "embeddings" not in node.input[1]]
        quantize_static(
            prepared, path, Reader(), quant_format=QuantFormat.QDQ, nodes_to_quantize=names,
            per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
    quantized = onnx.load(path)
    _forget_origin(quantized)
    _write_metadata(quantized, metadata)
    onnx.save(quantized, path)


def write_torch_export(
    classifier: ExportedClassifier, example: np.ndarray, path: Path, metadata: Mapping[str, Any]
) -> None:
    """Writes a classifier as a `.pt2` for `torch.export.load`; arguments as of `write_onnx`.

    The metadata are the extra file `metadata.json` inside.
    """
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad(), _quiet():
        program = torch.export.export(
            classifier.eval(), (torch.from_numpy(example),), dynamic_shapes=({0: batch},)
        )  # fmt: skip
        torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata, ensure_ascii=False)})


def run_onnx(path: Path) -> Run:
    """Loads an ONNX file into ONNX Runtime with as many threads as torch uses; returns inputs → logits."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run([OUTPUT], {INPUT: inputs})[0]


def run_torch_export(path: Path) -> Run:
    """Loads a `.pt2`; returns inputs → logits."""
    module = torch.export.load(path).module()

    @torch.inference_mode()
    def run(inputs: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(inputs)).numpy()

    return run


def collect_logits(
    model: PreTrainedModel, runs: Mapping[str, Run], batches: Iterator[tuple[Tensor, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Logits (N, num_labels) of the model, under the name `PYTORCH`, and of each file, for `input_batches`."""
    collected = {name: [] for name in (PYTORCH, *runs)}
    for pixel_values, inputs in batches:
        collected[PYTORCH].append(_logits_of(model, pixel_values))
        for name, run in runs.items():
            collected[name].append(run(inputs))
    return {name: np.concatenate(logits) for name, logits in collected.items()}


@torch.inference_mode()
def _logits_of(model: PreTrainedModel, pixel_values: Tensor) -> np.ndarray:
    return model(pixel_values).logits.numpy()


def check_logits(logits: Mapping[str, np.ndarray], name: str, tolerance: float) -> float:
    """The largest difference between the logits of a file and of PyTorch.

    Raises:
        InputError: if it is above `tolerance`, or not a number.
    """
    difference = float(np.abs(logits[name] - logits[PYTORCH]).max())
    if not difference <= tolerance:
        raise InputError(
            f"expected logits of {name} within {tolerance:g} of PyTorch's, found a difference of {difference:.2g} on "
            f"{len(logits[name]):,} images; nothing was written, and --tolerance allows more"
        )
    return difference


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a file that `write_onnx`, `quantize_onnx` or `write_torch_export` wrote."""
    if path.suffix == ".pt2":
        files = {METADATA_FILE: ""}
        torch.export.load(path, extra_files=files)
        return json.loads(files[METADATA_FILE])
    import onnx

    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


def take_evenly(files: Sequence[str], most: int) -> list[str]:
    """At most so many of the files, spread evenly over their order, and so over the classes."""
    return [files[i] for i in np.unique(np.linspace(0, len(files) - 1, min(most, len(files))).round().astype(int))]


def _open(file: str | os.PathLike) -> Image.Image:
    with Image.open(file) as image:  # as `datasets` decodes it
        return to_rgb(ImageOps.exif_transpose(image))


def _groups(node: Any) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def _write_metadata(model: Any, metadata: Mapping[str, Any]) -> None:
    import onnx

    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})


def _forget_origin(model: Any) -> None:
    """Takes out the exporter's notes, which hold stack traces with the folders of the one who exported."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to themselves what exporters say of their own coming releases."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
