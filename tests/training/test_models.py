"""The model that a run trains has the classes of its data, and starts from weights that can be trained."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from seedling_hf.arguments import parse_arguments
from seedling_hf.errors import InputError
from seedling_hf.inference.classifier import list_classes, load_classifier
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training.models import build_trainable_model, load_replknet_config


def arguments(*flags: str) -> TrainArguments:
    return parse_arguments(TrainArguments, ["--train_dir", "x", "--output_dir", "y", *flags], prog="train")


def test_pretrained_weights_get_the_classes_of_the_data_in_their_order(model_dir):
    names = ["d", "c", "b", "a"]
    model, _ = build_trainable_model(
        arguments("--model_name_or_path", str(model_dir), "--drop_path_rate", "0.3"), names
    )
    trained, _ = load_classifier(str(model_dir), merge=False)
    assert list_classes(model.config) == names and model.config.label2id == {"d": 0, "c": 1, "b": 2, "a": 3}
    assert model.config.drop_path_rate == 0.3
    expected = trained.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_another_number_of_classes_is_refused_without_a_new_head(model_dir):
    flags = ["--model_name_or_path", str(model_dir)]
    with pytest.raises(
        InputError, match=r"expected a model of 2 classes, found one of 4 in .*--ignore_mismatched_sizes"
    ):
        build_trainable_model(arguments(*flags), ["a", "b"])
    model, _ = build_trainable_model(arguments(*flags, "--ignore_mismatched_sizes"), ["a", "b"])
    assert model.classifier.weight.shape[0] == 2


def test_a_merged_model_is_refused(model_dir, tmp_path):
    model, image_processor = load_classifier(str(model_dir))
    model.save_pretrained(tmp_path)
    image_processor.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="expected a model that can be trained, found a merged one"):
        build_trainable_model(arguments("--model_name_or_path", str(tmp_path)), list_classes(model.config))


def test_a_missing_folder_is_refused_as_in_inference(tmp_path):
    flags = arguments("--model_name_or_path", str(tmp_path / "missing"))
    with pytest.raises(InputError, match=r"expected a model folder at .*missing, found nothing there"):
        build_trainable_model(flags, ["a", "b"])
    with pytest.raises(InputError, match=r"expected a model folder at .*missing, found nothing there"):
        load_replknet_config(flags, num_labels=2)


def test_the_memory_estimate_reads_the_config_of_a_trained_model(model_dir):
    config, side = load_replknet_config(arguments("--model_name_or_path", str(model_dir)), num_labels=12)
    assert (config.num_labels, side) == (4, 64)


def test_crop_pct_evaluates_the_middle_of_an_image():
    arguments = TrainArguments(train_dir="x", output_dir="y", variant="tiny", image_size=96, crop_pct=0.857)
    _, image_processor = build_trainable_model(arguments, ["a", "b"])
    assert image_processor.size["shortest_edge"] == 112
    image = Image.new("RGB", (150, 150), "white")
    image.paste("black", (16, 16, 134, 134))  # the middle 118 pixels
    pixels = image_processor(image, do_normalize=False, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 96, 96)
    assert pixels[0, :, 8:-8, 8:-8].max() == 0 and pixels[0, :, 0, 0].min() > 0


def test_images_that_would_shrink_are_refused():
    arguments = TrainArguments(train_dir="x", output_dir="y", variant="tiny", image_size=64, image_size_start=96)
    with pytest.raises(InputError, match=r"expected --image_size_start of at most 64, .* found 96"):
        build_trainable_model(arguments, ["a", "b"])
    with pytest.raises(InputError, match="expected images of one size with --auto_find_batch_size"):
        TrainArguments(train_dir="x", output_dir="y", variant="tiny", image_size_start=32, auto_find_batch_size=True)


SOFT = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.0, 0.5, 0.5, 0.0]])


@pytest.mark.parametrize("labels", [SOFT, torch.tensor([3, 1])], ids=["soft", "indices"])
@pytest.mark.parametrize("kind", ["variant", "timm", "trained as several classes", "timm trained as several classes"])
def test_every_model_learns_by_the_cross_entropy(tmp_path, kind, labels):
    flags = ["--timm_architecture", "resnet10t"] if kind.startswith("timm") else ["--variant", "tiny"]
    if kind.endswith("several classes"):  # what transformers makes of soft labels
        flags = ["--model_name_or_path", str(several_classes(flags, tmp_path))]
    model, _ = build_trainable_model(arguments(*flags, "--image_size", "32"), list("abcd"))
    outputs = model.eval()(pixel_values=torch.randn(2, 3, 32, 32), labels=labels)
    torch.testing.assert_close(outputs.loss, F.cross_entropy(outputs.logits, labels))
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["problem_type"] == "single_label_classification"


def several_classes(flags: list[str], folder: Path) -> Path:
    model, image_processor = build_trainable_model(arguments(*flags, "--image_size", "32"), list("abcd"))
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(folder / "source")
    image_processor.save_pretrained(folder / "source")
    return folder / "source"
