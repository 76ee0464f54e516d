"""Files of our own that are damaged, replaced or moved: a sentence that names the file, or a start without a loss."""

import csv
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from faults import Outcome, Started, assert_sentence, assert_well, command, contents
from safetensors.torch import load_file, save_file

TRAIN = """train --train_dir images --output_dir run --variant tiny --image_size 32 --max_steps 4 --save_steps 2
    --per_device_train_batch_size 8 --eval_steps 2 --logging_steps 1 --ema_decay 0.9"""
RESUME = f"{TRAIN} --resume_from_checkpoint latest".split()
PREDICT = "predict --model_name_or_path model --images images --output_file out/answers.csv"
BATCHES = f"{PREDICT} --skip_bad_images --per_device_eval_batch_size 4".split()
WATCH = f"{PREDICT} --watch".split()
EMBED = "embed --model_name_or_path model --embeddings_file out/features.parquet"


@pytest.fixture
def place(tmp_path, images, model_dir) -> Path:
    place = tmp_path / "place"
    (place / "out").mkdir(parents=True)
    (place / "images").symlink_to(images)
    (place / "model").symlink_to(model_dir)
    return place


# What happens to a file


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def garble(path: Path) -> None:
    path.write_bytes(bytes((7 * i + 131) % 256 for i in range(500)))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "precious").write_text("precious")


def become_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = [cut, empty, zero, garble, flip, remove, become_folder, become_fifo]


def named(damage: Callable) -> str:
    return damage.__name__


# Training


@pytest.fixture(scope="module")
def trained(tmp_path_factory, images) -> Path:
    """A run of 4 steps with checkpoints at 2 and 4."""
    folder = tmp_path_factory.mktemp("trained") / "place"
    folder.mkdir()
    (folder / "images").symlink_to(images)
    assert_well(command(TRAIN.split(), folder))
    return folder / "run"


@pytest.fixture
def run(place, trained) -> Path:
    shutil.copytree(trained, place / "run")
    return place / "run"


def steps_of(run: Path) -> list[int]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if "loss" in record]


def assert_ends_as(run: Path, trained: Path) -> None:
    for name in ("model.safetensors", "checkpoints/step-00000004/ema.safetensors"):
        assert (run / name).read_bytes() == (trained / name).read_bytes(), name


METRICS = {
    "no JSON": b"no JSON\n", "binary": bytes(range(256)) * 4, "half a line": b'{"step": 3, "epo',
    "other JSON": b'[1, 2]\n"text"\n3\n', "no step": b'{"loss": 1.0}\n', "step of text": b'{"step": "3", "epoch": 1}\n',
    "values of text": b'{"step": 3, "epoch": 0.75, "loss": "small"}\n', "zeros": bytes(100),
    "UTF-16": '{"step": 3}\n'.encode("utf-16"), "deep": b"[" * 100_000 + b"\n", "huge number": b'{"step": 1e999}\n',
}  # fmt: skip


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("where", ["added", "in its place"])
def test_metrics_that_are_none_do_not_block_resuming_and_nothing_is_lost(place, run, trained, name, where):
    path, junk = run / "metrics.jsonl", METRICS[name]
    whole = path.read_bytes()
    path.write_bytes((whole if where == "added" else b"") + junk)
    outcome = command(RESUME, place)
    assert_well(outcome)
    assert_ends_as(run, trained)
    if where == "added":
        assert steps_of(run) == [1, 2, 3, 4]
    text = junk.rstrip(b"\0")
    if text and name != "half a line":
        assert "metrics.jsonl has lines that are not entries" in outcome.stderr
        kept = [file.read_bytes() for file in run.glob("metrics.damaged-*.jsonl")]
        assert len(kept) == 1 and text in kept[0]


@pytest.mark.parametrize("damage", [become_folder, become_fifo, remove, empty], ids=named)
def test_anything_in_the_place_of_metrics_is_kept_aside(place, run, trained, damage):
    damage(run / "metrics.jsonl")
    assert_well(command(RESUME, place))
    assert_ends_as(run, trained)
    if damage is become_folder:
        assert (run / "metrics.damaged-1.jsonl" / "precious").read_text() == "precious"


def reseal(folder: Path) -> None:
    """Writes the manifest of files that were altered, as if they had been written so."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in [name for name in manifest["files"] if not (folder / name).exists()]:
        del manifest["files"][name]
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    del manifest["sha256"]
    digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest}, indent=2) + "\n")


def change(**values) -> Callable[[Path], None]:
    """Replaces entries of the state; a dictionary replaces entries within an entry, and None removes it."""

    def damage(folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text())
        for name, value in values.items():
            if isinstance(value, dict) and value and isinstance(state[name], dict):
                state[name] |= value
            elif value is None:
                del state[name]
            else:
                state[name] = value
        (folder / "state.json").write_text(json.dumps(state))

    return damage


def change_tensors(name: str, alter: Callable[[dict], dict]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / name)
        save_file({key: value.contiguous() for key, value in alter(tensors).items()}, folder / name)

    return damage


def without_the_first(tensors: dict) -> dict:
    return dict(list(tensors.items())[1:])


def with_another_shape(tensors: dict) -> dict:
    return {name: value[..., :1] if value.ndim > 1 else value for name, value in tensors.items()}


def as_bytes(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "random_states.json").write_text(text)


STATES = {
    "no counters": change(counters=None), "counters of a list": change(counters=[1, 2]),
    "a step of text": change(counters={"step": "4"}), "another step": change(counters={"step": 3}),
    "a best of text": change(counters={"best_accuracy": "high"}),
    "a counter of null": change(counters={"best_loss": None}),
    "a counter more": change(counters={"other": 1}), "no optimizer": change(optimizer=None),
    "an optimizer of text": change(optimizer="adamw"),
    "an optimizer without groups": change(optimizer={"param_groups": []}),
    "moments of other parameters": change(optimizer={"state": {"__items__": [[9999, {"step": 1}]]}}),
    "moments of text": change(optimizer={"state": "none"}), "no schedule": change(scheduler=None),
    "a schedule at another step": change(scheduler={"last_epoch": 1}),
    "a schedule of text": change(scheduler={"base_lrs": "low"}), "no arguments": change(arguments=None),
    "arguments of a list": change(arguments=[1]), "averages of text": change(ema_updates="few"),
    "a state of a list": lambda folder: (folder / "state.json").write_text("[1, 2, 3]"),
    "a state of null": lambda folder: (folder / "state.json").write_text("null"),
    "a tensor that is not there": change(ema_updates={"__tensor__": "nowhere"}),
    "a weight less": change_tensors("model.safetensors", without_the_first),
    "weights of another shape": change_tensors("model.safetensors", with_another_shape),
    "averages of another shape": change_tensors("ema.safetensors", with_another_shape),
    "weights in float16": change_tensors(
        "model.safetensors", lambda t: {n: v.half() if v.is_floating_point() else v for n, v in t.items()}
    ),
    "no averages": lambda folder: (folder / "ema.safetensors").unlink(),
    "moments of another shape": change_tensors("state.safetensors", with_another_shape),
    "random states of a number": as_bytes("3"), "random states of text": as_bytes('["a"]'),
    "random states without torch": as_bytes('[{"python": null, "numpy": null, "cuda": null}]'),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_a_checkpoint_of_another_shape_gives_way_to_the_one_before(place, run, trained, name):
    latest = run / "checkpoints" / "step-00000004"
    STATES[name](latest)
    reseal(latest)
    outcome = command(RESUME, place)
    assert_well(outcome)
    assert str(latest.relative_to(place)) in outcome.stderr and "resumed at step 2" in outcome.stderr
    assert_ends_as(run, trained)
    assert steps_of(run) == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["no counters", "weights of another shape", "moments of text"])
def test_a_checkpoint_of_another_shape_that_is_named_or_alone_is_a_sentence(place, run, name):
    latest = run / "checkpoints" / "step-00000004"
    STATES[name](latest)
    reseal(latest)
    before = contents(run / "checkpoints")
    outcome = command([*TRAIN.split(), "--resume_from_checkpoint", str(latest)], place)
    assert_sentence(outcome, "step-00000004", "older one")
    STATES[name](run / "checkpoints" / "step-00000002")
    reseal(run / "checkpoints" / "step-00000002")
    assert_sentence(command(RESUME, place), "step-00000004", "step-00000002")
    assert before.keys() == contents(run / "checkpoints").keys()


def test_two_processes_go_back_together(place, trained):
    words = [word if word != "8" else "4" for word in TRAIN.split()]
    assert_well(command(words, place, num_processes=2))
    shutil.copytree(place / "run", place / "whole")
    latest = place / "run" / "checkpoints" / "step-00000004"
    STATES["weights of another shape"](latest)
    reseal(latest)
    outcome = command([*words, "--resume_from_checkpoint", "latest"], place, num_processes=2)
    assert_well(outcome)
    assert_ends_as(place / "run", place / "whole")


@pytest.mark.parametrize("file", ["manifest.json", "state.json", "model.safetensors", "random_states.safetensors"])
@pytest.mark.parametrize("damage", DAMAGES, ids=named)
def test_a_damaged_file_of_a_checkpoint_gives_way_to_the_one_before(place, run, trained, file, damage):
    damage(run / "checkpoints" / "step-00000004" / file)
    outcome = command(RESUME, place)
    assert_well(outcome)
    assert "resumed at step 2" in outcome.stderr
    assert_ends_as(run, trained)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors", "checkpoints/latest"])
@pytest.mark.parametrize("damage", DAMAGES, ids=named)
def test_a_damaged_best_model_does_not_end_a_resumed_run_in_a_traceback(place, run, trained, file, damage):
    if not (run / file).exists():
        (run / file).write_text("{}")
    damage(run / file)
    outcome = command(RESUME, place, timeout=60)
    assert "Traceback" not in outcome.stderr
    if outcome.code == 0:
        assert_well(outcome)
        assert_well(command(["predict", "--model_name_or_path", "run", "--images", "images"], place))
    else:  # the weights are still those
        assert_sentence(outcome, "run", code=outcome.code)
        assert (
            file == "model.safetensors" or contents(run)["model.safetensors"] == contents(trained)["model.safetensors"]
        )
    if file == "model.safetensors" and damage in (cut, empty, zero, garble, become_fifo):
        assert outcome.code == 0 and "the best model is lost" in outcome.stderr
    if damage is become_folder:
        assert (run / file / "precious").exists()


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(place, run):
    words = [word.replace("run", "other").replace("tiny", "nano") for word in TRAIN.split()]
    assert_well(command(words, place))
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(place / "other" / "checkpoints", run / "checkpoints")
    assert_sentence(command(RESUME, place), "variant was 'nano' and is 'tiny'")
    changed = command([*RESUME, "--allow_changed_arguments"], place)
    assert_sentence(changed, "variant was 'nano' and is 'tiny'", "does not fit its state", "--model_name_or_path")


# Predict


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, images, model_dir) -> tuple[Path, bytes]:
    """A run of `predict` that was killed in its middle, and what it writes when it is not."""
    folder = tmp_path_factory.mktemp("stopped") / "place"
    (folder / "out").mkdir(parents=True)
    (folder / "images").symlink_to(images)
    (folder / "model").symlink_to(model_dir)
    assert_well(command(BATCHES, folder))
    expected = (folder / "out" / "answers.csv").read_bytes()
    (folder / "out" / "answers.csv").unlink()
    assert command(BATCHES, folder, before=die_at_an_image).code == -signal.SIGKILL
    assert {"run.json", "images.jsonl", "offsets.bin", "answers-00000.jsonl"} <= {
        path.name for path in (folder / "out" / "answers.csv.partial").iterdir()
    }
    return folder, expected


def die_at_an_image() -> None:
    from PIL import Image

    former, count = Image.open, []

    def fatal(*arguments, **options):
        count.append(1)
        if len(count) == 22:
            os.kill(os.getpid(), signal.SIGKILL)
        return former(*arguments, **options)

    Image.open = fatal


@pytest.fixture
def partial(place, stopped) -> Path:
    """The journal of the stopped run, in the place that its images and its model were named from."""
    shutil.rmtree(place)
    shutil.copytree(stopped[0], place, symlinks=True)
    file = place / "out" / "answers.csv.partial" / "run.json"
    file.write_text(file.read_text().replace(str(stopped[0]), str(place)))
    return file.parent


@pytest.mark.parametrize("file", ["run.json", "images.jsonl", "offsets.bin", "answers-00000.jsonl"])
@pytest.mark.parametrize("damage", DAMAGES, ids=named)
def test_a_damaged_journal_is_a_sentence_or_ends_as_if_whole(place, partial, stopped, file, damage):
    damage(partial / file)
    before = contents(place / "out")
    outcome = command(BATCHES, place, timeout=30)
    assert_resumes_or_refuses(outcome, place, before, file, stopped[1])
    if damage in (cut, empty, zero, remove):
        assert outcome.code == 0


def assert_resumes_or_refuses(outcome: Outcome, place: Path, before: dict, file: str, expected: bytes) -> None:
    if outcome.code == 0:
        assert_well(outcome)
        assert (place / "out" / "answers.csv").read_bytes() == expected
        assert {path.name for path in (place / "out").iterdir()} == {"answers.csv"}
    else:
        assert_sentence(outcome, file, "to start again")
        before.pop(".answers.csv.seedling-hf.lock", None)  # of the killed run
        assert before == contents(place / "out")


RUNS = {
    "a list": "[]", "a text": '"text"', "nothing": "{}", "more images": {"num_images": 500},
    "no images": {"num_images": None},
    "a batch of text": {"batch_size": "4"}, "other parts": {"num_parts": 7}, "checked": {"checked": "yes"},
    "deep": "[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_an_altered_description_of_a_run_is_a_sentence_or_ends_as_if_whole(place, partial, stopped, name):
    file, change = partial / "run.json", RUNS[name]
    file.write_text(change if isinstance(change, str) else json.dumps(json.loads(file.read_text()) | change, indent=2))
    before = contents(place / "out")
    outcome = command(BATCHES, place, timeout=30)
    assert_resumes_or_refuses(outcome, place, before, "answers.csv.partial", stopped[1])


ANSWERS = {
    "another image's": b'["other.jpg", [["Maize", 0.5]], null, []]\n', "a number": b"3\n",
    "a class of a number": b'["other.jpg", [[1, "high"]], null, []]\n', "too short": b"[]\n",
    "binary": bytes(range(255)),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_altered_answers_are_made_again_or_a_sentence(place, partial, stopped, name, where):
    file = partial / "answers-00000.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines.insert({"first": 0, "middle": len(lines) // 2, "last": len(lines)}[where], ANSWERS[name])
    file.write_bytes(b"".join(lines))
    before = contents(place / "out")
    outcome = command(BATCHES, place)
    assert_resumes_or_refuses(outcome, place, before, "answers-00000.jsonl", stopped[1])
    assert outcome.code == 0 or where == "first"


@pytest.mark.parametrize("kind", ["file", "fifo"])
def test_something_else_in_the_place_of_a_journal_is_a_sentence(place, kind):
    path = place / "out" / "answers.csv.partial"
    path.write_text("precious") if kind == "file" else os.mkfifo(path)
    outcome = command(BATCHES, place, timeout=30)
    assert_sentence(outcome, "answers.csv.partial", "move it away")
    assert path.exists()


# Watch


@pytest.fixture
def inbox(place, sample_dir) -> Path:
    """A watched folder, which images are dropped into."""
    (place / "images").unlink()
    (place / "images").mkdir()
    for number in range(3):
        drop(place, sample_dir, number)
    return place / "images"


def drop(place: Path, sample_dir: Path, number: int) -> None:
    source = sorted((sample_dir / "Maize").iterdir())[number]
    shutil.copyfile(source, place / f"{number}.new")
    os.utime(place / f"{number}.new", (1e9, 1e9))  # long ago: writing has ended
    (place / f"{number}.new").rename(place / "images" / f"{number}.jpg")


def rows_in(*paths: Path) -> list[str]:
    """The images that the files name, in their order; each file has one heading, and each row is whole."""
    found = []
    for path in paths:
        text = path.read_text()
        assert "\0" not in text and text.startswith("file,class,probability\n"), text
        rows = list(csv.DictReader(text.splitlines()))
        assert all(len(row["probability"]) == 8 for row in rows), text
        found += [Path(row["file"]).name for row in rows]
    return found


class Watching:
    """A watch that runs until it is stopped."""

    def __init__(self, place: Path, sample_dir: Path) -> None:
        self.place, self.sample_dir = place, sample_dir
        self.output = place / "out" / "answers.csv"
        shutil.rmtree(place.with_name("place.output"), ignore_errors=True)  # what a former watch printed
        self.started = Started(WATCH, place)
        self.started.wait_for(lambda: "watching images" in self.started.printed("stderr"))

    def wait_for(self, name: str, path: Path | None = None) -> None:
        path = path or self.output
        self.started.wait_for(lambda: path.exists() and f"{name},".encode() in path.read_bytes())

    def drop(self, number: int) -> None:
        drop(self.place, self.sample_dir, number)
        self.wait_for(f"{number}.jpg")

    def stop(self) -> Outcome:
        self.started.send(signal.SIGTERM)
        return self.started.finish()


@pytest.fixture
def watch(place, inbox, sample_dir) -> Iterator[Callable[[], Watching]]:
    watching = []
    yield lambda: watching.append(Watching(place, sample_dir)) or watching[-1]
    for each in watching:
        for process in each.started.processes:
            process.kill()
            process.join()


EVENTS = {
    "renamed": lambda path: path.rename(path.with_suffix(".1")),
    "copied and truncated": lambda path: (shutil.copyfile(path, path.with_suffix(".1")), os.truncate(path, 0)),
    "renamed and touched": lambda path: (path.rename(path.with_suffix(".1")), path.touch()),
    "renamed and copied back": lambda path: shutil.copyfile(path.rename(path.with_suffix(".1")), path),
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: os.truncate(path, 0),
    "truncated after its second row": lambda path: os.truncate(path, path.read_bytes().rindex(b"\n", 0, -1) + 1),
    "appended to": lambda path: path.write_bytes(path.read_bytes() + b"other.jpg,Maize,0.500000\n"),
}  # fmt: skip


def expected_rows(event: str) -> tuple[list[str], bool]:
    """Of the images in the output and in answers.1, and whether all three of the beginning are among them."""
    kept = ["0.jpg", "1.jpg", "2.jpg"]
    later = ["3.jpg", "4.jpg"]
    return {
        "deleted": later, "emptied": later, "truncated after its second row": [*kept[:2], *later],
        "appended to": [*kept, "other.jpg", *later], "renamed and copied back": [*kept, *kept, *later],
    }.get(event, [*kept, *later])  # fmt: skip


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "while it does not run"])
def test_every_image_is_named_once_whatever_happens_to_the_output(watch, sample_dir, event, running):
    watching = watch()
    watching.wait_for("2.jpg")
    if running:
        EVENTS[event](watching.output)
    else:
        assert_well(watching.stop())
        EVENTS[event](watching.output)
        watching = watch()
    watching.drop(3)
    watching.drop(4)
    outcome = watching.stop()
    assert_well(outcome)
    files = [path for path in (watching.output.with_suffix(".1"), watching.output) if path.exists()]
    assert sorted(rows_in(*files)) == sorted(expected_rows(event))
    if event != "appended to":
        assert outcome.stderr.count("was moved, truncated or replaced") == 1


def test_a_file_of_somebody_else_in_the_place_of_the_output_is_kept(watch):
    watching = watch()
    watching.wait_for("2.jpg")
    watching.output.rename(watching.output.with_suffix(".1"))
    watching.output.write_text("notes of mine")
    watching.drop(3)
    assert_well(watching.stop())
    text = watching.output.read_text()
    assert text.startswith("notes of mine\nfile,class,probability\n") and text.count("\n") == 3


def test_a_watch_that_is_killed_while_its_output_is_rotated_names_every_image(watch):
    watching = watch()
    watching.wait_for("2.jpg")
    watching.output.rename(watching.output.with_suffix(".1"))
    watching.started.send(signal.SIGKILL)
    watching.started.finish()
    watching = watch()
    watching.drop(3)
    assert_well(watching.stop())
    assert rows_in(watching.output.with_suffix(".1"), watching.output)[:3] == ["0.jpg", "1.jpg", "2.jpg"]
    assert rows_in(watching.output)[-1] == "3.jpg"


@pytest.mark.parametrize("tail", [b"\0" * 300, b"images/3.jpg,Maize,0.9", b"images/3.jpg,Maize,0.900000\nimages/4.j"])
def test_what_a_kill_or_a_power_cut_leaves_behind_the_entered_rows_is_cut(watch, tail):
    watching = watch()
    watching.wait_for("2.jpg")
    assert_well(watching.stop())
    with open(watching.output, "ab") as stream:
        stream.write(tail)
    watching = watch()
    watching.drop(3)
    assert_well(watching.stop())
    assert rows_in(watching.output) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]


LEDGERS = {
    **{damage.__name__: damage for damage in (cut, empty, zero, garble, become_folder, become_fifo)},
    "another database": lambda path: (path.unlink(), _alter(path, "CREATE TABLE other (x)")),
    "another table": lambda path: _alter(path, "ALTER TABLE images RENAME COLUMN file TO name"),
    "no length": lambda path: _alter(path, "UPDATE run SET length = 'much'"),
    "no identity": lambda path: _alter(path, "UPDATE run SET identity = '{'"),
    "an identity of a list": lambda path: _alter(path, "UPDATE run SET identity = '[]'"),
    "no run": lambda path: _alter(path, "DELETE FROM run"),
    "overwritten in its middle": lambda path: path.write_bytes(path.read_bytes()[:4096] + bytes(8192)),
}  # fmt: skip


def _alter(path: Path, statement: str) -> None:
    database = sqlite3.connect(path)
    database.execute(statement)
    database.commit()
    database.close()


@pytest.mark.parametrize("name", LEDGERS)
def test_a_damaged_ledger_is_a_sentence_and_no_row_is_touched(place, watch, name):
    watching = watch()
    watching.wait_for("2.jpg")
    assert_well(watching.stop())
    path = Path(f"{watching.output}.watched")
    LEDGERS[name](path)
    rows = watching.output.read_bytes()
    outcome = command(WATCH, place, timeout=20)
    assert_sentence(outcome, "answers.csv.watched", "to start again")
    assert watching.output.read_bytes() == rows and path.exists()


LOSSES = {
    "its folder removed": lambda output: shutil.rmtree(output.parent),
    "its folder renamed": lambda output: output.parent.rename(output.parent.with_name("moved")),
    "its ledger removed": lambda output: Path(f"{output}.watched").unlink(),
    "its ledger replaced": lambda output: garble(Path(f"{output}.watched")),
    "its output a folder": become_folder,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_watch_that_loses_its_place_ends_in_a_sentence_or_goes_on(place, sample_dir, watch, name):
    watching = watch()
    watching.wait_for("2.jpg")
    LOSSES[name](watching.output)
    drop(place, sample_dir, 3)
    process, started = watching.started.processes[0], time.monotonic()
    while process.is_alive() and time.monotonic() < started + 30:
        written = watching.output.is_file() and b"3.jpg," in watching.output.read_bytes()
        if written or "expected a file" in watching.started.printed("stderr"):
            process.join(1)
            break
        time.sleep(0.1)
    if process.is_alive():
        watching.started.send(signal.SIGTERM)
    outcome = watching.started.finish()
    assert "Traceback" not in outcome.stderr and outcome.code in (0, 2, 74), outcome
    assert "answers.csv" in outcome.stderr
    if outcome.code:
        assert_sentence(outcome, "answers.csv", code=outcome.code)
    if name == "its output a folder":
        assert (watching.output / "precious").exists()


def test_a_ledger_that_another_program_has_open_is_a_sentence(place, watch):
    watching = watch()
    watching.wait_for("2.jpg")
    assert_well(watching.stop())
    other = sqlite3.connect(f"{watching.output}.watched")
    other.execute("BEGIN EXCLUSIVE")
    outcome = command(WATCH, place, timeout=30)
    other.close()
    assert_sentence(outcome, "answers.csv.watched", "another program")


@pytest.fixture
def mounted(place) -> Iterator[Callable]:
    """Mounts what `mount` takes at a path, until the test ends."""
    paths = []

    def mount(path: Path, *words: object) -> None:
        result = subprocess.run(["mount", *map(str, words), path], capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"a disk of its own needs the right to mount: {result.stderr.strip()}")
        paths.append(path)

    yield mount
    for path in reversed(paths):
        subprocess.run(["umount", "-l", path], capture_output=True)


def fill(folder: Path) -> Path:
    path = folder / "fill"
    with suppress(OSError), open(path, "wb", buffering=0) as stream:
        while stream.write(bytes(4096)):
            pass
    return path


def test_a_watch_whose_disk_fills_ends_in_a_sentence_and_goes_on_once_there_is_room(place, sample_dir, watch, mounted):
    mounted(place / "out", "-t", "tmpfs", "-o", "size=128k", "none")
    watching = watch()
    watching.wait_for("2.jpg")
    filling = fill(place / "out")
    drop(place, sample_dir, 3)
    assert_sentence(watching.started.finish(30), "expected room for", "answers.csv", code=74)
    filling.unlink()
    watching = watch()
    watching.wait_for("3.jpg")
    assert_well(watching.stop())
    assert rows_in(watching.output) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]


@pytest.mark.parametrize("kilobytes", [4, 8, 16])
def test_a_watch_that_begins_on_a_full_disk_is_a_sentence_and_leaves_nothing(place, inbox, mounted, kilobytes):
    mounted(place / "out", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none")
    outcome = command(WATCH, place, timeout=30)
    assert_sentence(outcome, "expected room for", "answers.csv", code=74)
    assert {path.name for path in (place / "out").iterdir()} <= {"answers.csv", "answers.csv.watched"}
    assert all(path.stat().st_size for path in (place / "out").iterdir())


def test_a_ledger_that_is_read_only_is_a_sentence(place, watch, mounted):
    watching = watch()
    watching.wait_for("2.jpg")
    assert_well(watching.stop())
    ledger = Path(f"{watching.output}.watched")
    mounted(ledger, "--bind", ledger)
    mounted(ledger, "-o", "remount,ro,bind")
    outcome = command(WATCH, place, timeout=30)
    assert_sentence(outcome, "expected to write", "answers.csv.watched", "Read-only file system", code=74)


# Embeddings, and the folder of a run that is pushed


@pytest.mark.parametrize("damage", DAMAGES, ids=named)
def test_damaged_embeddings_are_a_sentence(place, damage):
    assert_well(command([*EMBED.split(), "--images", "images"], place))
    damage(place / "out" / "features.parquet")
    query = next((place / "images").glob("*/*"))
    assert_sentence(command([*EMBED.split(), "--query", query], place, timeout=30), "features.parquet")


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "arguments.yaml"])
@pytest.mark.parametrize("damage", [cut, garble, become_folder], ids=named)
def test_a_damaged_description_of_a_run_is_not_pushed(place, run, file, damage):
    damage(run / file)
    outcome = command(["push_to_hub", "--output_dir", "run", "--dry_run"], place)
    assert_sentence(outcome, file)


@pytest.mark.parametrize("file", ["report.json", "near_duplicates.json", "arguments.yaml", "split.csv", "README.md"])
@pytest.mark.parametrize("damage", [cut, garble, empty, become_folder], ids=named)
def test_a_damaged_file_of_a_run_does_not_block_resuming(place, run, trained, file, damage):
    if not (run / file).exists():
        (run / file).write_text("{}")
    damage(run / file)
    outcome = command(RESUME, place)
    assert "Traceback" not in outcome.stderr
    if damage is become_folder:
        assert outcome.code in (0, 2, 74) and file in outcome.stderr
        assert (run / file / "precious").exists()
    else:
        assert_well(outcome)
        assert_ends_as(run, trained)
