"""The forms of a model that are compared: ours, plain PyTorch with the same weights, and other runtimes."""

import copy
import importlib.util
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seedling_hf.export.onnx_program import run_onnx
from seedling_hf.export.torch_program import ExportedClassifier
from seedling_hf.machine import time_in_turns
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification
from seedling_hf.replknet.large_kernel_conv import DepthwiseConv2d
from seedling_hf.replknet.pointwise_conv import PointwiseConv2d

OURS, PLAIN, PLAIN_CHANNELS_LAST = "ours", "plain NCHW", "plain channels_last"
COMPILED = "ours, compiled"
ONNX_RUNTIME, OPENVINO = "ONNX Runtime", "OpenVINO"
# Sums of some hundred float32 products, through up to 24 blocks, rounded in another order.
TOLERANCE = 1e-3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """What the measurements of one benchmark share; `dtype` holds for layers, training and inference."""

    variant: str
    image_size: int
    batch_size: int
    repeats: int
    device: str
    dtype: torch.dtype
    seed: int
    torch_compile_mode: str | None = None

    def build_model(self, **changes: Any) -> RepLKNetForImageClassification:
        return build_model(self.variant, self.device, self.seed, **changes)

    def random_images(self) -> Tensor:
        return torch.randn(self.batch_size, 3, self.image_size, self.image_size, device=self.device)

    def time(self, runs: dict[str, Callable[[], object]], pause: float = 0.0) -> dict[str, list[float]]:
        return time_in_turns(runs, self.repeats, self.device, pause)

    def describe(self, part: str) -> str:
        return f"{self.variant}, {part}, {self.image_size} px, batch {self.batch_size}"


def build_model(variant: str, device: str, seed: int, **changes: Any) -> RepLKNetForImageClassification:
    """A model with random weights and no stochastic depth, so that all forms compute the same."""
    torch.manual_seed(seed)
    config = RepLKNetConfig.from_variant(variant, drop_path_rate=0.0, **changes)
    return RepLKNetForImageClassification(config).to(device)


def plain_form(model: RepLKNetForImageClassification, memory_format: torch.memory_format) -> nn.Module:
    """A copy that computes as the authors' code does without its extension: with `nn.Conv2d` alone."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (DepthwiseConv2d, PointwiseConv2d)):
                convolution = nn.Conv2d(
                    child.in_channels, child.out_channels, child.kernel_size, padding=child.padding,
                    groups=child.groups, bias=child.bias is not None, device="meta",
                )  # fmt: skip
                convolution.weight, convolution.bias = child.weight, child.bias
                setattr(module, name, convolution)
    # The model itself converts images to channels_last.
    model.replknet.embeddings.layers[0].register_forward_pre_hook(
        lambda module, inputs: (inputs[0].contiguous(memory_format=memory_format),)
    )
    return model.to(memory_format=memory_format)


def plain_forms(model: RepLKNetForImageClassification) -> dict[str, nn.Module]:
    return {
        PLAIN: plain_form(model, torch.contiguous_format),
        PLAIN_CHANNELS_LAST: plain_form(model, torch.channels_last),
    }


def other_runtimes(
    model: RepLKNetForImageClassification, images: Tensor, dtype: torch.dtype
) -> dict[str, Callable[[], np.ndarray]]:
    """The same model in the runtimes that are installed, with as many threads as torch uses.

    Model and images are float32. OpenVINO computes in `dtype` where the processor can. ONNX Runtime has no convolution
    in bfloat16 on CPUs, so it computes in float32. What computes in float32 in place of `dtype` says so in its name.
    """
    missing = [name for name in ("onnxscript", "onnxruntime", "openvino") if importlib.util.find_spec(name) is None]
    if missing:
        logger.info("not measured, since %s is missing: pip install 'seedling-hf[all]'", ", ".join(missing))
    if "onnxscript" in missing:
        return {}
    array, runs = images.numpy(), {}
    # mean and std are not used without the preprocessing
    classifier = ExportedClassifier(model, [0.0] * 3, [1.0] * 3, include_preprocessing=False).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        torch.onnx.export(classifier, (images,), path, dynamo=True, verbose=False)
        if "onnxruntime" not in missing:
            run = run_onnx(path)
            runs[_name(ONNX_RUNTIME, torch.float32, dtype)] = lambda: run(array)[0]
        if "openvino" not in missing:
            import openvino

            core = openvino.Core()
            hint = "bf16" if dtype == torch.bfloat16 else "f32"
            settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": hint}
            compiled = core.compile_model(core.read_model(path), "CPU", settings)
            is_hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == hint
            name = _name(OPENVINO, dtype if is_hint else torch.float32, dtype)
            runs[name] = lambda: compiled(array)[0]
    return runs


def _name(runtime: str, dtype: torch.dtype, wanted: torch.dtype) -> str:
    return runtime if dtype == wanted else f"{runtime}, {str(dtype).removeprefix('torch.')}"


def check_equal(results: dict[str, Tensor], what: str) -> None:
    """Raises RuntimeError unless all forms computed the same as the plain one: only then may they be compared."""
    # bfloat16 has 8 bits
    tolerance = TOLERANCE if results[PLAIN].dtype == torch.float32 else 0.05
    expected = results[PLAIN].float()
    for name, found in results.items():
        error = ((found.float() - expected).abs().max() / expected.abs().max()).item()
        if not error < tolerance:
            raise RuntimeError(f"expected {what} to be equal in every form, found {name} to differ by {error:.1e}")
