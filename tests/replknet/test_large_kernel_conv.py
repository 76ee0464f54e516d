"""Every way of computing the depthwise convolution is the same function: outputs, gradients, gradients of gradients."""

import copy
import os
import sys
import time
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from processes import run_python
from torch import nn
from torch.utils.checkpoint import checkpoint

from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification
from seedling_hf.replknet import large_kernel_conv as conv
from seedling_hf.replknet.large_kernel_conv import CANDIDATES, ENVIRONMENT_VARIABLE, DepthwiseConv2d, depthwise_conv2d

OURS = ["plain", "direct", "dense", "fft"]
# (N, C, H, W, K): batches of one, odd and oblong maps, maps smaller than the kernel, channels no multiple of 8, and
# maps that are cut into bands, the last one shorter.
SHAPES = [
    (1, 1, 1, 1, 3), (2, 5, 7, 7, 13), (3, 8, 9, 14, 7), (1, 12, 5, 20, 27), (2, 3, 14, 14, 27), (2, 4, 17, 11, 31),
    (1, 2, 3, 3, 31), (2, 5, 8, 8, 1), (2, 5, 6, 4, 5), (2, 3, 50, 37, 7), (3, 2, 37, 70, 31),
]  # fmt: skip
MAPS = [(7, 7), (9, 14), (5, 20), (1, 1)]
BATCHES = [(1, 12), (3, 1), (1, 8), (3, 5)]  # (N, C)
NAMES = ("output", "x", "weight", "bias")


def tensors(n, c, h, w, k, dtype=torch.float64):
    torch.manual_seed(n + c + h + w + k)
    x = torch.randn(n, c, h, w, dtype=dtype, requires_grad=True)
    weight = (torch.randn(c, 1, k, k, dtype=dtype) / k).requires_grad_()
    return x, weight, torch.randn(c, dtype=dtype, requires_grad=True)


def results(function, x, weight, bias):
    """The output and the gradients of all inputs, for one gradient of the output."""
    y = function(x, weight, bias)
    grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y, *torch.autograd.grad(y, (x, weight, bias), grad)]


def reference(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2, groups=len(weight))


def assert_equal(found, expected, tolerance):
    for name, a, b in zip(NAMES, found, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-3), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_a_candidate_is_the_convolution_of_pytorch(name, shape):
    inputs = tensors(*shape)
    # 1e-12: sums of at most 961 products, rounded otherwise, in float64.
    assert_equal(results(lambda *i: depthwise_conv2d(*i, name), *inputs), results(reference, *inputs), 1e-12)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 13, 27, 31])
@pytest.mark.parametrize("side", MAPS, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_a_candidate_is_the_convolution_on_every_map_and_kernel(name, side, kernel):
    for n, c in BATCHES:
        inputs = tensors(n, c, *side, kernel)
        # 1e-12: as above; the worst found is 4e-15.
        assert_equal(results(lambda *i: depthwise_conv2d(*i, name), *inputs), results(reference, *inputs), 1e-12)


@pytest.mark.parametrize("shape", [(2, 5, 14, 17, 13), (1, 8, 40, 20, 31), (3, 4, 9, 14, 27)], ids=str)
@pytest.mark.parametrize("name", [*OURS, None])
def test_float32_is_near_float64(name, shape):
    exact = tensors(*shape)
    rounded = [tensor.detach().float().requires_grad_() for tensor in exact]
    found = results(lambda *i: depthwise_conv2d(*i, name), *rounded)
    assert {tensor.dtype for tensor in found} == {torch.float32}
    # 1e-5: float32 has 6e-8, and sums of up to 961 products grow it.
    assert_equal([tensor.double() for tensor in found], results(reference, *exact), 1e-5)


@pytest.mark.parametrize("name", [*OURS, None])
def test_bfloat16_is_near_float64_without_autocast_too(name):
    exact = tensors(2, 5, 14, 17, 13)
    found = results(lambda *i: depthwise_conv2d(*i, name), *[t.detach().bfloat16().requires_grad_() for t in exact])
    assert {tensor.dtype for tensor in found} == {torch.bfloat16}
    # 0.03: bfloat16 has 0.004, and inputs, output and gradients are all rounded to it.
    assert_equal([tensor.double() for tensor in found], results(reference, *exact), 0.03)


@pytest.mark.parametrize("name", OURS)
def test_a_candidate_is_the_convolution_in_float32(name):
    inputs = tensors(2, 5, 14, 17, 13, torch.float32)
    # 1e-5: float32 has 6e-8, and sums of 169 to 476 products grow it.
    assert_equal(results(lambda *i: depthwise_conv2d(*i, name), *inputs), results(reference, *inputs), 1e-5)


@pytest.mark.parametrize("layout", ["channels_last", "a transposed view", "every second pixel"])
@pytest.mark.parametrize("name", OURS)
def test_the_layout_in_memory_does_not_matter(name, layout):
    x, weight, bias = tensors(2, 5, 10, 10, 7)
    view = {
        "channels_last": lambda: x.detach().to(memory_format=torch.channels_last),
        "a transposed view": lambda: x.detach().transpose(2, 3),
        "every second pixel": lambda: x.detach()[:, :, ::2, ::2],
    }[layout]().requires_grad_()
    assert not view.is_contiguous()
    found = results(lambda *i: depthwise_conv2d(*i, name), view, weight, bias)
    assert_equal(found, results(reference, view, weight, bias), 1e-12)


@pytest.mark.parametrize("name", OURS)
def test_first_and_second_derivatives_are_those_of_finite_differences(name):
    inputs = tensors(2, 2, 4, 5, 5)
    assert torch.autograd.gradcheck(lambda *i: depthwise_conv2d(*i, name), inputs)
    assert torch.autograd.gradgradcheck(lambda *i: depthwise_conv2d(*i, name), inputs)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("wanted", ["x", "weight"])
def test_a_gradient_is_the_same_when_it_is_the_only_one(name, wanted):
    x, weight, bias = tensors(2, 5, 9, 7, 13)
    grads = torch.autograd.grad(reference(x, weight, bias).square().sum(), (x, weight))
    both = dict(zip(("x", "weight"), grads, strict=True))
    one = {"x": x, "weight": weight}
    for name_of_other in one.keys() - {wanted}:
        one[name_of_other] = one[name_of_other].detach()
    y = depthwise_conv2d(one["x"], one["weight"], bias, name)
    (grad,) = torch.autograd.grad(y.square().sum(), one[wanted])
    torch.testing.assert_close(grad, both[wanted], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", [*OURS, None])
def test_the_bias_alone_gets_its_gradient(name):
    x, weight, bias = tensors(2, 5, 9, 7, 13, torch.float32)
    y = depthwise_conv2d(x.detach(), weight.detach(), bias, name)
    (grad,) = torch.autograd.grad(y.sum(), bias)
    assert grad.tolist() == [2 * 9 * 7] * 5  # exact: a sum of ones


@pytest.mark.parametrize("name", OURS)
def test_an_unneeded_gradient_is_not_computed(name):
    x, weight, _ = tensors(2, 5, 9, 7, 13)
    weight = conv._cropped(weight, x.shape[2:])
    needed = [(True, False), (False, True), (False, False)]
    found = [CANDIDATES[name].gradients(x, weight, torch.ones_like(x), which) for which in needed]
    assert [tuple(grad is not None for grad in grads) for grads in found] == needed


@pytest.mark.parametrize("shape", [(2, 5, 9, 14, 13), (1, 8, 44, 44, 31)], ids=str)
@pytest.mark.parametrize("name", [*OURS, None])
def test_without_gradients_the_output_is_the_same(name, shape):
    inputs = tensors(*shape, torch.float32)
    expected = depthwise_conv2d(*inputs, name)
    with torch.no_grad():
        found = depthwise_conv2d(*inputs, name)
    assert expected.requires_grad and not found.requires_grad
    # 1e-5: without gradients oneDNN adds the bias, elsewhere in the sum.
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", ["direct", "dense", "fft", None])
def test_the_fast_candidates_return_channels_last(name, layout):
    x, weight, bias = tensors(2, 5, 9, 14, 7, torch.float32)
    x = x.detach().contiguous(memory_format=layout).requires_grad_()
    y = depthwise_conv2d(x, weight, bias, name)
    with torch.no_grad():
        without_gradients = depthwise_conv2d(x, weight, bias, name)
    for map in (y, without_gradients):
        assert map.is_contiguous(memory_format=torch.channels_last)
        assert not map.is_contiguous()


@pytest.mark.parametrize("name", ["direct", "dense", "fft", None])
def test_the_gradient_of_the_input_is_in_channels_last(name):
    x, weight, _ = tensors(2, 5, 9, 14, 7, torch.float32)
    seen = []
    y = depthwise_conv2d(x * 1, weight, None, name)
    y.grad_fn.register_hook(lambda grads, _: seen.append(grads[0]))
    y.sum().backward()
    assert seen[0].shape == x.shape
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", [*OURS, None])
def test_an_empty_batch_has_an_empty_output_and_gradients_of_zero(name):
    x, weight, bias = tensors(0, 4, 9, 9, 7)
    y, grad_x, grad_weight, grad_bias = results(lambda *i: depthwise_conv2d(*i, name), x, weight, bias)
    assert y.shape == grad_x.shape == (0, 4, 9, 9)
    assert grad_weight.shape == weight.shape
    assert not grad_weight.any()
    assert not grad_bias.any()


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_gives_its_dtype_and_gradients_of_the_parameters_dtype(name, dtype):
    x, weight, bias = tensors(2, 5, 14, 14, 7, torch.float32)
    with torch.autocast("cpu", dtype):
        y = depthwise_conv2d(x, weight, bias, name)
    assert y.dtype == dtype
    y.float().square().mean().backward()
    assert {p.grad.dtype for p in (x, weight, bias)} == {torch.float32}
    expected = reference(x, weight, bias)
    # A few units of bfloat16's 8 bits, and of the same for float16, which has 11.
    assert (y.float() - expected).abs().max() < 0.03 * expected.abs().max()
    (grad,) = torch.autograd.grad(expected.square().mean(), weight)
    assert (weight.grad - grad).abs().max() < 0.03 * grad.abs().max()


@pytest.mark.parametrize("name", [*OURS, None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_keeps_every_gradient_near_that_of_float32(name, dtype):
    inputs = tensors(2, 5, 14, 14, 13, torch.float32)

    def convolve(*inputs):
        with torch.autocast("cpu", dtype):
            return depthwise_conv2d(*inputs, name)

    y, *grads = results(convolve, *inputs)
    # 0.03: bfloat16 has 8 bits, so 0.004, and inputs, output and gradients are all rounded; float16 has 11 bits.
    assert_equal([y.float(), *grads], results(reference, *inputs), 0.03)


def test_autocast_does_not_change_float64():
    inputs = tensors(1, 2, 9, 9, 7)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv2d(*inputs)
    # 1e-12: float64, as above; one rounding to bfloat16 would be 0.004.
    torch.testing.assert_close(y, reference(*inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*OURS, None])
def test_a_compiled_module_trains_as_the_plain_one(name):
    torch._dynamo.reset()  # or the ninth module would run uncompiled
    torch._dynamo.utils.counters.clear()
    module = DepthwiseConv2d(6, 6, 13, padding=6, groups=6, bias=True, implementation=name)
    x = torch.randn(2, 6, 14, 14)
    expected = results(lambda x, *_: module(x), x.requires_grad_(), module.weight, module.bias)
    compiled = torch.compile(module, backend="aot_eager")
    found = results(lambda x, *_: compiled(x), x, module.weight, module.bias)
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 0
    assert_equal(found, expected, 1e-5)  # float32, as above


def test_an_exported_module_takes_any_batch():
    module = DepthwiseConv2d(6, 6, 13, padding=6, groups=6, bias=True).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (torch.randn(2, 6, 14, 14),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 6, 14, 14)
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*CANDIDATES, None])
def test_export_sees_one_plain_convolution(name):
    module = DepthwiseConv2d(6, 6, 13, padding=6, groups=6, bias=True, implementation=name).eval()
    program = torch.export.export(module, (torch.randn(2, 6, 14, 14),))
    operations = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert operations == [torch.ops.aten.conv2d.default]


def test_a_module_in_onnx_takes_any_batch():
    reason = "onnx, onnxscript and onnxruntime, of the extra `all`, are needed to export and run ONNX"
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=reason)
    module = DepthwiseConv2d(4, 4, 13, padding=6, groups=4, bias=True).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, of PyTorch's coming releases
        program = torch.onnx.export(
            module, (torch.randn(2, 4, 9, 11),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
        )
    x = torch.randn(5, 4, 9, 11)
    # 1e-5: another library sums float32 in another order.
    torch.testing.assert_close(program(x)[0], module(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OURS)
def test_checkpointing_changes_no_gradient(name):
    inputs = tensors(2, 5, 9, 7, 13)
    expected = results(lambda *i: depthwise_conv2d(*i, name), *inputs)
    found = results(lambda *i: checkpoint(depthwise_conv2d, *i, name, use_reentrant=False), *inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("shape", [(2, 8, 24, 24, 31), (2, 8, 48, 48, 31), (2, 8, 14, 14, 13)], ids=str)
def test_the_same_inputs_give_the_same_bits(shape):
    inputs = tensors(*shape, torch.float32)
    first, second = results(depthwise_conv2d, *inputs), results(depthwise_conv2d, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", [*OURS, None])
def test_the_same_seed_trains_the_same_bits(name):
    def trained() -> list[torch.Tensor]:
        torch.manual_seed(3)
        module = DepthwiseConv2d(5, 5, 13, padding=6, groups=5, bias=True, implementation=name)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        before = module.weight.detach().clone()
        for _ in range(3):
            optimizer.zero_grad()
            module(torch.randn(2, 5, 14, 14)).square().mean().backward()
            optimizer.step()
        assert not torch.equal(module.weight, before)
        return list(module.parameters())

    assert all(map(torch.equal, trained(), trained()))


# The choice


@pytest.mark.parametrize(
    ("kernel_size", "side", "expected"),
    [
        (1, 7, "plain"),
        (3, 56, "plain"),
        (3, 400, "plain"),
        (5, 56, "direct"),
        (31, 56, "direct"),
        (31, 93, "direct"),
        (31, 94, "fft"),
        (51, 56, "fft"),
        (27, 14, "direct"),
    ],
)
@pytest.mark.skipif(not conv.HAS_ONEDNN, reason="the rule is for PyTorch with oneDNN")
def test_the_rule_for_cpus_is_as_documented(kernel_size, side, expected):
    assert conv._cpu_rule(torch.float32, (side, side), (kernel_size, kernel_size)) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize(("kernel_size", "expected"), [(3, "plain"), (5, "plain"), (7, "fft"), (31, "fft")])
def test_the_rule_takes_fft_for_dtypes_that_onednn_lacks(dtype, kernel_size, expected):
    assert conv._cpu_rule(dtype, (14, 14), (kernel_size, kernel_size)) == expected


def test_the_rule_takes_fft_without_onednn(monkeypatch):
    monkeypatch.setattr(conv, "HAS_ONEDNN", False)
    assert conv._cpu_rule(torch.float32, (14, 14), (7, 7)) == "fft"


@pytest.mark.parametrize(("side", "expected"), [(93, "direct"), (94, "fft")])
@pytest.mark.skipif(not conv.HAS_ONEDNN, reason="the rule is for PyTorch with oneDNN")
def test_the_rule_decides_forward_and_backward(side, expected, monkeypatch):
    used = calls(monkeypatch)
    results(depthwise_conv2d, *tensors(1, 2, side, side, 31, torch.float32))
    assert used == [expected, f"gradients of {expected}"]


def calls(monkeypatch) -> list[str]:
    """The names of the candidates that are used from now on."""
    used = []
    for name, candidate in CANDIDATES.items():
        spy = candidate._replace(
            convolve=lambda *i, n=name, c=candidate: used.append(n) or c.convolve(*i),
            gradients=lambda *i, n=name, c=candidate: used.append(f"gradients of {n}") or c.gradients(*i),
        )
        monkeypatch.setitem(CANDIDATES, name, spy)
    return used


def test_an_argument_forces_a_candidate(monkeypatch):
    used = calls(monkeypatch)
    depthwise_conv2d(*tensors(1, 2, 9, 9, 7), "dense")
    assert used == ["dense"]


def test_the_environment_overrides_the_argument(monkeypatch):
    used = calls(monkeypatch)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "fft")
    depthwise_conv2d(*tensors(1, 2, 9, 9, 7), "dense")
    assert used == ["fft"]


def test_an_empty_environment_variable_forces_nothing(monkeypatch):
    used = calls(monkeypatch)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")
    depthwise_conv2d(*tensors(1, 2, 9, 9, 7), "dense")
    assert used == ["dense"]


@pytest.mark.parametrize("name", ["direct", "dense", "fft"])
def test_a_forced_candidate_computes_its_gradients_too(name, monkeypatch):
    used = calls(monkeypatch)
    results(lambda *i: depthwise_conv2d(*i, name), *tensors(1, 2, 9, 9, 7))
    assert used == [name, f"gradients of {name}"]


def test_the_configuration_forces_a_candidate_in_every_block(monkeypatch):
    used = calls(monkeypatch)
    model = RepLKNetForImageClassification(RepLKNetConfig.from_variant("tiny", conv_implementation="dense"))
    model(torch.randn(2, 3, 64, 64)).logits.sum().backward()
    assert used[0] == "plain"  # the 3×3 of the stem is no large kernel
    assert used[-1] == "gradients of plain"
    assert set(used[1:-1]) == {"dense", "gradients of dense"}


def test_an_unknown_candidate_is_refused():
    with pytest.raises(ValueError, match=r"expected one of plain, direct, .*, found 'winograd'"):
        depthwise_conv2d(*tensors(1, 2, 9, 9, 7), "winograd")


def test_an_unknown_candidate_in_the_environment_is_refused_by_the_variables_name(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "winograd")
    with pytest.raises(ValueError, match=r"as implementation or in SEEDLING_HF_CONV, found 'winograd'"):
        depthwise_conv2d(*tensors(1, 2, 9, 9, 7), "dense")


def test_an_even_kernel_is_refused_by_the_module():
    with pytest.raises(ValueError, match=r"with odd K, found \(1, 2, 9, 9\) and \(2, 1, 4, 4\)"):
        DepthwiseConv2d(2, 2, 4, padding=2, groups=2, bias=False)(torch.randn(1, 2, 9, 9))


def test_one_image_without_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"expected x of shape \(N, C, H, W\) .*found \(2, 9, 9\)"):
        depthwise_conv2d(torch.randn(2, 9, 9), torch.randn(2, 1, 5, 5))


@pytest.mark.parametrize("weight", [(2, 1, 4, 4), (2, 1, 5, 4), (3, 1, 5, 5), (2, 2, 5, 5), (2, 5, 5)], ids=str)
def test_kernels_that_do_not_fit_are_refused(weight):
    with pytest.raises(ValueError, match=r"expected x of shape \(N, C, H, W\) and weight of shape"):
        depthwise_conv2d(torch.randn(1, 2, 9, 9), torch.randn(weight))


def test_the_fastest_candidate_is_timed_once_and_reported(monkeypatch):
    monkeypatch.setattr(conv, "_timings", {})
    x, weight, _ = tensors(1, 2, 9, 9, 7)
    costs = {"plain": 4.0, "fft": 2.0}
    clock = iter(costs.values())
    times = conv._timed(x, weight, "backward", lambda run: next(clock))
    assert times == costs
    assert conv._timed(x, weight, "backward", lambda run: pytest.fail("timed again")) == costs
    (timed,) = conv.timings()
    assert timed["shape"] == (1, 2, 9, 9)
    assert timed["direction"] == "backward"
    assert timed["milliseconds"] == costs


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_what_is_timed_is_each_candidate_at_work(direction, monkeypatch):
    monkeypatch.setattr(conv, "_timings", {})
    used = calls(monkeypatch)
    x, weight, _ = tensors(1, 2, 9, 9, 7)

    def seconds(run):
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    times = conv._timed(x, weight, direction, seconds)
    assert list(times) == ["plain", "fft"]
    assert min(times.values()) > 0
    assert used == [name if direction == "forward" else f"gradients of {name}" for name in times]


def test_every_direction_dtype_and_shape_is_timed_separately(monkeypatch):
    monkeypatch.setattr(conv, "_timings", {})
    x, weight, _ = tensors(1, 2, 9, 9, 7)
    for values in [(x, weight, "forward"), (x, weight, "backward"), (x.float(), weight.float(), "forward"),
                   (x[:, :, 1:], weight, "forward"), (x, weight[:, :, 1:-1, 1:-1], "forward")]:  # fmt: skip
        conv._timed(*values, lambda run: 1.0)
    assert len(conv.timings()) == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only on a CUDA device the candidates are timed")
def test_on_cuda_the_fastest_candidate_is_chosen(monkeypatch):
    monkeypatch.setattr(conv, "_timings", {})
    used = calls(monkeypatch)
    x, weight, _ = (tensor.detach().cuda() for tensor in tensors(2, 5, 14, 14, 13, torch.float32))
    depthwise_conv2d(x, weight.requires_grad_())
    (timed,) = conv.timings()
    assert used[-1] == min(timed["milliseconds"], key=timed["milliseconds"].get)


@pytest.fixture
def gpu(monkeypatch):
    """Two tensors on a GPU of a kind, as far as the choice looks at them; nothing is timed or chosen yet."""
    for name in ("_timings", "_chosen"):
        monkeypatch.setattr(conv, name, {})
    monkeypatch.setattr(conv, "_device_kind", lambda device: "NVIDIA H100" if device.startswith("cuda") else device)
    monkeypatch.setattr(conv, "_cuda_milliseconds", lambda run: pytest.fail("timed"))
    monkeypatch.setattr(conv, "_possible", lambda x, weight: ["plain", "fft"])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    kind = {"device": torch.device("cuda", 1), "dtype": torch.float32}
    x, weight = (types.SimpleNamespace(shape=torch.Size(shape), **kind) for shape in ((2, 8, 14, 14), (8, 1, 13, 13)))
    x.detach, weight.detach = (lambda: x), (lambda: weight)
    return x, weight


def time_as(monkeypatch, costs: list[float]) -> None:
    clock = iter(costs)
    monkeypatch.setattr(conv, "_cuda_milliseconds", lambda run: next(clock))


def test_choices_that_were_saved_are_taken_without_timing(gpu, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        time_as(patch, [2.0, 1.0, 3.0, 4.0])
        assert [conv._choose(*gpu, direction) for direction in ("forward", "backward")] == ["fft", "plain"]
    conv.save_choices(tmp_path / "choices.json")
    saved = conv.choices()
    assert [(c["device"], c["shape"], c["direction"], c["name"]) for c in saved] == [
        ("NVIDIA H100", (2, 8, 14, 14), "forward", "fft"),
        ("NVIDIA H100", (2, 8, 14, 14), "backward", "plain"),
    ]
    monkeypatch.setattr(conv, "_timings", {})  # as in another process, on the second GPU
    for tensor in gpu:
        tensor.device = torch.device("cuda", 0)
    conv.load_choices(tmp_path / "choices.json")
    assert [conv._choose(*gpu, direction) for direction in ("forward", "backward")] == ["fft", "plain"]
    assert conv.choices() == saved


def test_a_choice_that_does_not_work_here_or_is_of_another_shape_is_timed(gpu, monkeypatch):
    choice = {"device": "NVIDIA H100", "dtype": "torch.float32", "shape": [2, 8, 14, 14], "kernel_size": [13, 13]}
    conv.set_choices([choice | {"direction": "forward", "name": "implicit_gemm"}])
    conv.set_choices([choice | {"direction": "backward", "name": "fft", "shape": [3, 8, 14, 14]}])
    for direction in ("forward", "backward"):
        with monkeypatch.context() as patch:
            time_as(patch, [1.0, 2.0])
            assert conv._choose(*gpu, direction) == "plain"


def test_a_choice_outlives_a_later_timing(gpu, monkeypatch):
    choice = {"device": "NVIDIA H100", "dtype": "torch.float32", "shape": (2, 8, 14, 14), "kernel_size": (13, 13)}
    choice |= {"direction": "forward", "name": "plain"}
    with monkeypatch.context() as patch:
        time_as(patch, [2.0, 1.0])
        assert conv._choose(*gpu, "forward") == "fft"
    conv.set_choices([choice])
    assert conv._choose(*gpu, "forward") == "plain"
    assert conv.choices() == [choice]


@pytest.mark.parametrize("values", [3, None, ["fft"], [{}], [{"device": 1}], {"device": "cpu"}], ids=str)
def test_what_are_no_choices_is_refused(values):
    with pytest.raises(ValueError, match="expected choices of the large-kernel convolution, found"):
        conv.set_choices(values)
    assert not conv._chosen


def test_an_unknown_candidate_is_no_choice():
    values = {"device": "cpu", "dtype": "", "shape": [], "kernel_size": [], "direction": "", "name": "winograd"}
    with pytest.raises(ValueError, match=r"expected plain, direct, dense, fft, .* as choices, found 'winograd'"):
        conv.set_choices([values])
    assert not conv._chosen


@pytest.fixture
def extension(monkeypatch):
    """The module of the authors' extension with the same convolution in it: it cannot be compiled here."""

    class Convolve(torch.autograd.Function):  # as the authors' is
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return reference(x, weight, None)

        @staticmethod
        def backward(ctx, grad):
            x, weight = ctx.saved_tensors
            settings = {"padding": weight.shape[2] // 2, "groups": len(weight)}
            return (
                torch.nn.grad.conv2d_input(x.shape, weight, grad, **settings) if ctx.needs_input_grad[0] else None,
                torch.nn.grad.conv2d_weight(x, weight.shape, grad, **settings) if ctx.needs_input_grad[1] else None,
            )

    class DepthWiseConv2dImplicitGEMM(nn.Conv2d):
        def __init__(self, channels, kernel, bias=False):
            super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=bias)

        def forward(self, x):
            return Convolve.apply(x, self.weight)

    module = types.ModuleType("depthwise_conv2d_implicit_gemm")
    module.DepthWiseConv2dImplicitGEMM = DepthWiseConv2dImplicitGEMM
    monkeypatch.setitem(sys.modules, module.__name__, module)
    caches = (conv._implicit_gemm_class, conv._implicit_gemm_module, conv._implicit_gemm_works,
              conv._warn_of_missing)  # fmt: skip
    for cache in caches:
        cache.cache_clear()
    yield module
    for cache in caches:
        cache.cache_clear()


def test_the_extension_is_used_where_it_is_installed(extension, monkeypatch):
    used = calls(monkeypatch)
    inputs = tensors(2, 3, 9, 9, 7, torch.float32)
    found = results(lambda *i: depthwise_conv2d(*i, "implicit_gemm"), *inputs)
    assert set(used) == {"implicit_gemm", "gradients of implicit_gemm"}
    assert_equal(found, results(reference, *inputs), 1e-5)  # float32, as above


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 3), (3, 8, 9, 14, 7), (2, 4, 16, 17, 31), (1, 2, 3, 3, 31)], ids=str)
def test_the_extension_is_the_convolution_of_pytorch(extension, shape, monkeypatch):
    used = calls(monkeypatch)
    inputs = tensors(*shape)
    found = results(lambda *i: depthwise_conv2d(*i, "implicit_gemm"), *inputs)
    assert set(used) == {"implicit_gemm", "gradients of implicit_gemm"}
    assert_equal(found, results(reference, *inputs), 1e-12)  # float64, as above


def test_the_extension_has_first_and_second_derivatives(extension, monkeypatch):
    used = calls(monkeypatch)
    inputs = tensors(2, 2, 4, 5, 5)
    assert torch.autograd.gradcheck(lambda *i: depthwise_conv2d(*i, "implicit_gemm"), inputs)
    assert torch.autograd.gradgradcheck(lambda *i: depthwise_conv2d(*i, "implicit_gemm"), inputs)
    assert set(used) == {"implicit_gemm", "gradients of implicit_gemm"}


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_the_extension_computes_no_unneeded_gradient(extension, needed):
    x, weight, _ = tensors(2, 3, 9, 9, 7)
    with torch.no_grad():
        grads = CANDIDATES["implicit_gemm"].gradients(x, weight, torch.ones_like(x), needed)
    assert tuple(grad is not None for grad in grads) == needed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_extension_is_timed_where_it_is_installed(extension, dtype):
    x, weight, _ = tensors(1, 2, 9, 9, 7, dtype)
    assert "implicit_gemm" in conv._possible(x, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_extension_is_not_timed_for_dtypes_that_it_lacks(extension, dtype):
    x, weight, _ = tensors(1, 2, 9, 9, 7, dtype)
    assert "implicit_gemm" not in conv._possible(x, weight)


def test_an_oblong_kernel_that_the_extension_lacks_is_computed_by_another_candidate(extension, monkeypatch):
    used = calls(monkeypatch)
    inputs = tensors(1, 3, 5, 20, 27)  # cropped to 9 × 27
    with pytest.warns(UserWarning, match="another candidate is used"):
        found = results(lambda *i: depthwise_conv2d(*i, "implicit_gemm"), *inputs)
    assert "implicit_gemm" not in used
    assert_equal(found, results(reference, *inputs), 1e-12)  # float64, as above


def raises(*args, **kwargs):
    raise TypeError("Only support fp32 and fp16")  # not a RuntimeError, which the timer of CUDA would catch


@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_an_extension_that_raises_is_reported_once_and_another_candidate_is_used(extension, method, monkeypatch):
    monkeypatch.setattr(extension.DepthWiseConv2dImplicitGEMM, method, raises)
    inputs = tensors(2, 3, 9, 9, 7, torch.float32)
    with pytest.warns(UserWarning, match="expected the extension depthwise_conv2d_implicit_gemm, found none") as warned:
        found = [results(lambda *i: depthwise_conv2d(*i, "implicit_gemm"), *inputs) for _ in range(2)]
    assert len(warned) == 1
    assert_equal(found[1], results(reference, *inputs), 1e-5)  # float32, as above


@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_an_extension_that_raises_is_not_timed(extension, method, monkeypatch):
    monkeypatch.setattr(conv, "_timings", {})
    monkeypatch.setattr(extension.DepthWiseConv2dImplicitGEMM, method, raises)
    x, weight, _ = tensors(1, 2, 9, 9, 7, torch.float32)
    assert list(conv._timed(x, weight, "forward", lambda run: run() is None)) == ["plain", "fft"]


def test_a_compiled_module_trains_with_the_extension(extension):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    module = DepthwiseConv2d(6, 6, 7, padding=3, groups=6, bias=True, implementation="implicit_gemm")
    x = torch.randn(2, 6, 9, 9, requires_grad=True)
    expected = results(lambda x, *_: module(x), x, module.weight, module.bias)
    compiled = torch.compile(module, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own: it looks through functools.cache
        found = results(lambda x, *_: compiled(x), x, module.weight, module.bias)
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 0
    assert_equal(found, expected, 1e-5)  # float32, as above


def test_a_missing_extension_is_reported_once_and_another_candidate_is_used(extension, monkeypatch):
    monkeypatch.setitem(sys.modules, extension.__name__, None)
    inputs = tensors(2, 3, 9, 9, 7, torch.float32)
    with pytest.warns(UserWarning, match="expected the extension depthwise_conv2d_implicit_gemm, found none") as warned:
        found = [results(lambda *i: depthwise_conv2d(*i, "implicit_gemm"), *inputs) for _ in range(2)]
    assert len(warned) == 1
    assert_equal(found[1], results(reference, *inputs), 1e-5)


# The whole model


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_every_large_map_of_the_model_is_in_channels_last_without_the_caller(training, monkeypatch):
    layouts = []
    monkeypatch.setattr(DepthwiseConv2d, "forward", lambda self, x, forward=DepthwiseConv2d.forward: (
        layouts.append(x.is_contiguous(memory_format=torch.channels_last)) or forward(self, x)
    ))  # fmt: skip
    model = RepLKNetForImageClassification(RepLKNetConfig.from_variant("tiny")).train(training)
    model(torch.randn(2, 3, 64, 64))
    assert layouts
    assert all(layouts)


@pytest.mark.parametrize("name", ["direct", "dense", "fft"])
def test_the_model_has_the_loss_and_the_gradients_of_plain_pytorch(name):
    torch.manual_seed(0)
    config = RepLKNetConfig.from_variant("tiny", conv_implementation="plain", drop_path_rate=0.0)
    plain = RepLKNetForImageClassification(config).double().train()
    fast = copy.deepcopy(plain)
    for module in fast.modules():
        if isinstance(module, DepthwiseConv2d):
            module.implementation = name
    x, labels = torch.randn(3, 3, 64, 64, dtype=torch.float64), torch.tensor([0, 1, 0])
    losses = [model(x, labels=labels).loss for model in (plain, fast)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-10, atol=0)
    for loss in losses:
        loss.backward()
    for (key, p), q in zip(plain.named_parameters(), fast.parameters(), strict=True):
        # 1e-8: BatchNorm on few pixels magnifies the last bits of float64.
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-8, atol=1e-8, msg=key)


@pytest.mark.parametrize("name", ["direct", "dense", "fft"])
def test_the_gradient_of_the_kernels_has_their_strides(name):
    # Other strides, even in a dimension of one, make DDP warn and copy.
    x = torch.randn(2, 16, 9, 9).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(16, 1, 3, 3, requires_grad=True)
    depthwise_conv2d(x, weight, implementation=name).sum().backward()
    assert weight.grad.stride() == weight.stride()


def test_the_gradient_of_kernels_that_are_left_to_torch_has_their_strides():
    x = torch.randn(2, 16, 9, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(16, 1, 3, 3, requires_grad=True)
    depthwise_conv2d(x, weight).sum().backward()
    assert weight.grad.stride() == weight.stride()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the memory of a process from /proc")
def test_the_weight_gradient_of_a_large_map_keeps_little_memory(tmp_path):
    # oneDNN wrote 150 MB of machine code for a kernel of 56×56 in one piece, and kept it.
    code = """
import torch
from seedling_hf.replknet.large_kernel_conv import CANDIDATES
def used(): return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) / 1e3
torch.set_num_threads(1)
weight = torch.randn(16, 1, 31, 31)
def gradient(side):
    x = torch.randn(1, 16, side, side).contiguous(memory_format=torch.channels_last)
    CANDIDATES["direct"].gradients(x, weight, x, (False, True))
gradient(8)
before = used()
gradient(56)
print(used() - before)
"""
    done = run_python([sys.executable, "-c", code], dict(os.environ), tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 50
