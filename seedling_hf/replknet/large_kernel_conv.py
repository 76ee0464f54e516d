"""The depthwise convolution with large kernels, fast in plain PyTorch: how it works, and the one choice among the ways.

A depthwise convolution slides over every channel c a kernel of its own. With odd sides K and the padding p = K // 2,

    y[n, c, i] = Σ_k w[c, k] x[n, c, i + k - p]                       i: position in the map, k: position in the kernel

Why it was slow. PyTorch hands the convolution to oneDNN, whose forward pass is near the speed of the machine in the
memory format channels_last, where neighbours in memory are channels and one instruction works on 16 of them, and 20
times slower in the usual one. The backward pass has no such path: with K = 31 it took 80 % of a training step.

What makes it fast. Both gradients are depthwise convolutions themselves, so the fast forward pass can compute them.
Let g be the gradient of y:

    ∂x[n, c, j] = Σ_k w[c, k] g[n, c, j - k + p]                      the same convolution of g, its kernel flipped
    ∂w[c, k]    = Σ_n Σ_i g[n, c, i] x[n, c, i + k - p]               a convolution of x, and g is the kernel

The second is large (a kernel of H·W, one for each image) and ends in a small map (K × K). The sum over n comes for
free: in a convolution of three dimensions, with the images as depth and no padding there, it is part of the sum. The
larger the kernel, the more machine code oneDNN writes for it; so large maps are cut into bands of rows, and the bands'
gradients are added.

Each way is a `Candidate`: a forward pass and the two gradients, made of operations that have derivatives in turn.

    plain           F.conv2d and its own backward pass: the reference, and what export sees
    direct          as above
    dense           the kernel, unfolded, is a matrix for each channel that takes all positions to all positions:
                    y[:, c] = x[:, c] T[c], T of H·W × H·W; the gradients are products of matrices and a fold
    fft             convolutions are products of spectra: Y = X · W*, ∂X = G · W, ∂W = Σ_n X · G*, on maps of
                    (H + p) × (W + p), where what wraps around falls beside what is kept
    implicit_gemm   the compiled extension of the paper's authors, if it happens to be installed

A tap further from the kernel's center than the map is long meets padding only, so kernels are first cropped to
(2H - 1) × (2W - 1).

Which one. On a CPU a rule, so that the same seed gives the same bits. Direct takes time by the products that do not
meet padding, Π (H K - p (p + 1)) over the two sides, and fft by the points of its maps, whatever the kernel. On two
machines of two AVX-512 cores each, torch 2.14.1, a point cost as much as 350 and as 600 products, from maps of 14 to 96
and in float32 as in bfloat16. The rule takes 600, since fft also needs memory for its spectra: so with K = 31 fft from
maps of 94 upwards, with K = 51 from 48, and direct below. Kernels up to 3 × 3 are left to PyTorch. oneDNN has no
float64, nor float16 on most CPUs: there fft. On CUDA the candidates are timed, once for each
device, dtype, shape and direction; `timings()` tells the results. The environment variable SEEDLING_HF_CONV, or
`conv_implementation` of the model's configuration, forces one.
"""

import math
import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ENVIRONMENT_VARIABLE = "SEEDLING_HF_CONV"
PRODUCTS_PER_POINT = 600  # the multiply-adds of `direct` that take as long as one point of `fft`, on a CPU
# oneDNN writes machine code for each number of taps that meets no padding: with 3136 taps 150 MB of it, which stay.
MAX_TAPS = 1200
HAS_ONEDNN = torch.backends.mkldnn.is_available()
MAX_DENSE_ELEMENTS = 2**26  # of the matrices of `dense`, 256 MiB in float32

Gradients = tuple[Tensor | None, Tensor | None]


def depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, implementation: str | None = None
) -> Tensor:
    """Convolves each channel with a kernel of its own, with stride 1 and the padding that keeps height and width.

    Args:
        x: Activations, (N, C, H, W), best in the memory format channels_last.
        weight: Kernels of odd sides, (C, 1, K, K).
        bias: One number for each channel, (C,).
        implementation: Name of a candidate; None chooses. The environment variable SEEDLING_HF_CONV overrides it.

    Returns:
        (N, C, H, W), in the dtype of `x`, or that of autocast.

    Raises:
        ValueError: for an unknown implementation, and for kernels that do not fit or have even sides.
    """
    _check(x, weight)
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return _plain(x, weight, bias)
    forced = _forced(implementation) if x.numel() else "plain"
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    weight = _cropped(weight, x.shape[2:])
    if forced == "implicit_gemm" and not _implicit_gemm_works(tuple(weight.shape), x.dtype, x.device):
        _warn_of_missing_extension()
        forced = None
    name = forced or _choose(x, weight, "forward")
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if forced == "plain" or (name == "plain" and not needs_grad):
        return _plain(x, weight, bias)  # the bias is free there
    if name == "direct" and not needs_grad:
        return _plain(_channels_last(x), weight, bias)
    y = _DepthwiseConv2d.apply(x, weight, name, forced) if needs_grad else CANDIDATES[name].convolve(x, weight)
    return y if bias is None else y + bias[:, None, None]


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)` that runs fast."""

    def __init__(self, channels: int, kernel_size: int, bias: bool = False, implementation: str | None = None) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias)
        self.implementation = implementation

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv2d(x, self.weight, self.bias, self.implementation)


class _DepthwiseConv2d(torch.autograd.Function):
    """The forward pass of one candidate, and the gradients of the same or another one."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, name: str, forced: str | None) -> Tensor:
        return CANDIDATES[name].convolve(x, weight)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        x, weight, _, ctx.forced = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            name = ctx.forced or _choose(x, weight, "backward")
            return *CANDIDATES[name].gradients(x, weight, grad, ctx.needs_input_grad[:2]), None, None


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
    return _from_spectrum(_spectrum(x, size) * _kernel_spectrum(weight, size).conj(), x, size)


def _fft_gradients(x: Tensor, weight: Tensor, grad: Tensor, needed: tuple[bool, bool]) -> Gradients:
    size = _fft_size(x, weight)
    spectrum = _spectrum(grad, size)
    grad_x = _from_spectrum(spectrum * _kernel_spectrum(weight, size), x, size) if needed[0] else None
    grad_weight = None
    if needed[1]:
        sums = torch.fft.irfft2((_spectrum(x, size) * spectrum.conj()).sum(0), size)
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


# implicit_gemm


def _implicit_gemm(x: Tensor, weight: Tensor) -> Tensor:
    module = _implicit_gemm_module(len(weight), weight.shape[2])
    return torch.func.functional_call(module, {"weight": weight}, (x.contiguous(),))


def _implicit_gemm_gradients(x: Tensor, weight: Tensor, grad: Tensor, needed: tuple[bool, bool]) -> Gradients:
    if torch.is_grad_enabled():  # for second derivatives, which the extension lacks
        return _direct_gradients(x, weight, grad, needed)
    with torch.enable_grad():  # its backward pass is offered through autograd only
        x, weight = x.detach().requires_grad_(needed[0]), weight.detach().requires_grad_(needed[1])
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
    "implicit_gemm": Candidate(_implicit_gemm, _implicit_gemm_gradients),
}

_timings: dict[tuple, dict[str, float]] = {}


def timings() -> list[dict]:
    """The timings on CUDA devices so far: shapes, and milliseconds by candidate; the fastest was chosen."""
    names = ("device", "dtype", "shape", "kernel_size", "direction")
    return [{**dict(zip(names, key, strict=True)), "milliseconds": dict(times)} for key, times in _timings.items()]


def _choose(x: Tensor, weight: Tensor, direction: str) -> str:
    if x.device.type == "cpu":
        return _cpu_rule(x.dtype, x.shape[2:], weight.shape[2:])
    if x.device.type == "cuda" and not (
        torch.compiler.is_compiling()
        or torch.cuda.is_current_stream_capturing()
        or torch.are_deterministic_algorithms_enabled()  # another process might choose another candidate
    ):
        times = _timed(x, weight, direction, _cuda_milliseconds)
        return min(times, key=times.get)
    return "plain"


def _cpu_rule(dtype: torch.dtype, map_size: tuple[int, int], kernel_size: tuple[int, int]) -> str:
    is_fast = dtype in (torch.float32, torch.bfloat16) and HAS_ONEDNN
    if max(kernel_size) <= (3 if is_fast else 5):
        return "plain"
    if torch.compiler.is_compiling():  # which has no complex numbers
        return "direct" if is_fast else "plain"
    products = points = 1
    for side, kernel_side in zip(map_size, kernel_size, strict=True):
        half = kernel_side // 2
        products *= side * kernel_side - half * (half + 1)
        points *= side + half
    return "fft" if not is_fast or products > PRODUCTS_PER_POINT * points else "direct"


def _timed(x: Tensor, weight: Tensor, direction: str, milliseconds: Callable) -> dict[str, float]:
    key = (str(x.device), str(x.dtype), tuple(x.shape), tuple(weight.shape[2:]), direction)
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


def _possible(x: Tensor, weight: Tensor) -> list[str]:
    names = ["plain", "direct", "fft"]
    if x.shape[1] * (x.shape[2] * x.shape[3]) ** 2 <= MAX_DENSE_ELEMENTS:
        names.append("dense")
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
def _warn_of_missing_extension() -> None:
    warnings.warn(
        "expected the extension depthwise_conv2d_implicit_gemm, found none that works here; another candidate is used",
        stacklevel=4,
    )


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
