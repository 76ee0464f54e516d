import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_models import SPECIES, write_familiarity, write_model

from seedling_hf.commands import run
from seedling_hf.commands.export import main as export_command
from seedling_hf.data.images import choose_evenly
from seedling_hf.errors import InputError
from seedling_hf.export.onnx_program import run_onnx
from seedling_hf.export.preprocessing import describe_preprocessing, input_batches
from seedling_hf.export.programs import (
    ONNX_FLOAT,
    ONNX_INT8,
    PYTORCH,
    Outputs,
    check_outputs,
    collect_outputs,
    export_classifier,
    format_rows,
)
from seedling_hf.export.torch_program import METADATA_FILE, run_torch_export
from seedling_hf.inference.classifier import Pretrained, load_classifier
from seedling_hf.inference.familiarity import FAMILIARITY
from seedling_hf.inference.judgement import add_familiarity
from seedling_hf.inference.prediction import forward
from seedling_hf.replknet import RepLKNetForImageClassification, RepLKNetImageProcessor

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="the extra `all` is needed to write and run ONNX")

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
SNIPPET = re.search(r"```python\n(import json, numpy as np, onnxruntime\n.*?)```", PAGE, re.DOTALL)[1]
IMAGE = re.search(r"Image\.open\((\".*?\")\)", SNIPPET)[1]
NORMALISE = re.search(r"`(\(\(np\.asarray\(image\).*?)`", PAGE)[1]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, sample_dir) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_steady_model(folder, sample_dir)
    return folder


def write_steady_model(folder: Path, sample_dir: Path) -> None:
    """A small model that predicts the class with the nearest mean of features.

    Small changes of pixels change its logits little, as in a trained model.
    """
    write_model(folder, sample_dir)
    model, image_processor = load_classifier(str(folder), merge=False)
    with torch.no_grad():
        means = torch.stack([
            torch.stack([model.replknet(x).pooler_output[0] for x in processed(image_processor, images)]).mean(0)
            for images in (sorted((sample_dir / name).iterdir())[:20] for name in SPECIES)
        ])  # fmt: skip
        means = means - means.mean(0)
        scale = 1 / means.square().sum(1).mean()
        model.classifier.weight.copy_(scale * means)
        model.classifier.bias.copy_(-scale * means.square().sum(1) / 2)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def familiar(model_dir, sample_dir, tmp_path_factory) -> Path:
    """The same model, which knows what is unfamiliar."""
    folder = Path(shutil.copytree(model_dir, tmp_path_factory.mktemp("familiar") / "model"))
    write_familiarity(folder, sample_dir, confidence_threshold=0.75)
    return folder


@pytest.fixture(scope="module")
def files(sample_dir) -> list[Path]:
    """Six images of each of four species."""
    return [file for name in SPECIES for file in sorted((sample_dir / name).iterdir())[4:10]]


@pytest.fixture(scope="module")
def expected(model_dir, files) -> np.ndarray:
    """Logits of the model as it was trained, neither merged nor folded, one image at a time."""
    model, image_processor = load_classifier(str(model_dir), merge=False)
    with torch.inference_mode():
        return np.concatenate([model(pixel_values).logits for pixel_values in processed(image_processor, files)])


def processed(image_processor, files: list[Path]) -> list[torch.Tensor]:
    return [image_processor(Image.open(file), return_tensors="pt").pixel_values for file in files]


@pytest.fixture(scope="module")
def exported(familiar, files, tmp_path_factory) -> dict:
    """The rows of an export in float32 and int8, with the normalization and the familiarity inside."""
    folder = tmp_path_factory.mktemp("exported")
    rows = export(familiar, folder / "seedlings.onnx", files, calibration_files=files, include_preprocessing=True)
    return {row["name"]: row for row in rows} | {"folder": folder}


@pytest.fixture(scope="module")
def bare(model_dir, files, tmp_path_factory) -> Path:
    """An export that takes normalized images."""
    path = tmp_path_factory.mktemp("bare") / "seedlings.onnx"
    export(model_dir, path, files)
    return path


def export(model_dir: Path, path: Path, files: list[Path], **options) -> list[dict]:
    model, image_processor = load_classifier(str(model_dir))
    model = add_familiarity(model, Pretrained(str(model_dir)))
    return export_classifier(model, image_processor, path, check_files=files, **options)


def inputs(model_dir: Path, files: list[Path], include_preprocessing: bool) -> np.ndarray:
    _, image_processor = load_classifier(str(model_dir))
    batches = input_batches(files, image_processor, include_preprocessing=include_preprocessing)
    return np.concatenate([batch for _, batch in batches])


def read_metadata(path: Path) -> dict:
    if path.suffix == ".pt2":
        files = {METADATA_FILE: ""}
        torch.export.load(path, extra_files=files)
        return json.loads(files[METADATA_FILE])
    import onnx

    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


@pytest.mark.parametrize("include_preprocessing", [False, True])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_onnx_runtime_gives_the_logits_of_the_trained_model_for_real_images(
    include_preprocessing, batch_size, exported, bare, model_dir, files, expected
):
    path = exported["folder"] / "seedlings.onnx" if include_preprocessing else bare
    run, images = run_onnx(path), inputs(model_dir, files, include_preprocessing)
    found = np.concatenate([run(images[i : i + batch_size])[0] for i in range(0, len(images), batch_size)])
    # 1e-4: merged kernels and another library sum float32 in another order.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert len(set(expected.argmax(1))) == len(SPECIES), "the test needs different predictions"
    assert (found.argmax(1) == expected.argmax(1)).all()


def test_the_reported_difference_is_that_of_the_file(exported, model_dir, files):
    model, image_processor = load_classifier(str(model_dir))
    run = run_onnx(exported["folder"] / "seedlings.onnx")
    with torch.inference_mode():
        logits = model(torch.cat(processed(image_processor, files))).logits.numpy()
    difference = np.abs(run(inputs(model_dir, files, True))[0] - logits).max()
    assert exported[ONNX_FLOAT]["max_difference"] == pytest.approx(difference, rel=0.01)
    assert exported[ONNX_FLOAT]["same_predictions"] == 1


def test_small_kernels_and_batch_norms_are_merged(bare):
    import onnx

    operations = [node.op_type for node in onnx.load(bare).graph.node]
    assert operations.count("BatchNormalization") == 1, "only the one before pooling"
    assert operations.count("Conv") == 35


def test_the_metadata_describe_how_to_predict(exported):
    metadata = read_metadata(exported["folder"] / "seedlings.onnx")
    assert metadata["classes"] == SPECIES
    assert metadata["image_size"] == [64, 64]
    assert (metadata["shortest_edge"], metadata["resample"]) == (73, "BICUBIC")
    assert metadata["mean"] == [0.485, 0.456, 0.406]
    assert metadata["std"] == [0.229, 0.224, 0.225]
    assert metadata["input"] == "uint8 (N, height, width, 3), RGB"
    assert (metadata["temperature"], metadata["confidence_threshold"]) == (1.0, 0.75)
    assert metadata["unfamiliarity"].startswith("the second output, (N,): above 1, ")
    assert read_metadata(exported["folder"] / "seedlings.int8.onnx") == metadata


def test_a_file_contains_no_path_of_this_machine(exported, bare):
    for path in (*exported["folder"].iterdir(), bare):
        assert str(ROOT).encode() not in path.read_bytes()


@pytest.mark.parametrize("name", ["seedlings.onnx", "seedlings.int8.onnx", "seedlings.pt2"])
def test_every_file_tells_what_is_unfamiliar_as_the_model_does(
    name, exported, familiar, files, strange_image, tmp_path
):
    path, images = exported["folder"] / name, [*files, strange_image]
    if name.endswith(".pt2"):
        path = tmp_path / name
        export(familiar, path, files, include_preprocessing=True)
    model, image_processor = load_classifier(str(familiar))
    model = add_familiarity(model, Pretrained(str(familiar)))
    expected = forward(model, torch.cat(processed(image_processor, images))).unfamiliarity.numpy()
    logits, found = (run_torch_export if name.endswith(".pt2") else run_onnx)(path)(inputs(familiar, images, True))
    assert found.shape == (len(images),) == logits.shape[:1]
    assert (expected[:-1] < 1).all() and expected[-1] > 1
    assert ((found > 1) == (expected > 1)).all()
    if "int8" not in name:
        np.testing.assert_allclose(found, expected, rtol=1e-4)  # as above


def test_the_rows_say_how_often_a_file_agrees_on_what_is_familiar(exported):
    assert exported[ONNX_FLOAT]["same_familiarity"] == 1
    table = format_rows([exported[name] for name in (PYTORCH, ONNX_FLOAT, ONNX_INT8)])
    assert table.splitlines()[0].endswith("| same predictions | same familiarity |")
    assert {line.count("|") for line in table.splitlines()} == {7}


def test_a_model_without_familiarity_has_one_output(bare, model_dir, files):
    assert len(run_onnx(bare)(inputs(model_dir, files[:1], False))) == 1
    metadata = read_metadata(bare)
    assert [metadata[key] for key in ("temperature", "confidence_threshold", "unfamiliarity")] == [None] * 3


def test_the_snippet_of_the_docs_says_what_is_unfamiliar(exported, strange_image):
    printed = without_torch(for_each_image(SNIPPET, exported["folder"] / "seedlings.onnx", [strange_image]))
    assert printed.splitlines()[0] == "unfamiliar"


def without_torch(code: str, python: str = sys.executable, **values: object) -> str:
    """The output of a new process in which torch and this package cannot be imported."""
    blocked = (
        "import sys\nfor name in ('torch', 'torchvision', 'transformers', 'seedling_hf'): sys.modules[name] = None\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    answer = subprocess.run(
        [python, "-c", blocked + code], cwd=values.get("cwd", ROOT), env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def for_each_image(snippet: str, model_file: Path, files: list[Path]) -> str:
    """The page's lines, run for each of `files`, printing the logits too."""
    lines = snippet.replace('"seedlings.onnx"', repr(str(model_file))).replace(IMAGE, "file")
    assert lines.count("file)") == 1, "the image of the snippet was replaced"
    lines += "print(json.dumps(np.asarray(image).tolist()))\n"
    body = "".join(f"    {line}\n" for line in lines.splitlines())
    return f"for file in {[str(file) for file in files]}:\n{body}    print(json.dumps(logits[0].tolist()))\n"


def check_predictions(printed: str, model_dir: Path, files: list[Path]) -> None:
    """The snippet sees the pixels of the image processor, and has the model's logits and predictions."""
    model, image_processor = load_classifier(str(model_dir), merge=False)
    lines = printed.splitlines()
    pixels = np.array([json.loads(line) for line in lines[1::3]])
    differences = np.abs(pixels - inputs(model_dir, files, True))
    # torchvision rounds to 8 bits as Pillow does, but may differ by one step at a few pixels.
    assert differences.max() <= 2
    assert differences.mean() < 0.2
    normalized = (pixels / 255 - np.array(image_processor.image_mean)) / np.array(image_processor.image_std)
    with torch.inference_mode():
        logits = model(torch.tensor(normalized, dtype=torch.float32).permute(0, 3, 1, 2)).logits
        answers = model(torch.cat(processed(image_processor, files))).logits.argmax(1)
    # 1e-4: merged kernels and another library sum float32 in another order.
    np.testing.assert_allclose([json.loads(line) for line in lines[2::3]], logits, rtol=0, atol=1e-4)
    assert lines[::3] == [SPECIES[i] for i in answers]


def test_the_snippet_of_the_docs_gives_the_same_predictions_without_torch(exported, model_dir, files):
    printed = without_torch(for_each_image(SNIPPET, exported["folder"] / "seedlings.onnx", files))
    check_predictions(printed, model_dir, files)


def test_the_normalization_of_the_docs_gives_the_same_predictions_without_preprocessing_inside(bare, model_dir, files):
    snippet = SNIPPET.replace("np.asarray(image)[None]", NORMALISE)
    check_predictions(without_torch(for_each_image(snippet, bare, files)), model_dir, files)


def test_the_snippet_follows_a_processor_without_a_crop(tmp_path, sample_dir, files):
    write_steady_model(tmp_path / "model", sample_dir)
    squeezed = RepLKNetImageProcessor.from_variant("XL", image_size=384)
    squeezed.size = squeezed.crop_size = {"height": 64, "width": 96}
    squeezed.save_pretrained(tmp_path / "model")
    export(tmp_path / "model", tmp_path / "seedlings.onnx", files[:3], include_preprocessing=True)
    assert read_metadata(tmp_path / "seedlings.onnx")["image_size"] == [64, 96]
    printed = without_torch(for_each_image(SNIPPET, tmp_path / "seedlings.onnx", files[:3]))
    check_predictions(printed, tmp_path / "model", files[:3])


@pytest.mark.slow
def test_the_snippet_runs_in_a_new_environment_of_three_packages(exported, model_dir, files, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    scripts = "Scripts" if os.name == "nt" else "bin"
    python = str(tmp_path / "venv" / scripts / "python")
    install = [python, "-m", "pip", "install", "--quiet", "onnxruntime", "pillow", "numpy"]
    if subprocess.run(install).returncode:
        pytest.skip("onnxruntime, pillow and numpy can be installed only with a network")
    code = for_each_image(SNIPPET, exported["folder"] / "seedlings.onnx", files)
    answer = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 1
    check_predictions(answer.stdout, model_dir, files)


def test_int8_is_smaller_and_agrees_with_float(exported, model_dir, files, expected):
    float_file, int8_file = (exported["folder"] / name for name in ("seedlings.onnx", "seedlings.int8.onnx"))
    # What tells unfamiliar images stays in float32: a sixth of this small model.
    assert int8_file.stat().st_size < 0.7 * float_file.stat().st_size
    found = run_onnx(int8_file)(inputs(model_dir, files, True))[0]
    assert not np.allclose(found, expected, atol=1e-4), "rounding to 8 bits shows"
    # The features are random and noisier than trained ones; a wrong scale or a lost layer leaves no correlation.
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.8


def test_only_the_pointwise_convolutions_of_the_stages_use_8_bits(exported):
    import onnx

    weights = onnx.load(exported["folder"] / "seedlings.int8.onnx").graph.initializer
    kinds = {(w.dims[-1] > 1, "embeddings" in w.name, w.data_type == onnx.TensorProto.INT8)
             for w in weights if len(w.dims) == 4}  # fmt: skip
    assert kinds == {(False, False, True), (True, False, False), (False, True, False), (True, True, False)}


def test_a_program_of_torch_export_gives_the_same_logits_in_batches_of_any_size(model_dir, files, expected, tmp_path):
    path = tmp_path / "seedlings.pt2"
    export(model_dir, path, files)
    run, images = run_torch_export(path), inputs(model_dir, files, False)
    for batch in (images[:1], images[:5]):
        np.testing.assert_allclose(run(batch)[0], expected[: len(batch)], rtol=0, atol=1e-4)  # as above
    assert read_metadata(path)["classes"] == SPECIES


def test_logits_that_differ_are_refused_and_nothing_is_written(model_dir, files, tmp_path):
    with pytest.raises(InputError, match="within 1e-12 of PyTorch's, found a difference"):
        export(model_dir, tmp_path / "new" / "seedlings.onnx", files, tolerance=1e-12)
    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_not_numbers_are_refused():
    found = {PYTORCH: Outputs(np.zeros((2, 3))), ONNX_FLOAT: Outputs(np.array([[0, 0, np.nan], [0, 0, 0]]))}
    with pytest.raises(InputError, match="a difference of nan on 2 images"):
        check_outputs(found, ONNX_FLOAT, 1e-4)


@pytest.mark.parametrize(("unfamiliarity", "is_equal"), [(200.01, True), (200.1, False), (np.nan, False)])
def test_unfamiliarity_that_differs_by_more_than_its_share_is_refused(unfamiliarity, is_equal):
    logits = np.zeros((2, 3))
    found = {
        PYTORCH: Outputs(logits, np.array([0.5, 200.0])), ONNX_FLOAT: Outputs(logits, np.array([0.5, unfamiliarity])),
    }  # fmt: skip
    if is_equal:
        check_outputs(found, ONNX_FLOAT, 1e-4)
    else:
        with pytest.raises(InputError, match=f"expected unfamiliarity of {ONNX_FLOAT} within 0.0001 of PyTorch's"):
            check_outputs(found, ONNX_FLOAT, 1e-4)


def test_logits_of_a_file_that_are_infinite_are_refused(model_dir, files):
    model, image_processor = load_classifier(str(model_dir))
    batches = input_batches(files[:2], image_processor, include_preprocessing=False)
    with pytest.raises(InputError, match=f"expected finite logits of {ONNX_INT8}, found NaN or infinity"):
        collect_outputs(model, {ONNX_INT8: lambda inputs: [np.full((len(inputs), 4), np.inf, np.float32)]}, batches)


def test_a_processor_that_does_not_normalize_is_refused():
    with pytest.raises(InputError, match="found RepLKNetImageProcessor, which does something else"):
        describe_preprocessing(RepLKNetImageProcessor(do_normalize=False))


def test_a_processor_that_crops_in_its_own_way_is_refused():
    from transformers import ConvNextImageProcessor

    with pytest.raises(InputError, match="found ConvNextImageProcessor"):
        describe_preprocessing(ConvNextImageProcessor())


def test_images_are_chosen_from_the_whole_list():
    assert choose_evenly(list("abcdefghi"), 3) == ["a", "d", "g"]
    assert choose_evenly(list("ab"), 5) == ["a", "b"]


def flags(**values: object) -> list[str]:
    return [
        word
        for name, value in values.items()
        for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]


def test_the_command_prints_the_accuracy_of_float_and_int8(model_dir, files, tmp_path, capsys):
    for file in files:
        (tmp_path / "images" / file.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / file.parent.name / file.name).symlink_to(file)
    words = flags(
        model_name_or_path=model_dir, output_file=tmp_path / "out" / "seedlings.onnx", int8=True,
        train_dir=tmp_path / "images", eval_dir=tmp_path / "images",
    )  # fmt: skip
    assert run(export_command, words) == 0
    shown = capsys.readouterr().out
    labels = np.array([SPECIES.index(file.parent.name) for file in files])
    images = inputs(model_dir, files, False)
    for name, file in (("ONNX float32", "seedlings.onnx"), ("ONNX int8", "seedlings.int8.onnx")):
        accuracy = (run_onnx(tmp_path / "out" / file)(images)[0].argmax(1) == labels).mean()
        row = next(line for line in shown.splitlines() if line.startswith(f"| {name} |"))
        assert row.split(" | ")[-1].startswith(f"{accuracy:.1%} (")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"seedlings.onnx", "seedlings.int8.onnx"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name_or_path": "./nowhere"}, "expected a model folder at ./nowhere, found nothing there"),
        ({"images": "./nothing"}, "expected an image or a folder at nothing, found nothing there"),
        ({"output_file": "seedlings.pt2"}, "expected --output_file to be a file NAME.onnx, found seedlings.pt2"),
        ({"int8": True}, "expected --train_dir and --format onnx for --int8, found none"),
        ({"tolerance": 0}, "expected --tolerance above 0, found 0"),
    ],
)
def test_a_mistake_ends_with_code_2_and_one_sentence_and_writes_nothing(
    changes, message, model_dir, files, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = flags(**{"model_name_or_path": model_dir, "output_file": "seedlings.onnx", "images": files[0]} | changes)
    assert run(export_command, words) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_broken_image_is_refused_by_name(model_dir, files, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(files[0].read_bytes()[:500])
    words = flags(model_name_or_path=model_dir, output_file=tmp_path / "x" / "x.onnx", images=tmp_path)
    assert run(export_command, words) == 2
    assert "broken.jpg" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_without_the_packages_the_command_says_what_to_install(model_dir, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert (
        run(export_command, flags(model_name_or_path=model_dir, output_file=tmp_path / "x.onnx", images=files[0])) == 2
    )
    assert (
        'expected onnxscript for ONNX, found none; install it with pip install "seedling-hf[all]"'
        in capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


def test_half_precision_loads_as_float32_with_nearly_equal_logits(model_dir, tmp_path, capsys):
    target = tmp_path / "half"
    flags = ["--model_name_or_path", str(model_dir), "--format", "half", "--output_file", str(target)]
    assert export_command(flags) is None
    assert "in float16" in capsys.readouterr().out
    model = RepLKNetForImageClassification.from_pretrained(model_dir).eval()
    half = RepLKNetForImageClassification.from_pretrained(target).eval()
    assert {tensor.dtype for tensor in half.parameters()} == {torch.float32}
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (Path(model_dir), target)]
    assert sizes[1] < 0.6 * sizes[0]
    pixel_values = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        found, expected = half(pixel_values).logits, model(pixel_values).logits
    # 11 bits of each weight, through some ten layers
    assert 0 < (found - expected).abs().max() < 0.02 * expected.abs().max()
    with pytest.raises(InputError, match="expected --output_file to be new or empty"):
        export_command(flags)


def test_a_folder_in_half_precision_keeps_what_says_how_far_to_trust_it(familiar, tmp_path):
    target = tmp_path / "half"
    assert run(export_command, flags(model_name_or_path=familiar, format="half", output_file=target)) == 0
    assert load_file(target / FAMILIARITY).keys() == load_file(familiar / FAMILIARITY).keys()
    assert json.loads((target / "config.json").read_text())["confidence_threshold"] == 0.75
