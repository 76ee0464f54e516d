"""What the page knows about a model: accuracy from its report or its card, and images to try."""

import json
import shutil

import pytest

from seedling_hf import SHIPPED_MODEL
from seedling_hf.demo.facts import example_files, read_accuracy, read_examples, read_facts
from seedling_hf.inference.classifier import Pretrained, load_classifier


@pytest.fixture
def folder(tmp_path):
    shutil.copy(SHIPPED_MODEL / "config.json", tmp_path)
    return tmp_path


def test_the_shipped_model_says_its_name_its_accuracy_and_shows_each_species():
    facts = read_facts(Pretrained(str(SHIPPED_MODEL)), *load_classifier(str(SHIPPED_MODEL)))
    assert (facts.name, facts.side, facts.num_images) == ("nano", 128, 4027)
    assert facts.of_folds and facts.accuracy == pytest.approx(3901 / 4027)
    assert list(facts.examples) == facts.class_names
    assert [path.name for path in facts.trays] == ["tray.jpg"]


def test_a_report_goes_before_a_card(folder):
    shutil.copy(SHIPPED_MODEL / "README.md", folder)
    (folder / "report.json").write_text(json.dumps({"accuracy": 0.75, "num_examples": 8}))
    assert read_accuracy(Pretrained(str(folder))) == (0.75, 8, False)


@pytest.mark.parametrize(
    "report", ["{", "[]", "null", '{"accuracy": "high"}', '{"accuracy": NaN, "num_examples": 8}', '{"accuracy": 0.5}']
)
def test_a_report_that_cannot_be_read_says_nothing(folder, report):
    (folder / "report.json").write_text(report)
    assert read_accuracy(Pretrained(str(folder)))[0] is None


def test_a_model_without_report_and_card_has_no_accuracy(folder):
    assert read_accuracy(Pretrained(str(folder))) == (None, None, False)


def test_only_images_named_after_a_class_are_examples(tmp_path):
    (tmp_path / "examples" / "trays").mkdir(parents=True)
    for name in ("Maize.jpg", "Thistle.jpg", "notes.txt", "trays/a.png"):
        (tmp_path / "examples" / name).write_bytes(b"")
    examples, trays = read_examples(tmp_path / "examples", ["Charlock", "Maize"])
    assert list(examples) == ["Maize"]
    assert [path.name for path in trays] == ["a.png"]
    assert {path.name for path in example_files(tmp_path)} == {"Maize.jpg", "Thistle.jpg", "a.png"}
    assert read_examples(tmp_path / "none", ["Maize"]) == ({}, [])
