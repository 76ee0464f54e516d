"""The shipped model: small, as accurate as its card says, and the default of commands."""

import csv
import json
import re

import torch
from transformers import AutoModelForImageClassification

from seedling_hf import SHIPPED_MODEL
from seedling_hf.commands import evaluate, predict, run

CARD = (SHIPPED_MODEL / "README.md").read_text(encoding="utf-8")


def test_it_is_small_and_has_no_code():
    assert sum(file.stat().st_size for file in SHIPPED_MODEL.iterdir()) < 15e6
    assert {file.suffix for file in SHIPPED_MODEL.iterdir()} == {".json", ".md", ".safetensors"}
    assert "auto_map" not in json.loads((SHIPPED_MODEL / "config.json").read_text())


def test_it_loads_in_float32_and_with_the_twelve_species():
    import seedling_hf.replknet  # noqa: F401, registers the architecture

    model = AutoModelForImageClassification.from_pretrained(SHIPPED_MODEL)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert len(model.config.id2label) == 12 and model.config.id2label[0] == "Black-grass"


def test_its_accuracy_on_the_sample_is_that_of_its_card(sample_dir, tmp_path):
    flags = ["--test_dir", str(sample_dir), "--output_dir", str(tmp_path / "report")]
    assert run(evaluate.main, flags) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    right = round(report["accuracy"] * report["num_examples"])
    expected = int(re.search(r"(\d+) of the 480 images of\sthe sample", CARD)[1])
    assert report["num_examples"] == 480
    assert abs(right - expected) <= 2  # another processor may round another way


def test_predict_uses_it_by_default(sample_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(predict.main, ["--images", str(sample_dir / "Maize"), "--output_file", "answers.csv"]) == 0
    with open("answers.csv", newline="", encoding="utf-8") as file:
        species = [row["class"] for row in csv.DictReader(file)]
    assert len(species) == 40 and species.count("Maize") > 30
