import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from published_checkpoints import (
    CLASSIFIERS,
    DENSE,
    GOLDEN,
    authors_weights,
    head_22k,
    mmpretrain,
    random_model,
    saved,
    segmentation,
)
from without_package import WITHOUT_PACKAGE

from seedling_hf.errors import InputError
from seedling_hf.export.checkpoint_files import read_checkpoint
from seedling_hf.export.checkpoint_layouts import authors_layout, official_names
from seedling_hf.export.conversion import convert_checkpoint, infer_config, load_model, variant_name
from seedling_hf.replknet import RepLKNetBackbone, RepLKNetForImageClassification, RepLKNetModel

GOLDEN_NAMES = ["small_kernel_5", "no_small_kernel", "three_stages"]
PROGRAM = (
    WITHOUT_PACKAGE
    + """
import json, sys
import torch
from transformers.dynamic_module_utils import get_class_from_dynamic_module

folder, images, features = sys.argv[1:]
# AutoBackbone.from_pretrained of transformers 5 takes repositories of the Hub only, but looks up the class like this.
kind = get_class_from_dynamic_module(json.load(open(folder + "/config.json"))["auto_map"]["AutoBackbone"], folder)
backbone, report = kind.from_pretrained(folder, output_loading_info=True)
with torch.no_grad():
    torch.save(list(backbone.eval()(torch.load(images)).feature_maps), features)
print(json.dumps([type(backbone).__module__, sorted(report["missing_keys"]), sorted(report["unexpected_keys"])]))
"""
)


def golden(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """The weights of a network of the authors' code, and what it computed."""
    expected = torch.load(GOLDEN / f"{name}.expected.pt", weights_only=True)
    return read_checkpoint(GOLDEN / f"{name}.pth").state_dict, expected


@torch.no_grad()
def outputs_of(kind: type, folder: Path, pixel_values: torch.Tensor):
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return model.eval()(pixel_values)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    # 1e-5: float32 sums in another order than the authors'.
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 1e-5


# Classifiers


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_the_authors_names_are_known_completely(name):
    state_dict, _ = golden(name)
    config = infer_config(state_dict)
    names = official_names(config)
    assert names.keys() == state_dict.keys()
    assert set(names.values()) == set(RepLKNetForImageClassification(config).state_dict())


@pytest.mark.parametrize("layout", CLASSIFIERS)
@pytest.mark.parametrize("name", ["small_kernel_5", "three_stages"])
def test_every_layout_of_a_classifier_gives_the_authors_logits(name, layout, tmp_path):
    weights, expected = golden(name)
    conversion = convert_checkpoint(saved(CLASSIFIERS[layout](weights), tmp_path), tmp_path / "model")
    logits = outputs_of(RepLKNetForImageClassification, tmp_path / "model", expected["pixel_values"]).logits
    assert_close(logits, expected["logits"])
    assert conversion.left_out == []


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_a_merged_file_gives_the_merged_logits(name, tmp_path):
    _, expected = golden(name)
    merged = load_model(read_checkpoint(GOLDEN / f"{name}.pth")).reparameterize()
    content = saved(mmpretrain(authors_weights(merged)), tmp_path)
    assert convert_checkpoint(content, tmp_path / "model").model.config.reparameterized
    logits = outputs_of(RepLKNetForImageClassification, tmp_path / "model", expected["pixel_values"]).logits
    assert_close(logits, expected["logits_merged"])


def test_a_headless_classifier_of_mmpretrain_becomes_the_bare_model(tmp_path):
    weights, expected = golden("small_kernel_5")
    content = {n: t for n, t in mmpretrain(weights)["state_dict"].items() if not n.startswith("head.")}
    convert_checkpoint(saved(content, tmp_path), tmp_path / "model")
    pooled = outputs_of(RepLKNetModel, tmp_path / "model", expected["pixel_values"]).pooler_output
    assert_close(pooled @ weights["head.weight"].T + weights["head.bias"], expected["logits"])


def test_a_new_head_can_take_the_place_of_that_of_22k_classes(tmp_path):
    weights, _ = golden("small_kernel_5")
    model = convert_checkpoint(saved(head_22k(weights), tmp_path), tmp_path / "model", num_labels=3).model
    assert model.classifier.weight.shape[0] == 3
    assert torch.equal(model.replknet.normalization.bias, weights["norm.bias"])


# Backbones of segmentation and detection


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_a_backbone_gives_the_authors_features_of_every_stage(name, layout, tmp_path):
    weights, expected = golden(name)
    content = DENSE[layout](weights)
    conversion = convert_checkpoint(saved(content, tmp_path), tmp_path / "model")
    maps = outputs_of(RepLKNetBackbone, tmp_path / "model", expected["pixel_values"]).feature_maps
    assert len(maps) == len(expected["stage_features"])
    for found, features in zip(maps, expected["stage_features"], strict=True):
        assert_close(found, features)
    assert conversion.left_out == [n for n in content["state_dict"] if not n.startswith("backbone.")]
    assert len(conversion.left_out) == 4


def test_the_norms_of_the_stages_are_applied(tmp_path):
    weights, expected = golden("three_stages")
    content = segmentation(weights)
    generator = torch.Generator().manual_seed(0)
    norms = []
    for stage, features in enumerate(expected["stage_features"]):
        norm = torch.nn.BatchNorm2d(features.shape[1]).eval()
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
        norms.append(norm)
        content["state_dict"] |= {f"backbone.stages.{stage}.norm.{n}": t for n, t in norm.state_dict().items()}
    convert_checkpoint(saved(content, tmp_path), tmp_path / "model")
    maps = outputs_of(RepLKNetBackbone, tmp_path / "model", expected["pixel_values"]).feature_maps
    for found, norm, features in zip(maps, norms, expected["stage_features"], strict=True):
        with torch.no_grad():
            assert_close(found, norm(features))


def test_a_converted_backbone_loads_without_the_package(tmp_path):
    weights, expected = golden("small_kernel_5")
    convert_checkpoint(saved(segmentation(weights), tmp_path), tmp_path / "model")
    torch.save(expected["pixel_values"], tmp_path / "images.pt")
    command = [sys.executable, "-c", PROGRAM, tmp_path / "model", tmp_path / "images.pt", tmp_path / "features.pt"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    module, missing, unexpected = json.loads(run.stdout)
    assert module.startswith("transformers_modules.") and not missing and not unexpected
    for found, features in zip(torch.load(tmp_path / "features.pt"), expected["stage_features"], strict=True):
        assert_close(found, features)


# Names that would take the place of others


@pytest.mark.parametrize("name", ["head.cls_22k.weight", "stages.2.norm.weight"])
def test_what_would_replace_another_weight_keeps_its_name_and_is_refused(name, tmp_path):
    weights, _ = golden("three_stages")
    content = weights | {name: torch.zeros_like(weights["norm.weight"])}
    with pytest.raises(InputError, match=rf"unexpected: {name}"):
        convert_checkpoint(saved(content, tmp_path), tmp_path / "model")


def test_a_second_head_is_left_out():
    one, two = torch.zeros(1), torch.ones(1)
    weights, left_out = authors_layout({"backbone.head.weight": one, "head.fc.weight": two})
    assert weights == {"head.weight": one} and left_out == ["head.fc.weight"]


def test_the_backbone_of_another_network_is_refused(tmp_path):
    content = {"backbone.layer1.0.conv1.weight": torch.zeros(8, 8, 3, 3), "decode_head.bias": torch.zeros(3)}
    with pytest.raises(InputError, match=r"expected the weights of a RepLKNet .* found layer1\.0\.conv1\.weight"):
        convert_checkpoint(saved(content, tmp_path), tmp_path / "model")


def test_a_backbone_that_lacks_a_weight_is_refused(tmp_path):
    content = segmentation(golden("three_stages")[0])
    del content["state_dict"]["backbone.transitions.0.0.bn.bias"]
    with pytest.raises(InputError, match=r"missing: transitions\.0\.0\.bn\.bias; convert"):
        convert_checkpoint(saved(content, tmp_path), tmp_path / "model")


# The full-size network


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return torch.cat([noise, 2 * noise + 1])


def converted(content: object, folder: Path, kind: type, images: torch.Tensor):
    """What the converted model computes; the files of half a gigabyte do not stay."""
    path = saved(content, folder)
    conversion = convert_checkpoint(path, folder / "model")
    path.unlink()
    outputs = outputs_of(kind, folder / "model", images)
    (folder / "model" / "model.safetensors").unlink()
    assert variant_name(conversion.model.config) == "31B"
    return conversion, outputs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "num_labels"),
    [
        ("bare", 1000), ("training checkpoint", 1000), ("state_dict", 1000), ("mmpretrain", 1000),
        ("bare", 21_841), ("head.cls_22k", 21_841),
    ],
)  # fmt: skip
@torch.no_grad()
def test_every_layout_of_a_full_size_classifier_gives_its_logits_to_the_bit(layout, num_labels, images, tmp_path):
    model = random_model("31B", num_labels=num_labels)
    expected = model(images).logits
    # Logits that hardly depend on the image could be equal without being right; float32 rounds them to 1e-8.
    assert expected.isfinite().all() and (expected[0] - expected[1]).abs().max() > 1e-4
    content = CLASSIFIERS[layout](authors_weights(model))
    conversion, outputs = converted(content, tmp_path, RepLKNetForImageClassification, images)
    assert sum(parameter.numel() for parameter in conversion.model.parameters()) == 78_839_168 + 1025 * num_labels
    assert torch.equal(outputs.logits, expected)
    assert conversion.class_names == {1000: "ImageNet-1K", 21_841: "ImageNet-22K"}[num_labels]


@pytest.mark.slow
@pytest.mark.parametrize("layout", DENSE)
@torch.no_grad()
def test_every_layout_of_a_full_size_backbone_gives_its_features_to_the_bit(layout, images, tmp_path):
    model = random_model("31B")
    expected = model.replknet(images, output_hidden_states=True).hidden_states[1:]
    _, outputs = converted(DENSE[layout](authors_weights(model)), tmp_path, RepLKNetBackbone, images)
    assert len(outputs.feature_maps) == 4
    for found, features in zip(outputs.feature_maps, expected, strict=True):
        assert torch.equal(found, features)
