"""Compiled as one graph, the whole model keeps its fast convolution, and computes what it computes uncompiled."""

import copy
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification
from seedling_hf.replknet.large_kernel_conv import NAMESPACE
from seedling_hf.replknet.pointwise_conv import HAS_ONEDNN, PointwiseConv2d

SIDES = {"tiny": 32, "nano": 64}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Of the length of all outputs or gradients. float32: kernels sum in another order, through many layers and BatchNorms
# over few positions. bfloat16: what is fused is rounded less often, and a new network's gradients change by as much as
# they are long when all is rounded to 8 bits; so the share of that change.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.5}


@pytest.fixture(autouse=True)
def _compiled_anew():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def build_model(variant: str) -> RepLKNetForImageClassification:
    torch.manual_seed(0)
    return RepLKNetForImageClassification(RepLKNetConfig.from_variant(variant, num_labels=12, drop_path_rate=0.0))


class Calls(TorchDispatchMode):
    """Counts the calls of our operators meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if str(function).startswith(NAMESPACE):
            self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


def recording(operations: Counter):
    """A backend that counts the operations of each pass, and runs them one by one."""

    def record(graph, _):
        operations.update(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph)

    return aot_autograd(fw_compiler=record, bw_compiler=record)


@contextmanager
def in_precision(name: str):
    with torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16"):
        yield


def train(model, variant: str, precision: str) -> dict[str, torch.Tensor]:
    """Outputs, loss, gradients and statistics of one training step."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, SIDES[variant], SIDES[variant], generator=generator)
    labels = torch.rand(4, 12, generator=generator).softmax(-1)
    with in_precision(precision):
        outputs = model(pixel_values=images, labels=labels)
    outputs.loss.backward()
    return {
        "logits": outputs.logits.detach().float(),
        "loss": outputs.loss.detach(),
        "gradients": torch.cat([p.grad.flatten() for p in model.parameters()]),
        "statistics": torch.cat([b.flatten().float() for b in model.buffers()]),
    }


def assert_equal(found: dict, expected: dict, exact: dict, precision: str) -> None:
    """`exact` are the results in float32."""
    for name, value in expected.items():
        scale = exact[name] if precision == "float32" else value - exact[name]
        error = ((found[name] - value).norm() / scale.norm()).item()
        assert error <= TOLERANCES[precision], f"{name} differ by {error:.1e}"


def assert_as_exact(found: dict, expected: dict, exact: dict) -> None:
    """In bfloat16 fused operations round less often: results differ by as much as both differ from float32."""
    for name in ("logits", "gradients", "statistics"):
        error, usual = ((result[name] - exact[name]).norm().item() for result in (found, expected))
        assert 0 < error <= 1.25 * usual, f"{name} are {error:.1e} from float32, uncompiled {usual:.1e}"
    # A single number may be right by chance; bfloat16 has 8 bits, and many roundings add up to some steps of them.
    torch.testing.assert_close(found["loss"], exact["loss"], rtol=2**-6, atol=0)


def assert_one_fast_graph(operations: Counter, calls: Counter) -> None:
    """The graph has our operators as often as they are called uncompiled."""
    assert calls
    assert {name: count for name, count in operations.items() if name.startswith(NAMESPACE)} == calls
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", SIDES)
def test_training_is_one_graph_with_the_fast_convolution(variant, precision):
    model, operations = build_model(variant).train(), Counter()
    compiled = copy.deepcopy(model)
    compiled.compile(fullgraph=True, backend=recording(operations))
    exact = train(copy.deepcopy(model), variant, "float32")
    with Calls() as calls:
        expected = train(model, variant, precision)
    assert_equal(train(compiled, variant, precision), expected, exact, precision)
    assert_one_fast_graph(operations, calls.counts)
    assert set(calls.counts) == {f"{NAMESPACE}.convolve.default", f"{NAMESPACE}.gradients.default"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", SIDES)
@torch.no_grad()
def test_inference_is_one_graph_with_the_fast_convolution(variant, precision):
    model, operations = build_model(variant).eval().fuse_batch_norms(), Counter()
    images = torch.randn(4, 3, SIDES[variant], SIDES[variant])
    exact = {"logits": model(pixel_values=images).logits}
    with in_precision(precision):
        with Calls() as calls:
            expected = model(pixel_values=images).logits
        model.compile(fullgraph=True, backend=recording(operations))
        found = model(pixel_values=images).logits
    assert_equal({"logits": found.float()}, {"logits": expected.float()}, exact, precision)
    assert_one_fast_graph(operations, calls.counts)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", SIDES)
def test_compiled_training_is_that_of_the_model(variant, precision):
    model = build_model(variant).train()
    compiled = copy.deepcopy(model)
    compiled.compile(fullgraph=True)
    exact = train(copy.deepcopy(model), variant, "float32")
    found, expected = train(compiled, variant, precision), train(model, variant, precision)
    if precision == "float32":
        assert_equal(found, expected, exact, precision)
    else:
        assert_as_exact(found, expected, exact)


@pytest.mark.parametrize("bias", [False, True])
def test_a_pointwise_convolution_trains_compiled_as_one_product(bias):
    torch.manual_seed(0)
    module, operations = PointwiseConv2d(6, 8, 1, bias=bias), Counter()
    compiled = copy.deepcopy(module)
    compiled.compile(fullgraph=True, backend=recording(operations))
    x = torch.randn(2, 6, 5, 7).contiguous(memory_format=torch.channels_last)
    results = []
    for each in (compiled, module):
        y = each(x.requires_grad_())
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), [x, *each.parameters()])])
    # 1e-4: sums of at most 70 float32 products.
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    # With its two gradients. In oneDNN's own operation the compiler refuses weights that change.
    product = "product" if HAS_ONEDNN else "mm"
    assert sum(count for name, count in operations.items() if product in name) == 3
    assert not any("mkldnn" in name for name in operations)
