"""The depthwise convolution with large kernels, fast in plain PyTorch: how it works, and the one choice among the ways.

A depthwise convolution slides over every channel c a kernel of its own. With odd sides K and the padding p = K // 2,

    y[n, c, i] = Σ_k w[c, k] x[n, c, i + k - p]                       i: position in the map, k: position in the kernel

Why it was slow. PyTorch hands the convolution to oneDNN, whose forward pass is near the speed of the machine in the
memory format channels_last, where neighbours in memory are channels and one instruction works on 16 of them, and 20
times slower in the usual one. The backward pass has no such path: with K = 31 it took 80% of a training step.

What makes it fast. Both gradients are depthwise convolutions themselves, so the fast forward pass can compute them.
Let g be the gradient of y:

    ∂x[n, c, j] = Σ_k w[c, k] g[n, c, j - k + p]                      the same convolution of g, its kernel flipped
    ∂w[c, k]    = Σ_n Σ_i g[n, c, i] x[n, c, i + k - p]               a convolution of x, and g is the kernel

The second is large (a kernel of H·W, one for each image) and ends in a small map (K × K). The sum over n comes for
free: in a convolution of three dimensions, with the images as depth and no padding there, it is part of the sum. The
larger the kernel, the more machine code oneDNN writes for it; so large maps are cut into bands of rows, and the bands'
gradients are added.

Each way is a `Candidate`: a forward pass and the two gradients. The convolution is linear in both inputs, so that the
derivatives of its gradients are convolutions and gradients again, and one operator serves all candidates: PyTorch's
compiler and its exporter see one operation.

    plain           F.conv2d and its own backward pass: the reference, and what export sees
    direct          as above
    dense           the kernel, unfolded, is a matrix for each channel that takes all positions to all positions:
                    y[:, c] = x[:, c] T[c], T of H·W × H·W; the gradients are products of matrices and a fold
    fft             convolutions are products of spectra: Y = X · W*, ∂X = G · W, ∂W = Σ_n X · G*, on maps of
                    (H + p) × (W + p), where what wraps around falls beside what is kept
    triton          products of Toeplitz matrices on a GPU's tensor cores: see `large_kernel_triton.py`
    implicit_gemm   the compiled extension of the paper's authors, if it happens to be installed

A tap further from the kernel's center than the map is long meets padding only, so kernels are first cropped to
(2H - 1) × (2W - 1).

Which one. On a CPU a rule, so that the same seed gives the same bits. Direct takes time by the products that do not
meet padding, Π (H K - p (p + 1)) over the two sides, and fft by the points of its maps, whatever the kernel. On two
machines of two AVX-512 cores each, torch 2.14.1, a point cost as much as 350 and as 600 products, from maps of 14 to 96
and in float32 as in bfloat16. The rule takes 600, since fft also needs memory for its spectra: so with K = 31 fft from
maps of 94 upwards, with K = 51 from 48, and direct below. Kernels up to 3 × 3 are left to PyTorch. oneDNN has no
float64, nor float16 on most CPUs: there fft. On CUDA plain, fft, triton and implicit_gemm are timed, once for each
device, dtype, shape and direction, unless `set_choices` or `load_choices` has said which one to take: timings vary, and
another candidate rounds differently. The environment variable SEEDLING_HF_CONV, or `conv_implementation` of the model's
configuration, forces one.
"""

import json
import math
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .large_kernel_triton import convolve as triton_convolve
from .large_kernel_triton import grad_weight as triton_grad_weight
from .large_kernel_triton import is_available as triton_is_available

ENVIRONMENT_VARIABLE = "SEEDLING_HF_CONV"
PRODUCTS_PER_POINT = 600  # the multiply-adds of `direct` that take as long as one point of `fft`, on a CPU
# oneDNN writes machine code for each number of taps that meets no padding: with 3136 taps 150 MB of it, which stay.
MAX_TAPS = 1200
HAS_ONEDNN = torch.backends.mkldnn.is_available()

# Of the largest output, for two ways to the same sums: bits of the inputs' and the outputs' dtype.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}

Gradients = tuple[Tensor | None, Tensor | None]


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, implementation: str | None = None, relu: bool = False
) -> Tensor:
    """Convolves each channel with a kernel of its own, with stride 1 and the padding that keeps height and width.

    Args:
        x: Activations, (N, C, H, W), best in the memory format channels_last.
        weight: Kernels of odd sides, (C, 1, K, K).
        bias: One number for each channel, (C,).
        implementation: Name of a candidate; None chooses. The environment variable SEEDLING_HF_CONV overrides it.
        relu: Whether ReLU follows.

    Returns:
        (N, C, H, W), in the dtype of `x`, or that of autocast.

    Raises:
        ValueError: for an unknown implementation, and for kernels that do not fit or have even sides.
    """
    _check(x, weight)
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        y = _plain(x, weight, bias)
        return F.relu(y) if relu else y
    forced = _forced(implementation) if x.numel() else "plain"
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    weight = _cropped(weight, x.shape[2:])
    if forced == "implicit_gemm" and not _implicit_gemm_works(tuple(weight.shape), x.dtype, x.device):
        _warn_of_missing("the extension depthwise_conv2d_implicit_gemm")
        forced = None
    elif forced == "triton" and not triton_is_available(x):
        _warn_of_missing("Triton and a GPU for it")
        forced = None
    needs_grad = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, weight, bias)
    )
    if forced == "plain" or (not needs_grad and device == "cpu" and (forced or _static_choice(x, weight)) == "plain"):
        y = _plain(x, weight, bias)
    elif needs_grad:
        y = _convolve(x, weight, None, False, forced or "")
        y = y if bias is None else y + bias[:, None, None]
    else:
        return _convolve(x, weight, bias, relu, forced or "")
    return F.relu(y) if relu else y


def in_fast_format(x: Tensor) -> Tensor:
    """`x` in the memory format in which a GPU is fast with large kernels, map after map; elsewhere unchanged."""
    return x.contiguous() if x.is_cuda else x


class DepthwiseConv2d(nn.Conv2d):
    """An `nn.Conv2d`, fast where each channel has a kernel of its own, with padding that keeps height and width.

    Args:
        *args: Those of `nn.Conv2d`.
        implementation: Name of a candidate; None chooses.
        **kwargs: Those of `nn.Conv2d`.
    """

    def __init__(self, *args, implementation: str | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.implementation = implementation

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        if self._is_depthwise():
            return depthwise_conv2d(x, self.weight, self.bias, self.implementation, relu)
        y = super().forward(x)
        return F.relu(y) if relu else y

    def _is_depthwise(self) -> bool:
        return (
            self.groups == self.in_channels == self.out_channels
            and self.stride == self.dilation == (1, 1)
            and self.padding == tuple(side // 2 for side in self.kernel_size)
            and self.padding_mode == "zeros"
        )


# The operator. A compiler sees one operation, whatever the candidate. Each copy of this file, as models carry it, has
# operators of its own.
NAMESPACE = __name__.replace(".", "_")


@torch.library.custom_op(f"{NAMESPACE}::convolve", mutates_args=())
def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, implementation: str) -> Tensor:
    """The output of a candidate; with bias and ReLU only where no gradient is needed."""
    name = implementation or _choose(x, weight, "forward")
    memory_format = _output_format(x, name)
    if name == "triton":
        y = triton_convolve(x.contiguous(), weight, bias, relu)
        return y.contiguous(memory_format=memory_format)
    if name in ("plain", "direct") and bias is not None:  # it is free there
        y = _plain(x.contiguous(memory_format=memory_format), weight, bias)
    else:
        y = CANDIDATES[name].convolve(x, weight)
        y = y if bias is None else y.add_(bias[:, None, None])
    y = y.contiguous(memory_format=memory_format)
    return F.relu_(y) if relu else y


@_convolve.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, implementation: str) -> Tensor:
    return torch.empty_like(x, memory_format=_output_format(x, implementation or _static_choice(x, weight)))


@torch.library.custom_op(f"{NAMESPACE}::gradients", mutates_args=())
def _gradients(
    x: Tensor, weight: Tensor, grad: Tensor, needs_x: bool, needs_weight: bool, implementation: str
) -> tuple[Tensor, Tensor]:
    """The gradients of `x` and `weight`; empty where not needed."""
    name = implementation or _choose(x, weight, "backward")
    with torch.autocast(x.device.type, enabled=False):
        grad_x, grad_weight = CANDIDATES[name].gradients(x, weight, grad, (needs_x, needs_weight))
    return (
        grad_x.contiguous(memory_format=_output_format(x, name)) if needs_x else x.new_empty(0),
        grad_weight if needs_weight else weight.new_empty(0),
    )


@_gradients.register_fake
def _(
    x: Tensor, weight: Tensor, grad: Tensor, needs_x: bool, needs_weight: bool, implementation: str
) -> tuple[Tensor, Tensor]:
    memory_format = _output_format(x, implementation or _static_choice(x, weight))
    return (
        torch.empty_like(x, memory_format=memory_format) if needs_x else x.new_empty(0),
        torch.empty_like(weight, memory_format=torch.contiguous_format) if needs_weight else weight.new_empty(0),
    )


def _save_inputs(ctx, inputs: tuple, output: Tensor) -> None:
    x, weight, _, _, ctx.implementation = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    needed = ctx.needs_input_grad[:2]
    grads = _gradients(*ctx.saved_tensors, grad, *needed, ctx.implementation)
    return *(value if is_needed else None for value, is_needed in zip(grads, needed, strict=True)), None, None, None


def _save_gradient_inputs(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, grad, ctx.needs_x, ctx.needs_weight, ctx.implementation = inputs
    ctx.save_for_backward(x, weight, grad)


def _second_backward(ctx, grad_x: Tensor, grad_weight: Tensor) -> tuple[Tensor | None, ...]:
    """The convolution is linear in both inputs, so that derivatives of its gradients are convolutions again.

    With a = `grad_x` and b = `grad_weight`, the gradients of ⟨a, ∂x(w, g)⟩ + ⟨b, ∂w(x, g)⟩: those of x and w are the
    convolution's gradients at (a, b), and that of g is conv(a, w) + conv(x, b).
    """
    x, weight, grad = ctx.saved_tensors
    grad_x = grad_x if ctx.needs_x else torch.zeros_like(x)
    grad_weight = grad_weight if ctx.needs_weight else torch.zeros_like(weight)
    second_x, second_weight = _gradients(grad_x, grad_weight, grad, True, True, ctx.implementation)
    second_grad = _convolve(grad_x, weight, None, False, ctx.implementation)
    second_grad = second_grad + _convolve(x, grad_weight, None, False, ctx.implementation)
    return second_x, second_weight, second_grad, None, None, None


_convolve.register_autograd(_backward, setup_context=_save_inputs)
_gradients.register_autograd(_second_backward, setup_context=_save_gradient_inputs)


def _output_format(x: Tensor, name: str) -> torch.memory_format:
    """On a CPU channels_last, in which it is fast; else, and for plain, the format of `x`."""
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    if is_channels_last or (x.device.type == "cpu" and name != "plain"):
        return torch.channels_last
    return torch.contiguous_format


# plain


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=_half(weight), groups=len(weight))


def _plain_gradients(x: Tensor, weight: Tensor, grad: Tensor, needed: tuple[bool, bool]) -> Gradients:
    # Not torch.nn.grad.conv2d_input, which knows the shape of x but not its memory format, and takes ten times as long.
    grads = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], _half(weight), [1, 1], False, [0, 0], len(weight), [*needed, False]
    )
    # The strides of its dimension of one are those of channels_last, which DDP would warn of.
    return grads[0], grads[1].squeeze(1).unsqueeze(1) if needed[1] else None


# direct


def _direct(x: Tensor, weight: Tensor) -> Tensor:
    return _plain(_channels_last(x), weight)


def _direct_gradients(x: Tensor, weight: Tensor, grad: Tensor, needed: tuple[bool, bool]) -> Gradients:
    grad_x = _direct(grad, weight.flip(2, 3)) if needed[0] else None
    grad_weight = _direct_grad_weight(x, weight, grad) if needed[1] else None
    return grad_x, grad_weight


def _direct_grad_weight(x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    height, width = x.shape[2:]
    up, left = _half(weight)
    if height * width <= MAX_TAPS:
        return _correlation(x, grad, (up, left))
    rows = math.ceil(height / math.ceil(height * width / MAX_TAPS))
    parts = []
    for n in range(len(x)):  # one after the other, since memory that was just used is faster than fresh memory
        image = F.pad(x[n : n + 1], (0, 0, up, up))
        for first in range(0, height, rows):
            band = image[:, :, first : first + rows + 2 * up]
            parts.append(_correlation(band, grad[n : n + 1, :, first : first + rows], (0, left)))
    return sum(parts[1:], parts[0])


def _correlation(x: Tensor, grad: Tensor, padding: tuple[int, int]) -> Tensor:
    """Σ_n Σ_i grad[n, c, i] x[n, c, i + k], with as many images in a convolution as MAX_TAPS allows."""
    n, c, h, w = grad.shape
    depth = max(1, MAX_TAPS // (h * w))
    parts = []
    for first in range(0, n, depth):
        rows = x[first : first + depth].permute(0, 2, 3, 1).contiguous()  # (N, C, H, W) -> (N, H, W, C)
        # unsqueezed before it is permuted: oneDNN recognizes channels_last by the strides, that of the one batch too
        image = rows.unsqueeze(0).permute(0, 4, 1, 2, 3)  # (1, C, N, H, W)
        kernel = grad[first : first + depth].permute(0, 2, 3, 1).reshape(-1, c).t()  # (C, N H W)
        kernel = kernel.reshape(c, 1, -1, h, w)
        parts.append(F.conv3d(image, kernel, padding=(0, *padding), groups=c)[0])
    return sum(parts[1:], parts[0]).contiguous()


# dense


def _dense(x: Tensor, weight: Tensor) -> Tensor:
    n, c, h, w = x.shape
    windows = F.unfold(F.pad(weight, _dense_margins(x, weight)), (h, w))  # (C, H W of x, H W of y from its end)
    y = torch.bmm(x.flatten(2).transpose(0, 1), windows).flip(2)  # (C, N, H W)
    return _channels_last(y.transpose(0, 1).reshape(n, c, h, w))


def _dense_gradients(x: Tensor, weight: Tensor, grad: Tensor, needed: tuple[bool, bool]) -> Gradients:
    grad_x = _dense(grad, weight.flip(2, 3)) if needed[0] else None
    grad_weight = None
    if needed[1]:
        h, w = x.shape[2:]
        windows = torch.bmm(x.flatten(2).permute(1, 2, 0), grad.flatten(2).flip(2).transpose(0, 1))
        sums = F.fold(windows, (2 * h - 1, 2 * w - 1), (h, w))
        grad_weight = F.pad(sums, [-margin for margin in _dense_margins(x, weight)])
    return grad_x, grad_weight


def _dense_margins(x: Tensor, weight: Tensor) -> list[int]:
    vertical, horizontal = (side - 1 - half for side, half in zip(x.shape[2:], _half(weight), strict=True))
    return [horizontal, horizontal, vertical, vertical]


# fft


def _fft(x: Tensor, weight: Tensor) -> Tensor:
    size = _fft_size(x, weight)
    return _from_spectrum(_spectrum(x, size) * _kernel_spectrum(weight, size).conj_physical(), x, size)


def _fft_gradients(x: Tensor, weight: Tensor, grad: Tensor, needed: tuple[bool, bool]) -> Gradients:
    size = _fft_size(x, weight)
    spectrum = _spectrum(grad, size)
    grad_x = _from_spectrum(spectrum * _kernel_spectrum(weight, size), x, size) if needed[0] else None
    grad_weight = None
    if needed[1]:
        sums = torch.fft.irfft2((_spectrum(x, size) * spectrum.conj_physical()).sum(0), size)
        sums = sums.roll(_half(weight), (1, 2))[:, : weight.shape[2], : weight.shape[3]]
        grad_weight = sums.unsqueeze(1).to(weight.dtype).contiguous()
    return grad_x, grad_weight


def _spectrum(x: Tensor, size: list[int]) -> Tensor:
    return torch.fft.rfft2(x.to(torch.promote_types(x.dtype, torch.float32)), size)


def _kernel_spectrum(weight: Tensor, size: list[int]) -> Tensor:
    margins = [0, size[1] - weight.shape[3], 0, size[0] - weight.shape[2]]
    up, left = _half(weight)
    return _spectrum(F.pad(weight, margins).roll((-up, -left), (2, 3)), size).squeeze(1)  # the center to position 0


def _from_spectrum(spectrum: Tensor, like: Tensor, size: list[int]) -> Tensor:
    y = torch.fft.irfft2(spectrum, size)[:, :, : like.shape[2], : like.shape[3]]
    return _channels_last(y.to(like.dtype))


def _fft_size(x: Tensor, weight: Tensor) -> list[int]:
    return [_fast_length(side + half) for side, half in zip(x.shape[2:], _half(weight), strict=True)]


def _fast_length(length: int) -> int:
    """The next length that has no prime factor above 7."""
    while True:
        rest = length
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1


# triton


def _triton(x: Tensor, weight: Tensor) -> Tensor:
    return triton_convolve(x.contiguous(), weight)


def _triton_gradients(x: Tensor, weight: Tensor, grad: Tensor, needed: tuple[bool, bool]) -> Gradients:
    grad = grad.contiguous()
    grad_x = triton_convolve(grad, weight, flip=True) if needed[0] else None
    grad_weight = None
    if needed[1]:
        grad_weight = triton_grad_weight(x.contiguous(), grad, weight.shape[2:]).to(weight.dtype)
    return grad_x, grad_weight


def _triton_works(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernels compile for this shape, and compute what plain does; tried once."""
    key = _timing_key(x, weight, "")
    if key not in _trusted and not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        _trusted[key] = triton_is_available(x) and _triton_is_right(x, weight)
    return _trusted.get(key, False)


@torch.no_grad()
def _triton_is_right(x: Tensor, weight: Tensor) -> bool:
    # Compilers have erred in single cases (triton-lang/triton#1254). Its own generator leaves the run's draws alone.
    generator = torch.Generator(x.device).manual_seed(0)
    x, weight, grad = (
        torch.empty_like(tensor, memory_format=torch.contiguous_format).normal_(generator=generator)
        for tensor in (x, weight, x)
    )
    tolerance = TOLERANCES[x.dtype]
    if torch.backends.cudnn.allow_tf32:
        tolerance = max(tolerance, TOLERANCES[torch.float16])  # TF32 has as many bits
    try:
        found = _triton(x, weight), *_triton_gradients(x, weight, grad, (True, True))
        expected = _plain(x, weight), *_plain_gradients(x, weight, grad, (True, True))
        return all((a - b).abs().max() <= tolerance * b.abs().max() for a, b in zip(found, expected, strict=True))
    except Exception:  # a compiler may raise anything
        return False


# implicit_gemm


def _implicit_gemm(x: Tensor, weight: Tensor) -> Tensor:
    module = _implicit_gemm_module(len(weight), weight.shape[2])
    return torch.func.functional_call(module, {"weight": weight}, (x.contiguous(),))


def _implicit_gemm_gradients(x: Tensor, weight: Tensor, grad: Tensor, needed: tuple[bool, bool]) -> Gradients:
    with torch.enable_grad():  # its backward pass is offered through autograd only
        x = x.detach().contiguous().requires_grad_(needed[0])
        weight = weight.detach().requires_grad_(needed[1])
        y = _implicit_gemm(x, weight)
    wanted = [tensor for tensor in (x, weight) if tensor.requires_grad]
    grads = iter(torch.autograd.grad(y, wanted, grad.contiguous()))
    return next(grads) if needed[0] else None, next(grads) if needed[1] else None


@cache
def _implicit_gemm_module(channels: int, kernel_size: int) -> nn.Module:
    return _implicit_gemm_class()(channels, kernel_size, bias=False)


@cache
def _implicit_gemm_works(kernels: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the extension is installed, accepts kernels of this shape, and passes a trial."""
    if _implicit_gemm_class() is None or kernels[2] != kernels[3]:
        return False
    weight = torch.zeros(kernels, dtype=dtype, device=device)
    try:
        with torch.no_grad():
            _implicit_gemm(weight.transpose(0, 1), weight)
    except Exception:  # built for another dtype or device, or a library that does not load
        return False
    return True


@cache
def _implicit_gemm_class() -> type[nn.Module] | None:
    try:
        from depthwise_conv2d_implicit_gemm import DepthWiseConv2dImplicitGEMM
    except Exception:  # a broken build may raise anything
        return None
    return DepthWiseConv2dImplicitGEMM


# The choice


class Candidate(NamedTuple):
    """A way of computing the convolution.

    Attributes:
        convolve: (x, weight) -> y, without bias.
        gradients: (x, weight, gradient of y, which gradients are needed) -> those of x and weight, or None.
    """

    convolve: Callable[[Tensor, Tensor], Tensor]
    gradients: Callable[[Tensor, Tensor, Tensor, tuple[bool, bool]], Gradients]


CANDIDATES = {
    "plain": Candidate(_plain, _plain_gradients),
    "direct": Candidate(_direct, _direct_gradients),
    "dense": Candidate(_dense, _dense_gradients),
    "fft": Candidate(_fft, _fft_gradients),
    "triton": Candidate(_triton, _triton_gradients),
    "implicit_gemm": Candidate(_implicit_gemm, _implicit_gemm_gradients),
}

_timings: dict[tuple, dict[str, float]] = {}
_chosen: dict[tuple, str] = {}  # by `set_choices`, with the name of the device's kind in place of its number
_trusted: dict[tuple, bool] = {}  # whether triton was right, on a device, in a dtype, for a shape


def timings() -> list[dict]:
    """The timings on CUDA devices so far: shapes, and milliseconds by candidate; the fastest was chosen."""
    names = ("device", "dtype", "shape", "kernel_size", "direction")
    return [{**dict(zip(names, key, strict=True)), "milliseconds": dict(times)} for key, times in _timings.items()]


def choices() -> list[dict]:
    """The candidates that CUDA devices use so far, set or timed: device, dtype, shape, kernel_size, direction, name."""
    timed = {_choice_key(key): min(times, key=times.get) for key, times in _timings.items()}
    names = ("device", "dtype", "shape", "kernel_size", "direction")
    return [{**dict(zip(names, key, strict=True)), "name": name} for key, name in (timed | _chosen).items()]


def set_choices(values: list[dict]) -> None:
    """Has CUDA devices of the same kinds use what `choices` has returned, in this process or in another one.

    A candidate that does not work here is not used; then, and for other shapes, timing decides.

    Raises:
        ValueError: for what `choices` does not return.
    """
    try:
        found = {
            (c["device"], c["dtype"], tuple(c["shape"]), tuple(c["kernel_size"]), c["direction"]): c["name"]
            for c in values
        }
        unknown = [name for name in found.values() if name not in CANDIDATES]
    except (TypeError, KeyError) as error:
        raise ValueError(f"expected choices of the large-kernel convolution, found {values!r:.80}") from error
    if unknown:
        raise ValueError(f"expected {', '.join(CANDIDATES)} as choices, found {unknown[0]!r}")
    _chosen.update(found)


def save_choices(path: str | Path) -> None:
    """Writes `choices()` as JSON."""
    Path(path).write_text(json.dumps(choices(), indent=1) + "\n", encoding="utf-8")


def load_choices(path: str | Path) -> None:
    """Reads what `save_choices` has written; see `set_choices`, whose ValueError it raises for another file."""
    set_choices(json.loads(Path(path).read_text(encoding="utf-8")))


def _choose(x: Tensor, weight: Tensor, direction: str) -> str:
    if x.device.type != "cuda":
        return _static_choice(x, weight)
    chosen = _chosen.get(_choice_key(_timing_key(x, weight, direction))) if _chosen else None
    if chosen in ("plain", "fft") or (chosen and chosen in _possible(x, weight)):
        return chosen
    is_timed = _timing_key(x, weight, direction) in _timings
    if torch.are_deterministic_algorithms_enabled() or (torch.cuda.is_current_stream_capturing() and not is_timed):
        # Another process might choose another candidate, and what is captured cannot be timed.
        return "triton" if _triton_works(x, weight) else "plain"
    times = _timed(x, weight, direction, _cuda_milliseconds)
    return min(times, key=times.get)


def _static_choice(x: Tensor, weight: Tensor) -> str:
    return _cpu_rule(x.dtype, x.shape[2:], weight.shape[2:]) if x.device.type == "cpu" else "plain"


def _cpu_rule(dtype: torch.dtype, map_size: tuple[int, int], kernel_size: tuple[int, int]) -> str:
    is_fast = dtype in (torch.float32, torch.bfloat16) and HAS_ONEDNN
    if max(kernel_size) <= (3 if is_fast else 5):
        return "plain"
    products = points = 1
    for side, kernel_side in zip(map_size, kernel_size, strict=True):
        half = kernel_side // 2
        products *= side * kernel_side - half * (half + 1)
        points *= side + half
    return "fft" if not is_fast or products > PRODUCTS_PER_POINT * points else "direct"


def _timed(x: Tensor, weight: Tensor, direction: str, milliseconds: Callable) -> dict[str, float]:
    key = _timing_key(x, weight, direction)
    if key not in _timings:
        x, weight = x.detach(), weight.detach()
        times = {}
        for name in _possible(x, weight):
            convolve, gradients = CANDIDATES[name]
            if direction == "forward":
                times[name] = milliseconds(lambda run=convolve: run(x, weight))
            else:
                times[name] = milliseconds(lambda run=gradients: run(x, weight, x, (True, True)))
        _timings[key] = times
    return _timings[key]


def _timing_key(x: Tensor, weight: Tensor, direction: str) -> tuple:
    return str(x.device), str(x.dtype), tuple(x.shape), tuple(weight.shape[2:]), direction


def _choice_key(key: tuple) -> tuple:
    return _device_kind(key[0]), *key[1:]


@cache
def _device_kind(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _possible(x: Tensor, weight: Tensor) -> list[str]:
    names = ["plain", "fft"]  # direct and dense are for CPUs: here they take ten times as long
    if _triton_works(x, weight):
        names.append("triton")
    if x.dtype in (torch.float32, torch.float16) and _implicit_gemm_works(tuple(weight.shape), x.dtype, x.device):
        names.append("implicit_gemm")
    return names


@torch.no_grad()
def _cuda_milliseconds(run: Callable[[], object], repeats: int = 5) -> float:
    best = float("inf")
    try:
        for _ in range(2 + repeats):  # the first ones load kernels
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            end.synchronize()
            best = min(best, start.elapsed_time(end))
    except RuntimeError:  # no kernel for this dtype, or no memory
        return float("inf")
    return best


def _forced(implementation: str | None) -> str | None:
    name = os.environ.get(ENVIRONMENT_VARIABLE) or implementation
    if name is None:
        return None
    if name not in CANDIDATES:
        raise ValueError(
            f"expected one of {', '.join(CANDIDATES)} as implementation or in {ENVIRONMENT_VARIABLE}, found {name!r}"
        )
    return name


@cache
def _warn_of_missing(what: str) -> None:
    warnings.warn(f"expected {what}, found none that works here; another candidate is used", stacklevel=4)


def _check(x: Tensor, weight: Tensor) -> None:
    is_odd = weight.ndim == 4 and weight.shape[2] % 2 == weight.shape[3] % 2 == 1
    if x.ndim != 4 or not is_odd or tuple(weight.shape[:2]) != (x.shape[1], 1):
        raise ValueError(
            "expected x of shape (N, C, H, W) and weight of shape (C, 1, K, K) with odd K, found "
            f"{tuple(x.shape)} and {tuple(weight.shape)}"
        )


def _cropped(weight: Tensor, map_size: tuple[int, int]) -> Tensor:
    """The kernel without the taps that meet only padding."""
    top, left = (max(0, half - max(0, side - 1)) for half, side in zip(_half(weight), map_size, strict=True))
    return weight[:, :, top : weight.shape[2] - top, left : weight.shape[3] - left] if top or left else weight


def _half(weight: Tensor) -> tuple[int, int]:
    return weight.shape[2] // 2, weight.shape[3] // 2


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
