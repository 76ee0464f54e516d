"""Depthwise convolution with large kernels: plain, fast, and the one choice between them.

A depthwise convolution slides over each channel a kernel of its own. PyTorch computes its forward pass fast where the
activations are channels_last, but its backward pass slowly, the gradient of the kernel above all. Both gradients are
depthwise convolutions themselves, so that the fast forward pass can compute them. With the padding p = K // 2,

    y[n, c, i] = Σ_k x[n, c, i + k - p] w[c, k]

    ∂x = g * flip(w)           the same convolution of the output's gradient g, with the flipped kernel
    ∂w = Σ_n x[n] * g[n]       picture by picture, a convolution of x[n] whose kernel is g[n], as large as the map
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolves each channel of `x` (N, C, H, W) with its own odd kernel `weight` (C, 1, K, K), same padding."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad) and not torch.compiler.is_exporting():
        y = _Direct.apply(x, weight)
        return y if bias is None else y + bias[:, None, None]
    return _plain(x, weight, bias)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2), groups=weight.shape[0])


class _Direct(torch.autograd.Function):
    """Forward as `F.conv2d`; both gradients as forward convolutions, which themselves have gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        return _plain(x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        with torch.autocast(x.device.type, enabled=False):
            grad = grad.contiguous(memory_format=torch.channels_last)
            if ctx.needs_input_grad[0]:
                grad_x = _plain(grad, weight.flip(2, 3))
            if ctx.needs_input_grad[1]:
                grad_weight = _direct_grad_weight(x, grad, weight)
        return grad_x, grad_weight


def _direct_grad_weight(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    grad_weight = torch.zeros_like(weight)
    for n in range(len(x)):  # a slice keeps the strides by which the slow and the fast forward pass are told apart
        picture, kernel = x[n : n + 1], grad[n].unsqueeze(1)
        grad_weight += F.conv2d(picture, kernel, padding=padding, groups=len(kernel)).transpose(0, 1)
    return grad_weight


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)` that runs fast."""

    def __init__(self, channels: int, kernel_size: int, bias: bool = False) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv2d(x, self.weight, self.bias)
