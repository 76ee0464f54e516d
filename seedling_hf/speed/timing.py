"""How long the convolution and whole models take, beside the same weights in plain PyTorch and other runtimes.

What is compared runs in one process, with the same threads, in turns: each round runs every entry once, so that a
machine that slows down slows all of them. A first round, which is not counted, warms up.
"""

import copy
import importlib.util
import logging
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedling_hf.machine import device_name
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification
from seedling_hf.replknet.large_kernel_conv import DepthwiseConv2d, depthwise_conv2d
from seedling_hf.replknet.pointwise_conv import PointwiseConv2d

OURS, PLAIN, PLAIN_CHANNELS_LAST, PRODUCTS = "ours", "plain NCHW", "plain channels_last", "matrix products alone"
ONNX_RUNTIME, OPENVINO = "ONNX Runtime", "OpenVINO"
# Sums of some hundred float32 products, through up to 24 blocks, rounded in another order.
TOLERANCE = 1e-3

GROWTH = {
    "batch": [1, 2, 4, 8, 16, 32],
    "resolution": [96, 128, 160, 192, 224, 256, 320, 384],
    "kernel": [3, 5, 7, 9, 13, 17, 21, 25, 29, 31],
}

logger = logging.getLogger(__name__)


def time_in_turns(runs: dict[str, Callable[[], object]], repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each run, `repeats` of them, the runs taking turns; on a GPU by its own clock."""
    seconds = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            took = _seconds(run, device)
            if turn > 0:
                seconds[name].append(took)
    return seconds


def _seconds(run: Callable[[], object], device: str) -> float:
    if device == "cpu":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def row(what: str, seconds: dict[str, list[float]], num_images: int) -> dict[str, Any]:
    """One line of the results: minimum and median in milliseconds by name, and how many times the median of ours.

    Args:
        what: What was measured.
        seconds: As `time_in_turns` gives it; the first name is ours.
        num_images: Images of a run.
    """
    medians = {name: median(values) for name, values in seconds.items()}
    logger.info("%s: %s", what, ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in medians.items()))
    first = next(iter(medians.values()))
    return {
        "what": what,
        "milliseconds_median": {name: 1000 * value for name, value in medians.items()},
        "milliseconds_min": {name: 1000 * min(values) for name, values in seconds.items()},
        "times_ours": {name: value / first for name, value in medians.items()},
        "images_per_second": {name: num_images / value for name, value in medians.items()},
    }


def plain_form(model: RepLKNetForImageClassification, memory_format: torch.memory_format) -> nn.Module:
    """A copy with the same weights, computed as the authors' code does without its extension: by `nn.Conv2d` alone."""
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
    # The model brings images into channels_last by itself.
    model.replknet.embeddings.layers[0].register_forward_pre_hook(
        lambda module, inputs: (inputs[0].contiguous(memory_format=memory_format),)
    )
    return model.to(memory_format=memory_format)


def build_model(variant: str, device: str, seed: int, **changes: Any) -> RepLKNetForImageClassification:
    """A model with random weights, and no stochastic depth, so that all forms compute the same."""
    torch.manual_seed(seed)
    config = RepLKNetConfig.from_variant(variant, drop_path_rate=0.0, **changes)
    return RepLKNetForImageClassification(config).to(device)


def random_images(batch_size: int, image_size: int, device: str) -> Tensor:
    return torch.randn(batch_size, 3, image_size, image_size, device=device)


def training_step(model: nn.Module, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Forward and backward pass on arbitrary labels; returns the loss."""
    labels = torch.arange(len(images), device=images.device) % model.config.num_labels
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        loss = model(images, labels=labels).loss
    loss.backward()
    model.zero_grad(set_to_none=True)  # what waits for its turn holds no gradients
    return loss.detach()


def depthwise_rows(
    shapes: list[tuple[int, int, int, int]], batch_size: int, repeats: int, device: str, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Forward and backward of one depthwise convolution.

    Args:
        shapes: (C, H, W, K) of each.
    """
    rows = []
    for c, h, w, k in shapes:
        x = torch.randn(batch_size, c, h, w, device=device, dtype=dtype)
        weight = (torch.randn(c, 1, k, k, device=device, dtype=dtype) / k).requires_grad_()
        last = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        ways = {
            OURS: (depthwise_conv2d, last),
            PLAIN: (_conv2d, x.clone().requires_grad_()),
            PLAIN_CHANNELS_LAST: (_conv2d, last),
        }
        outputs = {name: function(x, weight) for name, (function, x) in ways.items()}
        _check_equal({name: y.detach() for name, y in outputs.items()}, f"the convolution {c, h, w, k}")
        grads = {name: torch.randn_like(y) for name, y in outputs.items()}
        forward = {name: partial(function, x, weight) for name, (function, x) in ways.items()}
        backward = {
            name: partial(torch.autograd.grad, outputs[name], (x, weight), grads[name], retain_graph=True)
            for name, (_, x) in ways.items()
        }
        what = f"depthwise {k}×{k}, {c} channels, {h}×{w}"
        with torch.no_grad():
            rows.append(row(f"{what}, forward", time_in_turns(forward, repeats, device), batch_size))
        rows.append(row(f"{what}, backward", time_in_turns(backward, repeats, device), batch_size))
    return rows


def _conv2d(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=weight.shape[2] // 2, groups=len(weight))


def layer_shapes(variant: str, image_size: int) -> list[tuple[int, int, int, int]]:
    """(C, H, W, K) of the large depthwise convolution of each stage."""
    config = RepLKNetConfig.from_variant(variant)
    sides = [-(-image_size // (4 * 2**stage)) for stage in range(len(config.depths))]
    channels = [int(c * config.dw_ratio) for c in config.hidden_sizes]
    return [(c, s, s, k) for c, s, k in zip(channels, sides, config.kernel_sizes, strict=True)]


def training_row(
    variant: str, image_size: int, batch_size: int, repeats: int, device: str, dtype: torch.dtype, seed: int
) -> dict[str, Any]:
    """Forward and backward of a whole model, and the products of its 1×1 convolutions alone, in the same turns."""
    model = build_model(variant, device, seed).train()
    images = random_images(batch_size, image_size, device)
    forms = {
        OURS: model,
        PLAIN: plain_form(model, torch.contiguous_format),
        PLAIN_CHANNELS_LAST: plain_form(model, torch.channels_last),
    }
    runs = {name: partial(training_step, form, images, dtype) for name, form in forms.items()}
    if dtype == torch.float32:
        _check_equal({name: run() for name, run in runs.items()}, f"the loss of {variant}")
    runs[PRODUCTS] = _pointwise_products(model, images, dtype)
    what = f"{variant}, training step, {image_size} px, batch {batch_size}"
    return row(what, time_in_turns(runs, repeats, device), batch_size)


@torch.no_grad()
def _pointwise_products(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """The products of matrices of a training step: of each 1×1 convolution the output and both gradients."""
    shapes = []

    def note(module: PointwiseConv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        n, _, h, w = output.shape
        shapes.append((n * h * w, module.in_channels, module.out_channels))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, PointwiseConv2d)]
    was_training = model.training
    model.eval()(images)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    options = {"device": images.device, "dtype": dtype}
    tensors = {
        shape: (torch.randn(shape[0], shape[1], **options), torch.randn(shape[2], shape[1], **options),
                torch.randn(shape[0], shape[2], **options))
        for shape in set(shapes)
    }  # fmt: skip

    def run() -> None:
        for shape in shapes:
            x, weight, grad = tensors[shape]
            _ = x @ weight.T, grad @ weight, grad.T @ x

    return run


def inference_row(variant: str, image_size: int, batch_size: int, repeats: int, device: str, seed: int) -> dict:
    """Inference of the merged and folded model beside the authors' form and, on a CPU, other runtimes, in float32."""
    model = build_model(variant, device, seed).eval()
    images = random_images(batch_size, image_size, device)
    forms = {
        OURS: copy.deepcopy(model).fuse_batch_norms(),
        PLAIN: plain_form(model, torch.contiguous_format),
        PLAIN_CHANNELS_LAST: plain_form(model, torch.channels_last),
    }
    runs = {name: lambda form=form: form(images).logits for name, form in forms.items()}
    if device == "cpu":
        runs |= _other_runtimes(forms[OURS], images)
    with torch.inference_mode():
        _check_equal({name: torch.as_tensor(run()) for name, run in runs.items()}, f"the logits of {variant}")
        what = f"{variant}, inference, {image_size} px, batch {batch_size}"
        return row(what, time_in_turns(runs, repeats, device), batch_size)


def _other_runtimes(model: nn.Module, images: Tensor) -> dict[str, Callable[[], np.ndarray]]:
    """The same model in the runtimes that are installed, with as many threads as torch uses."""
    missing = [name for name in ("onnxscript", "onnxruntime", "openvino") if importlib.util.find_spec(name) is None]
    if missing:
        logger.info("not measured, since %s cannot be imported: pip install 'seedling-hf[benchmark]'", missing)
    if "onnxscript" in missing:
        return {}
    array, runs = images.numpy(), {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        torch.onnx.export(_Logits(model).eval(), (images,), path, dynamo=True, verbose=False)
        if "onnxruntime" not in missing:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            name = session.get_inputs()[0].name
            runs[ONNX_RUNTIME] = lambda: session.run(None, {name: array})[0]
        if "openvino" not in missing:
            import openvino

            core = openvino.Core()
            settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
            compiled = core.compile_model(core.read_model(path), "CPU", settings)
            runs[OPENVINO] = lambda: compiled(array)[0]
    return runs


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values).logits


def _check_equal(results: dict[str, Tensor], what: str) -> None:
    """A figure counts only if all computed the same."""
    expected = results[PLAIN].float()
    for name, found in results.items():
        error = ((found.float() - expected).abs().max() / expected.abs().max()).item()
        # bfloat16 has 8 bits
        if not error < (TOLERANCE if found.dtype == torch.float32 else 0.05):
            raise RuntimeError(f"expected {what} alike in every form, found {name} to differ by {error:.1e}")


def growth_rows(
    variant: str, image_size: int, batch_size: int, repeats: int, device: str, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """How a training step of ours grows with the batch, with the size of the images and with the kernels.

    Returns:
        For `batch`, `resolution` and `kernel` a line for each value: `value`, and the median for each image.
    """
    settings = {
        "batch": [(value, image_size, value, {}) for value in GROWTH["batch"]],
        "resolution": [(value, value, batch_size, {}) for value in GROWTH["resolution"]],
        "kernel": [(value, image_size, batch_size, _kernels(variant, value)) for value in GROWTH["kernel"]],
    }
    growth, unchanged = {}, build_model(variant, device, seed).train()
    for axis, entries in settings.items():
        steps, images = {}, {}
        for value, size, number, changes in entries:
            model = build_model(variant, device, seed, **changes).train() if changes else unchanged
            steps[value], images[value] = partial(training_step, model, random_images(number, size, device)), number
        growth[axis] = [
            {"value": value, "milliseconds_per_image": 1000 * median(times) / images[value]}
            for value, times in time_in_turns(steps, repeats, device).items()
        ]
    return growth


def _kernels(variant: str, kernel_size: int) -> dict[str, Any]:
    """What makes all large kernels of a variant of one size; a small one beside them must be smaller."""
    config = RepLKNetConfig.from_variant(variant)
    small = config.small_kernel_size if kernel_size > (config.small_kernel_size or 0) else None
    return {"kernel_sizes": [kernel_size] * len(config.kernel_sizes), "small_kernel_size": small}


def peak_memory(
    variant: str, image_size: int, batch_size: int, form: str, device: str, seed: int, num_threads: int
) -> float:
    """The most memory that two training steps of one form take, in MB: of the process, or of the GPU.

    Each form needs a process of its own, since what a process had once is not told apart from what it has.
    """
    torch.set_num_threads(num_threads)
    model = build_model(variant, device, seed).train()
    if form != OURS:
        model = plain_form(model, torch.contiguous_format)
    images = random_images(batch_size, image_size, device)
    for _ in range(2):
        training_step(model, images)
    if device == "cpu":
        status = Path("/proc/self/status")
        if status.exists():  # on Linux ru_maxrss of a new process starts at the peak of the one that started it
            return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1e3
        import resource  # which Windows has not

        # kilobytes, but bytes on macOS
        unit = 1e6 if sys.platform == "darwin" else 1e3
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return torch.cuda.max_memory_allocated() / 1e6


def memory_row(variant: str, image_size: int, batch_size: int, device: str, seed: int) -> dict[str, Any]:
    """Peak memory of a training step in each form, in MB."""
    spawn = multiprocessing.get_context("spawn")
    megabytes = {}
    for form in (OURS, PLAIN):
        with spawn.Pool(1) as pool:
            settings = (variant, image_size, batch_size, form, device, seed, torch.get_num_threads())
            megabytes[form] = pool.apply(peak_memory, settings)
    return {"what": f"{variant}, training step, {image_size} px, batch {batch_size}", "megabytes": megabytes}


def describe_machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "device": device_name(device), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def format_table(rows: list[dict[str, Any]]) -> str:
    """Medians in milliseconds, and in brackets how many times ours, as a Markdown table."""
    names = list(dict.fromkeys(name for line in rows for name in line["milliseconds_median"]))
    lines = [f"| median, ms | {' | '.join(names)} |", "|:--|" + "--:|" * len(names)]
    for line in rows:
        cells = []
        for name in names:
            if name in line["milliseconds_median"]:
                cells.append(f"{line['milliseconds_median'][name]:.1f} ({line['times_ours'][name]:.2f}×)")
            else:
                cells.append("")
        lines.append(f"| {line['what']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def format_results(results: dict[str, Any]) -> str:
    """All of a run as Markdown."""
    machine = results["machine"]
    blocks = [
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, {results['dtype']}, "
        f"{machine['date']}"
    ]
    if results["rows"]:
        blocks.append(format_table(results["rows"]))
    if "memory" in results:
        memory = results["memory"]
        figures = ", ".join(f"{name} {value:,.0f} MB" for name, value in memory["megabytes"].items())
        blocks.append(f"Peak memory, {memory['what']}: {figures}.")
    for axis, lines in results.get("growth", {}).items():
        table = [f"| {axis} | ms an image |", "|--:|--:|"]
        table += [f"| {line['value']} | {line['milliseconds_per_image']:.1f} |" for line in lines]
        blocks.append("\n".join(table))
    return "\n\n".join(blocks)
