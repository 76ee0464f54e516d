"""A classifier is found by folder or by name, and loaded with every trained weight."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from seedling_hf.errors import InputError
from seedling_hf.inference.classifier import Pretrained, is_on_hub, list_classes, load_classifier, parse_hub_name
from seedling_hf.inference.classifier_arguments import InferenceArguments
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification, RepLKNetImageProcessor


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    config = RepLKNetConfig.from_variant("tiny", id2label={0: "Charlock", 1: "Fat Hen", 2: "Maize"})
    RepLKNetForImageClassification(config).save_pretrained(folder)
    RepLKNetImageProcessor.from_variant("tiny", image_size=64).save_pretrained(folder)
    return folder


def test_a_merged_model_gives_the_logits_of_the_plain_one(model_dir):
    plain, image_processor = load_classifier(str(model_dir), merge=False)
    merged, _ = load_classifier(str(model_dir))
    pixel_values = image_processor(Image.linear_gradient("L").convert("RGB"), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        # 1e-4: float32 sums in another order through all layers.
        torch.testing.assert_close(merged(pixel_values).logits, plain(pixel_values).logits, rtol=1e-4, atol=1e-5)
    assert merged.config.reparameterized and not plain.config.reparameterized
    assert not merged.training and not plain.training


def test_a_model_saved_in_half_precision_is_used_in_float32(model_dir, tmp_path):
    load_classifier(str(model_dir), merge=False)[0].to(torch.bfloat16).save_pretrained(tmp_path)
    RepLKNetImageProcessor.from_pretrained(model_dir).save_pretrained(tmp_path)
    model, _ = load_classifier(str(tmp_path))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="nothing there"):
        load_classifier(str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("runs/quickstrat", r"did you mean runs/quickstart\? A .*written runs/quickstrat@main"),
        ("runs/zzz", "there; a repository"),
        ("quickstart", "is written user/repo"), ("runs/quickstrat/", "did you mean"), ("a/b/c", "nothing there"),
        ("./alice", "nothing there"),
    ],
)  # fmt: skip
def test_a_mistyped_folder_is_refused_without_asking_the_hub(name, hint, tmp_path, monkeypatch):
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the Hub was asked"))
    with pytest.raises(InputError, match=hint) as caught:
        InferenceArguments(model_name_or_path=name)
    assert str(caught.value).startswith(f"expected a model folder at {name}, found nothing there; ")
    with pytest.raises(InputError, match="nothing there"):
        load_classifier(name)
    assert not is_on_hub(name)


@pytest.mark.parametrize(("name", "revision"), [("runs/one@main", None), ("runs/one", "v1"), ("alice/seedlings", None)])
def test_a_repository_beside_a_folder_of_its_user_is_named_with_a_revision(name, revision, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert is_on_hub(name, revision)
    InferenceArguments(model_name_or_path=name, model_revision=revision)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json .* folder without one"):
        load_classifier(str(tmp_path))


def test_a_name_that_is_neither_folder_nor_repository_is_refused():
    with pytest.raises(InputError, match="expected an image classifier at nobody/nothing"):
        load_classifier("nobody/nothing")


def test_a_model_whose_head_was_never_trained_is_refused(model_dir, tmp_path):
    for file in model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(model_dir / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "classifier" not in k}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(InputError, match="found none that fit for 2, such as classifier"):
        load_classifier(str(tmp_path))


def test_truncated_weights_are_refused_with_the_folder_named(model_dir, tmp_path):
    for file in model_dir.iterdir():
        (tmp_path / file.name).write_bytes(
            file.read_bytes()[:1000] if file.suffix == ".safetensors" else file.read_bytes()
        )
    with pytest.raises(InputError, match=tmp_path.name):
        load_classifier(str(tmp_path))


def copied(model_dir: Path, folder: Path, **changes: bytes) -> Path:
    for file in model_dir.iterdir():
        (folder / file.name).write_bytes(changes.get(file.stem, file.read_bytes()))
    return folder


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS in its place; run git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"", "an empty file"),
    ],
)
@pytest.mark.parametrize("stem", ["config", "preprocessor_config", "model"])
def test_what_is_in_place_of_a_file_is_named(model_dir, tmp_path, stem, content, found):
    with pytest.raises(InputError, match=rf"expected .*{stem}\.\w+, found {found}"):
        load_classifier(str(copied(model_dir, tmp_path, **{stem: content})))


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("replknet.normalization.weight", float("nan"), "NaN in replknet.normalization.weight"),
        ("classifier.bias", float("inf"), "infinite values in classifier.bias"),
        ("replknet.normalization.running_var", -1.0, "a variance below 0 in replknet.normalization.running_var"),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(model_dir, tmp_path, name, value, found):
    weights = load_file(copied(model_dir, tmp_path) / "model.safetensors")
    weights[name][0] = value
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"expected finite weights in .*, found {found}; use an earlier checkpoint"):
        load_classifier(str(tmp_path))


def test_weights_of_another_shape_are_refused_before_a_model_of_it_is_built(model_dir, tmp_path, monkeypatch):
    config = json.loads((model_dir / "config.json").read_text()) | {"hidden_sizes": [16, 32, 48, 60_000]}
    copied(model_dir, tmp_path, config=json.dumps(config).encode())
    monkeypatch.setattr(AutoModelForImageClassification, "from_pretrained", None)
    with pytest.raises(InputError, match=r"found none that fit for \d+, such as .* \(expected \(60000,"):
        load_classifier(str(tmp_path))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_names_that_a_wrapper_has_changed_are_read(model_dir, tmp_path, prefix):
    weights = load_file(copied(model_dir, tmp_path) / "model.safetensors")
    save_file({f"{prefix}{k}": v for k, v in weights.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    model, _ = load_classifier(str(tmp_path), merge=False)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    model.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == weights.keys()


def test_an_image_processor_that_divides_by_zero_is_refused(model_dir, tmp_path):
    values = json.loads((model_dir / "preprocessor_config.json").read_text()) | {"image_std": [0.2, 0.0, 0.2]}
    copied(model_dir, tmp_path, preprocessor_config=json.dumps(values).encode())
    with pytest.raises(InputError, match=r"expected finite numbers above 0, .* for image_std in .*, found \[0.2, 0.0"):
        load_classifier(str(tmp_path))


def test_an_index_that_leads_outside_of_the_folder_is_refused(model_dir, tmp_path):
    copied(model_dir, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"classifier.weight": "../x.safetensors"}}')
    with pytest.raises(InputError, match=r"expected files beside .*, found '../x.safetensors'; nothing was read"):
        load_classifier(str(tmp_path))


def test_classes_are_listed_in_the_order_of_the_logits():
    assert list_classes(RepLKNetConfig(id2label={1: "b", 0: "a", 2: "c"})) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "flag", "found"),
    [("alice/seedlings@v1", None, "v1"), ("alice/seedlings", "v2", "v2"), ("alice/seedlings", None, "main")],
)
def test_a_revision_comes_from_the_name_or_from_its_flag(name, flag, found):
    source = Pretrained(name, flag)
    assert (source.name, source.options["revision"]) == ("alice/seedlings", found)


def test_two_revisions_are_refused():
    with pytest.raises(InputError, match="expected one revision, found v1 in --model_name_or_path and v2 in"):
        Pretrained("alice/seedlings@v1", "v2")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("alice/seedlings", ("alice/seedlings", None)),
        ("alice/seedlings@v1", ("alice/seedlings", "v1")),
        ("alice/seedlings@refs/pr/1", ("alice/seedlings", "refs/pr/1")),
        ("seedlings", None), ("latest", None), ("a/b/c", None), ("/a/b", None), ("./a", None), ("", None),
    ],
)  # fmt: skip
def test_a_name_on_the_hub_is_distinguished_from_a_path(name, parts):
    assert parse_hub_name(name) == parts


def test_an_existing_folder_takes_precedence_over_a_name_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse_hub_name("run/checkpoints") is None
