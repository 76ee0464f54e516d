"""The shipped model: small, as accurate as its card says, and the default of commands."""

import csv
import json
import os
import re
import subprocess
import sys

import torch
from transformers import AutoModelForImageClassification

from seedling_hf import SHIPPED_MODEL
from seedling_hf.commands import evaluate, predict, run
from seedling_hf.data.dataset import load_folder
from seedling_hf.data.splits import hash_split
from seedling_hf.evaluation.training_data import recognise
from seedling_hf.replknet import RepLKNetForImageClassification, RepLKNetImageProcessor

CARD = (SHIPPED_MODEL / "README.md").read_text(encoding="utf-8")


def test_it_is_small():
    files = [file for file in SHIPPED_MODEL.iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 15e6
    assert {file.suffix for file in files} == {".csv", ".json", ".md", ".py", ".safetensors"}
    examples = [path for path in SHIPPED_MODEL.rglob("examples/**/*") if path.is_file()]
    assert sum(path.stat().st_size for path in examples) < 400e3
    assert {path.suffix for path in examples} == {".jpg", ".md"}
    assert "CC BY-SA 4.0" in (SHIPPED_MODEL / "examples" / "README.md").read_text(encoding="utf-8")


def test_its_split_is_that_of_its_card_and_tells_which_images_of_the_sample_it_was_trained_on(sample_dir):
    split = SHIPPED_MODEL / "split.csv"
    assert f"`{hash_split(split)}`" in CARD
    found = recognise(load_folder(sample_dir), [split])[0]
    assert found.by_content
    assert f"{len(found.files)} of these were among its training images" in " ".join(CARD.split())


def test_its_code_and_auto_map_are_those_of_every_saved_model(tmp_path):
    RepLKNetForImageClassification.from_pretrained(SHIPPED_MODEL).save_pretrained(tmp_path)
    RepLKNetImageProcessor.from_pretrained(SHIPPED_MODEL).save_pretrained(tmp_path)
    saved = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.py")}
    assert {path.name: path.read_text(encoding="utf-8") for path in SHIPPED_MODEL.glob("*.py")} == saved
    for name in ("config.json", "preprocessor_config.json"):
        found, expected = (json.loads((folder / name).read_text())["auto_map"] for folder in (SHIPPED_MODEL, tmp_path))
        assert found == expected


def test_a_pipeline_takes_it_where_the_architecture_was_not_imported(sample_dir, tmp_path):
    program = f"""
import sys
from transformers import pipeline
from seedling_hf import SHIPPED_MODEL
classify = pipeline("image-classification", model=SHIPPED_MODEL, trust_remote_code=True)
assert "seedling_hf.replknet" not in sys.modules
print(classify({str(sample_dir / "Cleavers" / "11c5eb5b6.jpg")!r})[0]["label"])
"""
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.stdout == "Cleavers\n", ended.stderr


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
