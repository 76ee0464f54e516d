"""A classifier as an ONNX file, in float32, float16 and int8."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seedling_hf.errors import InputError, require_package
from seedling_hf.export.torch_program import ExportedClassifier, Run, quiet

INPUT = "pixel_values"


def check_packages() -> None:
    """Raises InputError unless the packages of the extra `all` are installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        require_package(name, "ONNX")


def write_onnx(classifier: ExportedClassifier, example: np.ndarray, path: Path, metadata: Mapping[str, Any]) -> None:
    """Writes a classifier as one ONNX file, its batch of any size; arguments as of `write_torch_export`.

    Each value of the metadata becomes a property of the model, in JSON.
    """
    import onnx

    batch = torch.export.Dim("batch", min=1)
    with quiet():
        program = torch.onnx.export(
            classifier, (torch.from_numpy(example),), dynamo=True, verbose=False, input_names=[INPUT],
            output_names=classifier.output_names, dynamic_shapes=({0: batch},),
        )  # fmt: skip
    onnx.checker.check_model(program.model_proto)
    _save(program.model_proto, path, metadata)


def quantize_onnx(float_path: Path, path: Path, inputs: Iterator[np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Writes an ONNX file again with the convolutions of its stages in int8 (static quantization, QDQ).

    Weights are quantized per channel, activations by their range on batches of typical `inputs`. Depthwise
    convolutions, the stem and the classifier stay in float32: in 8 bits they cost accuracy, and ONNX Runtime takes
    longer for large kernels in int8.

    Raises:
        InputError: for activations without a finite range.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(inputs, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder, quiet():
        prepared = Path(folder, "prepared.onnx")
        quant_pre_process(float_path, prepared, skip_symbolic_shape=True)
        nodes = [node for node in onnx.load(prepared).graph.node if node.op_type == "Conv"]
        names = [node.name for node in nodes if _groups(node) == 1 and "embeddings" not in node.input[1]]
        try:
            quantize_static(
                prepared, path, Reader(), quant_format=QuantFormat.QDQ, nodes_to_quantize=names,
                per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
        except AssertionError as error:  # ranges that are infinite or NaN
            raise InputError(
                f"expected activations with ranges that int8 can hold, found others ({error}); export without --int8, "
                "or use another checkpoint"
            ) from error
    _save(onnx.load(path), path, metadata)


def halve_onnx(float_path: Path, path: Path, metadata: Mapping[str, Any]) -> None:
    """Writes an ONNX file again in float16; its inputs and outputs stay in float32, which transformers.js expects.

    What only `unfamiliarity` needs stays in float32 too: distances are differences of large numbers.

    Raises:
        InputError: if a weight is too large for float16.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = onnx.load(float_path)
    logits, *further = [_ancestors(model.graph, output.name) for output in model.graph.output]
    exact = set().union(*further) - logits
    kept = {name for node in model.graph.node if node.name in exact for name in node.input}
    for tensor in model.graph.initializer:
        largest = np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0)
        if tensor.name not in kept and largest > np.finfo(np.float16).max:
            raise InputError(
                f"expected weights within float16, up to 65504, found {largest:.3g} in {tensor.name}; export without "
                "float16, or use another checkpoint"
            )
    with quiet():
        half = OnnxModel(convert_float_to_float16(model, keep_io_types=True, node_block_list=sorted(exact)))
        half.topological_sort()  # the conversion appends its casts
    onnx.checker.check_model(half.model)
    _save(half.model, path, metadata)


def _ancestors(graph: Any, output: str) -> set[str]:
    """The names of the nodes that an output is computed by."""
    makers = {name: node for node in graph.node for name in node.output}
    found, waiting = set(), [output]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting += node.input
    return found


def run_onnx(path: Path) -> Run:
    """Loads an ONNX file into ONNX Runtime with as many threads as torch uses; returns inputs → its outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: session.run(None, {name: inputs})


def _groups(node: Any) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def _save(model: Any, path: Path, metadata: Mapping[str, Any]) -> None:
    import onnx

    # The exporter's notes hold stack traces with the user's folders.
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(model, path)
