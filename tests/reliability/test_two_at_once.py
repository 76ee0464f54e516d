"""Two commands with one output at the same time: the second says who is first, and the first ends as if alone."""

import errno
import os
import signal
import time
from pathlib import Path

import pytest
from faults import Started, assert_sentence, assert_well, command, contents
from held_commands import COMMANDS, assert_clean, hold_at_the_first_file, hold_in_the_run, link_inputs

TRAIN, WATCH = COMMANDS["train"], [*COMMANDS["predict"], "--watch"]


def without_locks() -> None:
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.lockf = fcntl.flock = refuse


@pytest.fixture
def places(tmp_path, images, model_dir) -> list[Path]:
    """Two folders to run a command in, with the same inputs and one output."""
    (tmp_path / "out").mkdir()
    made = []
    for name in ("first", "second"):
        made.append(tmp_path / name)
        made[-1].mkdir()
        link_inputs(made[-1], images, model_dir)
        (made[-1] / "out").symlink_to(tmp_path / "out")
    return made


def start_and_hold(words, place, before=hold_at_the_first_file, **options) -> Started:
    first = Started(words, place, before=before, **options)
    first.wait_for((place / "held").exists)
    return first


def go_on(first: Started, place: Path):
    (place / "go").touch()
    return first.finish()


def steps_of(folder: Path) -> list[str]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line.split(",")[0] for line in lines if '"loss"' in line]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_second_is_told_who_is_first_and_the_first_ends_well(places, name):
    first = start_and_hold(COMMANDS[name], places[0])
    second = command(COMMANDS[name], places[1])
    outcome = go_on(first, places[0])
    assert_sentence(
        second, "to be free, found another run", f"process {first.processes[0].pid} on ", "wait until it ends"
    )
    assert outcome.code in (0, 1) and "Traceback" not in outcome.stderr, outcome
    assert_clean(places[0].parent / "out")
    if name.startswith("train"):
        assert len(steps_of(places[0] / "out")) == 3


def test_a_training_of_two_processes_has_one_lock_and_a_second_one_is_refused(places):
    words = [word if word != "8" else "4" for word in TRAIN]
    first = start_and_hold(words, places[0], num_processes=2)
    second = command(words, places[1], num_processes=2)
    outcome = go_on(first, places[0])
    assert second.code == 2 and "Traceback" not in second.stderr, second
    assert second.stderr.count("to be free, found another run") == 1  # one speaks for all
    assert outcome.code == 0, outcome
    assert len(steps_of(places[0] / "out")) == 3
    assert_clean(places[0].parent / "out")


def rows(out: Path) -> int:
    path = out / "answers.csv"
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


@pytest.mark.parametrize("second", [WATCH, COMMANDS["predict"]], ids=["watch", "predict"])
def test_nothing_else_writes_the_output_of_a_watch(places, second):
    for path in Path(places[0], "images").resolve().glob("*/*"):
        os.utime(path, (1e9, 1e9))
    first = Started(WATCH, places[0])
    first.wait_for(lambda: rows(places[0] / "out") >= 16)
    refused = Started(second, places[1])
    refused.processes[0].join(10)
    if refused.processes[0].is_alive():
        refused.send(signal.SIGTERM)
    refused = refused.finish()
    first.send(signal.SIGTERM)
    outcome = first.finish()
    assert_sentence(refused, f"process {first.processes[0].pid} on ")
    assert_well(outcome)
    assert rows(places[0] / "out") == 48
    assert_clean(places[0].parent / "out")


def test_the_lock_ends_with_a_killed_run(places):
    first = start_and_hold(TRAIN, places[0], before=hold_in_the_run)
    first.send(signal.SIGKILL)
    first.finish()
    outcome = command([*TRAIN, "--resume_from_checkpoint", "latest"], places[1])
    assert_well(outcome)
    assert_clean(places[0].parent / "out")


def test_the_lock_ends_with_a_killed_run_whose_workers_live_on(places):
    words = [*COMMANDS["predict"], "--dataloader_num_workers", "2", "--per_device_eval_batch_size", "4"]
    first = Started(words, places[0], before=slowly)
    first.wait_for(lambda: any((places[0] / "out").glob("*.partial/answers-*")))
    first.send(signal.SIGKILL)  # not to its workers
    first.processes[0].join()
    outcome = command(words, places[0])
    assert_well(outcome)
    assert rows(places[0] / "out") == 48


def slowly() -> None:
    import torch

    forward = torch.nn.Module.__call__

    def slow(self, *arguments, **options):
        if type(self).__name__.endswith("ForImageClassification"):
            time.sleep(0.2)
        return forward(self, *arguments, **options)

    torch.nn.Module.__call__ = slow


@pytest.mark.parametrize("name", ["train", "predict", "evaluate", "embed", "make_split"])
def test_a_file_system_without_locks_is_said_once_and_used(places, name):
    outcome = command(COMMANDS[name], places[0], before=without_locks)
    assert_well(outcome)
    assert outcome.stderr.count("could not be locked") == 1, outcome
    assert_clean(places[0].parent / "out")


def test_two_outputs_in_one_folder_do_not_disturb_each_other(places):
    first = start_and_hold(COMMANDS["predict"], places[0])
    words = [word.replace("answers", "others") for word in COMMANDS["predict"]]
    second = command(words, places[1])
    assert_well(second)
    assert_well(go_on(first, places[0]))
    assert {path.name for path in (places[0] / "out").iterdir()} == {"answers.csv", "others.csv"}


def test_a_folder_is_the_same_by_any_of_its_names(places):
    first = start_and_hold(COMMANDS["evaluate"], places[0])
    words = [
        word if word != "out" else str(places[0].parent / "second" / ".." / "out") for word in COMMANDS["evaluate"]
    ]
    second = command(words, places[1])
    assert_well(go_on(first, places[0]))
    assert_sentence(second, f"process {first.processes[0].pid} on ")


def test_a_file_of_the_users_in_the_place_of_the_lock_is_kept(places):
    for name in (".seedling-hf.lock", ".answers.csv.seedling-hf.lock", "answers.csv.partial/lock"):
        path = places[0] / "out" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("precious")
    before = contents(places[0].parent / "out")
    command(COMMANDS["evaluate"], places[0])
    command(COMMANDS["predict"], places[0])
    after = contents(places[0].parent / "out")
    assert all(after.get(name) == digest for name, digest in before.items())
