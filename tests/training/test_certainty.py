"""A finished run leaves calibrated weights, and a measure of what is familiar to them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_runs import Run

from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification
from seedling_hf.training.baseline import build_timm_classifier
from seedling_hf.training.certainty import scale_logits

HEAD = ("classifier.weight", "classifier.bias")


def read(run: Run, name: str) -> dict:
    return json.loads((run.folder / "run" / name).read_text())


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "run" / "model.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, images) -> tuple[Run, Run]:
    """The same run, calibrated and not."""
    calibrated, plain = (Run(tmp_path_factory.mktemp("runs") / name, images) for name in ("calibrated", "plain"))
    calibrated.finish()
    plain.finish("--no_calibration")
    return calibrated, plain


def test_the_temperature_is_folded_into_the_classifier_and_nothing_else_changes(runs):
    calibrated, plain = (weights(run) for run in runs)
    temperature = read(runs[0], "config.json")["calibration_temperature"]
    assert temperature not in (None, 1)
    for name, tensor in plain.items():
        expected = tensor / temperature if name in HEAD else tensor
        torch.testing.assert_close(calibrated[name], expected, rtol=1e-6, atol=0)


def test_the_configuration_and_the_results_say_what_was_found(runs):
    config, certainty = read(runs[0], "config.json"), read(runs[0], "train_results.json")["certainty"]
    assert config["calibration_temperature"] == certainty["temperature"]
    assert config["confidence_threshold"] == certainty["confidence_threshold"]
    assert read(runs[1], "config.json")["calibration_temperature"] is None
    assert read(runs[1], "config.json")["confidence_threshold"] is not None


def test_both_runs_call_the_same_images_familiar(runs):
    first, second = (load_file(run.folder / "run" / "familiarity.safetensors") for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(first["center"]) == 16 + 32 + 48 + 64  # the stages of tiny


def test_the_report_describes_the_calibrated_model(runs):
    """The loss falls, by which the temperature was chosen, and the answers stay."""
    calibrated, plain = (np.load(run.folder / "run" / "probabilities.npz") for run in runs)
    assert (calibrated["probabilities"].argmax(1) == plain["probabilities"].argmax(1)).all()
    assert read(runs[0], "report.json")["loss"] < read(runs[1], "report.json")["loss"]


def test_the_end_of_a_run_that_is_repeated_does_not_calibrate_twice(runs):
    before, config = weights(runs[0]), read(runs[0], "config.json")
    runs[0].finish()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(runs[0]).items())
    assert read(runs[0], "config.json") == config


def test_a_new_best_model_is_calibrated_anew(tmp_path, images):
    """More steps after the end: temperature and measure belong to the weights that are in the folder."""
    run = Run(tmp_path / "run", images)
    run.finish("--max_steps", "4")
    run.finish("--allow_changed_arguments")
    again = Run(tmp_path / "again", images)
    again.finish("--max_steps", "4", "--no_calibration")
    again.finish("--allow_changed_arguments", "--no_calibration")
    temperature = read(run, "config.json")["calibration_temperature"]
    expected = weights(again)["classifier.weight"] / temperature
    torch.testing.assert_close(weights(run)["classifier.weight"], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("architecture", ["resnet10t", "mobilenetv3_small_050"])
def test_the_logits_of_other_networks_are_scaled_too(architecture):
    labels = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    model = build_timm_classifier(architecture, labels, image_size=64)[0].eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images).logits
        assert scale_logits(model, 0.5, 64)
        torch.testing.assert_close(model(images).logits, 2 * before, rtol=1e-4, atol=1e-5)


def test_a_network_with_another_layer_after_its_classifier_stays_as_it_is():
    config = RepLKNetConfig.from_variant("tiny", num_labels=3)
    model = RepLKNetForImageClassification(config).eval()
    model.classifier = torch.nn.Sequential(model.classifier, torch.nn.Sigmoid())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not scale_logits(model, 0.5, 32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
