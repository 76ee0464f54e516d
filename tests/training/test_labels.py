"""Where the labels of a run come from changes nothing but their names."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from faults import assert_sentence, assert_well, command

FLAGS = [
    "train", "--output_dir", "run", "--variant", "tiny", "--image_size", "32", "--per_device_train_batch_size", "4",
    "--max_steps", "3", "--save_steps", "2", "--logging_steps", "1", "--no_duplicate_check",
]  # fmt: skip
RESUME = ["--resume_from_checkpoint", "latest"]


def losses(folder: Path) -> list[float]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [value for line in map(json.loads, lines) for key, value in line.items() if "loss" in key]


def flatten(images: Path, folder: Path) -> Path:
    """The same images in one folder with a list of labels."""
    folder.mkdir(parents=True)
    lines = [("file_name", "label")]
    for file in images.glob("*/*"):
        shutil.copyfile(file, folder / file.name)
        lines.append((file.name, file.parent.name))
    with open(folder / "metadata.csv", "w", newline="") as stream:
        csv.writer(stream).writerows(lines)
    return folder


@pytest.mark.parametrize("more", [[], ["--cache_images", "48", "--split_strategy", "grouped"]], ids=["plain", "cached"])
def test_a_run_on_a_list_is_that_on_class_folders_to_the_last_digit(tmp_path, images, more):
    flatten(images, tmp_path / "list" / "images")
    (tmp_path / "folders").mkdir()
    shutil.copytree(images, tmp_path / "folders" / "images")
    for name in ("folders", "list"):
        assert_well(command([*FLAGS, "--train_dir", "images", *more], tmp_path / name))
    found = losses(tmp_path / "list")
    assert len(found) >= 4 and found == losses(tmp_path / "folders")


def test_a_run_with_a_map_resumes_with_the_same_names_only(tmp_path, images):
    flatten(images, tmp_path / "images")
    names = tmp_path / "names.csv"
    names.write_text("from,to\nBlack-grass,Blackgrass\n")
    words = [*FLAGS, "--train_dir", "images", "--label_map", "names.csv"]
    assert_well(command(words, tmp_path))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["Blackgrass", "Charlock", "Maize"]

    names.write_text("from,to\nBlack-grass,Bg\n")  # in the same place
    outcome = command([*words, *RESUME], tmp_path)
    assert_sentence(outcome, "class_names (after --label_map) was", "'Blackgrass'", "'Bg'", "--allow_changed_arguments")
    names.write_text("from,to\nBlack-grass,Maize\n")
    assert_sentence(command([*words, *RESUME], tmp_path), "split (the images and their labels", "class_names")
    (tmp_path / "other.csv").write_text("from,to\nBlack-grass,Blackgrass\n")
    assert_well(command([*words[:-1], "other.csv", *RESUME], tmp_path))


def test_labels_of_a_list_that_change_between_folds_are_refused(tmp_path, images):
    flatten(images, tmp_path / "images")
    words = [*FLAGS, "--train_dir", "images", "--fold", "all/2"]
    assert_well(command(words, tmp_path))
    shutil.rmtree(tmp_path / "run" / "fold_2")
    path = tmp_path / "images" / "metadata.csv"
    text = path.read_text()
    file = next(line.split(",")[0] for line in text.splitlines() if line.endswith(",Maize"))
    path.write_text(text.replace(f"{file},Maize", f"{file},Charlock"))
    outcome = command([*words, *RESUME], tmp_path)
    assert_sentence(outcome, f"that run/fold_1 was trained on, found 1 image new, missing or of another class: {file}")
    path.write_text(text)
    assert_well(command([*words, *RESUME], tmp_path))
