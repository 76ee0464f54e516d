import logging
from types import SimpleNamespace

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


class Tracker:
    """Fails at the entries whose numbers, from 1 on, are `failures`."""

    def __init__(self, name: str, failures=(), at_the_end: bool = False) -> None:
        self.name, self.failures, self.at_the_end = name, failures, at_the_end
        self.calls, self.taken = 0, []

    def log(self, values: dict, step: int) -> None:
        self.calls += 1
        if self.calls in self.failures:
            raise ConnectionError("the server\nrefuses")
        self.taken.append(step)

    def finish(self) -> None:
        if self.at_the_end:
            raise OSError


def log_steps(*started: Tracker, count: int = 8) -> None:
    accelerator = SimpleNamespace(trackers=list(started))
    log = trackers.Trackers(accelerator)
    for step in range(1, count + 1):
        log.log({"loss": 1.0}, step)
    log.finish()
    assert accelerator.trackers == []


def test_a_tracker_that_fails_is_one_notice_and_one_at_the_end(caplog):
    caplog.set_level(logging.WARNING)
    failing, other = Tracker("failing", {2, 3, 5}), Tracker("other")
    log_steps(failing, other)
    assert failing.taken == [1, 4, 6, 7, 8] and other.taken == [*range(1, 9)]
    first, last = [record.message for record in caplog.records]
    assert first.startswith(
        "expected failing to take the entry of step 2, found: the server refuses; the run continues"
    )
    assert last.startswith("failing failed during this run, and lacks 3 or more of its 8 entries (the server refuses)")


def test_a_tracker_that_fails_three_times_in_a_row_is_left_alone(caplog):
    failing = Tracker("failing", range(2, 100))
    log_steps(failing, count=50)
    assert failing.calls == 4
    assert "lacks 49 or more of its 50 entries" in caplog.text


def test_a_tracker_that_fails_at_the_end_is_named(caplog):
    log_steps(Tracker("failing", at_the_end=True), Tracker("other"))
    assert "expected failing to take the end of the run, found: OSError" in caplog.text
    assert "other" not in caplog.text
