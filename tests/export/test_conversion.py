import argparse
import hashlib
import json

import pytest
import torch
from published_checkpoints import GOLDEN, saved, segmentation

from seedling_hf.commands import run
from seedling_hf.commands.convert_checkpoint import main
from seedling_hf.errors import InputError
from seedling_hf.export.checkpoint_files import read_checkpoint
from seedling_hf.export.checkpoint_layouts import official_names
from seedling_hf.export.conversion import convert_checkpoint, imagenet_class_names, infer_config, variant_name
from seedling_hf.replknet import (
    RepLKNetConfig,
    RepLKNetForImageClassification,
    RepLKNetImageProcessor,
    RepLKNetModel,
)

GOLDEN_NAMES = ["small_kernel_5", "no_small_kernel", "three_stages"]


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return read_checkpoint(GOLDEN / "three_stages.pth").state_dict


def official_shapes(config: RepLKNetConfig) -> dict[str, torch.Tensor]:
    """Weights without memory by the authors' names."""
    with torch.device("meta"):
        weights = RepLKNetForImageClassification(config).state_dict()
    return {theirs: weights[ours] for theirs, ours in official_names(config).items()}


# What is inferred


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_the_configuration_is_inferred_from_the_shapes(name):
    built_with = json.loads((GOLDEN / f"{name}.json").read_text())
    config = infer_config(read_checkpoint(GOLDEN / f"{name}.pth").state_dict)
    assert config.kernel_sizes == built_with["large_kernel_sizes"]
    assert config.depths == built_with["layers"]
    assert config.hidden_sizes == built_with["channels"]
    assert config.small_kernel_size == built_with["small_kernel"]
    assert config.dw_ratio == built_with["dw_ratio"]
    assert config.num_labels == built_with["num_classes"]
    assert not config.reparameterized and not config.norm_intermediate_features


@pytest.mark.parametrize("variant", ["31B", "31L", "XL", "nano", "tiny"])
@pytest.mark.parametrize("reparameterized", [False, True])
def test_a_named_variant_is_recognized(variant, reparameterized):
    config = RepLKNetConfig.from_variant(variant, num_labels=1000, reparameterized=reparameterized)
    inferred = infer_config(official_shapes(config))
    assert variant_name(inferred) == variant
    assert inferred.reparameterized == reparameterized
    assert inferred.num_labels == 1000


def test_other_shapes_than_a_variants_have_no_name(weights):
    assert variant_name(infer_config(weights)) is None


# Forms of the file


def test_weights_without_a_head_become_the_bare_model(weights, tmp_path):
    headless = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    convert_checkpoint(saved(headless, tmp_path), tmp_path / "model")
    model, report = RepLKNetModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert model.config.architectures == ["RepLKNetModel"]
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(model.normalization.running_mean, weights["norm.running_mean"])


# What is written


def test_the_sha_256_of_the_file_is_in_the_configuration(tmp_path):
    path = GOLDEN / "three_stages.pth"
    convert_checkpoint(path, tmp_path / "model")
    sha256 = json.loads((tmp_path / "model" / "config.json").read_text())["source_sha256"]
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_drop_path_rate_is_that_of_the_authors_run(tmp_path):
    config = convert_checkpoint(GOLDEN / "small_kernel_5.pth", tmp_path / "model").model.config
    assert config.drop_path_rate == 0.3 == read_checkpoint(GOLDEN / "small_kernel_5.pth").arguments["drop_path"]


def test_the_processor_has_the_size_of_the_authors_run(weights, tmp_path):
    path = saved({"model": weights, "args": argparse.Namespace(input_size=384)}, tmp_path)
    convert_checkpoint(path, tmp_path / "model")
    assert RepLKNetImageProcessor.from_pretrained(tmp_path / "model").size.height == 384


def test_a_given_image_size_overrides_that_of_the_run(weights, tmp_path):
    path = saved({"model": weights, "args": argparse.Namespace(input_size=384)}, tmp_path)
    convert_checkpoint(path, tmp_path / "model", image_size=64)
    assert RepLKNetImageProcessor.from_pretrained(tmp_path / "model").crop_size.height == 64


def test_another_number_of_classes_gives_a_new_head_on_the_same_body(weights, tmp_path):
    convert_checkpoint(GOLDEN / "three_stages.pth", tmp_path / "model", num_labels=12)
    model, report = RepLKNetForImageClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert model.classifier.weight.shape == (12, 20)
    assert model.classifier.weight.abs().max() <= 20**-0.5
    assert model.config.id2label[11] == "LABEL_11"
    assert torch.equal(model.replknet.normalization.weight, weights["norm.weight"])


def test_the_folder_holds_the_code_and_the_processor(tmp_path):
    convert_checkpoint(GOLDEN / "three_stages.pth", tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} >= {
        "config.json",
        "configuration_replknet.py",
        "downsampling_conv.py",
        "image_processing_replknet.py",
        "large_kernel_conv.py",
        "large_kernel_triton.py",
        "model.safetensors",
        "modeling_replknet.py",
        "pointwise_conv.py",
        "preprocessor_config.json",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_empty_output_folder_is_used(tmp_path):
    (tmp_path / "model").mkdir()
    convert_checkpoint(GOLDEN / "three_stages.pth", tmp_path / "model")
    assert (tmp_path / "model" / "config.json").exists()


def test_an_output_folder_in_use_is_refused_and_unchanged(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="expected output_dir to be new or empty"):
        convert_checkpoint(GOLDEN / "three_stages.pth", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def fail(self, folder):
        raise OSError("disk full")

    monkeypatch.setattr(RepLKNetImageProcessor, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        convert_checkpoint(GOLDEN / "three_stages.pth", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_classes_of_an_imagenet_are_named():
    names = imagenet_class_names(1000)
    assert len(set(names)) == 1000
    assert names[0] == "tench, Tinca tinca"
    # The bird and the machine, in the published order of the 1,000 classes.
    assert (names[134], names[517]) == ("crane (n02012849)", "crane (n03126707)")


def test_the_classes_of_imagenet_22k_are_named():
    names = imagenet_class_names(21_841)
    assert len(set(names)) == 21_841
    assert names[3674] == "African elephant, Loxodonta africana"  # n02504458, as in the authors' issue 3


def test_a_head_of_1000_classes_gets_their_names(tmp_path):
    conversion = convert_checkpoint(GOLDEN / "three_stages.pth", tmp_path / "model")
    assert conversion.class_names == "ImageNet-1K"
    config = RepLKNetConfig.from_pretrained(tmp_path / "model")
    assert config.id2label[999] == "toilet tissue, toilet paper, bathroom tissue"
    assert config.label2id == {name: number for number, name in config.id2label.items()}


def test_a_new_head_and_other_classes_get_no_names(tmp_path):
    new_head = convert_checkpoint(GOLDEN / "three_stages.pth", tmp_path / "new", num_labels=1000)
    assert new_head.class_names is None and new_head.model.config.id2label[999] == "LABEL_999"
    other = convert_checkpoint(GOLDEN / "small_kernel_5.pth", tmp_path / "other")
    assert other.class_names is None and other.model.config.id2label[11] == "LABEL_11"


# What is refused


def test_every_missing_and_every_unexpected_key_is_listed(weights, tmp_path):
    removed = ["stem.2.bn.bias", "stages.1.blocks.2.pw1.conv.weight", "norm.running_var"]
    content = {name: tensor for name, tensor in weights.items() if name not in removed}
    content |= {"decode_head.weight": torch.zeros(3), "stages.0.blocks.0.pw1.conv.bias": torch.zeros(8)}
    with pytest.raises(InputError) as error:
        convert_checkpoint(saved(content, tmp_path), tmp_path / "model")
    missing, unexpected = str(error.value).split("; unexpected: ")
    assert missing.split("missing: ")[1].split(", ") == removed
    assert unexpected.split("; ")[0].split(", ") == ["decode_head.weight", "stages.0.blocks.0.pw1.conv.bias"]
    assert not (tmp_path / "model").exists()


def test_a_weight_of_another_shape_is_listed(weights, tmp_path):
    content = weights | {"stages.1.blocks.3.pw2.bn.weight": torch.zeros(13)}
    with pytest.raises(InputError, match=r"stages\.1\.blocks\.3\.pw2\.bn\.weight \(expected \(12,\), found \(13,\)\)"):
        convert_checkpoint(saved(content, tmp_path), tmp_path / "model")


def test_a_head_without_dimensions_is_listed(weights, tmp_path):
    with pytest.raises(InputError, match=r"head\.weight \(expected \(2, 20\), found \(\)\)"):
        convert_checkpoint(saved(weights | {"head.weight": torch.tensor(0.0)}, tmp_path), tmp_path / "model")


def test_a_backbone_for_dense_prediction_is_not_made_a_classifier(weights, tmp_path):
    with pytest.raises(InputError, match=r"found a network for dense prediction .*; leave out num_labels to get its"):
        convert_checkpoint(saved(segmentation(weights), tmp_path), tmp_path / "model", num_labels=12)


def test_half_a_head_is_refused(weights, tmp_path):
    content = {name: tensor for name, tensor in weights.items() if name != "head.bias"}
    with pytest.raises(InputError, match=r"missing: head\.bias"):
        convert_checkpoint(saved(content, tmp_path), tmp_path / "model")


def test_an_even_kernel_is_refused_by_name(weights, tmp_path):
    name = "stages.0.blocks.0.large_kernel.lkb_origin.conv.weight"
    with pytest.raises(InputError, match="kernel_sizes to be odd, found 20"):
        convert_checkpoint(saved(weights | {name: torch.zeros(8, 1, 20, 20)}, tmp_path), tmp_path / "model")


def test_weights_of_another_network_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected the weights of a RepLKNet .* found fc\.weight, fc\.bias"):
        convert_checkpoint(saved({"fc.weight": torch.zeros(3, 3), "fc.bias": torch.zeros(3)}, tmp_path), tmp_path / "m")


# The command


def test_the_command_writes_a_folder_and_reports_the_model(tmp_path, capsys):
    argv = ["--checkpoint_path", str(GOLDEN / "three_stages.pth"), "--output_dir", str(tmp_path / "model")]
    assert run(main, [*argv, "--num_labels", "12"]) == 0
    output = capsys.readouterr().out
    assert "RepLKNetForImageClassification, variant unnamed, 0.0 M parameters, 12 classes" in output
    assert hashlib.sha256((GOLDEN / "three_stages.pth").read_bytes()).hexdigest() in output


def test_the_command_says_what_it_left_out_and_how_to_load_a_backbone(weights, tmp_path, capsys):
    path, folder = saved(segmentation(weights), tmp_path), tmp_path / "model"
    assert run(main, ["--checkpoint_path", str(path), "--output_dir", str(folder)]) == 0
    output = capsys.readouterr().out
    assert "RepLKNetBackbone, variant unnamed, 0.0 M parameters, no head\n" in output
    assert "Left out: decode_head (3 weights), auxiliary_head (1 weight)\n" in output
    assert f'Written to {folder}; load it with RepLKNetBackbone.from_pretrained("{folder}")\n' in output


def test_the_command_says_whose_names_the_classes_have(tmp_path, capsys):
    argv = ["--checkpoint_path", str(GOLDEN / "three_stages.pth"), "--output_dir", str(tmp_path / "model")]
    assert run(main, argv) == 0
    assert "Names of the classes: those of ImageNet-1K, which has as many\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint_path", "nowhere.pth"], "expected a checkpoint at nowhere.pth, found none"),
        (["--checkpoint_path", str(GOLDEN / "README.md")], "README.md"),
        (["--checkpoint_path", str(GOLDEN / "three_stages.pth"), "--num_labels", "0"], "--num_labels"),
        (["--checkpoint_path", str(GOLDEN / "three_stages.pth"), "--image_size", "-1"], "--image_size at least"),
    ],
)
def test_the_command_refuses_bad_input_in_one_line_and_writes_nothing(flags, message, tmp_path, capsys):
    assert run(main, [*flags, "--output_dir", str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_name_alone_does_not_build_a_large_model(weights, tmp_path):
    name = "stages.0.blocks.2000000.pw1.conv.weight"
    with pytest.raises(InputError, match="depths of at most 1,000 layers together"):
        convert_checkpoint(saved({**weights, name: torch.zeros(8, 8, 1, 1)}, tmp_path), tmp_path / "model")
