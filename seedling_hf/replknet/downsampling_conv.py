"""The depthwise 3×3 convolution with stride 2, whose gradient is fast in bfloat16 too.

oneDNN has no fast gradient of the input for it in bfloat16: on one core of an AMD EPYC it takes 16 to 150 times as
long as in float32, at the shapes of RepLKNet-31B and nano, and for nano a quarter of a training step. With zeros
between the positions of the output's gradient, the gradient of the input is a convolution of stride 1 with the kernel
flipped, whose forward pass is fast.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pointwise_conv import computed_dtype


class DownsamplingConv2d(nn.Conv2d):
    """An `nn.Conv2d`, with a fast gradient where it is depthwise, 3×3, with stride 2 and padding 1."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        dtype, is_on_cpu = computed_dtype(hidden_states), hidden_states.device.type == "cpu"
        needs_grad = torch.is_grad_enabled() and hidden_states.requires_grad
        is_slow = is_on_cpu and dtype == torch.bfloat16 and needs_grad and self._is_downsampling()
        if not is_slow or torch.compiler.is_exporting():
            return super().forward(hidden_states)
        bias = None if self.bias is None else self.bias.to(dtype)
        return _Downsampling.apply(hidden_states.to(dtype), self.weight.to(dtype), bias)

    def _is_downsampling(self) -> bool:
        return (
            self.groups == self.in_channels == self.out_channels
            and (self.kernel_size, self.stride, self.padding, self.dilation) == ((3, 3), (2, 2), (1, 1), (1, 1))
            and self.padding_mode == "zeros"
        )


class _Downsampling(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, stride=2, padding=1, groups=len(weight))

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        groups = len(weight)
        spread = torch.zeros_like(x)
        spread[:, :, ::2, ::2] = grad
        grad_x = F.conv2d(spread, weight.flip(2, 3), padding=1, groups=groups)
        _, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad, x, weight, [groups], [2, 2], [1, 1], [1, 1], False, [0, 0], groups, [False, *ctx.needs_input_grad[1:]]
        )
        return grad_x, grad_weight, grad_bias
