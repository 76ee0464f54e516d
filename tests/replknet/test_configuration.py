import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from seedling_hf.replknet import RepLKNetConfig, RepLKNetModel


def test_the_defaults_are_those_of_31b():
    config = RepLKNetConfig()
    assert config.kernel_sizes == [31, 29, 27, 13]
    assert config.depths == [2, 2, 18, 2]
    assert config.hidden_sizes == [128, 256, 512, 1024]
    assert (config.small_kernel_size, config.dw_ratio, config.ffn_ratio) == (5, 1, 4)
    assert config.to_dict() == RepLKNetConfig.from_variant("31B").to_dict()


def test_xl_has_no_small_kernels_and_wide_blocks():
    config = RepLKNetConfig.from_variant("XL")
    assert config.kernel_sizes == [27, 27, 27, 13]
    assert config.hidden_sizes == [256, 512, 1024, 2048]
    assert config.small_kernel_size is None
    assert config.dw_ratio == 1.5


def test_31l_is_a_wider_31b():
    assert (
        RepLKNetConfig.from_variant("31L", hidden_sizes=[128, 256, 512, 1024]).to_dict() == RepLKNetConfig().to_dict()
    )
    assert RepLKNetConfig.from_variant("31L").hidden_sizes == [192, 384, 768, 1536]


def test_the_arguments_of_from_variant_override_the_variant():
    assert RepLKNetConfig.from_variant("XL", small_kernel_size=3, num_labels=12).small_kernel_size == 3
    assert RepLKNetConfig.from_variant("XL", small_kernel_size=3, num_labels=12).num_labels == 12


def test_one_kernel_size_holds_for_all_stages_and_the_small_kernels_are_no_larger():
    config = RepLKNetConfig.from_variant("nano", kernel_sizes=[3])
    assert (config.kernel_sizes, config.small_kernel_size) == ([3, 3, 3, 3], 3)
    config = RepLKNetConfig.from_variant("nano", kernel_sizes=[13, 7], depths=[1, 1], hidden_sizes=[8, 16])
    assert (config.kernel_sizes, config.small_kernel_size) == ([13, 7], 5)


def test_an_unknown_variant_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"31B, 31L, XL, nano, tiny, found 'base'"):
        RepLKNetConfig.from_variant("base")


def test_from_variant_refuses_a_field_that_does_not_exist():
    with pytest.raises(ValueError, match="found drop_path, kernel_size; check their names"):
        RepLKNetConfig.from_variant("nano", drop_path=0.1, kernel_size=31, num_labels=12, out_indices=[1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kernel_sizes": [31, 28, 27, 13]}, r"kernel_sizes to be odd, found 28"),
        ({"kernel_sizes": [31, 29, 27]}, r"kernel_sizes to have 4 entries like depths, found \[31, 29, 27\]"),
        ({"hidden_sizes": [64] * 5}, r"hidden_sizes to have 4 entries"),
        ({"depths": []}, r"depths to be positive numbers, one for each stage, found \[\]"),
        ({"depths": [2, 0, 18, 2]}, r"depths to be positive numbers, one for each stage, found \[2, 0, 18, 2\]"),
        ({"small_kernel_size": 15}, r"small_kernel_size to be at most the smallest of kernel_sizes, 13, found 15"),
        ({"small_kernel_size": 4}, r"small_kernel_size to be odd and positive, or None, found 4"),
        ({"small_kernel_size": 0}, r"small_kernel_size to be odd and positive, or None, found 0"),
        ({"num_channels": 0}, r"num_channels to be positive, found 0"),
        ({"dw_ratio": 0}, r"dw_ratio to leave at least one channel, found 0"),
        ({"ffn_ratio": -1}, r"ffn_ratio to leave at least one channel, found -1"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate to be at least 0 and below 1, found 1.0"),
        ({"fused": True}, r"reparameterized=True where fused=True, found False"),
        ({"conv_implementation": "magic"}, r"conv_implementation to be None or one of plain, .*found 'magic'"),
        ({"depths": [10**9, 1, 1, 1]}, r"depths of at most 1,000 layers together, found 1,000,000,003"),
        ({"kernel_sizes": [10**6 + 1] * 4}, r"kernel_sizes of at most 1,023, found"),
        ({"hidden_sizes": [10**9] * 4}, r"hidden_sizes of at most 65,536, found"),
        ({"num_channels": 10**9}, r"num_channels of at most 1,024, found"),
        ({"dw_ratio": float("inf")}, r"dw_ratio of at most 64, found inf"),
        ({"ffn_ratio": float("nan")}, r"ffn_ratio to leave at least one channel, found nan"),
        ({"ffn_ratio": 10**400}, r"ffn_ratio of at most 64, found 1000"),
        ({"drop_path_rate": float("nan")}, r"drop_path_rate to be at least 0 and below 1, found nan"),
        ({"num_labels": 10**9}, r"num_labels to be a number from 0 to 100,000, found 1000000000"),
        ({"num_labels": "3"}, r"num_labels to be a number from 0 to 100,000, found '3'"),
        ({"num_labels": True}, r"num_labels to be a number"),
        ({"id2label": ["a", "b"]}, r"id2label to be a dictionary of at most 100,000 names, found list"),
        ({"id2label": {0: "a", 2: "c"}}, r"id2label to name the classes 0 to 1, found 0, 2"),
        ({"id2label": {"0": "a", "00": "b"}}, r"id2label to name the classes 0 to 1, found 0, 00"),
        ({"id2label": {0: "a", 1: None}}, r"id2label to give class 1 a string as its name, found None"),
        ({"out_indices": [-99]}, r"out_indices of at least -5, found \[-99\]"),
        ({"format_version": 2}, r"format_version 1 to 1, found 2: a later version wrote this model"),
    ],
)
def test_a_wrong_value_is_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        RepLKNetConfig(**values)


def test_a_value_of_the_wrong_type_is_refused_by_name():
    with pytest.raises(StrictDataclassError, match="small_kernel_size"):
        RepLKNetConfig(small_kernel_size="five")


def test_a_small_kernel_as_wide_as_the_large_one_is_allowed_like_in_the_authors_code():
    assert RepLKNetConfig(small_kernel_size=13).small_kernel_size == 13


def test_a_wrong_value_set_later_is_refused_when_a_model_is_built():
    config = RepLKNetConfig.from_variant("tiny")
    config.kernel_sizes = [15, 13]
    with pytest.raises(ValueError, match="kernel_sizes to have 4 entries"):
        RepLKNetModel(config)


def test_a_configuration_survives_its_json(tmp_path):
    config = RepLKNetConfig.from_variant(
        "XL",
        out_features=["stage2", "stage4"],
        id2label={0: "Maize", 1: "Cleavers"},
        label2id={"Maize": 0, "Cleavers": 1},
    )
    config.save_pretrained(tmp_path)
    assert RepLKNetConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_the_saved_json_states_every_field(tmp_path):
    RepLKNetConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    fields = {name for name in RepLKNetConfig.__annotations__ if not name.startswith("_")}
    assert {"out_features", "out_indices", *fields} <= saved.keys()


def test_auto_config_knows_the_model_type():
    assert type(AutoConfig.for_model("replknet")) is RepLKNetConfig


def test_stages_are_named_and_counted_from_the_depths():
    config = RepLKNetConfig(kernel_sizes=[7, 5], depths=[1, 3], hidden_sizes=[8, 8])
    assert config.stage_names == ["stem", "stage1", "stage2"]
    assert config.num_stages == config.num_hidden_layers == 2


def test_out_features_and_out_indices_agree():
    config = RepLKNetConfig(out_indices=[1, 3])
    assert config.out_features == ["stage1", "stage3"]
    config.out_features = ["stem", "stage4"]
    assert config.out_indices == [0, 4]


def test_an_unknown_out_feature_is_refused():
    with pytest.raises(ValueError, match="out_features"):
        RepLKNetConfig(out_features=["stage5"])
