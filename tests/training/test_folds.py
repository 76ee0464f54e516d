"""`train --fold all/n`: ordinary runs one after another, resumable, and the figures of all images."""

import csv
import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from faults import Started, assert_sentence, assert_well, command
from fold_runs import FLAGS
from training_runs import TIMED, Run, kill

from seedling_hf.errors import InputError
from seedling_hf.train_arguments import TrainArguments


def read_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(newline="")))


def test_each_image_is_answered_by_the_run_that_did_not_train_on_it(finished_folds, images):
    run = finished_folds / "run"
    pooled = {row["file"]: row for row in read_rows(run / "predictions.csv")}
    assert len(pooled) == len(list(images.glob("*/*.jpg"))) == 48
    archive = np.load(run / "probabilities.npz")
    fold_of = dict(zip(archive["files"].tolist(), archive["fold"].tolist(), strict=True))
    for number in (1, 2):
        validated = {row["file"]: row for row in read_rows(run / f"fold_{number}" / "predictions.csv")}
        split = {row["file"]: row["split"] for row in read_rows(run / f"fold_{number}" / "split.csv")}
        assert {file for file, name in split.items() if name == "validation"} == validated.keys()
        assert {file for file, fold in fold_of.items() if fold == number} == validated.keys()
        # A word on the certainty is by the thresholds of all folds.
        assert all({**pooled[file], "certainty": row["certainty"]} == row for file, row in validated.items())


def test_the_report_of_all_images_has_the_figures_of_each_fold(finished_folds):
    run = finished_folds / "run"
    report = json.loads((run / "report.json").read_text())
    own = [json.loads((run / f"fold_{number}" / "report.json").read_text()) for number in (1, 2)]
    assert [fold["accuracy"] for fold in report["folds"]] == [each["accuracy"] for each in own]
    assert [fold["accuracy_interval"] for fold in report["folds"]] == [each["accuracy_interval"] for each in own]
    right = sum(round(each["accuracy"] * each["num_examples"]) for each in own)
    assert (report["num_examples"], report["accuracy"]) == (48, right / 48)
    printed = (finished_folds / "stdout").read_text()
    assert f"{right} of 48 images; 95% interval" in printed and "  fold   images  accuracy  95% interval" in printed
    assert "which was not trained on it" not in printed and "each by the network that was not trained on it" in printed
    for page in ("report.html", "report.md"):
        assert "Folds" in (run / page).read_text()


def test_another_run_in_the_same_folder_is_refused(finished_folds):
    assert_sentence(command(FLAGS, finished_folds), "found a run in run", "--overwrite_output_dir")
    ordinary = [*FLAGS[:-2], "--resume_from_checkpoint", "latest"]
    assert_sentence(command(ordinary, finished_folds), "expected to resume --fold all/2", "found an ordinary run")
    other = [*FLAGS[:-1], "all/3", "--resume_from_checkpoint", "latest"]
    assert_sentence(command(other, finished_folds), "expected to resume --fold all/2", "found --fold all/3")


def test_finished_folds_are_not_trained_again(finished_folds):
    run = finished_folds / "run"
    before = {path: path.stat().st_mtime_ns for path in run.glob("fold_*/*")}
    report = (run / "report.json").read_bytes()
    (run / "report.json").unlink()
    outcome = command([*FLAGS, "--resume_from_checkpoint", "latest"], finished_folds)
    assert_well(outcome)
    assert outcome.stdout.count("is finished, in run/fold_") == 2
    assert {path: path.stat().st_mtime_ns for path in run.glob("fold_*/*")} == before
    assert TIMED.sub(b"", (run / "report.json").read_bytes()) == TIMED.sub(b"", report)


def test_images_that_were_added_between_folds_are_refused(tmp_path, images, finished_folds):
    shutil.copytree(finished_folds / "run", tmp_path / "run")
    shutil.copytree(images, tmp_path / "images")
    shutil.rmtree(tmp_path / "run" / "fold_2")
    first = next((tmp_path / "images").glob("Maize/*.jpg"))
    first.with_name("new.jpg").write_bytes(first.read_bytes())
    outcome = command([*FLAGS, "--resume_from_checkpoint", "latest"], tmp_path)
    assert_sentence(outcome, "that run/fold_1 was trained on, found 1 image new, missing or of", "class: Maize/new.jpg")


def test_labels_are_corrected_where_they_are_trained_on_and_every_image_is_answered(tmp_path, images):
    (tmp_path / "images").symlink_to(images)
    left_out, corrected = sorted(f"Maize/{file.name}" for file in images.glob("Maize/*"))[:2]
    (tmp_path / "labels.csv").write_text(f"file,label\n{left_out},\n{corrected},Charlock\n")
    words = [*FLAGS, "--label_file", "labels.csv"]
    assert_well(command(words, tmp_path))
    pooled = {row["file"]: row["label"] for row in read_rows(tmp_path / "run" / "predictions.csv")}
    assert len(pooled) == 48 and pooled[corrected] == pooled[left_out] == "Maize"
    splits = [read_rows(tmp_path / "run" / f"fold_{number}" / "split.csv") for number in (1, 2)]
    found = {(row["file"], row["label"], row["split"]) for rows in splits for row in rows}
    assert {row[1:] for row in found if row[0] == left_out} == {("Maize", "validation")}
    assert {row[1:] for row in found if row[0] == corrected} == {("Maize", "validation"), ("Charlock", "train")}

    again = command([*words, "--resume_from_checkpoint", "latest"], tmp_path)
    assert_well(again)
    assert again.stdout.count("is finished, in run/fold_") == 2
    (tmp_path / "labels.csv").write_text(f"file,label\n{left_out},\n{corrected},Black-grass\n")
    changed = command([*words, "--resume_from_checkpoint", "latest"], tmp_path)
    assert_sentence(changed, "split (the images and their labels, after --split_file and --label_file) was ")


def test_overwriting_discards_every_fold(tmp_path, images, finished_folds):
    shutil.copytree(finished_folds / "run", tmp_path / "run")
    (tmp_path / "images").symlink_to(images)
    shutil.copytree(tmp_path / "run" / "fold_2", tmp_path / "run" / "fold_3")
    (tmp_path / "run" / "fold_3" / "mine.txt").write_text("mine")
    started = Started([*FLAGS, "--overwrite_output_dir"], tmp_path)
    started.wait_for(lambda: "Fold 1 of 2" in started.printed("stdout"))
    left = {path.name for path in (tmp_path / "run").glob("fold_[23]/*") if "seedling-hf" not in path.name}
    started.send(signal.SIGKILL)
    started.finish()
    assert "mine.txt" in left
    assert not {"config.json", "model.safetensors", "train_results.json", "probabilities.npz", "checkpoints"} & left


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"fold": "all/1"}, "such as 1/5 or all/5, found all/1"),
        ({"fold": "all"}, "such as 1/5 or all/5, found all"),
        ({"fold": "all/2", "push_to_hub": True}, "found --push_to_hub; push the folder of a fold"),
        ({"fold": "all/2", "resume_from_checkpoint": "run/checkpoints/step-00000002"}, "step-00000002; give latest"),
        ({"fold": "all/2", "split_file": "split.csv"}, "found --split_file; remove one of them"),
        ({"fold": "all/2", "split_strategy": "random"}, "stratified or grouped, found random"),
    ],
)
def test_what_folds_cannot_share_is_refused(tmp_path, flags, sentence):
    with pytest.raises(InputError, match=sentence):
        TrainArguments(train_dir="images", output_dir=str(tmp_path / "run"), variant="tiny", **flags)


def test_a_signal_ends_with_75_and_names_the_command_that_goes_on(tmp_path, images):
    (tmp_path / "images").symlink_to(images)
    flags = [*FLAGS, "--max_steps", "400", "--eval_steps", "400", "--save_steps", "400"]
    started = Started(flags, tmp_path)
    started.wait_for(lambda: (tmp_path / "run" / "fold_1" / "metrics.jsonl").exists())
    started.send(signal.SIGTERM)
    outcome = started.finish()
    assert outcome.code == 75, outcome.stderr
    assert "--config run/arguments.yaml --resume_from_checkpoint latest" in outcome.stdout


def digests(run: Run) -> dict[str, str]:
    """Of every file that must be equal: not of checkpoints before the last one."""
    paths = {str(path.relative_to(run.folder / "run")): path for path in run.folder.glob("run/**/*")}
    return {
        name: hashlib.sha256(TIMED.sub(b"", path.read_bytes())).hexdigest()
        for name, path in paths.items()
        if path.is_file() and path.name != "train_results.json" and "checkpoints" not in name
    }


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_run_killed_in_its_second_fold_ends_as_an_uninterrupted_one(tmp_path, images, num_processes):
    settings = {
        "fold": "all/3", "split_strategy": "grouped", "max_steps": 8, "num_processes": num_processes,
        "mixed_precision": "no",
    }  # fmt: skip
    whole = Run(tmp_path / "whole", images, **settings)
    whole.finish()
    expected = digests(whole)
    assert {f"fold_{number}/model.safetensors" for number in (1, 2, 3)} | {"report.json"} <= expected.keys()
    killed = Run(tmp_path / "killed", images, **settings)
    processes, metrics = killed.start(), killed.folder / "run" / "fold_2" / "metrics.jsonl"
    while not (metrics.exists() and '"step": 5,' in metrics.read_text()):
        assert processes[0].is_alive(), killed.output
        time.sleep(0.01)
    assert kill(processes)
    first = (killed.folder / "run" / "fold_1" / "model.safetensors").stat().st_mtime_ns
    killed.finish()
    assert "Fold 1 of 3 is finished" in killed.output and killed.resumed_steps == [4]
    assert (killed.folder / "run" / "fold_1" / "model.safetensors").stat().st_mtime_ns == first
    assert digests(killed) == expected
    assert os.path.exists(killed.folder / "run" / "fold_3" / "model.safetensors")
