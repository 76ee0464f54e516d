"""The depthwise convolution with stride 2 is `nn.Conv2d`'s, whichever way computes its gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from seedling_hf.replknet.downsampling_conv import DownsamplingConv2d

SHAPES = [(2, 8, 12, 12), (1, 3, 7, 9), (3, 4, 1, 1), (2, 5, 2, 3)]


class InputGradients(TorchDispatchMode):
    """Counts the gradients of inputs that are asked of PyTorch's own backward pass."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.number += bool(args[-1][0])
        return func(*args, **(kwargs or {}))


def layer_and_input(shape, dtype, bias=False):
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    return DownsamplingConv2d(shape[1], shape[1], 3, 2, 1, groups=shape[1], bias=bias).to(dtype), x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_are_those_of_the_convolution(shape, bias, dtype):
    layer, x = layer_and_input(shape, dtype, bias)
    x.requires_grad_()
    y = layer(x)
    reference, exact = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    z = F.conv2d(exact, *reference.parameters(), stride=2, padding=1, groups=shape[1])
    grad = torch.randn_like(y)
    found = y, *torch.autograd.grad(y, [x, *layer.parameters()], grad)
    expected = z, *torch.autograd.grad(z, [exact, *reference.parameters()], grad.double())
    tolerance = 1e-5 if dtype == torch.float32 else 0.02  # bfloat16 has 8 bits
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * b.abs().max().item())


@pytest.mark.parametrize(("is_autocast", "number"), [(True, 0), (False, 1)])
def test_in_bfloat16_no_slow_gradient_of_the_input_is_taken(is_autocast, number):
    layer, x = layer_and_input(SHAPES[0], torch.float32)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        y = layer(x)
    assert y.dtype == (torch.bfloat16 if is_autocast else torch.float32)
    with InputGradients() as gradients:
        y.sum().backward()
    assert gradients.number == number
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32


def test_second_derivatives_exist():
    layer, x = layer_and_input((1, 2, 5, 5), torch.bfloat16)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), layer.weight)
    exact = x.detach().double().requires_grad_()
    weight = layer.weight.detach().double().requires_grad_()
    z = F.conv2d(exact, weight, stride=2, padding=1, groups=2)
    (grad,) = torch.autograd.grad(z.square().sum(), exact, create_graph=True)
    (expected,) = torch.autograd.grad(grad.square().sum(), weight)
    torch.testing.assert_close(second.double(), expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


def test_export_sees_a_convolution():
    layer, x = layer_and_input(SHAPES[0], torch.bfloat16)
    assert "conv2d" in torch.export.export(layer, (x.requires_grad_(),)).graph_module.code
