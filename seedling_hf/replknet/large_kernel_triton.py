"""The depthwise convolution with large kernels on tensor cores, in Triton: forward pass and both gradients.

Tensor cores multiply matrices, and a depthwise convolution has none: each output sums over the taps of one channel. But
one row of a kernel, applied to one row of a map, is a matrix, banded and constant along its diagonals (Toeplitz):

    y[n, c, h, :] = Σ_kh x[n, c, h + kh - p, :] T[c, kh]       T[c, kh][i, j] = w[c, kh, i - j + p], 0 outside the band

All images and rows that share T are the rows of one product. T is never stored: each program gathers it from the few
numbers of the kernel, which stay in the cache. The gradient of x is the same product with the kernel flipped. That of w
is the transpose,

    ∂w[c, kh, kw] = Σ over the diagonal i - j = kw - p of P[i, j]     P = Σ_n Σ_h x[n, c, h + kh - p, :]ᵀ g[n, c, h, :]

one product for each row of the kernel, whose diagonals are summed on the chip: no atomic operations, so the same input
gives the same bits. Sums are in float32. float32 inputs are multiplied as three products of TF32 numbers, which keeps
float32's precision, or as one where PyTorch may use TF32 in convolutions (`torch.backends.cudnn.allow_tf32`).

The Toeplitz product for one-dimensional kernels: arXiv 2503.01868. Triton comes with PyTorch on Linux; elsewhere
`is_available` is False.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def is_available(x: Tensor) -> bool:
    """Whether the kernels can run on the device and in the dtype of `x`."""
    return (
        triton is not None and x.is_cuda and x.dtype in DTYPES and torch.cuda.get_device_capability(x.device) >= (8, 0)
    )


class Tiles(NamedTuple):
    """How a map is cut: output columns of a tile, input columns that it reads, and those that lie left of it."""

    block: int
    window: int
    left: int


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False, flip: bool = False) -> Tensor:
    """The convolution, with the kernels flipped if `flip`, and ReLU behind it if `relu`.

    Args:
        x: (N, C, H, W), contiguous.
        weight: (C, 1, KH, KW) with odd sides, in the dtype of `x`.
        bias: (C,).

    Returns:
        (N, C, H, W), contiguous.
    """
    n, c, h, w = x.shape
    y = torch.empty_like(x)
    if y.numel() == 0:
        return y
    tiles, vector = _tiles(w, weight.shape[3]), _vector(w, x.dtype)
    rows, block, warps, stages = _convolution_settings(tiles, x.dtype)
    grid = (triton.cdiv(n * triton.cdiv(h, rows), block), c, triton.cdiv(w, tiles.block))
    _convolve[grid](
        x, weight.contiguous(), weight if bias is None else bias, y, n, c, h, w // vector, *weight.shape[2:],
        -1 if flip else 1, bias is not None, relu, _precision(x.dtype), vector, block, *tiles, rows,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y


def grad_weight(x: Tensor, grad: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """The gradient of the kernels, (C, 1, KH, KW) in float32, for `x` and `grad`, (N, C, H, W) and contiguous."""
    n, c, h, w = x.shape
    kernel_height, kernel_width = kernel_size
    out = x.new_empty(c, 1, kernel_height, kernel_width, dtype=torch.float32)
    tiles, vector = _tiles(w, kernel_width), _vector(w, x.dtype)
    block, warps, stages = _gradient_settings(tiles, x.dtype)
    _grad_weight[kernel_height, c](
        x, grad, out, n, c, h, w // vector, triton.cdiv(w, tiles.block), kernel_height, kernel_width,
        _precision(x.dtype), vector, block, *tiles, max(16, triton.next_power_of_2(kernel_width)),
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def _tiles(width: int, kernel_width: int) -> Tiles:
    if width <= 64:
        side = max(16, triton.next_power_of_2(width))  # tensor cores want 16 at least
        return Tiles(side, side, 0)
    return Tiles(32, 64, 16) if kernel_width <= 33 else Tiles(64, 128, 32)


def _convolution_settings(tiles: Tiles, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """Output rows side by side in the product, its rows in a program, warps, and stages of the pipeline.

    The fastest of some eight settings each on an H200.
    """
    if dtype == torch.float32:
        return {16: (2, 64, 2, 3), 32: (1, 64, 2, 3)}.get(tiles.window, (1, 128, 8, 2))
    if tiles.window == 64:
        return 64 // tiles.block, 128, 4, 3
    return {16: (4, 64, 2, 3), 32: (4, 128, 4, 3)}.get(tiles.window, (1, 128, 8, 2))


def _gradient_settings(tiles: Tiles, dtype: torch.dtype) -> tuple[int, int, int]:
    """Rows of both matrices in a step of the product, warps, and stages of the pipeline."""
    if tiles.window <= 32:
        return 32, 1, 3
    return (32, 2, 3) if dtype == torch.float32 else (32, 4, 4)


def _vector(width: int, dtype: torch.dtype) -> int:
    """Numbers that one load may read: as many as divide a row, up to 16 bytes."""
    return math.gcd(width, 16 // dtype.itemsize)


def _precision(dtype: torch.dtype) -> str:
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cudnn.allow_tf32 else "tf32x3"


if triton is not None:
    # Compiled anew for each tile and dtype, but not for each size: that takes seconds.
    SIZES = ("N", "C", "H", "W_VECTORS", "COLUMN_TILES", "KH", "KW", "SIGN")

    @triton.jit(do_not_specialize=SIZES)
    def _convolve(
        x, weight, bias, y, N, C, H, W_VECTORS, KH, KW, SIGN, HAS_BIAS: tl.constexpr, RELU: tl.constexpr,
        PRECISION: tl.constexpr, VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr,
        WINDOW: tl.constexpr, LEFT: tl.constexpr, ROWS: tl.constexpr,
    ):  # fmt: skip
        W = W_VECTORS * VECTOR  # so that the compiler knows what divides it
        c = tl.program_id(1)
        # A row of the product: ROWS rows of one image from `top` on. Images are next to each other in a program, since
        # then it meets few rows, and skips the taps that all of these would meet in the padding.
        m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        top, n = m // N * ROWS, m % N
        i, j = tl.arange(0, WINDOW), tl.arange(0, ROWS * BLOCK_W)
        w0 = tl.program_id(2) * BLOCK_W
        row, column = j // BLOCK_W, w0 + j % BLOCK_W
        x_column = w0 - LEFT + i
        x_column_ok = (x_column >= 0) & (x_column < W)
        kw = x_column[:, None] - column[None, :] + KW // 2
        in_band = (kw >= 0) & (kw < KW)
        image = (n.to(tl.int64) * C + c) * H * W
        # The kernel is read from its first number on, or, flipped, from its last one backwards.
        kernel = weight + c * (KH * KW) + (KH * KW - 1) * ((1 - SIGN) // 2)
        tap = SIGN * (kw - (row * KW)[None, :])
        first = tl.program_id(0) * BLOCK_M // N * ROWS
        last = tl.minimum((tl.program_id(0) * BLOCK_M + BLOCK_M - 1) // N * ROWS, H - 1)
        sums = tl.zeros((BLOCK_M, ROWS * BLOCK_W), tl.float32)
        for d in range(tl.maximum(0, KH // 2 - last), tl.minimum(KH + ROWS - 1, H + KH // 2 - first)):
            x_row = top + d - KH // 2
            x_row_ok = (x_row >= 0) & (x_row < H)
            rows = tl.load(
                x + (image + x_row * W)[:, None] + x_column[None, :], x_row_ok[:, None] & x_column_ok[None, :], 0.0
            )
            kh = d - row
            band = tl.load(kernel + SIGN * KW * d + tap, in_band & ((kh >= 0) & (kh < KH))[None, :], 0.0)
            sums = tl.dot(rows, band, sums, input_precision=PRECISION)
        if HAS_BIAS:
            sums += tl.load(bias + c).to(tl.float32)
        if RELU:
            sums = tl.maximum(sums, 0.0)
        h = top[:, None] + row[None, :]
        where = y + image[:, None] + h * W + column[None, :]
        tl.store(where, sums.to(y.dtype.element_ty), (h < H) & (column < W)[None, :])

    @triton.jit(do_not_specialize=SIZES)
    def _grad_weight(
        x, grad, out, N, C, H, W_VECTORS, COLUMN_TILES, KH, KW, PRECISION: tl.constexpr, VECTOR: tl.constexpr,
        BLOCK_Q: tl.constexpr, BLOCK_W: tl.constexpr, WINDOW: tl.constexpr, LEFT: tl.constexpr, TAPS: tl.constexpr,
    ):  # fmt: skip
        W = W_VECTORS * VECTOR
        kh, c = tl.program_id(0), tl.program_id(1)
        i, j = tl.arange(0, WINDOW), tl.arange(0, BLOCK_W)
        top, bottom = tl.maximum(0, KH // 2 - kh), tl.minimum(H, H + KH // 2 - kh)
        products = tl.zeros((WINDOW, BLOCK_W), tl.float32)
        for w0 in range(0, COLUMN_TILES * BLOCK_W, BLOCK_W):
            x_column, column = w0 - LEFT + i, w0 + j
            x_column_ok, column_ok = (x_column >= 0) & (x_column < W), column < W
            for start in range(top * N, bottom * N, BLOCK_Q):
                q = start + tl.arange(0, BLOCK_Q)
                q_ok = q < bottom * N
                h, n = q // N, q % N
                image = (n.to(tl.int64) * C + c) * H * W
                g = tl.load(grad + (image + h * W)[:, None] + column[None, :], q_ok[:, None] & column_ok[None, :], 0.0)
                rows = tl.load(
                    x + (image + (h + kh - KH // 2) * W)[:, None] + x_column[None, :],
                    q_ok[:, None] & x_column_ok[None, :], 0.0,
                )  # fmt: skip
                products = tl.dot(tl.trans(rows), g, products, input_precision=PRECISION)
        kw = tl.arange(0, TAPS)
        which = kw[:, None] + j[None, :] + LEFT - KW // 2  # the row of the diagonal kw in column j
        diagonals = tl.gather(products, tl.minimum(tl.maximum(which, 0), WINDOW - 1), axis=0)
        is_inside = (which >= 0) & (which < WINDOW) & (kw < KW)[:, None]
        tl.store(out + (c * KH + kh) * KW + kw, tl.sum(tl.where(is_inside, diagonals, 0.0), axis=1), kw < KW)
