"""Depthwise convolution with large kernels: plain, fast, and the one choice between them."""

import torch.nn.functional as F
from torch import Tensor, nn


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolves each channel of `x` (N, C, H, W) with its own odd kernel `weight` (C, 1, K, K), same padding."""
    return F.conv2d(x, weight, bias, padding=(weight.shape[-2] // 2, weight.shape[-1] // 2), groups=weight.shape[0])


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)` that runs fast."""

    def __init__(self, channels: int, kernel_size: int, bias: bool = False) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv2d(x, self.weight, self.bias)
