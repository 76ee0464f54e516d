"""The 1×1 convolution is `nn.Conv2d`'s, whichever way computes it."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F

from seedling_hf.replknet import pointwise_conv
from seedling_hf.replknet.pointwise_conv import ROWS_FOR_CONVOLUTION, PointwiseConv2d

CHANNELS_LAST = torch.channels_last
# (N, C in, C out, H, W): few rows, many rows, an oblong map, one position, no image
SHAPES = [(2, 24, 40, 7, 7), (3, 8, 16, 32, 32), (2, 5, 3, 4, 9), (1, 16, 8, 1, 1), (0, 8, 8, 4, 4)]


def layer_and_input(shape, dtype=torch.float32, bias=False):
    n, c_in, c_out, h, w = shape
    torch.manual_seed(0)
    x = torch.randn(n, c_in, h, w, dtype=dtype).contiguous(memory_format=CHANNELS_LAST)
    return PointwiseConv2d(c_in, c_out, 1, bias=bias).to(dtype), x


@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_are_those_of_the_convolution(shape, bias, layout):
    layer, x = layer_and_input(shape, bias=bias)
    x = x.contiguous(memory_format=layout)
    found = [x.clone().requires_grad_(), *layer.parameters()]
    y = layer(found[0])
    reference = copy.deepcopy(layer).double()
    expected = [x.double().requires_grad_(), *reference.parameters()]
    z = F.conv2d(expected[0], *expected[1:])
    grad = torch.randn_like(y)
    torch.testing.assert_close(y.double(), z, rtol=1e-5, atol=1e-5)  # float32, sums of some 2000 products at most
    for a, b in zip(torch.autograd.grad(y, found, grad), torch.autograd.grad(z, expected, grad.double()), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
@pytest.mark.parametrize("grad_enabled", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_fused_activation_equals_torchs(shape, activation, grad_enabled):
    layer, x = layer_and_input(shape, bias=True)
    with torch.set_grad_enabled(grad_enabled):
        y = layer(x, activation)
    expected = pointwise_conv.ACTIVATIONS[activation](F.conv2d(x, layer.weight, layer.bias))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def onednn_products(monkeypatch):
    """The calls of oneDNN's product."""
    if not pointwise_conv.HAS_ONEDNN:
        pytest.skip("this torch has no oneDNN")
    calls = []
    apply = pointwise_conv._onednn_linear
    monkeypatch.setattr(pointwise_conv, "_onednn_linear", lambda *a: (calls.append(1), apply(*a))[1])
    return calls


def test_few_rows_go_to_onednn_and_many_to_its_convolution(onednn_products):
    layer, few = layer_and_input((16, 4, 4, 2, 2))
    layer(few)
    assert len(onednn_products) == 1
    layer(torch.randn(16, 4, ROWS_FOR_CONVOLUTION // 16, 1))
    assert len(onednn_products) == 1


def test_a_single_thread_convolves_no_small_batch(onednn_products, monkeypatch):
    layer, _ = layer_and_input((1, 4, 4, 2, 2))
    many = torch.randn(15, 4, ROWS_FOR_CONVOLUTION // 15 + 1, 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    layer(many)
    assert len(onednn_products) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    layer(many)
    assert len(onednn_products) == 1


@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
def test_inference_in_bfloat16_casts_and_packs_its_weights_once(onednn_products, activation):
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bfloat16 in oneDNN")
    layer, x = layer_and_input(SHAPES[1], bias=True)
    expected = pointwise_conv.ACTIVATIONS[activation](F.conv2d(x, layer.weight, layer.bias))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        y = layer(x, activation)
        packed = pointwise_conv._packed[layer.weight][1]
        layer(x, activation)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.02)  # bfloat16 has 8 bits
    assert pointwise_conv._packed[layer.weight][1] is packed
    assert len(onednn_products) == 2
    with torch.inference_mode():  # float32 again
        torch.testing.assert_close(layer(x, activation), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gelu_in_the_order_of_memory_is_torchs(dtype):
    _, x = layer_and_input((4, 64, 1, 16, 16), dtype)  # 16384 values, from which on oneDNN computes it
    x = (3 * x).requires_grad_()
    y = pointwise_conv.gelu(x)
    assert y.is_contiguous(memory_format=CHANNELS_LAST)
    exact = x.detach().double().requires_grad_()
    grad = torch.randn_like(y)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02  # bfloat16 has 8 bits
    for a, b in (
        (y, F.gelu(exact)),
        (torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(F.gelu(exact), exact, grad.double())[0]),
    ):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_are_left_to_torch(dtype):
    layer, x = layer_and_input(SHAPES[0], dtype)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight), rtol=0.02, atol=0.02)  # bfloat16 has 8 bits
    assert layer(x).dtype == dtype


def test_autocast_decides_the_dtype():
    layer, x = layer_and_input(SHAPES[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_second_derivatives_exist():
    layer, x = layer_and_input((1, 3, 2, 3, 3))
    reference = lambda x, w: F.conv2d(x, w)  # noqa: E731

    def penalty(function, x, weight):
        (grad,) = torch.autograd.grad(function(x, weight).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), (x, weight))

    def ours(x, weight):
        return pointwise_conv._linear(x.permute(0, 2, 3, 1), weight.flatten(1)).permute(0, 3, 1, 2)

    x.requires_grad_()
    for a, b in zip(penalty(ours, x, layer.weight), penalty(reference, x, layer.weight), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_weights_that_change_are_packed_again():
    layer, x = layer_and_input(SHAPES[0], bias=True)
    with torch.no_grad():
        before = layer(x)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias))
        layer.weight.data = layer.weight.data / 2
        torch.testing.assert_close(layer(x), before)


def test_packed_weights_are_freed_with_their_layer_and_allow_copies():
    layer, x = layer_and_input(SHAPES[0], bias=True)
    gc.collect()
    number = len(pointwise_conv._packed)
    with torch.inference_mode():
        layer(x)
        twin = copy.deepcopy(layer)
        assert torch.equal(twin(x), layer(x))
    del layer, twin
    gc.collect()
    assert len(pointwise_conv._packed) == number


def test_layers_in_training_are_not_packed():
    layer, x = layer_and_input(SHAPES[0])
    number = len(pointwise_conv._packed)
    with torch.no_grad():
        layer(x)
    assert len(pointwise_conv._packed) == number


def test_export_sees_a_convolution():
    layer, x = layer_and_input(SHAPES[0], bias=True)
    exported = torch.export.export(layer.eval(), (x,))
    assert "conv2d" in exported.graph_module.code
    assert "mkldnn" not in exported.graph_module.code
