"""What is measured on images whose classes have other names, and a map, is what is measured on the same images."""

import csv
import json
from pathlib import Path

import pytest
from predict_runs import flags
from sample import copy_sample
from small_models import SPECIES

from seedling_hf.commands import compare, describe_dataset, evaluate, inspect_dataset, preview_augmentation, probe, run

pytestmark = pytest.mark.usefixtures("unsettled_precision")


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Three images of each of four species in class folders, and the same images flat, with other names in a list."""
    images, flat = copy_sample(tmp_path / "images", SPECIES, slice(2, 5)), tmp_path / "flat"
    flat.mkdir()
    lines = [("file_name", "label")]
    for file in images.glob("*/*"):
        (flat / file.name).write_bytes(file.read_bytes())
        lines.append((file.name, file.parent.name.upper().replace(" ", "_").replace("-", "_")))
    with open(flat / "metadata.csv", "w", newline="") as stream:
        csv.writer(stream).writerows(lines)
    with open(tmp_path / "map.csv", "w", newline="") as stream:
        spelled = [(name.upper().replace(" ", "_").replace("-", "_"), name) for name in SPECIES]
        csv.writer(stream).writerows([("from", "to"), *spelled])
    return images, flat


def test_evaluate_proposes_names_and_takes_a_map(model_dir, folders, tmp_path, capsys):
    images, flat = folders
    words = flags(model_name_or_path=model_dir, test_dir=flat, output_dir=tmp_path / "flat.report")
    assert run(evaluate.main, words) == 2
    assert f"{SPECIES[0].upper().replace('-', '_')} to {SPECIES[0]}" in capsys.readouterr().err
    assert run(evaluate.main, [*words, "--label_map", str(tmp_path / "map.csv")]) == 0
    words = flags(model_name_or_path=model_dir, test_dir=images, output_dir=tmp_path / "report")
    assert run(evaluate.main, words) == 0
    found, expected = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("flat.report", "report"))
    for key in ("accuracy", "macro_f1", "loss", "per_class", "confusion_matrix"):
        assert found[key] == expected[key], key


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (probe, ["--test_dir", "flat", "--model_name_or_path", "{model}", "--max_samples", "2"]),
        (compare, ["--data_dir", "flat", "--models", "{model}", "{other}"]),
        (inspect_dataset, ["--train_dir", "flat"]),
        (preview_augmentation, ["--train_dir", "flat", "--image_size", "32", "--num_examples", "1"]),
    ],
    ids=["probe", "compare", "inspect_dataset", "preview_augmentation"],
)
def test_commands_take_lists_and_maps(model_dir, familiar_dir, folders, tmp_path, monkeypatch, command, words):
    monkeypatch.chdir(tmp_path)
    words = [word.format(model=model_dir, other=familiar_dir) for word in words]
    assert run(command.main, [*words, "--label_map", "map.csv", "--output_dir", "out"]) == 0
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written & {"probes.json", "comparison.json", "inspection.json", f"{SPECIES[0]}.png"}


def test_a_sheet_of_a_class_stays_in_its_folder_whatever_the_class_is_called(folders, tmp_path):
    path = folders[1] / "metadata.csv"
    path.write_text(path.read_text().replace("MAIZE", "../../Maize").replace("CHARLOCK", "/Charlock"))
    words = flags(train_dir=folders[1], output_dir=tmp_path / "a" / "out", image_size=32, num_examples=1)
    assert run(preview_augmentation.main, words) in (0, None)
    assert len(list((tmp_path / "a" / "out").glob("*.png"))) == len(SPECIES) + 2 == len(list(tmp_path.rglob("*.png")))


def test_describe_dataset_counts_the_classes_of_a_map(folders, tmp_path, capsys):
    words = flags(train_dir=folders[1], label_map=tmp_path / "map.csv", output_file=tmp_path / "statistics.json")
    assert run(describe_dataset.main, words) in (0, None)
    assert json.loads((tmp_path / "statistics.json").read_text())["classes"] == dict.fromkeys(sorted(SPECIES), 3)
