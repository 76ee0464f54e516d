"""The 1×1 convolution in channels_last: a matrix product, computed by the fastest available kernel.

Neighbors in memory are channels, so all positions of all images are the rows of one matrix X. The output is X Wᵀ, the
gradients are G W for X and Gᵀ X for W. They are most of RepLKNet's arithmetic.

On a CPU there are three ways to the same float32 numbers: the BLAS behind `F.linear`, which on an AMD EPYC with AVX-512
takes twice as long as oneDNN's product; oneDNN's product; and from some 2000 rows on oneDNN's convolution, whose
gradient of W is faster, since it sums over the rows as they lie. The product Gᵀ X has to transpose one of the two
matrices, so it takes the one of fewer channels. In bfloat16 `F.linear` is oneDNN's product. At inference oneDNN applies
bias and activation while the output is still in the cache, and weights that are cast and packed in its own order once
save another 5%.
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
    """An `nn.Conv2d` with an activation, fast in channels_last where its kernel is 1×1; elsewhere as `nn.Conv2d`.

    It is built like any `nn.Conv2d`, since libraries build layers of the kind that they adapt (PEFT's LoRA).
    """

    def forward(self, hidden_states: Tensor, activation: str = "none") -> Tensor:
        if not self._is_pointwise() or torch.compiler.is_exporting() or torch.jit.is_tracing():
            return ACTIVATIONS[activation](super().forward(hidden_states))
        needs_grad = torch.is_grad_enabled() and (hidden_states.requires_grad or self.weight.requires_grad)
        if needs_grad and _is_for_onednn(hidden_states, self.weight) and _is_for_convolution(hidden_states):
            return ACTIVATIONS[activation](super().forward(hidden_states))
        rows = hidden_states.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        if not needs_grad and self.bias is not None and _can_pack(hidden_states):
            # Only a model folded for inference has biases here, so these weights no longer change.
            dtype = computed_dtype(hidden_states)
            weight, bias = _packed_weight(self.weight, dtype), self.bias.to(dtype)
            rows = _onednn_linear(rows.to(dtype), weight, bias, activation)
        else:
            rows = ACTIVATIONS[activation](_linear(rows, self.weight.flatten(1), self.bias))
        return rows.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)

    def _is_pointwise(self) -> bool:
        return self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0) and self.groups == 1


def gelu(x: Tensor) -> Tensor:
    """`F.gelu` of activations (N, C, H, W); on a CPU in the order of memory, where oneDNN takes half the time."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return F.gelu(x)
    return F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _is_for_convolution(x: Tensor) -> bool:
    # A single thread's convolution of fewer than 16 images is PyTorch's own, which takes twice as long.
    return len(x) * x[0, 0].numel() >= ROWS_FOR_CONVOLUTION and (len(x) >= 16 or _num_threads() > 1)


@torch.compiler.assume_constant_result  # compilers cannot trace a function of torch that returns a number
def _num_threads() -> int:
    return torch.get_num_threads()


def computed_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a convolution of `x` is computed: that of autocast, if it is enabled."""
    is_cast = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if is_cast else x.dtype


def _can_pack(x: Tensor) -> bool:
    if not HAS_ONEDNN or x.device.type != "cpu" or x.numel() == 0 or torch.compiler.is_compiling():
        return False
    dtype = computed_dtype(x)
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        HAS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., in), (out, in), (out,) -> (..., out), with derivatives."""
    if not _is_for_onednn(x, weight):
        return F.linear(x, weight, bias)
    y = _product(x, weight)
    return y if bias is None else y + bias


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none" if activation == "gelu" else "")


def _packed_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights in oneDNN's own order, cached while they exist and do not change."""
    state = (dtype, weight.data_ptr(), None if weight.is_inference() else weight._version)
    if weight not in _packed or _packed[weight][0] != state:
        matrix = weight.detach().flatten(1).to(dtype)
        _packed[weight] = (state, torch.ops.mkldnn._reorder_linear_weight(matrix))
    return _packed[weight][1]


# An operator: compilers see one operation, which they would give to BLAS otherwise. Each copy of this file, as models
# carry it, has an operator of its own.
@torch.library.custom_op(f"{__name__.replace('.', '_')}::product", mutates_args=())
def _product(x: Tensor, weight: Tensor) -> Tensor:
    """(..., in), (out, in) -> (..., out); its gradients are products of the same kind, so they have derivatives too."""
    return _onednn_linear(x, weight)


@_product.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def _save_inputs(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    grad_x = _linear(grad, weight.t()) if ctx.needs_input_grad[0] else None
    grad_weight = _product_over_rows(grad.flatten(0, -2), x.flatten(0, -2)) if ctx.needs_input_grad[1] else None
    return grad_x, grad_weight


_product.register_autograd(_backward, setup_context=_save_inputs)


def _product_over_rows(grad: Tensor, x: Tensor) -> Tensor:
    """(rows, out), (rows, in) -> (out, in)."""
    if x.shape[1] < grad.shape[1]:
        return _linear(x.t(), grad.t()).t().contiguous()
    return _linear(grad.t(), x.t())
