"""The rows of a profile, and to which of them an operation of PyTorch or a CUDA kernel belongs.

The product marks nothing for the profiler. What belongs where is read from the operations' names and from the shapes of
their tensors, from the operations that call them (our own operators among them), and from the names of kernels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

MATRIX_PRODUCTS = "matrix products (1×1 convolutions, classifier)"
FORWARD = "depthwise convolutions, forward"
GRADIENT_OF_INPUT = "depthwise convolutions, gradient of the input"
GRADIENT_OF_KERNELS = "depthwise convolutions, gradient of the kernels"
BOTH_GRADIENTS = "depthwise convolutions, both gradients at once"
UNTOLD = "depthwise convolutions, a pass that is not told"
SMALL = "convolutions of 3×3 (stem, downsampling)"
BATCH_NORM = "BatchNorm"
ELEMENT_WISE = "element-wise (ReLU, GELU, sums)"
COPIES = "copies, casts and fills"
FUSED = "fused by torch.compile"
OPTIMIZER = "optimizer (AdamW)"
HOST = "launches and host (Python, autograd, memory)"
WAITS = "host waits for the device"
REST = "the rest"
ROWS = [
    MATRIX_PRODUCTS, FORWARD, GRADIENT_OF_INPUT, GRADIENT_OF_KERNELS, BOTH_GRADIENTS, UNTOLD, SMALL,
    BATCH_NORM, ELEMENT_WISE, COPIES, FUSED, OPTIMIZER, HOST, WAITS, REST,
]  # fmt: skip
SELDOM = {BOTH_GRADIENTS, UNTOLD, FUSED}  # named only where they occur

# Names of PyTorch's operations, without their namespace and, at the end, the underscore of those that work in place.
PRODUCT_NAMES = {"mm", "addmm", "bmm", "baddbmm", "_addmm_activation", "_linear_pointwise", "mkldnn_linear"}
CONVOLUTION_NAMES = {
    "mkldnn_convolution", "convolution_backward", "_slow_conv2d_forward", "_slow_conv2d_backward", "thnn_conv2d",
    "cudnn_convolution", "_conv_depthwise2d", "convolution", "_convolution", "convolution_overrideable",
}  # fmt: skip
BATCH_NORM_NAMES = {
    "batch_norm", "native_batch_norm", "native_batch_norm_backward", "cudnn_batch_norm", "cudnn_batch_norm_backward",
    "_batch_norm_impl_index", "_native_batch_norm_legit", "batch_norm_stats", "batch_norm_elemt",
}  # fmt: skip
ELEMENT_WISE_NAMES = {
    "relu", "clamp_min", "threshold", "threshold_backward", "gelu", "gelu_backward", "add", "sub", "mul", "div",
    "bernoulli", "sum", "mean", "neg", "where",
}  # fmt: skip
COPY_NAMES = {"copy", "fill", "flip", "constant_pad_nd", "cat", "stack", "roll", "zero"}
# They look at tensors or hand them on; the work is in the operations that they call.
HOST_NAMES = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "new_zeros", "zeros", "zeros_like",
    "ones_like", "resize", "resize_as", "resolve_conj", "view", "reshape", "_reshape_alias", "_unsafe_view",
    "permute", "t", "transpose", "numpy_T", "slice", "select", "expand", "as_strided", "unsqueeze", "squeeze",
    "unflatten", "flatten", "narrow", "detach", "alias", "pad", "conv2d", "conv3d", "convolution", "_convolution",
    "thnn_conv2d", "linear", "matmul", "to", "_to_copy", "contiguous", "clone", "batch_norm",
    "_batch_norm_impl_index", "zero", "slice_backward", "result_type", "lift_fresh", "set",
}  # fmt: skip
WAIT_NAMES = {"item", "_local_scalar_dense", "is_nonzero"}
# Parts of the names of CUDA kernels, for those that no operation claims (in a CUDA graph).
KERNEL_ROWS = {
    "_grad_weight": GRADIENT_OF_KERNELS, "_convolve": UNTOLD, "fused": FUSED, "gemm": MATRIX_PRODUCTS,
    "cutlass": MATRIX_PRODUCTS, "nvjet": MATRIX_PRODUCTS, "bn_": BATCH_NORM, "batch_norm": BATCH_NORM,
    "multi_tensor": OPTIMIZER, "fft": UNTOLD, "memcpy": COPIES, "memset": COPIES, "copy": COPIES,
    "fill": COPIES, "elementwise": ELEMENT_WISE, "reduce": ELEMENT_WISE,
}  # fmt: skip

Shapes = list[list[int]]


@dataclass(frozen=True)
class Operation:
    """An operation of the profiler: its name, the shapes of its tensors, and the operation that called it."""

    name: str
    shapes: Shapes = field(default_factory=list)
    caller: "Operation | None" = None

    @property
    def short_name(self) -> str:
        return self.name.rpartition("::")[2].removesuffix("_")

    def with_callers(self) -> Iterator["Operation"]:
        operation = self
        while operation is not None:
            yield operation
            operation = operation.caller


def classify(operation: Operation | None, kernel: str = "") -> str:
    """The row of an operation, or of a CUDA kernel that it launched: by its name, its callers and their shapes.

    Without an operation, as in a CUDA graph, by the name of the kernel alone.
    """
    if operation is None:
        return _row_of_kernel(kernel)
    operations = list(operation.with_callers())
    if any(operation.name.startswith("Optimizer.") for operation in operations):
        return OPTIMIZER
    name = operations[0].short_name
    if "_fused_" in operations[0].name:  # the kernels that torch.compile writes for a CPU
        return FUSED
    if name in WAIT_NAMES:
        return WAITS
    if not kernel and (name in HOST_NAMES or operations[0].name.partition("::")[0] not in ("aten", "mkldnn")):
        return HOST
    for index, operation in enumerate(operations):
        if operation.name.endswith("::convolve") and operation.shapes:
            return SMALL if _is_small(operation.shapes[1]) else FORWARD
        if operation.name.endswith("::gradients") and operation.shapes:
            return _row_of_gradient(operation, operations[:index], kernel)
        if operation.name.startswith("_Downsampling"):
            return SMALL
    for operation in operations:
        row = _row_of_name(operation, kernel)
        if row is not None:
            return row
    return _row_of_kernel(kernel)


def _row_of_name(operation: Operation, kernel: str) -> str | None:
    name = operation.short_name
    if name in PRODUCT_NAMES:
        return MATRIX_PRODUCTS
    if name in CONVOLUTION_NAMES and len(operation.shapes) > 2:
        return _row_of_convolution(operation, kernel)
    if name in BATCH_NORM_NAMES:
        return BATCH_NORM
    if name in COPY_NAMES:
        return COPIES
    return ELEMENT_WISE if name in ELEMENT_WISE_NAMES else None


def _row_of_convolution(operation: Operation, kernel: str) -> str:
    """Of a convolution that is PyTorch's own; its backward pass takes the gradient first."""
    is_backward = "backward" in operation.name
    weight = operation.shapes[2 if is_backward else 1]
    if len(weight) == 4 and weight[2:] == [1, 1]:
        return MATRIX_PRODUCTS
    if _is_small(weight):
        return SMALL
    return _gradient_of_kernel(kernel) if is_backward else FORWARD


def _row_of_gradient(gradients: Operation, inner: list[Operation], kernel: str) -> str:
    """Of what runs within our operator for both gradients, of (x, weight, gradient of y).

    The gradient of the input is a convolution with the flipped kernels, or with their spectrum (which has three
    dimensions, since it has no images); all else is that of the kernels. `inner` are the operations within, the
    outermost last.
    """
    x, weight = gradients.shapes[:2]
    if _is_small(weight):
        return SMALL
    if not inner or inner[-1].short_name == "convolution_backward":
        return _gradient_of_kernel(kernel)
    outer = inner[-1]
    shapes = [shape for shape in outer.shapes if shape]
    name = outer.short_name
    if name == "contiguous":  # channels_last for the convolution, while the other gradient permutes
        return GRADIENT_OF_INPUT if shapes[0] == x else GRADIENT_OF_KERNELS
    if name == "bmm":
        return GRADIENT_OF_INPUT if shapes[1][1:] == [x[2] * x[3]] * 2 else GRADIENT_OF_KERNELS
    if name == "fft_irfft2":
        return GRADIENT_OF_INPUT if len(shapes[0]) == 4 else GRADIENT_OF_KERNELS
    meets_kernels = any(
        len(shape) == 3 or (len(shape) == 4 and shape[0] == weight[0] and shape[1] == 1) for shape in shapes
    )
    is_convolution = name in ("conv2d", "flip", "fft_rfft2", "mul", "im2col", "pad", "roll")
    return GRADIENT_OF_INPUT if meets_kernels and is_convolution else GRADIENT_OF_KERNELS


def _gradient_of_kernel(kernel: str) -> str:
    lower = kernel.lower()
    if any(word in lower for word in ("grad_weight", "wgrad", "gradweight")):
        return GRADIENT_OF_KERNELS
    if any(word in lower for word in ("_convolve", "dgrad", "backward_kernel")):
        return GRADIENT_OF_INPUT
    return BOTH_GRADIENTS


def _row_of_kernel(kernel: str) -> str:
    return next((row for part, row in KERNEL_ROWS.items() if part in kernel.lower()), REST)


def _is_small(weight: list[int]) -> bool:
    return len(weight) == 4 and max(weight[2:]) <= 3
