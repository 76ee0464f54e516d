"""What `benchmark` measures: the depthwise convolution, training, inference, growth and memory.

All forms run in one process, with the same threads, in turns.
"""

import copy
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from seedling_hf.machine import time_in_turns
from seedling_hf.replknet import RepLKNetConfig
from seedling_hf.replknet.large_kernel_conv import depthwise_conv2d, in_fast_format
from seedling_hf.replknet.pointwise_conv import HAS_ONEDNN, PointwiseConv2d
from seedling_hf.signals import sparing_children
from seedling_hf.speed.forms import (
    COMPILED,
    OURS,
    PLAIN,
    PLAIN_CHANNELS_LAST,
    Setting,
    check_equal,
    other_runtimes,
    plain_form,
    plain_forms,
)
from seedling_hf.speed.results import row

PRODUCTS = "matrix products alone"
OTHERS_REST = 0.2  # seconds: threads of ONNX Runtime and OpenVINO wait for more work on cores that ours would use
GROWTH = {
    "batch": [1, 2, 4, 8, 16, 32],
    "resolution": [96, 128, 160, 192, 224, 256, 320, 384],
    "kernel": [3, 5, 7, 9, 13, 17, 21, 25, 29, 31],
}


def training_step(
    model: nn.Module, images: Tensor, dtype: torch.dtype = torch.float32, optimizer: Optimizer | None = None
) -> Tensor:
    """Forward and backward on arbitrary labels, and the optimizer if there is one; returns the loss."""
    labels = torch.arange(len(images), device=images.device) % model.config.num_labels
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        loss = model(images, labels=labels).loss
    loss.backward()
    if optimizer is not None:
        optimizer.step()
    model.zero_grad(set_to_none=True)  # a model that waits for its turn holds no gradients
    return loss.detach()


def depthwise_rows(setting: Setting) -> list[dict[str, Any]]:
    """Forward and backward of the large depthwise convolution of each stage."""
    rows, options = [], {"device": setting.device, "dtype": setting.dtype}
    for c, h, w, k in layer_shapes(setting.variant, setting.image_size):
        x = torch.randn(setting.batch_size, c, h, w, **options)
        weight = (torch.randn(c, 1, k, k, **options) / k).requires_grad_()
        last = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        ways = {
            OURS: (depthwise_conv2d, in_fast_format(last.detach()).requires_grad_()),
            PLAIN: (_conv2d, x.clone().requires_grad_()),
            PLAIN_CHANNELS_LAST: (_conv2d, last),
        }
        outputs = {name: function(x, weight) for name, (function, x) in ways.items()}
        check_equal({name: y.detach() for name, y in outputs.items()}, f"the convolution {c, h, w, k}")
        grads = {name: torch.randn_like(y) for name, y in outputs.items()}
        forward = {name: partial(function, x, weight) for name, (function, x) in ways.items()}
        backward = {
            name: partial(torch.autograd.grad, outputs[name], (x, weight), grads[name], retain_graph=True)
            for name, (_, x) in ways.items()
        }
        what = f"depthwise {k}×{k}, {c} channels, {h}×{w}"
        with torch.no_grad():
            rows.append(row(f"{what}, forward", setting.time(forward), setting.batch_size))
        rows.append(row(f"{what}, backward", setting.time(backward), setting.batch_size))
    return rows


def _conv2d(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=weight.shape[2] // 2, groups=len(weight))


def layer_shapes(variant: str, image_size: int) -> list[tuple[int, int, int, int]]:
    """(C, H, W, K) of the large depthwise convolution of each stage."""
    config = RepLKNetConfig.from_variant(variant)
    sides = [-(-image_size // (4 * 2**stage)) for stage in range(len(config.depths))]
    channels = [int(c * config.dw_ratio) for c in config.hidden_sizes]
    return [(c, s, s, k) for c, s, k in zip(channels, sides, config.kernel_sizes, strict=True)]


def training_row(setting: Setting) -> dict[str, Any]:
    """Forward and backward of a whole model, and the matrix products of its 1×1 convolutions alone."""
    model, images = setting.build_model().train(), setting.random_images()
    forms = {OURS: model, **plain_forms(model)}
    runs = {name: partial(training_step, form, images, setting.dtype) for name, form in forms.items()}
    if setting.dtype == torch.float32:
        check_equal({name: run() for name, run in runs.items()}, f"the loss of {setting.variant}")
    if setting.torch_compile_mode:
        compiled = torch.compile(model, mode=setting.torch_compile_mode, fullgraph=True)
        runs[COMPILED] = partial(training_step, compiled, images, setting.dtype)
        if setting.dtype == torch.float32:
            check_equal({PLAIN: runs[OURS](), COMPILED: runs[COMPILED]()}, f"the loss of {setting.variant}")
    runs[PRODUCTS] = pointwise_products(model, images, setting.dtype)
    return row(setting.describe("training step"), setting.time(runs), setting.batch_size)


def pointwise_products(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """The matrix products of a training step: the output and both gradients of each 1×1 convolution.

    Each is computed by the faster of BLAS and, on a CPU, oneDNN.
    """
    shapes = []

    def note(module: PointwiseConv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        n, _, h, w = output.shape
        shapes.append((n * h * w, module.in_channels, module.out_channels))

    visit(model, images, (PointwiseConv2d,), note)
    options = {"device": images.device, "dtype": dtype}
    products = {}
    for shape in set(shapes):
        rows, c_in, c_out = shape
        x, grad = torch.randn(rows, c_in, **options), torch.randn(rows, c_out, **options)
        weight = torch.randn(c_out, c_in, **options)
        products[shape] = [_fastest_product(*pair) for pair in ((x, weight.T), (grad, weight), (grad.T, x))]

    def run() -> None:
        for shape in shapes:
            for product in products[shape]:
                product()

    return run


def _fastest_product(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    """`a @ b` by the fastest library."""
    ways = {"blas": lambda: a @ b}
    if a.device.type == "cpu" and HAS_ONEDNN:
        ways["onednn"] = lambda: torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
        ways["onednn, transposed"] = lambda: torch.ops.mkldnn._linear_pointwise(b.T, a, None, "none", [], "").T
    times = time_in_turns(ways, repeats=3, device=a.device.type)
    return ways[min(times, key=lambda name: min(times[name]))]


@torch.no_grad()
def visit(model: nn.Module, images: Tensor, kinds: tuple[type[nn.Module], ...], note: Callable[..., None]) -> None:
    """Calls `note` with each module of these kinds, its inputs and its output, in one pass in evaluation mode."""
    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, kinds)]
    was_training = model.training
    model.eval()(images)
    model.train(was_training)
    for hook in hooks:
        hook.remove()


def inference_row(setting: Setting) -> dict[str, Any]:
    """Inference of the merged and folded model, the plain forms and, on a CPU, other runtimes."""
    model, images = setting.build_model().eval(), setting.random_images().to(setting.dtype)
    forms = {OURS: copy.deepcopy(model).fuse_batch_norms(), **plain_forms(model)}
    forms = {name: form.to(setting.dtype) for name, form in forms.items()}
    runs = {name: lambda form=form: form(images).logits for name, form in forms.items()}
    if setting.device == "cpu":
        runs |= other_runtimes(copy.deepcopy(model).fuse_batch_norms(), images.float(), setting.dtype)
    with torch.inference_mode():
        results = {name: torch.as_tensor(run()) for name, run in runs.items()}
        check_equal(results, f"the logits of {setting.variant}")
        if setting.torch_compile_mode:
            compiled = torch.compile(forms[OURS], mode=setting.torch_compile_mode)
            runs[COMPILED] = lambda: compiled(images).logits
        pause = OTHERS_REST if setting.device == "cpu" else 0.0
        return row(setting.describe("inference"), setting.time(runs, pause), setting.batch_size)


def growth_rows(setting: Setting) -> dict[str, list[dict[str, Any]]]:
    """How the time of a training step grows with the batch, the resolution and the kernel size.

    Returns:
        For `batch`, `resolution` and `kernel` one row for each value: `value` and `milliseconds_per_image`.
    """
    growth, unchanged = {}, setting.build_model().train()
    for axis, values in GROWTH.items():
        steps, images = {}, {}
        for value in values:
            size = {"batch": {"batch_size": value}, "resolution": {"image_size": value}}.get(axis, {})
            model = setting.build_model(**_kernels(setting.variant, value)).train() if axis == "kernel" else unchanged
            images[value] = replace(setting, **size).random_images()
            steps[value] = partial(training_step, model, images[value])
        growth[axis] = [
            {"value": value, "milliseconds_per_image": 1000 * median(times) / len(images[value])}
            for value, times in setting.time(steps).items()
        ]
    return growth


def _kernels(variant: str, kernel_size: int) -> dict[str, Any]:
    """The changes that give all large kernels of a variant one size; the small kernel must be smaller."""
    config = RepLKNetConfig.from_variant(variant)
    small = config.small_kernel_size if kernel_size > (config.small_kernel_size or 0) else None
    return {"kernel_sizes": [kernel_size] * len(config.kernel_sizes), "small_kernel_size": small}


def memory_row(setting: Setting) -> dict[str, Any]:
    """Peak memory of a training step in each form, in MB; each form runs in its own process, whose peak only grows."""
    spawn = multiprocessing.get_context("spawn")
    megabytes = {}
    for form in (OURS, PLAIN):
        with sparing_children("spawn"):
            pool = spawn.Pool(1)
        with pool:
            megabytes[form] = pool.apply(_peak_memory, (setting, form, torch.get_num_threads()))
    return {"what": setting.describe("training step"), "megabytes": megabytes}


def _peak_memory(setting: Setting, form: str, num_threads: int) -> float:
    """The peak memory of two training steps in MB: of this process, or of the GPU."""
    torch.set_num_threads(num_threads)
    model = setting.build_model().train()
    if form != OURS:
        model = plain_form(model, torch.contiguous_format)
    images = setting.random_images()
    for _ in range(2):
        training_step(model, images)
    if setting.device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss of a new process starts at the peak of its parent
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1e3
    import resource  # not available on Windows

    # kilobytes, but bytes on macOS
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
