"""Names of classes that mean something to TeX, Markdown, HTML, spreadsheets and terminals; and many classes."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import assert_sentence, assert_well, command
from PIL import Image

from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification, RepLKNetImageProcessor

HOSTILE = [
    "$x^2$", "$", "$\\frac{", "小麦", "ナズナ", "a\nb", "a\rb", "a\tb", "=1+1", "+a", "-a", "@sum", "\x1b[31mred",
    "\u202eevil", "![x](http:∕∕127.0.0.1∕x.png)", "<img src=x>", "# heading", "a|b", "`code`", "it's", "a.b", "1",
    "{{ 7 * 7 }}", "---", "null", 'a"b', "x" * 200,
]  # fmt: skip
EVALUATE = ["evaluate", "--model_name_or_path", "model", "--test_dir", "images", "--output_dir", "out"]
TRAIN = [
    "train", "--train_dir", "images", "--output_dir", "out", "--variant", "tiny", "--image_size", "32",
    "--max_steps", "2", "--per_device_train_batch_size", "2",
]  # fmt: skip
MANY = 1000
LEAST_MEMORY_GB = 4.0


def write_classes(folder: Path, names: list[str], images: int = 2, side: int = 32) -> Path:
    """A model of classes, and class folders of random images: `model` and `images` in the folder."""
    generator = np.random.default_rng(0)
    for name in names:
        (folder / "images" / name).mkdir(parents=True)
        for number in range(images):
            pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    torch.manual_seed(0)
    config = RepLKNetConfig.from_variant("tiny", id2label=dict(enumerate(names)), drop_path_rate=0.0)
    RepLKNetForImageClassification(config).save_pretrained(folder / "model")
    RepLKNetImageProcessor.from_variant("tiny", image_size=side).save_pretrained(folder / "model")
    return folder


def limit_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (int(LEAST_MEMORY_GB * 1e9), resource.RLIM_INFINITY))


@pytest.mark.parametrize("name", HOSTILE, ids=[repr(name[:12]) for name in HOSTILE])
def test_a_class_may_have_any_name(name, tmp_path):
    folder = write_classes(tmp_path / "run", [name, "Maize", "Charlock"])
    outcome = command(
        ["evaluate", "--model_name_or_path", "model", "--test_dir", "images", "--output_dir", "out"], folder
    )
    assert_well(outcome)
    assert "Glyph" not in outcome.stderr
    assert not {"\x1b", "\u202e"} & set(outcome.stdout + outcome.stderr)
    markdown = (folder / "out" / "report.md").read_text(encoding="utf-8")
    shown = re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)  # which shows text as it is
    assert "<img" not in shown and "![x]" not in shown
    assert not {"\x1b", "\u202e"} & set(markdown + (folder / "out" / "report.html").read_text(encoding="utf-8"))
    with open(folder / "out" / "predictions.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert len(rows) == 7
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
    assert name in json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))["class_names"]


@pytest.mark.parametrize("name", HOSTILE[:14], ids=[repr(name[:12]) for name in HOSTILE[:14]])
def test_a_split_is_read_as_it_was_written(name, tmp_path):
    folder = write_classes(tmp_path / "run", [name, "Maize"], images=4)
    assert_well(command(["make_split", "--train_dir", "images", "--output_dir", "split"], folder))
    again = ["make_split", "--train_dir", "images", "--split_file", "split/split.csv", "--output_dir", "again"]
    assert_well(command(again, folder))
    assert (folder / "split" / "split.csv").read_bytes() == (folder / "again" / "split.csv").read_bytes()


@pytest.mark.parametrize("name", ["$x^2$", "小麦", "=1+1", "\x1b[31mred", "a\nb"], ids=repr)
def test_a_run_on_any_name_has_curves_a_report_and_a_card(name, tmp_path):
    folder = write_classes(tmp_path / "run", [name, "Maize"], images=4)
    words = [
        "train",
        "--train_dir",
        "images",
        "--output_dir",
        "out",
        "--variant",
        "tiny",
        "--image_size",
        "32",
        "--max_steps",
        "2",
    ]
    outcome = command([*words, "--per_device_train_batch_size", "2"], folder)
    assert_well(outcome)
    assert "could be written" not in outcome.stderr
    assert "\x1b" not in outcome.stdout
    assert (folder / "out" / "README.md").exists() and (folder / "out" / "confusion_matrix.png").exists()


@pytest.mark.parametrize("flags", [["--output_file", "out.csv"], ["--output_file", "out.jsonl"], []], ids=str)
@pytest.mark.parametrize("name", ["=1+1", "\x1b[31mred", "小麦"], ids=repr)
def test_predictions_hold_any_name(name, flags, tmp_path):
    folder = write_classes(tmp_path / "run", [name, "Maize"])
    outcome = command(
        ["predict", "--images", "images", "--model_name_or_path", "model", "--top_k", "2", *flags], folder
    )
    assert_well(outcome)
    written = outcome.stdout if not flags else (folder / flags[1]).read_text(encoding="utf-8")
    assert name in written.replace("\\u001b", "\x1b")
    if not (flags and flags[1].endswith("jsonl")):
        assert ",=1" not in written
    if flags:
        assert "\x1b" not in outcome.stdout


@pytest.mark.parametrize("folder_name", ["maize", "MAIZE", "Maize_", "mai ze", "Maise", "Maı\u0307ze"])
def test_a_folder_near_a_known_class_is_answered_with_it(folder_name, tmp_path):
    folder = write_classes(tmp_path / "run", ["Maize", "Charlock"])
    shutil.move(folder / "images" / "Maize", folder / "images" / folder_name)
    outcome = command(
        ["evaluate", "--model_name_or_path", "model", "--test_dir", "images", "--output_dir", "out"], folder
    )
    assert_sentence(outcome, "Maize", f"rename {folder_name} to Maize")


@pytest.mark.parametrize("folder_name", ["Shepherd’s Purse", "Shepherdâ€™s Purse", "shepherds_purse"])
def test_a_folder_with_another_apostrophe_is_answered_with_the_known_class(folder_name, tmp_path):
    folder = write_classes(tmp_path / "run", ["Shepherd's Purse", "Charlock"])
    shutil.move(folder / "images" / "Shepherd's Purse", folder / "images" / folder_name)
    outcome = command(
        ["evaluate", "--model_name_or_path", "model", "--test_dir", "images", "--output_dir", "out"], folder
    )
    assert_sentence(outcome, f"rename {folder_name} to Shepherd's Purse")


def test_saliency_answers_a_target_that_is_nearly_a_class(tmp_path):
    folder = write_classes(tmp_path / "run", ["Maize", "Charlock"])
    words = [
        "saliency",
        "--images",
        "images",
        "--model_name_or_path",
        "model",
        "--output_dir",
        "out",
        "--target",
        "maise",
    ]
    assert_sentence(command(words, folder), "did you mean Maize?")


def test_a_thousand_classes_are_evaluated_in_little_memory(tmp_path):
    folder = write_classes(tmp_path / "run", [f"Species number {number:04}" for number in range(MANY)])
    assert_well(command(EVALUATE, folder, before=limit_memory, timeout=140))
    assert (folder / "out" / "report.md").read_text(encoding="utf-8").count("| Species number") >= MANY
