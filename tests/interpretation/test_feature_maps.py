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
from seedling_hf.interpretation.feature_maps import feature_map
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
