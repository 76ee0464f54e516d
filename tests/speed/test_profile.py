"""The profile of a training step: every operation has its row, and the rows add up to the step."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType

from seedling_hf.commands import main as seedling_hf
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification
from seedling_hf.replknet.modeling_replknet import RepLKNetConvNorm
from seedling_hf.speed import operations as rows
from seedling_hf.speed.operations import Operation, classify
from seedling_hf.speed.profile import STEP, memory_traffic, read_step, table

OURS = "seedling_hf_replknet_large_kernel_conv"
X, WEIGHT = [2, 64, 14, 14], [64, 1, 13, 13]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile")
    flags = ["--variant", "nano", "--image_size", "96", "--batch_size", "2", "--repeats", "1", "--device", "cpu"]
    # Of smaller images the last maps are so small that their kernels are cropped to 3×3.
    assert seedling_hf(["benchmark", *flags, "--parts", "profile", "--output_dir", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def profile(folder):
    return json.loads((folder / "benchmark.json").read_text())["profile"]


def test_every_row_that_a_step_on_a_cpu_has_is_found(profile):
    spent = {row["name"] for row in profile["rows"] if row["milliseconds"] > 0}
    assert {row["name"] for row in profile["rows"]} == set(rows.ROWS) - rows.SELDOM
    assert spent >= {
        rows.MATRIX_PRODUCTS, rows.FORWARD, rows.GRADIENT_OF_INPUT, rows.GRADIENT_OF_KERNELS, rows.SMALL,
        rows.BATCH_NORM, rows.ELEMENT_WISE, rows.COPIES, rows.OPTIMIZER, rows.HOST,
    }  # fmt: skip


def test_the_rows_add_up_to_the_step_and_their_shares_to_one(profile):
    # the profiler's clock has nanoseconds, and some thousand operations begin and end within it
    total = sum(row["milliseconds"] for row in profile["rows"])
    assert total == pytest.approx(profile["milliseconds_profiled"], rel=1e-3)
    assert sum(row["share"] for row in profile["rows"]) == pytest.approx(1)


def test_hardly_anything_of_a_step_is_left_over(profile):
    (rest,) = [row for row in profile["rows"] if row["name"] == rows.REST]
    assert rest["share"] < 0.05  # the loss


def test_the_convolutions_are_as_many_as_the_model_has(profile):
    counts = {row["name"]: row["operations"] for row in profile["rows"]}
    config = RepLKNetConfig.from_variant("nano")
    num_large = 2 * sum(config.depths)  # the large and the small kernel
    assert counts[rows.FORWARD] >= num_large
    assert counts[rows.GRADIENT_OF_INPUT] >= num_large
    # The BatchNorms run forward and backward; with the tensors of zeros that they make, there are more.
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in RepLKNetForImageClassification(config).modules())
    assert counts[rows.BATCH_NORM] >= 2 * norms


def test_the_host_never_waits_in_a_step(profile):
    assert profile["host_waits"] == 0


def test_the_table_is_printed_with_the_step_and_its_bounds(folder, profile):
    text = (folder / "benchmark.md").read_text()
    assert f"| {profile['what']} | ms | share | operations |" in text
    for row in profile["rows"]:
        assert f"| {row['name']} | {row['milliseconds']:,.1f} | {row['share']:.1%} | {row['operations']:,} |" in text
    assert f"| the step without the profiler | {profile['milliseconds']:,.1f} |" in text
    assert f"| bound of the matrix products alone | {profile['milliseconds_products']:,.1f} |" in text
    assert "bound of memory traffic" in text


def chain(*names_and_shapes):
    """The innermost of operations that call each other, the outermost first."""
    operation = None
    for name, *shapes in names_and_shapes:
        operation = Operation(name, list(shapes), operation)
    return operation


GRADIENTS = (f"{OURS}::gradients", X, WEIGHT, X)


@pytest.mark.parametrize(
    ("operations", "row"),
    [
        ([("aten::mm", [8, 4], [4, 8])], rows.MATRIX_PRODUCTS),
        ([("aten::conv2d", X, [64, 64, 1, 1]), ("aten::mkldnn_convolution", X, [64, 64, 1, 1], [])],
         rows.MATRIX_PRODUCTS),
        ([("aten::convolution_backward", X, X, [64, 64, 1, 1])], rows.MATRIX_PRODUCTS),
        ([("aten::convolution_backward", X, X, [64, 1, 3, 3])], rows.SMALL),
        ([("_DownsamplingBackward",), ("aten::zeros_like", X), ("aten::zero_", X), ("aten::fill_", X)], rows.SMALL),
        ([("aten::mkldnn_convolution", X, WEIGHT, [])], rows.FORWARD),
        ([("aten::convolution_backward", X, X, WEIGHT)], rows.BOTH_GRADIENTS),
        ([(f"{OURS}::convolve", X, WEIGHT), ("aten::mkldnn_convolution", X, WEIGHT, [])], rows.FORWARD),
        ([(f"{OURS}::convolve", X, [64, 1, 3, 3]), ("aten::mkldnn_convolution", X, [64, 1, 3, 3], [])], rows.SMALL),
        ([(f"{OURS}::convolve", X, WEIGHT), ("aten::fft_rfft2", X), ("aten::_fft_r2c", X)], rows.FORWARD),
        ([(f"{OURS}::convolve", X, WEIGHT)], rows.HOST),
        ([GRADIENTS, ("aten::conv2d", X, WEIGHT), ("aten::mkldnn_convolution", X, WEIGHT, [])], rows.GRADIENT_OF_INPUT),
        ([GRADIENTS, ("aten::flip", WEIGHT)], rows.GRADIENT_OF_INPUT),
        ([GRADIENTS, ("aten::contiguous", X), ("aten::clone", X), ("aten::copy_", X, X)], rows.GRADIENT_OF_INPUT),
        ([GRADIENTS, ("aten::contiguous", [2, 14, 14, 64]), ("aten::copy_", [2, 14, 14, 64])],
         rows.GRADIENT_OF_KERNELS),
        ([GRADIENTS, ("aten::conv3d", [1, 64, 2, 14, 14], [64, 1, 2, 14, 14]), ("aten::mkldnn_convolution",)],
         rows.GRADIENT_OF_KERNELS),
        ([GRADIENTS, ("aten::bmm", [64, 2, 196], [64, 196, 196])], rows.GRADIENT_OF_INPUT),
        ([GRADIENTS, ("aten::bmm", [64, 196, 2], [64, 2, 196])], rows.GRADIENT_OF_KERNELS),
        ([GRADIENTS, ("aten::mul", [2, 64, 20, 11], [64, 20, 11])], rows.GRADIENT_OF_INPUT),
        ([GRADIENTS, ("aten::mul", [2, 64, 20, 11], [2, 64, 20, 11])], rows.GRADIENT_OF_KERNELS),
        ([GRADIENTS, ("aten::fft_irfft2", [2, 64, 20, 11]), ("aten::_fft_c2r", [2, 64, 20, 11])],
         rows.GRADIENT_OF_INPUT),
        ([GRADIENTS, ("aten::fft_irfft2", [64, 20, 11]), ("aten::_fft_c2r", [64, 20, 11])], rows.GRADIENT_OF_KERNELS),
        ([GRADIENTS, ("aten::reshape", X)], rows.HOST),
        ([("aten::batch_norm", X), ("aten::native_batch_norm", X)], rows.BATCH_NORM),
        ([("aten::relu_", X), ("aten::clamp_min_", X)], rows.ELEMENT_WISE),
        ([("GeluBackward0",), ("aten::gelu_backward", X)], rows.ELEMENT_WISE),
        ([("aten::to", X), ("aten::_to_copy", X), ("aten::copy_", X, X)], rows.COPIES),
        ([("Optimizer.step#AdamW.step",), ("aten::add_", X)], rows.OPTIMIZER),
        ([("autograd::engine::evaluate_function: MmBackward0",)], rows.HOST),
        ([("CompiledFunction",), ("graph_0_cpp_fused_native_batch_norm_relu_3",)], rows.FUSED),
        ([("aten::is_nonzero", [1]), ("aten::item", [1]), ("aten::_local_scalar_dense", [1])], rows.WAITS),
        ([("aten::nll_loss_forward", [2, 12])], rows.REST),
    ],
    ids=lambda value: value if isinstance(value, str) else "<".join(name for name, *_ in reversed(value)),
)  # fmt: skip
def test_an_operation_belongs_to_the_row(operations, row):
    assert classify(chain(*operations)) == row


@pytest.mark.parametrize(
    ("operation", "kernel", "row"),
    [
        (chain((f"{OURS}::convolve", X, WEIGHT)), "_convolve", rows.FORWARD),
        (chain(GRADIENTS), "_convolve", rows.GRADIENT_OF_INPUT),
        (chain(GRADIENTS), "_grad_weight", rows.GRADIENT_OF_KERNELS),
        (chain(GRADIENTS, ("aten::convolution_backward", X, X, WEIGHT)), "void cudnn::cnn::wgrad2d_grouped_direct",
         rows.GRADIENT_OF_KERNELS),
        (chain(("aten::convolution_backward", X, X, WEIGHT)), "conv_depthwise2d_backward_kernel<3>",
         rows.GRADIENT_OF_INPUT),
        (chain(("aten::linear",), ("aten::addmm", X)), "nvjet_tst_128x64", rows.MATRIX_PRODUCTS),
        (None, "_convolve", rows.UNTOLD),
        (None, "_grad_weight", rows.GRADIENT_OF_KERNELS),
        (None, "triton_poi_fused_native_batch_norm_relu_4", rows.FUSED),
        (None, "sm90_xmma_gemm_bf16bf16_bf16f32", rows.MATRIX_PRODUCTS),
        (None, "void at::native::vectorized_elementwise_kernel<4>", rows.ELEMENT_WISE),
        (None, "Memcpy DtoD (Device -> Device)", rows.COPIES),
        (None, "cub::DeviceScan", rows.REST),
    ],
    ids=str,
)  # fmt: skip
def test_a_kernel_of_a_gpu_belongs_to_the_row(operation, kernel, row):
    assert classify(operation, kernel) == row


def event(name, start, end, device=DeviceType.CPU, shapes=(), parent=None, kernels=()):
    return SimpleNamespace(
        name=name, device_type=device, time_range=SimpleNamespace(start=start, end=end), input_shapes=list(shapes),
        cpu_parent=parent, thread=1, kernels=[SimpleNamespace(name=n, duration=d) for n, d in kernels],
    )  # fmt: skip


@pytest.fixture
def on_a_gpu():
    """100 µs of host, in which a copy is waited for; kernels until 160 µs, of which a CUDA graph launched the last."""
    step = event(STEP, 0, 100)
    product = event("aten::mm", 5, 15, parent=step, kernels=[("gemm", 40)])
    convolve = event(f"{OURS}::convolve", 20, 30, shapes=[X, WEIGHT], parent=step, kernels=[("_convolve", 30)])
    item = event("aten::_local_scalar_dense", 35, 95, parent=step, kernels=[("Memcpy DtoH", 2)])
    wait = event("cudaStreamSynchronize", 40, 92, parent=item)
    after = event("cudaDeviceSynchronize", 101, 160)  # ours, behind the step
    on_device = [
        event("gemm", 10, 50, DeviceType.CUDA), event("_convolve", 50, 80, DeviceType.CUDA),
        event("Memcpy DtoH", 88, 90, DeviceType.CUDA), event("_convolve", 100, 160, DeviceType.CUDA),
        event(STEP, 10, 160, DeviceType.CUDA),  # the range, as the profiler shows it there
    ]  # fmt: skip
    return [step, product, convolve, item, wait, after, *on_device]


def test_on_a_gpu_the_kernels_and_the_idle_time_add_up_to_the_step(on_a_gpu):
    step = read_step(on_a_gpu)
    found = {row["name"]: row["milliseconds"] * 1000 for row in table(step) if row["milliseconds"]}
    assert found == pytest.approx(
        {
            rows.MATRIX_PRODUCTS: 40, rows.FORWARD: 30, rows.UNTOLD: 60,
            rows.WAITS: 12,  # 80 to 88 and 90 to 92, and the copy itself, which item() launched
            rows.HOST: 18,  # before the first kernel, and while the host leaves item()
        }
    )  # fmt: skip
    assert step.microseconds == sum(found.values()) == 160
    assert step.busy == 132


def test_the_waits_of_the_host_are_counted_within_the_step_only(on_a_gpu):
    step = read_step(on_a_gpu)
    assert (step.num_waits, step.waiting) == (1, 52)


def test_the_traffic_of_a_layer_is_counted_from_its_shapes():
    class Model(nn.Sequential):
        pass

    model = Model(RepLKNetConvNorm(nn.Conv2d(3, 8, 3, padding=1, bias=False)))
    x, y = 2 * 3 * 16, 2 * 8 * 16
    parameters = 8 * 3 * 9 + 2 * 8
    expected = 2 * (3 * (x + y) + 5 * y + 5 * y) + 40 * parameters
    assert memory_traffic(model, torch.randn(2, 3, 4, 4), torch.bfloat16) == expected
    assert model.training
