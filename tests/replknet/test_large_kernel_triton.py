"""The convolution on tensor cores: on the CPU in Triton's interpreter, and on a GPU where there is one."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from seedling_hf.replknet import large_kernel_conv as conv
from seedling_hf.replknet import large_kernel_triton

# (N, C, H, W, KH, KW): the stages of nano, 31B, 31L and XL in small, odd sizes, oblong maps and kernels, maps smaller
# than the kernel, maps wider than one tile, batches of one, and kernels wider than 33 on wide maps.
SHAPES = [
    (3, 2, 24, 24, 31, 31), (2, 2, 14, 14, 27, 27), (2, 3, 7, 7, 13, 13), (3, 2, 12, 12, 23, 23), (1, 3, 6, 6, 11, 11),
    (5, 1, 3, 3, 5, 5), (1, 1, 1, 1, 1, 1), (2, 2, 9, 14, 13, 13), (2, 1, 17, 11, 31, 21), (1, 2, 5, 20, 9, 27),
    (2, 2, 10, 13, 5, 5), (1, 2, 5, 56, 31, 31), (2, 1, 4, 70, 7, 31), (1, 1, 3, 100, 5, 51), (1, 1, 2, 67, 3, 3),
]  # fmt: skip
# 1e-6: sums of up to 961 products in float32. float16 has 11 bits, so 5e-4, for the output; its inputs are exact.
TOLERANCES = {"float32": 1e-6, "float16": 1e-3}


def errors(shape: list[int], dtype: torch.dtype, device: str) -> dict[str, float]:
    """How far the output, with bias and ReLU, and both gradients are from those of float64."""
    n, c, h, w, kernel_height, kernel_width = shape
    torch.manual_seed(0)
    x, grad = torch.randn(n, c, h, w), torch.randn(n, c, h, w)
    weight, bias = torch.randn(c, 1, kernel_height, kernel_width) / kernel_width, torch.randn(c)
    x, grad, weight, bias = (tensor.to(device, dtype) for tensor in (x, grad, weight, bias))
    exact_x, exact_weight = x.double().cpu().requires_grad_(), weight.double().cpu().requires_grad_()
    y = F.conv2d(exact_x, exact_weight, padding=(kernel_height // 2, kernel_width // 2), groups=c)
    expected = [
        y, F.relu(y + bias.double().cpu()[:, None, None]),
        *torch.autograd.grad(y, (exact_x, exact_weight), grad.double().cpu()),
    ]  # fmt: skip
    found = [
        large_kernel_triton.convolve(x, weight), large_kernel_triton.convolve(x, weight, bias, relu=True),
        large_kernel_triton.convolve(grad, weight, flip=True),
        large_kernel_triton.grad_weight(x, grad, (kernel_height, kernel_width)),
    ]  # fmt: skip
    names = ("output", "output with bias and ReLU", "gradient of x", "gradient of the kernels")
    assert [a.shape for a in found] == [b.shape for b in expected]
    return {
        name: ((a.double().cpu() - b).abs().max() / b.abs().max().clamp(min=1e-3)).item()
        for name, a, b in zip(names, found, expected, strict=True)
    }


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    """The errors in the interpreter, which must be chosen before Triton is imported: in a process of its own."""
    if large_kernel_triton.triton is None:
        pytest.skip("Triton comes with PyTorch on Linux only")
    program = (
        "import json, torch; import test_large_kernel_triton as t; torch.backends.cudnn.allow_tf32 = False; "
        "print(json.dumps({f'{name} {shape}': t.errors(shape, getattr(torch, name), 'cpu') "
        "for name in t.TOLERANCES for shape in t.SHAPES}))"
    )
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_interpreted_kernels_are_the_convolution_in_float64(dtype, shape, interpreted):
    for name, error in interpreted[f"{dtype} {shape}"].items():
        assert error <= TOLERANCES[dtype], name


def test_on_a_cpu_the_kernels_are_not_available():
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3)
    assert not large_kernel_triton.is_available(x)
    assert "triton" not in conv._possible(x, weight)


def test_without_triton_the_kernels_are_not_available(monkeypatch):
    monkeypatch.setattr(large_kernel_triton, "triton", None)
    assert not large_kernel_triton.is_available(torch.empty(1, 2, 5, 5))


def test_kernels_that_compute_something_else_are_not_trusted(monkeypatch):
    x, weight = torch.randn(2, 3, 9, 9), torch.randn(3, 1, 5, 5)
    monkeypatch.setattr(conv, "triton_is_available", lambda x: True)

    def works() -> bool:
        monkeypatch.setattr(conv, "_trusted", {})
        return conv._triton_works(x, weight)

    monkeypatch.setattr(conv, "_triton", lambda x, weight: conv._plain(x, weight))
    monkeypatch.setattr(conv, "_triton_gradients", conv._plain_gradients)
    assert works()
    monkeypatch.setattr(conv, "_triton", lambda x, weight: conv._plain(x, weight) * 1.1)
    assert not works()
    monkeypatch.setattr(conv, "_triton", lambda x, weight: conv._plain(x, weight) * float("nan"))
    assert not works()
    monkeypatch.setattr(conv, "_triton", lambda x, weight: 1 / 0)
    assert not works()


needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and large_kernel_triton.is_available(torch.empty(0, device="cuda"))),
    reason="needs a GPU from Ampere to Hopper, and Triton",
)
# float32 as three products of TF32; bfloat16 has 8 bits.
GPU_TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# Channels and maps of the stages of 31B.
STAGES = [(4, 128, 56, 56, 31, 31), (4, 256, 28, 28, 29, 29), (4, 512, 14, 14, 27, 27), (4, 1024, 7, 7, 13, 13)]


@needs_gpu
@pytest.mark.parametrize("shape", SHAPES + STAGES, ids=str)
@pytest.mark.parametrize("dtype", GPU_TOLERANCES, ids=str)
def test_the_kernels_on_a_gpu_are_the_convolution_in_float64(dtype, shape, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for name, error in errors(shape, dtype, "cuda").items():
        assert error <= GPU_TOLERANCES[dtype], name


@needs_gpu
@pytest.mark.parametrize("dtype", GPU_TOLERANCES, ids=str)
def test_the_kernels_on_a_gpu_give_the_same_bits_twice(dtype):
    torch.manual_seed(0)
    x = torch.randn(8, 32, 28, 28, device="cuda", dtype=dtype, requires_grad=True)
    weight = torch.randn(32, 1, 29, 29, device="cuda", dtype=dtype, requires_grad=True)
    runs = []
    for _ in range(3):
        y = conv.depthwise_conv2d(x, weight, implementation="triton")
        runs.append([y, *torch.autograd.grad(y, (x, weight), torch.ones_like(y))])
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


@needs_gpu
def test_a_module_on_a_gpu_compiles_in_one_graph_and_trains_as_uncompiled():
    torch._dynamo.reset()
    torch.manual_seed(0)
    module = conv.DepthwiseConv2d(16, 16, 13, padding=6, groups=16, bias=True).cuda()
    x = torch.randn(4, 16, 14, 14, device="cuda", requires_grad=True)
    compiled = torch.compile(module, fullgraph=True)
    results = []
    for run in (module, compiled):
        y = run(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), (x, module.weight, module.bias))])
    for found, expected in zip(results[1], results[0], strict=True):
        # 1e-3: TF32, which PyTorch allows in convolutions by default
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@needs_gpu
def test_a_training_step_can_be_captured_as_a_graph():
    module = conv.DepthwiseConv2d(16, 16, 13, padding=6, groups=16, bias=False).cuda()
    x = torch.randn(4, 16, 14, 14, device="cuda", requires_grad=True)

    def step() -> torch.Tensor:
        y = module(x)
        return torch.autograd.grad(y.square().sum(), (x, module.weight))[1]

    expected = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    graph.replay()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
