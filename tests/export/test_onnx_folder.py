"""The folder that transformers.js and optimum load, and the float16 file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import SPECIES, write_familiarity, write_model
from transformers import AutoImageProcessor

from seedling_hf.commands import run
from seedling_hf.commands.export import main as export_command
from seedling_hf.errors import InputError
from seedling_hf.export.onnx_folder import describe_processor
from seedling_hf.export.onnx_program import halve_onnx
from seedling_hf.export.preprocessing import describe_preprocessing
from seedling_hf.inference.classifier import load_classifier
from seedling_hf.replknet import RepLKNetImageProcessor

onnx, onnxruntime, _ = (
    pytest.importorskip(package, reason="the extra `all` is needed to write and run ONNX")
    for package in ("onnx", "onnxruntime", "onnxscript")
)
FILES = ("model.onnx", "model_fp16.onnx", "model_quantized.onnx")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, sample_dir) -> Path:
    """A small model that knows what is unfamiliar."""
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, sample_dir)
    write_familiarity(folder, sample_dir, confidence_threshold=0.75)
    return folder


@pytest.fixture(scope="module")
def images(sample_dir) -> list[Path]:
    return [file for name in SPECIES for file in sorted((sample_dir / name).iterdir())[4:7]]


@pytest.fixture(scope="module")
def folder(model_dir, sample_dir, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("exported") / "seedlings-onnx"
    assert run(export_command, words(model_dir, target, "--train_dir", str(sample_dir / "Maize"))) == 0
    return target


def words(model_dir: Path, target: Path, *further: str) -> list[str]:
    return [
        "--model_name_or_path", str(model_dir), "--format", "onnx_folder", "--output_file", str(target),
        "--max_check_samples", "12", "--max_calibration_samples", "12", *further,
    ]  # fmt: skip


def run_file(path: Path, pixel_values: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": pixel_values})


def test_the_folder_holds_what_transformers_js_looks_for(folder):
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {f"onnx/{name}" for name in FILES} | {"config.json", "preprocessor_config.json", "README.md"}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert list(config["id2label"].values()) == SPECIES
    assert (config["model_type"], config["confidence_threshold"]) == ("resnet", 0.75)


@pytest.mark.parametrize("name", FILES)
def test_logits_come_first_and_are_float32_as_is_the_input(folder, name):
    graph = onnx.load(folder / "onnx" / name).graph
    assert [value.name for value in graph.input] == ["pixel_values"]
    assert [value.name for value in graph.output] == ["logits", "unfamiliarity"]
    assert {value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]} == {onnx.TensorProto.FLOAT}


def test_the_files_answer_as_the_model_for_what_the_named_processor_computes(folder, model_dir, images):
    processor = AutoImageProcessor.from_pretrained(folder)
    assert type(processor).__name__ == "CLIPImageProcessor"
    inputs = processor([Image.open(file).convert("RGB") for file in images], return_tensors="pt")["pixel_values"]
    model, own = load_classifier(str(model_dir), merge=False)
    expected_inputs = own([Image.open(file).convert("RGB") for file in images], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(inputs, expected_inputs, rtol=0, atol=0)
    with torch.inference_mode():
        expected = model(expected_inputs).logits.numpy()
    assert len(set(expected.argmax(1))) == len(SPECIES), "the test needs different predictions"
    # float32: another order of sums. float16: 11 bits of each number, through some ten layers, and a head with large
    # weights.
    for name, tolerance in zip(FILES[:2], (1e-4, 0.03 * np.abs(expected).max()), strict=True):
        logits = run_file(folder / "onnx" / name, inputs.numpy())[0]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance)
        assert (logits.argmax(1) == expected.argmax(1)).all()


def test_float16_halves_the_network_and_keeps_the_distances_of_familiarity(folder, images, model_dir):
    full, half = (onnx.load(folder / "onnx" / name).graph.initializer for name in FILES[:2])
    sizes = {tensor.name: len(tensor.raw_data) for tensor in full}
    kinds = {tensor.name: tensor.data_type for tensor in half}
    exact = {name for name in sizes if "familiarity" in name}
    assert exact and {kinds[name] for name in exact} == {onnx.TensorProto.FLOAT}
    large = {name for name, size in sizes.items() if size > 4096} - exact
    assert large and {kinds[name] for name in large} == {onnx.TensorProto.FLOAT16}
    _, own = load_classifier(str(model_dir), merge=False)
    inputs = own([Image.open(file).convert("RGB") for file in images], return_tensors="pt")["pixel_values"].numpy()
    found, expected = (run_file(folder / "onnx" / name, inputs)[1] for name in (FILES[1], FILES[0]))
    np.testing.assert_allclose(found, expected, rtol=0.02)  # of features with 11 bits


def test_weights_too_large_for_float16_are_refused_by_name(folder, tmp_path):
    model = onnx.load(folder / "onnx/model.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.weight"))
    weight.CopyFrom(onnx.numpy_helper.from_array(1e6 * onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises(InputError, match=r"expected weights within float16, up to 65504, found .* in .*classifier"):
        halve_onnx(tmp_path / "large.onnx", tmp_path / "half.onnx", {})
    assert not (tmp_path / "half.onnx").exists()


@pytest.mark.parametrize("image_size", [64, 384])  # cropped, and resized to the square
def test_the_named_processor_computes_the_same_for_every_form_of_ours(image_size, tmp_path, images):
    own = RepLKNetImageProcessor.from_variant("31B", image_size=image_size)
    values = describe_processor(describe_preprocessing(own))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values), encoding="utf-8")
    image = Image.open(images[0]).convert("RGB").resize((151, 97))
    found, expected = (
        p(image, return_tensors="pt").pixel_values for p in (AutoImageProcessor.from_pretrained(tmp_path), own)
    )
    assert found.shape[-2:] == (image_size, image_size)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ([], "expected --train_dir for --format onnx_folder, found none"),
        (
            ["--train_dir", ".", "--include_preprocessing"],
            "expected no --include_preprocessing with --format onnx_folder",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(further, message, model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(export_command, words(model_dir, Path("folder"), *further)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_as_it_is(model_dir, sample_dir, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    assert run(export_command, words(model_dir, tmp_path, "--train_dir", str(sample_dir / "Maize"))) == 2
    assert "expected --output_file to be new or empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
