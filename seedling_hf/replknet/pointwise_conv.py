"""The 1×1 convolution in channels_last: a matrix product, computed by the fastest available kernel.

Neighbors in memory are channels, so all positions of all images are the rows of one matrix X. The output is X Wᵀ, the
gradients are G W for X and Gᵀ X for W. They are most of RepLKNet's arithmetic. On a CPU there are three ways to the
same float32 numbers. Measured on two cores with AVX-512, at the
sizes of RepLKNet-31B with 4 images: oneDNN's product takes 3 to 10% less than the BLAS behind `F.linear`, and 40%
less on the last stage, with few rows of many channels; oneDNN's convolution is as fast from some 2000 rows on, and its
backward pass is the fastest there. At inference oneDNN applies bias and activation while the output is still in the
cache, and weights packed in its own order save another 5%.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
ROWS_FOR_CONVOLUTION = 2048
ACTIVATIONS = {"none": lambda x: x, "gelu": F.gelu, "relu": F.relu}

_packed = WeakTensorKeyDictionary()


class PointwiseConv2d(nn.Conv2d):
    """`nn.Conv2d(in_channels, out_channels, kernel_size=1)` for activations in channels_last, with an activation."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)

    def forward(self, hidden_states: Tensor, activation: str = "none") -> Tensor:
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            return ACTIVATIONS[activation](super().forward(hidden_states))
        needs_grad = torch.is_grad_enabled() and (hidden_states.requires_grad or self.weight.requires_grad)
        is_for_onednn = _is_for_onednn(hidden_states, self.weight)
        if is_for_onednn and needs_grad and hidden_states.numel() >= ROWS_FOR_CONVOLUTION * self.in_channels:
            return ACTIVATIONS[activation](super().forward(hidden_states))
        rows = hidden_states.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        if is_for_onednn and not needs_grad:
            # Only a model folded for inference has biases here, so these weights no longer change.
            weight = self.weight.flatten(1) if self.bias is None else _packed_weight(self.weight)
            rows = _onednn_linear(rows, weight, self.bias, activation)
        else:
            rows = ACTIVATIONS[activation](_linear(rows, self.weight.flatten(1), self.bias))
        return rows.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        HAS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # which calls oneDNN itself
    )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., in), (out, in), (out,) -> (..., out), with derivatives."""
    if not _is_for_onednn(x, weight):
        return F.linear(x, weight, bias)
    y = _OneDNNLinear.apply(x, weight)
    return y if bias is None else y + bias


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none" if activation == "gelu" else "")


def _packed_weight(weight: Tensor) -> Tensor:
    """The weights in oneDNN's own order, cached while they exist and do not change."""
    state = (weight.data_ptr(), None if weight.is_inference() else weight._version)
    if weight not in _packed or _packed[weight][0] != state:
        _packed[weight] = (state, torch.ops.mkldnn._reorder_linear_weight(weight.detach().flatten(1)))
    return _packed[weight][1]


class _OneDNNLinear(torch.autograd.Function):
    """The product; its gradients are products of the same kind, so they have derivatives too."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return _onednn_linear(x, weight)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = _linear(grad, weight.t()) if ctx.needs_input_grad[0] else None
        # BLAS: oneDNN is slower for a product that sums over many rows.
        grad_weight = grad.flatten(0, -2).t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight
