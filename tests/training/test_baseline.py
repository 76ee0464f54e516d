"""A timm network works with the same commands as a RepLKNet."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image
from sample import copy_sample
from transformers import AutoImageProcessor, TimmWrapperForImageClassification, pipeline

from seedling_hf.commands import evaluate, predict, run, train
from seedling_hf.errors import InputError
from seedling_hf.training.baseline import build_timm_classifier, standard_image_processor

ARCHITECTURE = "mobilenetv3_small_050"
LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}


@pytest.fixture(autouse=True, scope="module")
def unsettled_precision():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train_flags(sample_dir: Path, folder: Path, *words: str) -> list[str]:
    return [
        "--train_dir", str(sample_dir), "--output_dir", str(folder), "--image_size", "32", "--max_steps", "2",
        "--max_train_samples", "24", "--max_eval_samples", "24", "--per_device_train_batch_size", "12", *words,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, sample_dir) -> Path:
    folder = tmp_path_factory.mktemp("timm") / "baseline"
    words = train_flags(sample_dir, folder, "--timm_architecture", ARCHITECTURE, "--ema_decay", "0.5")
    assert run(train.main, words) == 0
    return folder


def test_a_baseline_starts_from_the_random_weights_that_timm_draws():
    torch.manual_seed(3)
    expected = timm.create_model("resnet18", num_classes=3).state_dict()
    torch.manual_seed(3)
    model, _ = build_timm_classifier("resnet18", LABELS)
    assert not expected["layer1.0.bn2.weight"].any(), (
        "timm initialises residual branches to 0; a plain initialisation does not"
    )
    for name, weight in model.timm_model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_the_processor_prepares_images_as_timm_does(sample_dir):
    _, image_processor = build_timm_classifier(ARCHITECTURE, LABELS)
    config = timm.data.resolve_data_config(timm.get_pretrained_cfg(ARCHITECTURE).to_dict())
    image = Image.open(sample_dir / "Maize" / "006196e1c.jpg")
    expected = timm.data.create_transform(**config)(image)
    found = image_processor(image, return_tensors="pt")["pixel_values"][0]
    # torchvision scales tensors, timm PIL images, which round to 8 bits: less than two steps of 255 before the division
    # by a deviation of 0.22.
    assert (found - expected).abs().max() < 2 / 255 / 0.22


def test_an_architecture_built_for_one_size_is_built_for_that_of_the_images():
    model, image_processor = build_timm_classifier("vit_tiny_patch16_224", LABELS, image_size=64)
    assert image_processor.crop_size["height"] == 64
    assert model(torch.zeros(1, 3, 64, 64)).logits.shape == (1, 3)


def test_an_unknown_architecture_is_refused_with_similar_names():
    with pytest.raises(InputError, match=r"found resnet17; did you mean .*resnet"):
        build_timm_classifier("resnet17", {})


def test_another_processor_than_timms_is_unchanged():
    _, image_processor = build_timm_classifier(ARCHITECTURE, LABELS)
    assert standard_image_processor(image_processor) is image_processor


def test_a_trained_baseline_loads_by_transformers_alone_with_its_classes(model_dir, sample_dir):
    code = (
        "import sys; from transformers import pipeline\n"
        f"print(pipeline('image-classification', model={str(model_dir)!r})({str(sample_dir / 'Maize/006196e1c.jpg')!r},"
        " top_k=12))\nassert not any(name.startswith('seedling_hf') for name in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="/", env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert answer.returncode == 0, answer.stderr
    assert "Loose Silky-bent" in answer.stdout


def test_a_pipeline_gives_probabilities_after_training_with_soft_labels(model_dir, sample_dir):
    assert yaml.safe_load((model_dir / "arguments.yaml").read_text())["label_smoothing_factor"] > 0
    answers = pipeline("image-classification", model=str(model_dir))(str(sample_dir / "Maize/006196e1c.jpg"), top_k=12)
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-5)  # sigmoids would be 6 at first


def test_evaluate_and_predict_accept_it_and_agree(model_dir, tmp_path):
    copy_sample(tmp_path / "images", ("Maize", "Charlock"), slice(3))
    words = ["--model_name_or_path", str(model_dir)]
    images = str(tmp_path / "images")
    assert run(evaluate.main, [*words, "--test_dir", images, "--output_dir", str(tmp_path / "report")]) == 0
    assert run(predict.main, [*words, "--images", images, "--output_file", str(tmp_path / "answers.csv")]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["provenance"]["architecture"] == "TimmWrapperForImageClassification"
    with open(tmp_path / "answers.csv") as file, open(tmp_path / "report" / "predictions.csv") as other:
        answers = [row["class"] for row in csv.DictReader(file)]
        assert answers == [row["prediction"] for row in csv.DictReader(other)]


def test_its_card_names_the_architecture_and_nothing_of_replknet(model_dir):
    card = (model_dir / "README.md").read_text(encoding="utf-8")
    assert f"{ARCHITECTURE} of [timm]" in card
    assert "started from | random weights" in card
    assert "trust_remote_code=True" not in card
    assert "RepLKNet" not in card.split("## Training")[0]
    assert "replknet" not in card.lower().split("## citation")[1]


def test_its_arguments_train_it_again_to_the_same_loss(model_dir, tmp_path):
    assert yaml.safe_load((model_dir / "arguments.yaml").read_text())["timm_architecture"] == ARCHITECTURE
    again = tmp_path / "again"
    assert run(train.main, ["--config", str(model_dir / "arguments.yaml"), "--output_dir", str(again)]) == 0
    assert (again / "metrics.jsonl").read_text() == (model_dir / "metrics.jsonl").read_text()


def test_a_finished_baseline_is_resumed_from_its_checkpoint(model_dir):
    words = ["--config", str(model_dir / "arguments.yaml"), "--resume_from_checkpoint", "latest"]
    assert run(train.main, words) == 0
    assert json.loads((model_dir / "train_results.json").read_text())["resumed_at_step"] == 2


def test_a_run_starts_from_weights_in_timms_own_layout(tmp_path, sample_dir):
    """As `--model_name_or_path timm/NAME` finds them on the Hub: raw names, and the processor in config.json."""
    from timm.models import save_for_hf

    source = timm.create_model(ARCHITECTURE, num_classes=1000)
    save_for_hf(source, tmp_path / "timm", safe_serialization=True)
    words = ["--model_name_or_path", str(tmp_path / "timm"), "--ignore_mismatched_sizes", "--drop_path_rate", "0.1"]
    words += ["--learning_rate", "1e-12"]
    assert run(train.main, train_flags(sample_dir, tmp_path / "run", *words)) == 0
    model = TimmWrapperForImageClassification.from_pretrained(tmp_path / "run")
    assert model.config.num_labels == 12
    # A step of 1e-12 with its decay changes no weight by as much.
    torch.testing.assert_close(model.timm_model.conv_stem.weight, source.conv_stem.weight, rtol=0, atol=1e-10)
    assert AutoImageProcessor.from_pretrained(tmp_path / "run").crop_size["height"] == 32


def test_layer_decay_is_refused_for_blocks_without_names(tmp_path, sample_dir, capsys):
    words = ["--timm_architecture", ARCHITECTURE, "--layer_decay", "0.7"]
    assert run(train.main, train_flags(sample_dir, tmp_path / "run", *words)) == 2
    assert "expected --layer_decay 1" in capsys.readouterr().err
