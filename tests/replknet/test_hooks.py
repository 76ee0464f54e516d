"""Hooks see what a module returned, and what the answer's derivative with respect to it is, at every module."""

import cv2
import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam, LayerGradientXActivation
from pytorch_grad_cam import GradCAM
from torch import Tensor, nn
from torch.nn import functional as F

from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification

TARGET = 3
FORMS = ("train", "eval", "reparameterize", "fuse_batch_norms")
LAYER = "replknet.encoder.stages.1.layers.1"
HOOKED = (
    "replknet.embeddings",
    "replknet.embeddings.layers.3",
    "replknet.encoder.stages.2",
    "replknet.encoder.stages.2.downsampling.1.normalization",
    LAYER,
    f"{LAYER}.large_kernel_block",
    f"{LAYER}.large_kernel_block.normalization",
    f"{LAYER}.large_kernel_block.pointwise1",
    f"{LAYER}.large_kernel_block.pointwise1.normalization",
    f"{LAYER}.large_kernel_block.large_kernel",
    f"{LAYER}.large_kernel_block.large_kernel.large",
    f"{LAYER}.large_kernel_block.pointwise2",
    f"{LAYER}.feed_forward_block.pointwise2.normalization",
    f"{LAYER}.feed_forward_block",
)


def build_model(form: str = "eval") -> RepLKNetForImageClassification:
    torch.manual_seed(0)
    config = RepLKNetConfig(
        kernel_sizes=[9, 7, 5], depths=[1, 2, 1], hidden_sizes=[8, 12, 16], small_kernel_size=3, num_labels=5,
        drop_path_rate=0.0,
    )  # fmt: skip
    model = RepLKNetForImageClassification(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # not those of a new model, which fold into nothing
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model.train() if form == "train" else getattr(model.eval(), form)().eval()


def random_images() -> Tensor:
    return torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))


def modules_that_return_tensors(model: nn.Module) -> dict[str, nn.Module]:
    lists = (nn.ModuleList, type(model), type(model.replknet), type(model.replknet.encoder))
    return {name: module for name, module in model.named_modules() if not isinstance(module, lists)}


def activation_and_gradient(model: nn.Module, module: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the module returns, and the derivative of the target's logits with respect to it.

    The derivative is that of zeros which are added to what it returns, so it needs no hook that keeps a tensor.
    """
    seen = []

    def add_zeros(_, inputs: tuple, output: Tensor) -> Tensor:
        seen.extend((output.detach().clone(), torch.zeros_like(output, requires_grad=True)))
        return output + seen[1]

    handle = module.register_forward_hook(add_zeros)
    logits = model(images).logits[:, TARGET].sum()
    handle.remove()
    return seen[0], torch.autograd.grad(logits, seen[1])[0]


@pytest.mark.parametrize("form", FORMS)
def test_a_forward_hook_on_any_module_keeps_what_it_returned(form):
    model, wrong = build_model(form), []
    for name, module in modules_that_return_tensors(model).items():
        kept = []
        handle = module.register_forward_hook(
            lambda _, inputs, output, kept=kept: kept.append((output, output.clone()))
        )
        with torch.no_grad():
            model(random_images())
        handle.remove()
        if not kept or not all(torch.equal(output, copy) for output, copy in kept):
            wrong.append(name)
    assert wrong == []


@pytest.mark.parametrize("form", FORMS)
def test_a_full_backward_hook_on_any_module_gets_the_derivative(form):
    model, wrong = build_model(form), []
    for name, module in modules_that_return_tensors(model).items():
        _, expected = activation_and_gradient(model, module, random_images())
        kept = []
        handle = module.register_full_backward_hook(lambda _, inputs, outputs, kept=kept: kept.extend(outputs))
        model(random_images().requires_grad_()).logits[:, TARGET].sum().backward()
        handle.remove()
        # Sums over as many terms in another order; 1e-4 of the largest derivative is far below what is overwritten.
        if len(kept) != 1 or not (kept[0] - expected).abs().max() <= 1e-4 * expected.abs().max():
            wrong.append(name)
    assert wrong == []


@pytest.mark.parametrize("form", ["train", "eval"])
def test_hooks_change_neither_loss_nor_gradients(form):
    results = []
    for is_hooked in (False, True):
        model = build_model(form)
        for module in modules_that_return_tensors(model).values() if is_hooked else ():
            module.register_forward_hook(lambda _, inputs, output: None)
        loss = model(random_images(), labels=torch.tensor([0, 1])).loss
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_hook_on_every_module_of_the_process_keeps_what_each_returned():
    model, kept = build_model(), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda _, inputs, output: kept.append((output, output.clone())) if isinstance(output, Tensor) else None
    )
    with torch.no_grad():
        model(random_images())
    handle.remove()
    assert len(kept) > 50
    assert all(torch.equal(output, copy) for output, copy in kept)


def test_without_hooks_nothing_is_copied(monkeypatch):
    model = build_model()
    monkeypatch.setattr(Tensor, "clone", lambda *_, **__: pytest.fail("a copy without a hook"))
    with torch.no_grad():
        model(random_images())


@pytest.mark.parametrize("name", HOOKED)
def test_the_maps_of_captum_are_those_of_the_formula(name):
    model, images = build_model(), random_images()
    module = model.get_submodule(name)
    activation, gradient = activation_and_gradient(model, module, images)
    expected = grad_cam(activation, gradient)
    tolerance = {"rtol": 1e-4, "atol": 1e-4 * expected.abs().max().item()}  # float32, sums in another order
    found = LayerGradCam(lambda images: model(images).logits, module).attribute(images, TARGET).detach()
    torch.testing.assert_close(found, expected, **tolerance)
    large = LayerAttribution.interpolate(found, images.shape[2:], "bilinear")
    torch.testing.assert_close(large, F.interpolate(expected, images.shape[2:], mode="bilinear"), **tolerance)
    product = LayerGradientXActivation(lambda images: model(images).logits, module).attribute(images, TARGET)
    scale = (activation * gradient).abs().max().item()
    torch.testing.assert_close(product.detach(), activation * gradient, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("name", HOOKED)
def test_the_maps_of_grad_cam_are_those_of_the_formula(name):
    model, images = build_model(), random_images()
    module = model.get_submodule(name)
    expected = grad_cam(*activation_and_gradient(model, module, images))
    # What speaks for the class and what speaks against it: where one map is empty, the other is not.
    for sign in (1, -1):
        targets = [lambda logits, sign=sign: sign * logits[TARGET]] * len(images)
        with GradCAM(Logits(model), [module]) as cam:
            maps = cam(images, targets)
        for found, one in zip(maps, F.relu(sign * expected)[:, 0].numpy(), strict=True):
            large = cv2.resize(one, images.shape[:1:-1])
            assert np.abs(from_0_to_1(found) - from_0_to_1(large)).max() < 1e-3


def grad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Selvaraju et al., arXiv 1610.02391, equations 1 and 2, before the ReLU: (N, 1, H, W)."""
    return (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True)


def from_0_to_1(values: np.ndarray) -> np.ndarray:
    """The package scales maps in steps of its own; an empty map stays empty."""
    return (values - values.min()) / (np.ptp(values) or 1)


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits
