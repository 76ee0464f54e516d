import pytest

from seedling_hf.errors import InputError
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training import trackers


@pytest.mark.parametrize(
    "name, installed, sentence",
    [
        ("tensorbord", [], "did you mean tensorboard"),
        ("wandb", [], "found it missing; install it, or leave the flag out"),
        ("wandb", ["aim"], r"name one that is installed \(aim\)"),
        ("all", [], "expected the package of all"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_refused(monkeypatch, name, installed, sentence):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: installed)
    with pytest.raises(InputError, match=sentence):
        trackers.check_trackers([name])


def test_installed_trackers_are_taken(monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["aim"])
    trackers.check_trackers(["aim", "all"])


def test_trackers_get_flags_that_tensorboard_takes(tmp_path):
    arguments = TrainArguments(train_dir="a", variant="nano", output_dir=str(tmp_path), depths=[2, 2, 6, 2])
    values = trackers.tracked_arguments(arguments)
    assert values["depths"] == "2 2 6 2" and "run_name" not in values and "report_to" not in values
    assert all(isinstance(value, bool | int | float | str) for value in values.values())
