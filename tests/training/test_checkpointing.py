"""Checkpoints: no kill loses anything, every damage is noticed, and no code is run."""

import errno
import hashlib
import itertools
import json
import os
import pickle
import random
import resource
import shutil
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import FORKS
from safetensors.torch import save_file

from seedling_hf.errors import InputError
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training import checkpoint_files, checkpointing
from seedling_hf.training.checkpointing import CheckpointError, Checkpoints
from seedling_hf.training.resuming import FREE_ARGUMENTS, check_unchanged, get_random_state, set_random_state

FILES = [
    "manifest.json", "model.safetensors", "ema.safetensors", "state.json", "state.safetensors", "random_states.json",
    "random_states.safetensors",
]  # fmt: skip


def save(checkpoints: Checkpoints, step: int, **options) -> Path:
    """A checkpoint in which every value depends on its step."""
    model = {"weight": torch.full((8, 8), float(step)), "count": torch.tensor(step)}
    tensors = {"model": model, "ema": {"weight": torch.full((8, 8), step / 2)}}
    return checkpoints.save(step, tensors, {"counters": {"step": step}, "moment": torch.full((3,), step)}, **options)


def is_complete(checkpoint, step: int) -> bool:
    return (
        checkpoint.step == checkpoint.state["counters"]["step"] == checkpoint.tensors["model"]["count"].item() == step
        and bool((checkpoint.tensors["ema"]["weight"] == step / 2).all())
        and bool((checkpoint.state["moment"] == step).all())
        and len(checkpoint.random_states) == 1
    )


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(
        a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)
    )


def entry(file: Path) -> dict:
    return {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


# What is kept


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)], ids=str)
def test_a_tensor_comes_back_bit_for_bit(tmp_path, dtype, shape):
    tensor = (torch.randn(shape) * 3).to(dtype)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"model": {"a.b": tensor}}, {"deep": [{"er": (tensor,)}]})
    checkpoint = checkpoints.load("latest")
    assert same_bits(checkpoint.tensors["model"]["a.b"], tensor)
    assert same_bits(checkpoint.state["deep"][0]["er"][0], tensor)


def test_payloads_of_nan_and_signs_of_zero_come_back(tmp_path):
    bits = torch.tensor([0x7FC00001, 0x7F800001, -1, -0x80000000, 0x7F800000, 1], dtype=torch.int32)
    Checkpoints(tmp_path).save(1, {"model": {"a": bits.view(torch.float32)}}, {})
    assert torch.equal(Checkpoints(tmp_path).load("latest").tensors["model"]["a"].view(torch.int32), bits)


def test_a_tensor_that_is_not_contiguous_comes_back(tmp_path):
    tensor = torch.arange(12.0).view(3, 4).t()
    Checkpoints(tmp_path).save(1, {"model": {"a": tensor}}, {"a": tensor.expand(2, 4, 3)})
    checkpoint = Checkpoints(tmp_path).load("latest")
    assert torch.equal(checkpoint.tensors["model"]["a"], tensor)
    assert torch.equal(checkpoint.state["a"], tensor.expand(2, 4, 3))


def test_nested_state_comes_back_with_its_types(tmp_path):
    state = {
        "counters": {"step": 3, "best": 0.1 + 0.2, "none": None, "yes": True, "worst": float("-inf"), "big": 2**80},
        "by number": {0: "zero", (1, 2): ["tuple"], None: ()},
        "__tensor__": "no tensor",
        "pair": (1, [2, (3,)]),
        "name\n“é🌱": "\udcff",
        "empty": {},
    }
    Checkpoints(tmp_path).save(1, {}, state)
    assert Checkpoints(tmp_path).load("latest").state == state


def test_tensors_with_equal_paths_stay_apart(tmp_path):
    state = {"a.b": torch.tensor(1), "a": {"b": torch.tensor(2)}, "a.b'": torch.tensor(3)}
    Checkpoints(tmp_path).save(1, {}, state)
    state = Checkpoints(tmp_path).load("latest").state
    assert [state["a.b"].item(), state["a"]["b"].item(), state["a.b'"].item()] == [1, 2, 3]


def test_a_value_that_json_cannot_hold_is_refused_by_name(tmp_path):
    with pytest.raises(TypeError, match=r"state.counters.best is of type float32"):
        Checkpoints(tmp_path).save(1, {}, {"counters": {"best": np.float32(1)}})


def test_an_optimizer_resumes_bit_for_bit(tmp_path):
    def make():
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 3)
        groups = [{"params": [model.weight], "weight_decay": 0.1}, {"params": [model.bias], "weight_decay": 0.0}]
        return model, torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.95))

    def step(model, optimizer, number):
        model(torch.full((2, 5), float(number))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = make()
    for number in range(3):
        step(model, optimizer, number)
    Checkpoints(tmp_path).save(3, {"model": model.state_dict()}, {"optimizer": optimizer.state_dict()})
    step(model, optimizer, 3)

    resumed, resumed_optimizer = make()
    checkpoint = Checkpoints(tmp_path).load("latest")
    resumed.load_state_dict(checkpoint.tensors["model"])
    resumed_optimizer.load_state_dict(checkpoint.state["optimizer"])
    step(resumed, resumed_optimizer, 3)
    assert all(map(torch.equal, model.state_dict().values(), resumed.state_dict().values()))


def test_random_states_are_restored(tmp_path):
    def draw():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()

    draw()  # one Gaussian of a pair is now kept back
    Checkpoints(tmp_path).save(1, {}, {})
    expected = [draw() for _ in range(3)]
    set_random_state(Checkpoints(tmp_path).load("latest").random_states[0])
    assert [draw() for _ in range(3)] == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_random_state_of_the_gpu_is_restored(tmp_path):
    torch.rand(3, device="cuda")
    Checkpoints(tmp_path).save(1, {}, {})
    expected = torch.rand(3, device="cuda")
    set_random_state(Checkpoints(tmp_path).load("latest").random_states[0])
    assert torch.equal(torch.rand(3, device="cuda"), expected)


def test_the_random_states_of_all_processes_are_kept_in_their_order(tmp_path):
    torch.manual_seed(1)
    other = get_random_state()
    torch.manual_seed(0)

    def gather(items):
        return [*items, other] if "torch" in (items[0] or {}) else items

    Checkpoints(tmp_path, gather=gather).save(1, {}, {})
    states = Checkpoints(tmp_path).load("latest").random_states
    assert [torch.Generator().set_state(state["torch"]).initial_seed() for state in states] == [0, 1]


def test_the_second_process_writes_nothing_and_reads_what_the_first_chose(tmp_path):
    first = Checkpoints(tmp_path)
    path = save(first, 10)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    save(Checkpoints(tmp_path, process_index=1, gather=lambda items: [None]), 20)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    second = Checkpoints(
        tmp_path, process_index=1, gather=lambda items: [(path, None)] if isinstance(items[0], tuple) else items
    )
    assert is_complete(second.load("latest"), 10)


def test_a_fault_on_the_first_process_is_raised_on_the_second(tmp_path):
    with pytest.raises(CheckpointError, match="disk is full"):
        save(Checkpoints(tmp_path, process_index=1, gather=lambda items: ["disk is full"]), 20)


def test_nothing_but_safetensors_and_json_is_written(tmp_path):
    path = save(Checkpoints(tmp_path), 1)
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)


# What is loaded


def test_without_a_checkpoint_latest_is_none(tmp_path):
    assert Checkpoints(tmp_path).load("latest") is None


@pytest.mark.parametrize("place", ["run", "run/checkpoints", "run/checkpoints/step-00000020"])
def test_a_checkpoint_is_found_by_path(tmp_path, place):
    (tmp_path / "run").mkdir()
    for step in (10, 20):
        save(Checkpoints(tmp_path / "run"), step)
    assert is_complete(Checkpoints(tmp_path / "other").load(tmp_path / place), 20)


def test_an_older_checkpoint_is_found_by_path(tmp_path):
    for step in (10, 20):
        save(Checkpoints(tmp_path), step)
    assert is_complete(Checkpoints(tmp_path).load(tmp_path / "checkpoints/step-00000010"), 10)


@pytest.mark.parametrize("place", ["nothing", "empty", "file"])
def test_a_path_without_a_checkpoint_is_refused_by_name(tmp_path, place):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=rf"expected a checkpoint, .* found none at .*{place}"):
        Checkpoints(tmp_path).load(tmp_path / place)


def test_after_going_back_the_latest_is_the_one_written_last(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20, 5):
        save(checkpoints, step)
    assert is_complete(checkpoints.load("latest"), 5)


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(10, {}, {"run": "first"})
    checkpoints.save(10, {}, {"run": "second"})
    assert checkpoints.load("latest").state == {"run": "second"}
    assert names(checkpoints) == ["latest", "step-00000010"]


def test_a_later_format_is_refused_with_both_versions(tmp_path):
    path = save(Checkpoints(tmp_path), 10)
    files = json.loads((path / "manifest.json").read_text())["files"]
    (path / "manifest.json").write_text(checkpoint_files.manifest_text(10, files, version=2))
    with pytest.raises(InputError, match="expected a checkpoint of format version 1, found version 2"):
        Checkpoints(tmp_path).load(path)


# Cost


def test_saves_are_affordable_where_they_take_two_percent_of_the_time(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def slow_random_state():
        nonlocal now
        now += 2.0
        return get_random_state()

    monkeypatch.setattr(checkpointing, "get_random_state", slow_random_state)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.are_affordable()  # the cost of a save is still unknown
    save(checkpoints, 10)
    now = 199.0
    assert not checkpoints.are_affordable()
    now = 200.0
    assert checkpoints.are_affordable()
    save(checkpoints, 20)
    now = 299.0
    assert not checkpoints.are_affordable()


def test_all_processes_agree_with_the_first_whether_a_save_is_affordable(tmp_path):
    assert not Checkpoints(tmp_path, process_index=1, gather=lambda items: [False, *items]).are_affordable()


# Pruning


def test_only_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, save_total_limit=2)
    for step in (10, 20, 30, 40):
        save(checkpoints, step)
    assert names(checkpoints) == ["latest", "step-00000030", "step-00000040"]


def test_without_a_limit_all_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20, 30):
        save(checkpoints, step)
    assert names(checkpoints) == ["latest", "step-00000010", "step-00000020", "step-00000030"]


def test_the_best_is_kept_besides_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, save_total_limit=1)
    for step in (10, 20, 30, 40):
        save(checkpoints, step, protect=20 if step >= 20 else 10)
    assert names(checkpoints) == ["latest", "step-00000020", "step-00000040"]


def test_after_going_back_the_newest_is_kept_and_later_steps_go_first(tmp_path):
    for step in (10, 20, 30):
        save(Checkpoints(tmp_path), step)
    checkpoints = Checkpoints(tmp_path, save_total_limit=2)
    save(checkpoints, 15)
    assert names(checkpoints) == ["latest", "step-00000010", "step-00000015"]


def test_what_was_not_written_here_is_never_deleted(tmp_path):
    checkpoints = Checkpoints(tmp_path, save_total_limit=1)
    checkpoints.folder.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "manifest.json").write_text("{}")
    (checkpoints.folder / "step-00000001").mkdir()  # no manifest
    (checkpoints.folder / "step-00000002").mkdir()
    (checkpoints.folder / "step-00000002" / "manifest.json").write_text('{"a": "foreign one"}')
    (checkpoints.folder / "step-00000003").symlink_to(outside)
    (checkpoints.folder / "step-00000004-notes").mkdir()
    (checkpoints.folder / ".step-notes").mkdir()
    (save(checkpoints, 5) / "notes.txt").write_text("a stranger in a checkpoint")
    before = {*tmp_path.rglob("*")}
    save(checkpoints, 6)
    save(checkpoints, 7)
    assert before <= {*tmp_path.rglob("*")}
    assert not (checkpoints.folder / "step-00000006").exists()


def test_a_foreign_folder_of_the_same_name_is_moved_aside(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for text in ("mine", "mine too"):
        shutil.rmtree(checkpoints.folder / "step-00000010", ignore_errors=True)
        (checkpoints.folder / "step-00000010").mkdir(parents=True)
        (checkpoints.folder / "step-00000010" / "notes.txt").write_text(text)
        save(checkpoints, 10)
    assert is_complete(checkpoints.load("latest"), 10)
    assert (checkpoints.folder / "step-00000010.aside-1" / "notes.txt").read_text() == "mine"
    assert (checkpoints.folder / "step-00000010.aside-2" / "notes.txt").read_text() == "mine too"
    assert "is now step-00000010.aside-1" in caplog.text


def test_a_limit_below_one_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected save_total_limit of at least 1, .* found 0"):
        Checkpoints(tmp_path, save_total_limit=0)


# Kills


def die_before_operation(number: int) -> None:
    """Kills this process before its file operation of that number, with the file it writes half written."""
    count, lock = itertools.count(), threading.Lock()

    def fatal(function):
        def wrapper(*args, **kwargs):
            with lock:
                if next(count) == number:
                    if function in (save_file, write_text):
                        function(*args, **kwargs)
                        path = args[1] if function is save_file else args[0]
                        os.truncate(path, os.path.getsize(path) // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    write_text = Path.write_text
    for name in ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir"):
        setattr(os, name, fatal(getattr(os, name)))
    Path.write_text = fatal(write_text)
    checkpoint_files.save_file = fatal(save_file)


def _save_and_die(output_dir: Path, steps: list[int], number: int) -> None:
    die_before_operation(number)
    for step in steps:
        save(Checkpoints(output_dir, save_total_limit=1), step)


def _kills(tmp_path: Path, first: list[int], then: list[int]):
    """Saves `first`, then again and again `then`, each time killed one file operation later."""
    (tmp_path / "whole").mkdir()
    for step in first:
        save(Checkpoints(tmp_path / "whole", save_total_limit=1), step)
    for number in itertools.count():
        output_dir = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", output_dir)
        process = FORKS.Process(target=_save_and_die, args=(output_dir, then, number))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        yield output_dir
    assert number > 20  # files, flushes, renames and prunings were all met


def test_a_kill_between_any_two_file_operations_leaves_a_complete_latest(tmp_path):
    found = []
    for output_dir in _kills(tmp_path, first=[10], then=[20]):
        checkpoint = Checkpoints(output_dir).load("latest")
        assert is_complete(checkpoint, checkpoint.step)
        found.append(checkpoint.step)
    assert found == sorted(found) and {*found} == {10, 20}


def test_a_kill_in_the_first_save_leaves_none_or_a_complete_one(tmp_path):
    found = []
    for output_dir in _kills(tmp_path, first=[], then=[20]):
        checkpoint = Checkpoints(output_dir).load("latest")
        assert checkpoint is None or is_complete(checkpoint, 20)
        found.append(checkpoint is not None)
    assert found == sorted(found) and {*found} == {False, True}


def test_a_kill_while_the_same_step_is_replaced_leaves_a_complete_one(tmp_path):
    for output_dir in _kills(tmp_path, first=[20], then=[20]):
        assert is_complete(Checkpoints(output_dir).load("latest"), 20)


def test_after_any_kill_the_next_save_leaves_only_what_it_should(tmp_path):
    for output_dir in _kills(tmp_path, first=[10], then=[20]):
        checkpoints = Checkpoints(output_dir, save_total_limit=1)
        save(checkpoints, 30)
        assert names(checkpoints) == ["latest", "step-00000030"]


def test_after_any_kill_loading_clears_leftovers(tmp_path):
    for output_dir in _kills(tmp_path, first=[10], then=[20]):
        checkpoints = Checkpoints(output_dir)
        checkpoints.load("latest")
        assert not list(checkpoints.folder.glob(".step-*"))


# Faults of the disk


def _outgrow_the_limit(output_dir: Path, messages) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    try:
        save(Checkpoints(output_dir), 20)
    except CheckpointError as error:
        messages.put(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    save(Checkpoints(output_dir), 30)


def test_a_failed_write_is_reported_and_the_next_one_may_succeed(tmp_path):
    save(Checkpoints(tmp_path), 10)
    messages = FORKS.SimpleQueue()
    process = FORKS.Process(target=_outgrow_the_limit, args=(tmp_path, messages))
    process.start()
    process.join()
    assert process.exitcode == 0
    message = messages.get()
    assert "step 20 could not be written" in message and "File too large" in message
    assert names(Checkpoints(tmp_path)) == ["latest", "step-00000010", "step-00000030"]


@pytest.mark.parametrize("operation", ["mkdir", "fsync", "rename", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_a_fault_of_the_disk_leaves_the_earlier_checkpoint_and_no_leftovers(tmp_path, monkeypatch, operation, code):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10)

    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, operation, fail)
        with pytest.raises(CheckpointError, match=rf"step 20 could not be written to .*{os.strerror(code)}"):
            save(checkpoints, 20)
    assert is_complete(checkpoints.load("latest"), 10)
    assert not list(checkpoints.folder.glob(".step-*"))
    save(checkpoints, 30)
    assert is_complete(checkpoints.load("latest"), 30)


def test_a_missing_folder_is_reported_and_not_created_again(tmp_path):
    output_dir = tmp_path / "run"
    output_dir.mkdir()
    checkpoints = Checkpoints(output_dir)
    save(checkpoints, 10)
    shutil.rmtree(output_dir)
    with pytest.raises(CheckpointError, match="No such file or directory"):
        save(checkpoints, 20)
    assert not output_dir.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_became_read_only_is_reported(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10)
    checkpoints.folder.chmod(0o555)
    with pytest.raises(CheckpointError, match="Permission denied"):
        save(checkpoints, 20)
    assert is_complete(checkpoints.load("latest"), 10)
    checkpoints.folder.chmod(0o755)


def test_a_failure_to_prune_does_not_affect_the_save(tmp_path, monkeypatch, caplog):
    checkpoints = Checkpoints(tmp_path, save_total_limit=1)
    save(checkpoints, 10)

    def fail(*args, **kwargs):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(shutil, "rmtree", fail)
    save(checkpoints, 20)
    assert is_complete(checkpoints.load("latest"), 20)
    assert "could not be pruned: [Errno 5] Input/output error" in caplog.text


# Damage


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def flip_first(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def flip_last(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES = [truncate, empty, flip_first, flip_last, lengthen, Path.unlink, replace_by_folder]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_latest_is_named_and_the_one_before_is_used(tmp_path, caplog, name, damage):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        path = save(checkpoints, step)
    damage(path / name)
    assert is_complete(checkpoints.load("latest"), 10)
    assert f"the checkpoint {path} is damaged: {name} " in caplog.text


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_given_by_path_is_refused_by_name(tmp_path, name, damage):
    path = save(Checkpoints(tmp_path), 10)
    damage(path / name)
    with pytest.raises(InputError, match=rf"the checkpoint {path} is damaged: {name} "):
        Checkpoints(tmp_path).load(path)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_pointer_is_reported_and_the_newest_is_used(tmp_path, caplog, damage):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        save(checkpoints, step)
    damage(checkpoints.folder / "latest")
    assert is_complete(checkpoints.load("latest"), 20)
    assert f"{checkpoints.folder / 'latest'} is missing or damaged" in caplog.text


def test_a_pointer_to_an_older_step_by_a_flipped_digit_is_not_trusted(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 11):
        save(checkpoints, step)
    pointer = checkpoints.folder / "latest"
    pointer.write_text(pointer.read_text().replace("step-00000011", "step-00000010"))
    assert is_complete(checkpoints.load("latest"), 11)


def test_two_damaged_checkpoints_are_both_named_and_the_third_is_used(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20, 30):
        path = save(checkpoints, step)
        if step > 10:
            flip_last(path / "model.safetensors")
    assert is_complete(checkpoints.load("latest"), 10)
    assert "step-00000030 is damaged" in caplog.text and "step-00000020 is damaged" in caplog.text


def test_where_all_checkpoints_are_damaged_the_run_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        truncate(save(checkpoints, step) / "model.safetensors")
    with pytest.raises(InputError, match=r"expected a complete checkpoint in .*, found none: .*-00000020 .*-00000010 "):
        checkpoints.load("latest")


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_can_be_written_again(tmp_path, name):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        path = save(checkpoints, step)
    flip_last(path / name)
    save(checkpoints, 20)
    assert is_complete(checkpoints.load("latest"), 20)


# Malice


class Bomb:
    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


@pytest.mark.parametrize("signed", [False, True], ids=["checksums of before", "checksums of the pickle"])
@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize("name", FILES)
def test_a_malicious_pickle_in_place_of_a_file_is_refused_and_not_run(tmp_path, name, form, signed):
    witness = tmp_path / "ran"
    path = save(Checkpoints(tmp_path), 10)
    if form == "pickle":
        (path / name).write_bytes(pickle.dumps(Bomb(witness)))
    else:
        torch.save(Bomb(witness), path / name)
    if signed and name != "manifest.json":
        files = json.loads((path / "manifest.json").read_text())["files"]
        files[name] = entry(path / name)
        (path / "manifest.json").write_text(checkpoint_files.manifest_text(10, files))
    with pytest.raises(InputError, match=r"is damaged|nothing of it was run or used"):
        Checkpoints(tmp_path).load(path)
    assert not witness.exists()
    pickle.loads(pickle.dumps(Bomb(witness)))
    assert witness.exists()  # the bomb is a real one


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "null", "[]", '{"files": {"../../secret": {}}}', '{"format_version": [], "step": 1}']
)
def test_a_strange_manifest_is_refused(tmp_path, text):
    path = save(Checkpoints(tmp_path), 10)
    (path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json is not as it was written"):
        Checkpoints(tmp_path).load(path)


def test_a_manifest_cannot_point_out_of_its_folder(tmp_path):
    path = save(Checkpoints(tmp_path), 10)
    (tmp_path / "secret").write_text("")
    files = json.loads((path / "manifest.json").read_text())["files"]
    files["../../secret"] = entry(tmp_path / "secret")
    (path / "manifest.json").write_text(checkpoint_files.manifest_text(10, files))
    with pytest.raises(InputError, match=r"manifest\.json is not as it was written"):
        Checkpoints(tmp_path).load(path)


# Changed arguments

ARGUMENTS = {
    **asdict(TrainArguments(output_dir="run", train_dir="images", variant="nano")),
    "global_batch_size": 64,
    "num_processes": 2,
}


def test_equal_arguments_are_accepted_without_a_message():
    assert check_unchanged(json.loads(json.dumps(ARGUMENTS)), ARGUMENTS) == []


@pytest.mark.parametrize("name", sorted(FREE_ARGUMENTS))
def test_an_argument_without_effect_on_the_weights_may_change(name):
    assert check_unchanged(ARGUMENTS, {**ARGUMENTS, name: "another"}) == []


def test_every_free_argument_is_an_argument():
    assert ARGUMENTS.keys() >= FREE_ARGUMENTS


@pytest.mark.parametrize(
    "name", ["train_dir", "train_val_split", "seed", "learning_rate", "num_train_epochs", "mixup_alpha", "variant",
             "ema_decay", "cache_images", "global_batch_size", "mixed_precision", "early_stopping_patience",
             "eval_steps"]
)  # fmt: skip
def test_an_argument_that_changes_the_run_is_refused_with_both_values(name):
    with pytest.raises(
        InputError, match=rf"{name} was {ARGUMENTS[name]!r} and is 'another'.*--allow_changed_arguments"
    ):
        check_unchanged(ARGUMENTS, {**ARGUMENTS, name: "another"})


def test_all_changed_arguments_are_named_at_once():
    with pytest.raises(InputError, match=r"learning_rate was 0.001 and is 0.1; seed was 42 and is 7"):
        check_unchanged(ARGUMENTS, {**ARGUMENTS, "seed": 7, "learning_rate": 0.1})


def test_changed_arguments_that_are_allowed_are_reported():
    assert check_unchanged(ARGUMENTS, {**ARGUMENTS, "seed": 7}, allow=True) == ["seed was 42 and is 7"]


def test_the_factors_of_one_global_batch_may_change_and_are_reported():
    changed = {**ARGUMENTS, "num_processes": 1, "per_device_train_batch_size": 64}
    assert check_unchanged(ARGUMENTS, changed) == [
        "num_processes was 2 and is 1",
        "per_device_train_batch_size was 32 and is 64",
    ]


def test_a_flag_that_an_earlier_version_did_not_have_is_no_change_at_its_default():
    earlier = {n: v for n, v in ARGUMENTS.items() if n not in ("white_balance", "rotation_fill", "freeze")}
    assert check_unchanged(earlier, ARGUMENTS) == []
    with pytest.raises(InputError, match=r"white_balance was 0.0 and is 0.5"):
        check_unchanged(earlier, {**ARGUMENTS, "white_balance": 0.5})


def test_other_parts_cannot_be_frozen_than_those_whose_optimizer_was_saved():
    with pytest.raises(
        InputError, match=r"expected the network and the optimizer .* freeze was \[\] and is \['stem'\]"
    ):
        check_unchanged(ARGUMENTS, {**ARGUMENTS, "freeze": ["stem"]}, allow=True)


def test_an_argument_that_only_one_side_has_is_named():
    with pytest.raises(InputError, match="novel was unknown and is 1"):
        check_unchanged(ARGUMENTS, {**ARGUMENTS, "novel": 1})
