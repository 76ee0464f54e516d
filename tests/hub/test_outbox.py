"""Snapshots: what they hold, and that none is ever incomplete."""

import json
import os
from dataclasses import replace

import pytest

from seedling_hf.hub.outbox import Outbox, Target, is_result, model_files

TARGET = Target("alice/seedlings", "Step 1", tag="v1")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    code = {"AutoConfig": "configuration.Config", "AutoModel": ["modeling.Model", None], "Other": "a/b--theirs.Model"}
    (folder / "config.json").write_text(json.dumps({"auto_map": code}))
    (folder / "modeling.py").write_text("import torch\nfrom .operators import f\n")
    for name in (
        "configuration.py", "operators.py", "theirs.py", "train.py", "model-00001-of-00002.safetensors",
        "model.safetensors.index.json", "optimizer.safetensors", "report.json", "curves.png", "secret.env",
        ".DS_Store", "familiarity.safetensors", "metrics.jsonl", "training_args.bin",
        "checkpoints/step-00000001/state.json",
    ):  # fmt: skip
        (folder / name).write_text(name)
    return folder


MODEL = {
    "config.json", "modeling.py", "configuration.py", "operators.py", "model-00001-of-00002.safetensors",
    "model.safetensors.index.json", "familiarity.safetensors", "metrics.jsonl",
}  # fmt: skip


def test_only_listed_files_are_pushed(folder):
    assert set(model_files(folder)) == MODEL | {"report.json", "curves.png"}


def test_results_of_other_weights_are_not_pushed(folder):
    assert set(model_files(folder, results=False)) == MODEL


def test_what_is_familiar_belongs_to_the_weights():
    """So that it leaves the Hub with them."""
    assert is_result("familiarity.safetensors")


def test_a_checkpoint_has_the_name_that_transformers_gives_it(folder):
    files = model_files(folder, checkpoint=folder / "checkpoints" / "step-00000001")
    assert set(files) == MODEL | {"report.json", "curves.png", "last-checkpoint/state.json"}


def test_a_snapshot_is_read_as_it_was_written(folder):
    outbox = Outbox(folder)
    outbox.put(model_files(folder), TARGET, "step-00000001-save")
    snapshot = outbox.newest()
    assert snapshot.target == TARGET
    assert {name: path.read_bytes() for name, path in snapshot.files.items()} == {
        name: path.read_bytes() for name, path in model_files(folder).items()
    }


def test_a_snapshot_does_not_change_with_the_folder(folder):
    outbox = Outbox(folder)
    outbox.put(model_files(folder), TARGET, "step-00000001-save")
    (folder / "new").write_text("other weights")
    os.replace(folder / "new", folder / "model-00001-of-00002.safetensors")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write("one more line")
    files = outbox.newest().files
    assert files["model-00001-of-00002.safetensors"].read_text() == "model-00001-of-00002.safetensors"
    assert files["metrics.jsonl"].read_text() == "metrics.jsonl"


def test_weights_are_linked_not_copied(folder):
    snapshot = Outbox(folder).put(model_files(folder), TARGET, "step-00000001-save")
    name = "model-00001-of-00002.safetensors"
    assert snapshot.files[name].samefile(folder / name)


def test_the_newest_snapshot_is_the_last_one_put(folder):
    outbox = Outbox(folder)
    for step in (900, 1000):
        outbox.put(model_files(folder), TARGET, f"step-{step}-save")
    assert outbox.newest().folder.name == "000002-step-1000-save"


def test_a_failed_snapshot_leaves_nothing(folder):
    outbox = Outbox(folder)
    with pytest.raises(OSError, match="not there"):
        outbox.put(model_files(folder) | {"z": folder / "not there"}, TARGET, "step-00000001-save")
    assert list(outbox.folder.iterdir()) == []
    assert outbox.newest() is None


def test_the_rest_of_a_kill_is_not_a_snapshot_and_is_removed(folder):
    outbox = Outbox(folder)
    half = outbox.folder / ".000001-step-00000001-save.tmp"
    half.mkdir(parents=True)
    assert outbox.newest() is None
    outbox.put(model_files(folder), TARGET, "step-00000002-save")
    assert not half.exists()


def test_removing_a_snapshot_removes_earlier_ones_and_an_empty_outbox(folder):
    outbox = Outbox(folder)
    snapshots = [outbox.put(model_files(folder), TARGET, f"step-{step}-save") for step in (1, 2, 3)]
    outbox.remove(snapshots[1])
    assert outbox.newest() == snapshots[2]
    assert not snapshots[0].exists()
    outbox.remove(snapshots[2])
    assert not outbox.folder.exists()


def test_a_snapshot_that_is_being_pushed_is_not_replaced(folder):
    outbox = Outbox(folder)
    first, second, third = (outbox.put(model_files(folder), TARGET, f"step-{step}-save") for step in (1, 2, 3))
    outbox.remove_replaced(keep=first)
    assert (first.exists(), second.exists(), third.exists()) == (True, False, True)


def test_a_checkpoint_that_waits_goes_on_with_the_next_snapshot_without_one(folder):
    outbox = Outbox(folder)
    checkpoint = folder / "checkpoints" / "step-00000001"
    outbox.put(model_files(folder, checkpoint=checkpoint), replace(TARGET, tag=None), "step-00000001-save")
    (checkpoint / "state.json").write_text("what the run has written since")
    end = outbox.put(model_files(folder), TARGET, "step-00000001-end")
    outbox.remove_replaced(keep=None)
    assert outbox.pending() == [end]
    assert end.files["last-checkpoint/state.json"].read_text() == "checkpoints/step-00000001/state.json"
    newer = outbox.put(model_files(folder, checkpoint=checkpoint), TARGET, "step-00000002-save")
    assert newer.files["last-checkpoint/state.json"].read_text() == "what the run has written since"


@pytest.mark.parametrize(
    ("change", "replaced"),
    [
        ({"message": "Step 2"}, True),
        ({"private": True}, True),
        ({"repo_id": "alice/others"}, False),
        ({"revision": "trial"}, False),
        ({"tag": "v2"}, False),
        ({"tag": None}, False),
    ],
)
def test_only_what_is_newer_for_the_same_branch_and_tag_replaces_a_snapshot(folder, change, replaced):
    outbox = Outbox(folder)
    first = outbox.put(model_files(folder), TARGET, "step-1-end")
    second = outbox.put(model_files(folder), replace(TARGET, **change), "step-2-end")
    outbox.remove_replaced(keep=None)
    assert outbox.pending() == ([second] if replaced else [first, second])


def test_a_checkpoint_for_another_place_stays_there(folder):
    outbox = Outbox(folder)
    files = model_files(folder, checkpoint=folder / "checkpoints" / "step-00000001")
    outbox.put(files, TARGET, "step-00000001-save")
    other = outbox.put(model_files(folder), replace(TARGET, repo_id="alice/others"), "step-00000001-end")
    assert "last-checkpoint/state.json" not in other.files


def test_room_on_a_full_disk_is_not_made_of_the_only_checkpoint(folder):
    outbox = Outbox(folder)
    with_checkpoint = model_files(folder, checkpoint=folder / "checkpoints" / "step-00000001")
    first = outbox.put(with_checkpoint, TARGET, "step-1-save")
    outbox.make_room(model_files(folder), TARGET, keep=None)
    assert outbox.pending() == [first]
    outbox.make_room(with_checkpoint, TARGET, keep=None)
    assert outbox.pending() == []


def test_a_push_removes_what_waited_before_it_for_the_same_place_only(folder):
    outbox = Outbox(folder)
    other = outbox.put(model_files(folder), replace(TARGET, repo_id="alice/others"), "step-1-end")
    outbox.put(model_files(folder), replace(TARGET, tag=None), "step-2-save")
    outbox.remove(outbox.put(model_files(folder), TARGET, "step-3-end"))
    assert outbox.pending() == [other]
