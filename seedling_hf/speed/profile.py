"""Where a training step goes: the profiler's events become rows of a table, beside the bounds of the machine.

`profile_training` runs and measures, and `read_step` takes the events apart into the rows of `operations.py`. The
rows add up to the time between the first instruction of a step and its last.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile, record_function

from seedling_hf.errors import InputError
from seedling_hf.replknet.modeling_replknet import RepLKNetConvNorm
from seedling_hf.speed.forms import OURS, Setting
from seedling_hf.speed.measurements import PRODUCTS, pointwise_products, training_step, visit
from seedling_hf.speed.operations import HOST, ROWS, SELDOM, WAITS, Operation, classify

COPY, PROFILED = "a large copy", "ours, profiled"
COPY_BYTES = 2**28  # several times the cache of a processor
STEP = "profiled training step"  # the range of the profiler
CUDA_WAITS = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"}


@dataclass(frozen=True)
class Step:
    """One profiled step, with times in microseconds.

    Attributes:
        pieces: (row, time) of each operation, without those it calls; on a GPU of each kernel, and of what is idle.
        microseconds: From the first instruction to the last.
        busy: The time in which kernels ran on the GPU; None on a CPU.
        num_waits: How often the host waited for the device; on a CPU how often it would have, had there been one.
        waiting: The time of those waits, in which a GPU may be busy.
    """

    pieces: list[tuple[str, float]]
    microseconds: float
    busy: float | None
    num_waits: int
    waiting: float


def read_step(events: Iterable[Any]) -> Step:
    """The step in the events of `torch.profiler.profile.events()`, recorded with shapes, in the range `STEP`.

    On a CPU the pieces are the times that operations spent themselves. On a GPU they are the times of kernels; in the
    rest of the step no kernel ran, since the host, that is Python and PyTorch, launched none or waited.
    """
    events = list(events)
    on_host = [event for event in events if event.device_type == DeviceType.CPU]
    names = {event.name for event in on_host}
    # The profiler shows ranges of the host on the GPU too, under the names that they have there.
    kernels = [event for event in events if event.device_type != DeviceType.CPU and event.name not in names]
    (step,) = [event for event in on_host if event.name == STEP]
    start, end = step.time_range.start, step.time_range.end
    on_host = [event for event in on_host if start <= event.time_range.start < end]
    return _read_gpu(start, end, on_host, kernels) if kernels else _read_cpu(step, on_host)


def _read_cpu(step: Any, on_host: list[Any]) -> Step:
    own = [event for event in on_host if event.thread == step.thread]
    rows = {id(event): classify(operation) for event, operation in _operations(own)}
    pieces = [(rows[id(event)], event.self_cpu_time_total) for event in own]
    # not those of AdamW, whose count of steps is on the CPU whatever the device
    looks = [event for event in own if event.name == "aten::_local_scalar_dense" and rows[id(event)] == WAITS]
    waiting = sum(event.self_cpu_time_total for event in looks)
    return Step(pieces, step.time_range.end - step.time_range.start, None, len(looks), waiting)


def _read_gpu(start: float, end: float, on_host: list[Any], kernels: list[Any]) -> Step:
    # An operation claims the kernels that it launched; in a CUDA graph none does.
    unclaimed = Counter((event.name, event.time_range.end - event.time_range.start) for event in kernels)
    pieces = []
    for event, operation in _operations(on_host):
        for kernel in event.kernels:
            if unclaimed[kernel.name, kernel.duration] > 0:
                unclaimed[kernel.name, kernel.duration] -= 1
                pieces.append((classify(operation, kernel.name), kernel.duration))
    pieces += [(classify(None, name), duration) for name, duration in unclaimed.elements()]
    end = max([end, *(event.time_range.end for event in kernels)])
    waits = [event for event in on_host if event.name in CUDA_WAITS]
    busy, busy_or_waiting = _covered(kernels), _covered([*kernels, *waits])
    pieces += [(WAITS, busy_or_waiting - busy), (HOST, end - start - busy_or_waiting)]
    return Step(pieces, end - start, busy, len(waits), _covered(waits))


def _operations(events: Iterable[Any]) -> Iterator[tuple[Any, Operation]]:
    known: dict[int, Operation] = {}

    def operation(event: Any) -> Operation:
        if id(event) not in known:
            caller = None if event.cpu_parent is None else operation(event.cpu_parent)
            known[id(event)] = Operation(event.name, [list(shape) for shape in event.input_shapes or []], caller)
        return known[id(event)]

    return ((event, operation(event)) for event in events)


def _covered(events: list[Any]) -> float:
    """The time in which at least one of the events ran."""
    total, until = 0.0, float("-inf")
    for event in sorted(events, key=lambda event: event.time_range.start):
        start, end = max(event.time_range.start, until), event.time_range.end
        if end > start:
            total, until = total + end - start, end
    return total


def table(step: Step) -> list[dict[str, Any]]:
    """The rows of a step: name, milliseconds, share of the step, and the number of operations, or kernels."""
    times, counts = Counter(), Counter()
    for name, microseconds in step.pieces:
        times[name] += microseconds
        counts[name] += 1
    total = sum(times.values())
    return [
        {"name": name, "milliseconds": times[name] / 1000, "share": times[name] / total, "operations": counts[name]}
        for name in ROWS
        if counts[name] or name not in SELDOM
    ]


def profile_training(setting: Setting) -> dict[str, Any]:
    """Where a step of training with AdamW goes, and how long it would take at the limits of the machine.

    In turns run the step, the step under the profiler, the model's matrix products alone and a large copy. The fastest
    of each counts, as the one that other programs held up least. With `torch_compile_mode` the model is compiled.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's notices on stderr
    model, images = setting.build_model().train(), setting.random_images()
    form = model
    if setting.torch_compile_mode:
        # Private: the setting has no public name. It takes long to import.
        from torch._inductor import config

        config.cpp.enable_kernel_profile = True  # else what it compiles for a CPU has no name
        form = torch.compile(model, mode=setting.torch_compile_mode)
    run = partial(training_step, form, images, setting.dtype, AdamW(model.parameters(), fused=True))
    steps: list[Step] = []
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=setting.device)
    runs = {
        OURS: run,
        PROFILED: lambda: steps.append(_profiled(run, setting.device)),
        PRODUCTS: pointwise_products(model, images, setting.dtype),
        COPY: partial(torch.empty_like(source).copy_, source),
    }
    seconds = {name: min(times) for name, times in setting.time(runs).items()}
    fastest = min(steps[1:], key=lambda step: step.microseconds)  # without the warm-up
    traffic = memory_traffic(model, images, setting.dtype)
    bytes_per_second = 2 * COPY_BYTES / seconds[COPY]
    return {
        "what": setting.describe("training step with AdamW" + (", compiled" if setting.torch_compile_mode else "")),
        "rows": table(fastest),
        "milliseconds_profiled": fastest.microseconds / 1000,
        "milliseconds": 1000 * seconds[OURS],
        "milliseconds_gpu_busy": None if fastest.busy is None else fastest.busy / 1000,
        "milliseconds_products": 1000 * seconds[PRODUCTS],
        "milliseconds_traffic": 1000 * traffic / bytes_per_second,
        "traffic_gigabytes": traffic / 1e9,
        "copy_gigabytes_per_second": bytes_per_second / 1e9,
        "host_waits": fastest.num_waits,
        "milliseconds_host_waits": fastest.waiting / 1000,
    }


def _profiled(run: Callable[[], object], device: str) -> Step:
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities, record_shapes=True) as profiled:
        with record_function(STEP):
            run()
        if device == "cuda":
            torch.cuda.synchronize()
    step = read_step(profiled.events())
    if device == "cuda" and step.busy is None:
        raise InputError(
            "expected CUDA kernels in the profile, found none; leave out --parts profile, or install CUPTI"
        )
    return step


def memory_traffic(model: nn.Module, images: Tensor, dtype: torch.dtype) -> int:
    """Bytes that a training step reads and writes if each operation by itself moves its tensors once.

    With x and y, the input and the output of an operation, and their gradients of the same sizes: a convolution moves
    x, y (forward), ∂y, ∂x (gradient of the input) and x, ∂y (that of the kernels); a BatchNorm x, y, and x, ∂y, ∂x;
    the ReLU, GELU or sum behind each convolution's BatchNorm as much as that. A parameter of float32 is read forward
    and backward, its gradient is written, and AdamW reads it, its gradient and two averages and writes all but the
    gradient. What one kernel does in one pass moves less, a BatchNorm in several passes more.
    """
    sizes = []

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        sizes.append(3 * (inputs[0].numel() + output.numel()) if isinstance(module, nn.Conv2d) else 5 * output.numel())

    # a RepLKNetConvNorm stands for what follows it
    visit(model, images, (nn.Conv2d, nn.BatchNorm2d, RepLKNetConvNorm), note)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return sum(sizes) * dtype.itemsize + 10 * 4 * num_parameters
