"""A model that is trained on all images gets its certainty from folds, and says that nothing is left to validate it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from faults import Outcome, assert_sentence, assert_well, command, contents
from fold_runs import FLAGS
from safetensors.numpy import load_file

from seedling_hf.commands.make_split import MakeSplitArguments
from seedling_hf.errors import InputError
from seedling_hf.evaluation.calibration import sure_threshold
from seedling_hf.train_arguments import TrainArguments

ALL = [*FLAGS[:-2], "--train_val_split", "0"]  # without --fold
CACHED = ["--ema_decay", "0.5", "--cache_images", "48"]
HEAD = "classifier."


@pytest.fixture(scope="module")
def folds_dir(finished_folds) -> Path:
    return finished_folds / "run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, images, folds_dir) -> tuple[Path, Outcome]:
    """The output folder of a run on all images, and how the run ended."""
    folder = tmp_path_factory.mktemp("all")
    (folder / "images").symlink_to(images)
    outcome = command([*ALL, *CACHED, "--folds_dir", folds_dir], folder)
    assert_well(outcome)
    return folder / "run", outcome


def read_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_all_images_are_trained_on_and_none_validate(trained):
    run, outcome = trained
    lines = (run / "split.csv").read_text().splitlines()[1:]
    assert len(lines) == 48 and all(",train," in line for line in lines)
    assert not (run / "report.json").exists() and "eval_loss" not in (run / "metrics.jsonl").read_text()
    assert "Trained on all 48 images: no validation image is left" in outcome.stdout


def test_the_model_is_the_last_average_with_the_temperature_of_the_folds(trained, folds_dir):
    run, _ = trained
    temperatures = [read_config(path)["calibration_temperature"] for path in sorted(folds_dir.glob("fold_*"))]
    temperature = read_config(run)["calibration_temperature"]
    assert temperature == pytest.approx(float(np.exp(np.mean(np.log(temperatures)))))
    assert len(set(temperatures)) == 2 and min(temperatures) < temperature < max(temperatures)
    saved = load_file(run / "model.safetensors")
    last = load_file(run / "checkpoints" / "step-00000002" / "ema.safetensors")
    assert saved.keys() == last.keys() and any(name.startswith(HEAD) for name in saved)
    for name, tensor in saved.items():
        scale = temperature if name.startswith(HEAD) else 1
        np.testing.assert_allclose(tensor * scale, last[name], rtol=1e-6 if scale != 1 else 0)


def test_thresholds_come_from_the_answers_to_images_that_a_network_has_not_seen(trained, folds_dir):
    run, _ = trained
    archives = [dict(np.load(path)) for path in sorted(folds_dir.glob("fold_*/probabilities.npz"))]
    probabilities, labels, distances = (
        np.concatenate([archive[name] for archive in archives]) for name in ("probabilities", "labels", "distances")
    )
    limit = float(np.quantile(distances, 0.97))
    assert distances.shape == (48,) and distances.min() < limit < distances.max()
    assert load_file(run / "familiarity.safetensors")["threshold"] == pytest.approx(limit)
    expected = sure_threshold(probabilities.max(1), probabilities.argmax(1) == labels, distances <= limit)
    assert read_config(run)["confidence_threshold"] == pytest.approx(expected)


def test_the_card_quotes_the_folds(trained, folds_dir):
    run, _ = trained
    card, report = (run / "README.md").read_text(), json.loads((folds_dir / "report.json").read_text())
    assert "It was trained on all images, and none is left to validate it." in card
    assert "No validation image is left: the figures above are those of networks like it." in card
    low, high = report["accuracy_interval"]
    folds = ", ".join(f"{fold['accuracy']:.1%}" for fold in report["folds"])
    assert (
        f"| accuracy | {report['accuracy']:.1%} | 95% interval {low:.1%} to {high:.1%} (Wilson); the folds: {folds} |"
        in card
    )
    assert "All images were used for training, and none for validation." in card
    assert "best on the validation images" not in card and "model-index" not in card


def test_a_finished_run_that_is_resumed_is_not_calibrated_again(trained, tmp_path, images, folds_dir):
    shutil.copytree(trained[0], tmp_path / "run")
    (tmp_path / "images").symlink_to(images)
    before = contents(tmp_path / "run")
    flags = [*CACHED, "--folds_dir", folds_dir, "--resume_from_checkpoint", "latest"]
    assert_well(command([*ALL, *flags], tmp_path))
    after = contents(tmp_path / "run")
    names = {name for name in before | after if before.get(name) != after.get(name)}
    assert names <= {"README.md", "arguments.yaml", "curves.png", "train_results.json", "out_of_fold.json"}


def test_without_folds_nothing_is_claimed(tmp_path, images):
    (tmp_path / "images").symlink_to(images)
    outcome = command(ALL, tmp_path)
    assert_well(outcome)
    run = tmp_path / "run"
    config, card = read_config(run), (run / "README.md").read_text()
    assert config["calibration_temperature"] is config["confidence_threshold"] is None
    assert not (run / "familiarity.safetensors").exists() and not (run / "out_of_fold.json").exists()
    assert "How often it is right is unknown" in outcome.stdout and "of this model are unknown" in card
    last = load_file(run / "checkpoints" / "step-00000002" / "model.safetensors")
    saved = load_file(run / "model.safetensors")
    assert all(np.array_equal(saved[name], last[name]) for name in last)


def test_folds_of_other_classes_are_refused_before_training(tmp_path, images, folds_dir):
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images" / "Maize").rename(tmp_path / "images" / "Fat Hen")
    assert_sentence(command([*ALL, "--folds_dir", folds_dir], tmp_path), "found others: Fat Hen, Maize")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_folder_without_folds_is_refused(tmp_path, images, trained):
    (tmp_path / "images").symlink_to(images)
    outcome = command([*ALL, "--folds_dir", trained[0]], tmp_path)
    assert_sentence(outcome, "expected an output folder of --fold all/n in --folds_dir, found 0 models")


def test_folds_with_other_flags_are_named(tmp_path, images, folds_dir):
    (tmp_path / "images").symlink_to(images)
    outcome = command([*ALL, "--learning_rate", "0.002", "--folds_dir", folds_dir], tmp_path)
    assert_well(outcome)
    assert "were trained with other flags than this run (learning_rate 0.001 and here 0.002)" in outcome.stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"fold": "1/5"}, "found --fold; remove one of the two"),
        ({"fold": "all/5"}, "found --fold; remove one of the two"),
        ({"early_stopping_patience": 3}, "found --early_stopping_patience; remove"),
        ({"split_strategy": "mle_bench"}, "found --split_strategy mle_bench; remove"),
        ({"train_val_split": 0.2, "folds_dir": "folds"}, "expected --folds_dir with --train_val_split 0, found 0.2"),
    ],
)
def test_what_needs_validation_images_is_refused(tmp_path, flags, sentence):
    values = {"train_dir": "images", "output_dir": str(tmp_path / "run"), "variant": "tiny", "train_val_split": 0.0}
    with pytest.raises(InputError, match=sentence):
        TrainArguments(**values | flags)


def test_other_commands_still_need_validation_images(tmp_path):
    with pytest.raises(InputError, match="--train_val_split above 0"):
        MakeSplitArguments(train_dir="images", output_dir=str(tmp_path / "run"), train_val_split=0.0)


def test_a_tree_with_a_validation_folder_is_refused(tmp_path, images):
    for split in ("train", "val"):
        shutil.copytree(images, tmp_path / "images" / split)
    assert_sentence(command(ALL, tmp_path), "without a validation split for --train_val_split 0, found one")
