import argparse
import hashlib
import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch

from seedling_hf.commands import run
from seedling_hf.commands.convert_checkpoint import main
from seedling_hf.errors import InputError
from seedling_hf.export.conversion import (
    convert_checkpoint,
    infer_config,
    load_model,
    official_names,
    read_checkpoint,
    variant_name,
)
from seedling_hf.replknet import (
    RepLKNetBackbone,
    RepLKNetConfig,
    RepLKNetForImageClassification,
    RepLKNetImageProcessor,
    RepLKNetModel,
)

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_NAMES = ["small_kernel_5", "no_small_kernel", "three_stages"]


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return read_checkpoint(GOLDEN / "three_stages.pth").state_dict


@pytest.fixture(scope="module")
def expected() -> dict:
    return torch.load(GOLDEN / "three_stages.expected.pt", weights_only=True)


def saved(content, tmp_path: Path, **kwargs) -> Path:
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path, **kwargs)
    return path


def official_weights(config: RepLKNetConfig, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Random weights by the authors' names."""
    with torch.device("meta"):
        shapes = RepLKNetForImageClassification(config).state_dict()
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for theirs, ours in official_names(config).items():
        if device == "meta":
            weights[theirs] = shapes[ours]
        elif theirs.endswith("num_batches_tracked"):
            weights[theirs] = torch.tensor(7)
        else:
            weights[theirs] = torch.rand(shapes[ours].shape, generator=generator)
    return weights


@torch.no_grad()
def logits_of(folder: Path, expected: dict) -> torch.Tensor:
    model, report = RepLKNetForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return model(expected["pixel_values"]).logits


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    # 1e-5: float32 sums in another order than the authors'.
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 1e-5


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


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_the_authors_names_are_known_completely(name):
    state_dict = read_checkpoint(GOLDEN / f"{name}.pth").state_dict
    config = infer_config(state_dict)
    names = official_names(config)
    assert names.keys() == state_dict.keys()
    assert set(names.values()) == set(RepLKNetForImageClassification(config).state_dict())


@pytest.mark.parametrize("variant", ["31B", "31L", "XL", "nano", "tiny"])
@pytest.mark.parametrize("reparameterized", [False, True])
def test_a_named_variant_is_recognized(variant, reparameterized):
    config = RepLKNetConfig.from_variant(variant, num_labels=1000, reparameterized=reparameterized)
    inferred = infer_config(official_weights(config, device="meta"))
    assert variant_name(inferred) == variant
    assert inferred.reparameterized == reparameterized
    assert inferred.num_labels == 1000


def test_other_shapes_than_a_variants_have_no_name(weights):
    assert variant_name(infer_config(weights)) is None


# Forms of the file


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda w: w, id="bare"),
        pytest.param(lambda w: {"model": w}, id="model"),
        pytest.param(lambda w: {"model_ema": w, "epoch": 3}, id="ema only"),
        pytest.param(lambda w: {"state_dict": w, "meta": {}}, id="state_dict"),
        pytest.param(lambda w: {"model": {f"module.{k}": v for k, v in w.items()}}, id="module."),
        pytest.param(lambda w: {"model_ema": {f"module.module.{k}": v for k, v in w.items()}}, id="module.module."),
    ],
)
def test_every_form_of_the_authors_files_gives_their_logits(wrap, weights, expected, tmp_path):
    convert_checkpoint(saved(wrap(weights), tmp_path), tmp_path / "model")
    assert_close(logits_of(tmp_path / "model", expected), expected["logits"])


@pytest.mark.parametrize("zipped", [True, False])
def test_old_and_new_files_of_torch_are_read(zipped, weights, expected, tmp_path):
    path = saved({"model": weights}, tmp_path, _use_new_zipfile_serialization=zipped)
    convert_checkpoint(path, tmp_path / "model")
    assert_close(logits_of(tmp_path / "model", expected), expected["logits"])


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_a_merged_file_gives_the_merged_logits(name, tmp_path):
    expected = torch.load(GOLDEN / f"{name}.expected.pt", weights_only=True)
    merged = load_model(read_checkpoint(GOLDEN / f"{name}.pth")).reparameterize()
    tensors = merged.state_dict()
    content = {theirs: tensors[ours] for theirs, ours in official_names(merged.config).items()}
    model = convert_checkpoint(saved(content, tmp_path), tmp_path / "model")
    assert model.config.reparameterized
    assert_close(logits_of(tmp_path / "model", expected), expected["logits_merged"])


def test_the_ema_weights_are_read_on_request(weights, tmp_path):
    ema = {name: tensor + 1 for name, tensor in weights.items()}
    path = saved({"model": weights, "model_ema": ema}, tmp_path)
    assert torch.equal(read_checkpoint(path).state_dict["head.bias"], weights["head.bias"])
    assert torch.equal(read_checkpoint(path, "model_ema").state_dict["head.bias"], ema["head.bias"])


def test_a_missing_part_is_refused(weights, tmp_path):
    with pytest.raises(InputError, match=r"expected model_ema in .*, found model"):
        read_checkpoint(saved({"model": weights}, tmp_path), "model_ema")


def test_weights_without_a_head_become_the_bare_model(weights, tmp_path):
    headless = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    convert_checkpoint(saved(headless, tmp_path), tmp_path / "model")
    model, report = RepLKNetModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert model.config.architectures == ["RepLKNetModel"]
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(model.normalization.running_mean, weights["norm.running_mean"])


def test_weights_with_stage_norms_become_a_backbone(weights, tmp_path):
    features = {f"backbone.{n}": t for n, t in weights.items() if not n.startswith(("head.", "norm."))}
    for stage, channels in enumerate([8, 12, 20]):
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            features[f"backbone.stages.{stage}.norm.{tensor}"] = torch.rand(channels)
        features[f"backbone.stages.{stage}.norm.num_batches_tracked"] = torch.tensor(1)
    convert_checkpoint(saved({"state_dict": features}, tmp_path), tmp_path / "model")
    backbone, report = RepLKNetBackbone.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert backbone.out_features == ["stage1", "stage2", "stage3"]
    assert torch.equal(backbone.hidden_states_norms["stage2"].bias, features["backbone.stages.1.norm.bias"])


# What is written


def test_the_sha_256_of_the_file_is_in_the_configuration(tmp_path):
    path = GOLDEN / "three_stages.pth"
    convert_checkpoint(path, tmp_path / "model")
    sha256 = json.loads((tmp_path / "model" / "config.json").read_text())["source_sha256"]
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_drop_path_rate_is_that_of_the_authors_run(tmp_path):
    config = convert_checkpoint(GOLDEN / "small_kernel_5.pth", tmp_path / "model").config
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


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"model": {}}, [torch.zeros(3)], {"model": {"a": 1}}])
def test_a_file_without_a_state_dict_is_refused(content, tmp_path):
    with pytest.raises(InputError, match="expected a state dict"):
        read_checkpoint(saved(content, tmp_path))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off", b"\x80\x02}q\x00."])
def test_a_file_that_is_not_a_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match="expected"):
        read_checkpoint(path)


def test_garbage_in_a_checkpoint_is_refused_or_read_as_numbers(tmp_path):
    whole = (GOLDEN / "three_stages.pth").read_bytes()
    generator = random.Random(0)
    path = tmp_path / "checkpoint.pth"
    refused = 0
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(10):  # the directory of the archive and its pickle are at both ends
            where = generator.choice([generator.randrange(30_000), len(whole) - 1 - generator.randrange(30_000)])
            content[where] = generator.randrange(256)
        path.write_bytes(content)
        try:
            read_checkpoint(path)
        except InputError:
            refused += 1
    assert refused > 50


def test_a_truncated_checkpoint_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes((GOLDEN / "three_stages.pth").read_bytes()[:100_000])
    with pytest.raises(InputError, match="expected"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["nowhere.pth", "."])
def test_a_path_that_is_not_a_file_is_refused(name, tmp_path):
    with pytest.raises(InputError, match="expected a checkpoint at"):
        read_checkpoint(tmp_path / name)


class Malicious:
    """Makes a folder when it is unpickled without care."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["model", "args", "inside args"])
def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(place, zipped, weights, tmp_path):
    trap = Malicious(tmp_path / "trap")
    content = {
        "model": {"model": trap},
        "args": {"model": weights, "args": trap},
        "inside args": {"model": weights, "args": argparse.Namespace(drop_path=trap)},
    }[place]
    path = saved(content, tmp_path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"found the object \w+\.mkdir; nothing was executed"):
        convert_checkpoint(path, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_a_bare_malicious_pickle_is_refused_and_nothing_of_it_runs(tmp_path):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "trap"), protocol=2))
    with pytest.raises(InputError, match="nothing was executed"):
        read_checkpoint(path)
    assert not (tmp_path / "trap").exists()


# The command


def test_the_command_writes_a_folder_and_reports_the_model(tmp_path, capsys):
    argv = ["--checkpoint_path", str(GOLDEN / "three_stages.pth"), "--output_dir", str(tmp_path / "model")]
    assert run(main, [*argv, "--num_labels", "12"]) == 0
    output = capsys.readouterr().out
    assert "RepLKNetForImageClassification, variant unnamed, 0.0 M parameters, 12 classes" in output
    assert hashlib.sha256((GOLDEN / "three_stages.pth").read_bytes()).hexdigest() in output


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


def test_a_full_size_31b_file_is_converted_weight_by_weight(tmp_path):
    config = RepLKNetConfig.from_variant("31B", num_labels=1000)
    content = official_weights(config)
    assert sum(t.numel() for n, t in content.items() if "running" not in n and "tracked" not in n) == 79_864_168
    path = saved({"model": content, "args": argparse.Namespace(model="RepLKNet31B", drop_path=0.5)}, tmp_path)
    converted = convert_checkpoint(path, tmp_path / "model")
    assert variant_name(converted.config) == "31B"
    model, report = RepLKNetForImageClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tensors = model.state_dict()
    names = official_names(config)
    assert len(names) == len(tensors)
    assert [theirs for theirs, ours in names.items() if not torch.equal(tensors[ours], content[theirs])] == []


# Files that are meant to do harm, or came in place of another


def test_a_name_alone_does_not_build_a_large_model(weights, tmp_path):
    name = "stages.0.blocks.2000000.pw1.conv.weight"
    with pytest.raises(InputError, match="depths of at most 1,000 layers together"):
        convert_checkpoint(saved({**weights, name: torch.zeros(8, 8, 1, 1)}, tmp_path), tmp_path / "model")


def test_weights_without_content_are_refused(weights, tmp_path):
    large = {k: v[:1].expand(50_000, *v.shape[1:]) if v.ndim == 4 else v for k, v in weights.items()}
    with pytest.raises(InputError, match=r"expected the content of all weights in .* bytes for weights of"):
        read_checkpoint(saved(large, tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: dict(enumerate(w.values())), "expected a state dict in"),
        (lambda w: {name: tensor.int() for name, tensor in w.items()}, r"found \S+ in torch.int32"),
        (lambda w: {**w, "norm.weight": w["norm.weight"] * float("nan")}, "found NaN in norm.weight"),
    ],
)
def test_what_is_no_weights_is_refused(weights, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read_checkpoint(saved(change(weights), tmp_path))


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    (tmp_path / "weights.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match=r"weights\.pth, found a pointer of Git LFS in its place; run git lfs pull"):
        read_checkpoint(tmp_path / "weights.pth")
