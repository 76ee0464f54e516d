"""Every way of computing the depthwise convolution is the same function: outputs, gradients, gradients of gradients."""

import copy
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification
from seedling_hf.replknet import large_kernel_conv as conv
from seedling_hf.replknet.large_kernel_conv import CANDIDATES, ENVIRONMENT_VARIABLE, DepthwiseConv2d, depthwise_conv2d

OURS = [name for name in CANDIDATES if name != "implicit_gemm"]
# (N, C, H, W, K): batches of one, odd and oblong maps, maps smaller than the kernel, channels no multiple of 8.
SHAPES = [
    (1, 1, 1, 1, 3), (2, 5, 7, 7, 13), (3, 8, 9, 14, 7), (1, 12, 5, 20, 27), (2, 3, 14, 14, 27), (2, 4, 17, 11, 31),
    (1, 2, 3, 3, 31), (2, 5, 8, 8, 1), (2, 5, 6, 4, 5),
]  # fmt: skip


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
    for name, a, b in zip(("output", "x", "weight", "bias"), found, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-3), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_a_candidate_is_the_convolution_of_pytorch(name, shape):
    inputs = tensors(*shape)
    # 1e-12: sums of at most 961 products, rounded otherwise, in float64.
    assert_equal(results(lambda *i: depthwise_conv2d(*i, name), *inputs), results(reference, *inputs), 1e-12)


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


@pytest.mark.parametrize("name", OURS)
def test_an_empty_batch_has_an_empty_output_and_gradients_of_zero(name):
    x, weight, bias = tensors(0, 4, 9, 9, 7)
    y, _, grad_weight, grad_bias = results(lambda *i: depthwise_conv2d(*i, name), x, weight, bias)
    assert y.shape == (0, 4, 9, 9)
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
def test_a_compiled_module_trains_as_the_plain_one(name):
    module = DepthwiseConv2d(6, 13, bias=True, implementation=name)
    x = torch.randn(2, 6, 14, 14)
    expected = results(lambda x, *_: module(x), x.requires_grad_(), module.weight, module.bias)
    compiled = torch.compile(module, backend="aot_eager")
    found = results(lambda x, *_: compiled(x), x, module.weight, module.bias)
    assert_equal(found, expected, 1e-5)


def test_an_exported_module_takes_any_batch():
    module = DepthwiseConv2d(6, 13, bias=True).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (torch.randn(2, 6, 14, 14),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 6, 14, 14)
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-5, atol=1e-5)


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


# The choice


@pytest.mark.parametrize(
    ("kernel_size", "side", "expected"),
    [(3, 56, "plain"), (5, 56, "direct"), (31, 42, "direct"), (31, 43, "fft"), (31, 56, "fft"), (27, 14, "direct")],
)
@pytest.mark.skipif(not conv.HAS_ONEDNN, reason="the rule is for PyTorch with oneDNN")
def test_the_rule_for_cpus_is_as_documented(kernel_size, side, expected):
    assert conv._cpu_rule(torch.float32, (side, side), (kernel_size, kernel_size)) == expected


def calls(monkeypatch) -> list[str]:
    """The names of the candidates that are used from now on."""
    used = []
    for name, candidate in CANDIDATES.items():
        spy = candidate._replace(convolve=lambda x, w, n=name, c=candidate: used.append(n) or c.convolve(x, w))
        monkeypatch.setitem(CANDIDATES, name, spy)
    return used


def test_an_argument_forces_a_candidate(monkeypatch):
    used = calls(monkeypatch)
    depthwise_conv2d(*tensors(1, 2, 9, 9, 7), "dense")
    assert used == ["dense"]


def test_the_environment_goes_before_the_argument(monkeypatch):
    used = calls(monkeypatch)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "fft")
    depthwise_conv2d(*tensors(1, 2, 9, 9, 7), "dense")
    assert used == ["fft"]


def test_the_configuration_forces_a_candidate_in_every_block(monkeypatch):
    used = calls(monkeypatch)
    model = RepLKNetForImageClassification(RepLKNetConfig.from_variant("tiny", conv_implementation="dense"))
    model(torch.randn(2, 3, 64, 64)).logits.sum().backward()
    assert set(used[1:]) == {"dense"}
    assert used[0] == "plain"  # the 3×3 of the stem is no large kernel


def test_an_unknown_candidate_is_refused():
    with pytest.raises(ValueError, match=r"expected one of plain, direct, .*, found 'winograd'"):
        depthwise_conv2d(*tensors(1, 2, 9, 9, 7), "winograd")


@pytest.mark.parametrize("weight", [(2, 1, 4, 4), (3, 1, 5, 5), (2, 2, 5, 5), (2, 5, 5)], ids=str)
def test_kernels_that_do_not_fit_are_refused(weight):
    with pytest.raises(ValueError, match=r"expected x of shape \(N, C, H, W\) and weight of shape"):
        depthwise_conv2d(torch.randn(1, 2, 9, 9), torch.randn(weight))


def test_the_quickest_candidate_is_timed_once_and_told(monkeypatch):
    monkeypatch.setattr(conv, "_timings", {})
    x, weight, _ = tensors(1, 2, 9, 9, 7)
    costs = {"plain": 4.0, "direct": 3.0, "fft": float("inf"), "dense": 2.0}
    clock = iter(costs.values())
    times = conv._timed(x, weight, "backward", lambda run: next(clock))
    assert times == costs
    assert conv._timed(x, weight, "backward", lambda run: pytest.fail("timed again")) == costs
    (told,) = conv.timings()
    assert told["shape"] == (1, 2, 9, 9)
    assert told["direction"] == "backward"
    assert told["milliseconds"] == costs


@pytest.fixture
def extension(monkeypatch):
    """The module of the authors' extension with the same convolution in it: it cannot be compiled here."""

    class DepthWiseConv2dImplicitGEMM(nn.Conv2d):
        def __init__(self, channels, kernel, bias=False):
            super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=bias)

    module = types.ModuleType("depthwise_conv2d_implicit_gemm")
    module.DepthWiseConv2dImplicitGEMM = DepthWiseConv2dImplicitGEMM
    monkeypatch.setitem(sys.modules, module.__name__, module)
    caches = (conv._implicit_gemm_class, conv._implicit_gemm_module, conv._warn_of_missing_extension)
    for cache in caches:
        cache.cache_clear()
    yield module
    for cache in caches:
        cache.cache_clear()


def test_the_extension_is_used_where_it_is_installed(extension, monkeypatch):
    used = calls(monkeypatch)
    inputs = tensors(2, 3, 9, 9, 7, torch.float32)
    found = results(lambda *i: depthwise_conv2d(*i, "implicit_gemm"), *inputs)
    assert used == ["implicit_gemm"]
    assert_equal(found, results(reference, *inputs), 1e-5)


def test_a_missing_extension_is_said_once_and_another_candidate_computes(extension, monkeypatch):
    monkeypatch.setitem(sys.modules, extension.__name__, None)
    inputs = tensors(2, 3, 9, 9, 7, torch.float32)
    with pytest.warns(UserWarning, match="expected the extension depthwise_conv2d_implicit_gemm, found none") as warned:
        found = [results(lambda *i: depthwise_conv2d(*i, "implicit_gemm"), *inputs) for _ in range(2)]
    assert len(warned) == 1
    assert_equal(found[1], results(reference, *inputs), 1e-5)


# The whole model


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_every_large_map_of_the_model_is_in_channels_last_and_the_caller_does_nothing(training, monkeypatch):
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
