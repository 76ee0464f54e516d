"""Where no model is named, training starts from the shipped one, by a recipe that a small folder can follow."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, DatasetDict, Features
from faults import assert_sentence, assert_well, command
from sample import copy_sample

from seedling_hf import SHIPPED_MODEL
from seedling_hf.arguments import parse_arguments, write_arguments
from seedling_hf.errors import InputError
from seedling_hf.inference.classifier import list_classes, load_classifier
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training.finetuning import (
    MEASURED,
    SMALLEST,
    describe_expectation,
    describe_start,
    fit_batch_to_images,
)
from seedling_hf.training.models import build_trainable_model, load_replknet_config

ROOT = Path(__file__).resolve().parents[2]
RECIPE = yaml.safe_load((ROOT / "scripts" / "recipes" / "finetune.yaml").read_text(encoding="utf-8"))
RECIPE = {name: float(value) if name == "learning_rate" else value for name, value in RECIPE.items()}  # of 2e-3


def parse(*flags: str) -> TrainArguments:
    return parse_arguments(TrainArguments, ["--train_dir", "plants", *flags], prog="train")


def splits_of(train: int, classes: int = 2) -> DatasetDict:
    features = Features({"label": ClassLabel(names=[f"class {i}" for i in range(classes)])})
    return DatasetDict(
        {
            name: Dataset.from_dict({"label": [i % classes for i in range(count)]}, features=features)
            for name, count in (("train", train), ("validation", classes))
        }
    )


def test_without_a_model_the_recipe_stands_for_the_defaults():
    arguments = parse()
    assert arguments.starts_from_shipped
    assert {name: getattr(arguments, name) for name in RECIPE} == RECIPE
    assert arguments.output_dir == os.path.join("outputs", "plants")


@pytest.mark.parametrize(
    "flags", [["--variant", "tiny"], ["--timm_architecture", "resnet18"], ["--model_name_or_path", "folder"]]
)
def test_with_a_model_the_defaults_are_those_of_the_flags(flags):
    arguments, usual = parse(*flags), TrainArguments(train_dir="plants", variant="tiny")
    assert not arguments.starts_from_shipped
    assert {name: getattr(arguments, name) for name in RECIPE} == {name: getattr(usual, name) for name in RECIPE}


def test_flags_and_a_recipe_go_before_that_of_fine_tuning(tmp_path):
    (tmp_path / "mine.yaml").write_text("num_train_epochs: 3\nlayer_decay: 0.5\n")
    arguments = parse("--config", str(tmp_path / "mine.yaml"), "--layer_decay", "0.9", "--output_dir", "mine")
    assert (arguments.num_train_epochs, arguments.layer_decay, arguments.output_dir) == (3, 0.9, "mine")
    assert arguments.learning_rate == RECIPE["learning_rate"]
    (tmp_path / "scratch.yaml").write_text("variant: tiny\n")
    assert parse("--config", str(tmp_path / "scratch.yaml")).layer_decay == 1


def test_the_written_arguments_give_the_same_run(tmp_path):
    arguments = parse("--learning_rate", "1e-3")
    write_arguments(arguments, tmp_path / "arguments.yaml")
    assert parse("--config", str(tmp_path / "arguments.yaml")) == arguments


def test_the_output_folder_is_named_after_the_images():
    assert TrainArguments(train_dir="some/where/plants/").output_dir == os.path.join("outputs", "plants")
    assert TrainArguments(dataset_name="user/plants").output_dir == os.path.join("outputs", "plants")
    with pytest.raises(InputError, match="expected --train_dir or --dataset_name, found neither"):
        parse_arguments(TrainArguments, [], prog="train")


@pytest.mark.parametrize("names", [["Dock", "Nettle"], [f"plant {i:2}" for i in range(12)]], ids=["2", "12"])
def test_the_features_are_the_shipped_ones_and_the_head_is_new(names):
    """Twelve classes are as many as the shipped model has, but others."""
    torch.manual_seed(0)
    model, image_processor = build_trainable_model(parse(), names)
    shipped, shipped_processor = load_classifier(str(SHIPPED_MODEL), merge=False)
    expected = shipped.replknet.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.replknet.state_dict().items())
    assert list_classes(model.config) == names and model.classifier.out_features == len(names)
    assert len(names) != 12 or not torch.equal(model.classifier.weight, shipped.classifier.weight)
    assert (image_processor.size, image_processor.crop_size) == (shipped_processor.size, shipped_processor.crop_size)
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in model.parameters())


def test_the_memory_estimate_takes_the_shipped_model_too():
    config, side = load_replknet_config(parse(), num_labels=12)
    assert (config.hidden_sizes, side) == ([32, 64, 128, 256], 128)


def test_the_start_names_the_model_the_head_and_the_way_to_another():
    text = describe_start(parse(), splits_of(100))
    assert "nano, the model shipped with seedling_hf, with a new head for these 2 classes" in text
    assert "finetune.yaml" in text and "--model_name_or_path" in text
    assert "50 training images" in text


@pytest.mark.parametrize("count", [1, 9, 10, 19, 20, 49, 50, 400])
def test_what_to_expect_is_the_figure_of_the_largest_measured_number_that_the_classes_have(count):
    measured = max((number for number in MEASURED if number <= count), default=SMALLEST)
    line = describe_expectation({"a": count, "b": count})
    low, high = MEASURED[measured]
    assert f"{100 * low:.0f} to {100 * high:.0f}%" in line and f"with {measured} of each" in line
    assert (f"Fewer than {SMALLEST} training images, so expect less: a, b." in line) == (count < SMALLEST)


def test_the_figures_are_those_of_the_documentation():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for count, (low, high) in MEASURED.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {count} |")]
        assert f"{100 * low:.1f} to {100 * high:.1f}%" in row


@pytest.mark.parametrize(("images", "expected"), [(2, 2), (5, 5), (8, 8), (100, 8), (1, 8)])
def test_a_batch_is_no_larger_than_the_training_images(images, expected, caplog):
    caplog.set_level(logging.INFO)
    found = fit_batch_to_images(parse("--per_device_train_batch_size", "8"), splits_of(images), Accelerator(cpu=True))
    assert found.per_device_train_batch_size == expected
    assert ("do not fill a batch of 8: using batches of" in caplog.text) == (expected < 8)


def test_the_batch_of_a_named_model_stays():
    arguments = parse("--variant", "tiny", "--per_device_train_batch_size", "8")
    assert fit_batch_to_images(arguments, splits_of(4), Accelerator(cpu=True)) is arguments


@pytest.mark.parametrize("count", [10, 3, 2])
def test_a_folder_of_a_few_images_a_class_is_trained_and_classifies(tmp_path, count):
    copy_sample(tmp_path / "plants", ["Charlock", "Maize"], slice(count))
    ended = command(["train", "--train_dir", "plants", "--num_train_epochs", "8"], tmp_path)
    assert_well(ended)
    assert "with a new head for these 2 classes" in ended.stdout
    assert ("Fewer than" in ended.stdout) == (0.7 * count < SMALLEST)
    model, _ = load_classifier(str(tmp_path / "outputs" / "plants"))
    assert list_classes(model.config) == ["Charlock", "Maize"]
    report = json.loads((tmp_path / "outputs" / "plants" / "report.json").read_text())
    assert report["accuracy"] > 0.5
    card = (tmp_path / "outputs" / "plants" / "README.md").read_text(encoding="utf-8")
    assert "| started from | nano, the model shipped with seedling_hf, with a new head |" in card


def test_a_folder_of_one_image_a_class_is_refused_with_the_way_out(tmp_path):
    copy_sample(tmp_path / "plants", ["Charlock", "Maize"], slice(1))
    ended = command(["train", "--train_dir", "plants"], tmp_path)
    assert_sentence(ended, "expected images for validation, found none")
