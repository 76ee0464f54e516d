"""Adapters of PEFT on the convolutions: the arithmetic, merging, saving, and what is refused."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification
from seedling_hf.replknet.downsampling_conv import DownsamplingConv2d
from seedling_hf.replknet.large_kernel_conv import DepthwiseConv2d
from seedling_hf.replknet.pointwise_conv import PointwiseConv2d

POINTWISE = ["pointwise1.convolution", "pointwise2.convolution", "downsampling.0.convolution"]
# An adapter has no BatchNorm unless it is named, and its statistics change in training.
TRAINED_WHOLE = ["classifier", "normalization"]
CONFIG = {
    "kernel_sizes": [9, 7], "depths": [1, 1], "hidden_sizes": [8, 16], "small_kernel_size": 3, "drop_path_rate": 0.0,
    "num_labels": 3,
}  # fmt: skip


@pytest.fixture
def model() -> RepLKNetForImageClassification:
    torch.manual_seed(0)
    return RepLKNetForImageClassification(RepLKNetConfig(**CONFIG))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module, images: torch.Tensor, steps: int = 3) -> nn.Module:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    model.train()
    for _ in range(steps):
        model(pixel_values=images, labels=torch.arange(len(images)) % 3).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=images).logits


@pytest.mark.parametrize("kind", [PointwiseConv2d, DownsamplingConv2d, DepthwiseConv2d])
@pytest.mark.parametrize(
    "arguments",
    [(4, 6, 1), (4, 6, 3, 2, 1), (4, 8, 5, 1, 2, 1, 4), (4, 4, 3, 1, 2, 2, 4), (4, 4, 3, 2, 1, 1, 4), (4, 4, 1, 2)],
    ids=str,
)
def test_a_convolution_of_another_shape_is_nn_conv2ds(kind, arguments):
    torch.manual_seed(0)
    found = kind(*arguments, bias=True)
    torch.manual_seed(0)
    expected = nn.Conv2d(*arguments, bias=True)
    x = torch.randn(2, 4, 9, 11, requires_grad=True)
    grad = torch.randn_like(expected(x))
    for a, b in zip(results(found, x, grad), results(expected, x, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # another order of some hundred sums in float32


@pytest.mark.parametrize("kind", [PointwiseConv2d, DownsamplingConv2d, DepthwiseConv2d])
@pytest.mark.parametrize("padding_mode", ["reflect", "circular"])
def test_other_padding_is_nn_conv2ds(kind, padding_mode):
    for arguments in ((4, 4, 3, 2, 1, 1, 4), (4, 4, 3, 1, 1, 1, 4)):
        torch.manual_seed(0)
        found = kind(*arguments, padding_mode=padding_mode)
        torch.manual_seed(0)
        expected = nn.Conv2d(*arguments, padding_mode=padding_mode)
        x = torch.randn(2, 4, 9, 11, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):  # where DownsamplingConv2d has a gradient of its own
            assert torch.equal(found(x), expected(x))


def results(layer: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return layer(x), *torch.autograd.grad(layer(x), [x, *layer.parameters()], grad)


def test_lora_on_every_convolution_computes_what_it_does_on_nn_conv2d(model, images):
    plain = copy.deepcopy(model)
    for module in list(plain.modules()):
        convolution = getattr(module, "convolution", None)
        if isinstance(convolution, nn.Conv2d):
            convolution.__class__ = PlainConv2d
    # PEFT wants a rank that all groups divide: of the depthwise convolutions, up to 16 channels.
    config = LoraConfig(r=16, target_modules=["convolution"], init_lora_weights=False)
    with pytest.warns(UserWarning, match="Merging is not supported"):
        found, expected = get_peft_model(model, config), get_peft_model(plain, config)
    expected.load_state_dict(found.state_dict())
    kinds = {
        type(layer) for name, layer in found.named_modules() if name.endswith(("lora_A.default", "lora_B.default"))
    }
    assert kinds == {nn.Conv2d, PointwiseConv2d, DownsamplingConv2d, DepthwiseConv2d}
    torch.testing.assert_close(logits(found.eval(), images), logits(expected.eval(), images), rtol=1e-4, atol=1e-4)
    gradients = []
    for peft_model in (found.train(), expected.train()):
        peft_model(pixel_values=images, labels=torch.arange(6) % 3).loss.backward()
        gradients.append({name: p.grad for name, p in peft_model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[1].items():
        # Float32, through the whole network in another order.
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())


class PlainConv2d(nn.Conv2d):
    """An `nn.Conv2d` that can stand for ours, whose activation follows."""

    def forward(self, x: torch.Tensor, activation: str = "none") -> torch.Tensor:
        assert activation == "none"
        return super().forward(x)


def test_a_merged_adapter_has_the_weights_of_its_formula_and_can_be_fused(model, images):
    before = copy.deepcopy(model)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=POINTWISE, modules_to_save=TRAINED_WHOLE)
    adapted = trained(get_peft_model(model, config), images)
    expected, state = logits(adapted, images), {k: v.clone() for k, v in adapted.state_dict().items()}
    merged = adapted.merge_and_unload()
    assert type(merged) is RepLKNetForImageClassification
    names = [
        name for name, module in merged.named_modules() if isinstance(module, PointwiseConv2d) and "stages" in name
    ]
    assert len(names) == 2 * 4 + 1
    for name in names:
        down, up = (state[f"base_model.model.{name}.lora_{half}.default.weight"].double() for half in "AB")
        weight = before.get_submodule(name).weight.double() + 8 / 4 * torch.einsum("or...,ri...->oi...", up, down)
        assert (weight - before.get_submodule(name).weight).abs().max() > 1e-3
        torch.testing.assert_close(merged.get_submodule(name).weight.double(), weight, rtol=1e-5, atol=1e-6)
    assert (expected - logits(before.eval(), images)).abs().max() > 0.1
    # 1e-4, relative to logits of about 1: sums of float32 in another order, and weights rounded once more.
    torch.testing.assert_close(logits(merged, images), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(merged.fuse_batch_norms(), images), expected, rtol=1e-4, atol=1e-4)


def test_a_saved_adapter_answers_the_same_on_the_model_that_it_was_trained_on(model, images, tmp_path):
    model.save_pretrained(tmp_path / "base")
    base = RepLKNetForImageClassification.from_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, target_modules=POINTWISE, modules_to_save=TRAINED_WHOLE)
    adapted = trained(get_peft_model(base, config), images)
    adapted.save_pretrained(tmp_path / "adapter")
    base = RepLKNetForImageClassification.from_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.equal(logits(again, images), logits(adapted, images))


def test_an_adapted_model_is_not_merged_before_its_adapter(model, images):
    adapted = trained(get_peft_model(model, LoraConfig(r=4, target_modules=["pointwise2.convolution"])), images)
    before, expected = copy.deepcopy(adapted.state_dict()), logits(adapted, images)
    found = (
        r"expected a layer to merge in replknet\.encoder\.stages\.0\.layers\.0\.large_kernel_block\.pointwise2\."
        r"convolution, found peft\..*Conv2d; if it is an adapter's, merge that first, with merge_and_unload\(\) of PEFT"
    )
    with pytest.raises(ValueError, match=found):
        adapted.fuse_batch_norms()
    assert not adapted.config.reparameterized
    assert all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items())
    # The large kernels have no adapter.
    torch.testing.assert_close(logits(adapted.reparameterize(), images), expected, rtol=1e-4, atol=1e-4)


def test_large_kernels_under_an_adapter_are_not_merged(model):
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["classifier"], modules_to_save=["normalization"]))
    with pytest.raises(ValueError, match=r"large_kernel\.large\.normalization, found peft\..*ModulesToSaveWrapper"):
        adapted.reparameterize()
    assert not adapted.config.reparameterized


def test_an_adapter_on_the_classifier_keeps_nothing_from_being_merged(model, images):
    adapted = trained(get_peft_model(model, LoraConfig(r=2, target_modules=["classifier"])), images)
    expected = logits(adapted, images)
    torch.testing.assert_close(logits(adapted.fuse_batch_norms(), images), expected, rtol=1e-4, atol=1e-4)


def test_large_kernels_are_trained_whole_beside_an_adapter_and_merged(model, images):
    before = {name: value.clone() for name, value in model.state_dict().items() if "large.convolution" in name}
    config = LoraConfig(r=4, target_modules=POINTWISE, modules_to_save=[*TRAINED_WHOLE, "large_kernel"])
    adapted = trained(get_peft_model(model, config), images)
    expected, merged = logits(adapted, images), adapted.merge_and_unload()
    assert len(before) == 2
    assert not any(torch.equal(value, merged.state_dict()[name]) for name, value in before.items())
    torch.testing.assert_close(logits(merged.fuse_batch_norms(), images), expected, rtol=1e-4, atol=1e-4)
