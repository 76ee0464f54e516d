import pytest
import torch
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from seedling_hf.errors import InputError
from seedling_hf.interpretation.feature_maps import feature_map, map_layer
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification


def replknet():
    return RepLKNetForImageClassification(RepLKNetConfig.from_variant("tiny")).eval()


def resnet():
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1], layer_type="basic")
    ).eval()


def convnext():
    return ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1])).eval()


def timm_resnet():
    config = TimmWrapperConfig(architecture="resnet10t", num_labels=3)
    return TimmWrapperForImageClassification(config).eval()


@pytest.fixture
def pixel_values():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("build", "channels"), [(replknet, 64), (resnet, 16), (convnext, 16), (timm_resnet, 512)])
def test_a_convolutional_network_gives_its_last_map(build, channels, pixel_values):
    assert feature_map(build(), pixel_values).shape == (2, channels, 2, 3)


def test_the_map_is_that_of_the_body(pixel_values):
    model = replknet()
    assert torch.equal(feature_map(model, pixel_values), model.replknet(pixel_values).last_hidden_state)
    assert torch.equal(feature_map(model.replknet, pixel_values), model.replknet(pixel_values).last_hidden_state)


def test_a_network_of_tokens_is_refused_by_name(pixel_values):
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=64)
    with pytest.raises(InputError, match=r"found ViTModel with one of shape \(2, 17, 8\); use a convolutional network"):
        feature_map(ViTForImageClassification(config), torch.rand(2, 3, 64, 64))


def test_a_map_with_the_channels_last_is_refused():
    config = TimmWrapperConfig(
        architecture="swin_tiny_patch4_window7_224", num_labels=3,
        model_args={"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 1)},
    )  # fmt: skip
    with pytest.raises(InputError, match=r"found SwinTransformer with one of shape \(1, 28, 28, 32\)"):
        feature_map(TimmWrapperForImageClassification(config), torch.rand(1, 3, 224, 224))


@pytest.mark.parametrize("build", [replknet, resnet, convnext, timm_resnet])
def test_the_layer_gives_the_map_that_the_head_pools(build, pixel_values):
    model = build()
    outputs = []
    map_layer(model, pixel_values, -1).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(pixel_values)
    assert len(outputs) == 1
    expected = feature_map(model, pixel_values)
    if build is replknet:  # whose head pools the normalised map
        expected = model.replknet.normalization(expected)
    assert torch.equal(outputs[0], expected)


@pytest.mark.parametrize(("stage", "size"), [(-2, (4, 6)), (-3, (8, 12)), (-4, (16, 24))])
@pytest.mark.parametrize("build", [replknet, resnet, convnext])
def test_a_stage_before_is_twice_as_fine(build, stage, size, pixel_values):
    model, sizes = build(), []
    layer = map_layer(model, pixel_values, stage)
    layer.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[-2:])))
    model(pixel_values)
    assert sizes == [size]


def test_a_missing_stage_is_refused(pixel_values):
    with pytest.raises(InputError, match="expected a stage from -1 to -5, found -6"):
        map_layer(replknet(), pixel_values, -6)


def test_a_last_map_of_one_pixel_is_refused():
    with pytest.raises(InputError, match="use larger images"):
        map_layer(replknet(), torch.rand(1, 3, 32, 32), -1)


@pytest.mark.parametrize(("side", "size"), [(32, 4), (64, 4), (96, 6), (128, 4), (224, 7)])
def test_without_a_stage_the_last_map_that_is_large_enough_is_used(side, size):
    model, sizes = replknet(), []
    layer = map_layer(model, torch.rand(1, 3, side, side))
    layer.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[-2:])))
    model(torch.rand(1, 3, side, side))
    assert sizes == [(size, size)]


def test_no_hook_is_left_behind(pixel_values):
    model = resnet()
    map_layer(model, pixel_values)
    assert not any(module._forward_hooks for module in model.modules())
