"""`predict` on many images: killed, resumed, on two processes, watching, and its memory."""

import csv
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_client import Process, wait_until
from predict_runs import contents, finish, flags, lines_in, read_csv, start, wait_for_rows
from small_models import SPECIES

from seedling_hf.commands import predict, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def linked(tmp_path_factory, sample_dir) -> Callable[[int], Path]:
    """Makes a folder with this many links to the images of the sample."""
    files = sorted(sample_dir.glob("*/*.jpg"))

    def link(count: int) -> Path:
        folder = tmp_path_factory.mktemp(f"links-{count}")
        for i in range(count):
            (folder / f"{i:06d}.jpg").symlink_to(files[i % len(files)])
        return folder

    return link


@pytest.fixture(scope="module")
def many(linked) -> Path:
    folder = linked(300)
    for number in (0, 7, 150, 299):
        path = folder / f"{number:06d}.jpg"
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:700])
    return folder


@pytest.fixture(scope="module")
def uninterrupted(familiar_dir, many, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    finished = finish(folder, words(familiar_dir, many, folder / "out" / "answers.csv"))
    assert finished.returncode == 0, finished.stdout
    return folder / "out"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def words(familiar_dir: Path, images: Path, output: Path, batch_size: int = 4, **further) -> list[str]:
    return flags(
        model_name_or_path=familiar_dir, images=[images], output_file=output, per_device_eval_batch_size=batch_size,
        top_k=2, threshold=0.5, skip_bad_images=True, **further,
    )  # fmt: skip


def run_on_two(arguments: list[str]) -> subprocess.Popen:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "scripts/predict.py"]
    return subprocess.Popen(
        [sys.executable, *launch, *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_all_images_but_the_failed_ones_have_their_rows_in_order(uninterrupted, many):
    rows = read_csv((uninterrupted / "answers.csv").read_text())
    bad = {str(many / f"{number:06d}.jpg") for number in (0, 7, 150, 299)}
    assert [row["file"] for row in rows[::2]] == [str(file) for file in sorted(many.iterdir()) if str(file) not in bad]
    assert {"sure", "not sure"} <= {row["certainty"] for row in rows[::2]} <= {"sure", "not sure", "unfamiliar"}
    assert {(row["rank"], row["certainty"]) for row in rows[1::2]} == {("2", "")}
    listed = read_csv((uninterrupted / "answers.failed.csv").read_text())
    assert {row["file"] for row in listed} == bad
    assert all(row["reason"] for row in listed)
    assert len(contents(uninterrupted)) == 2, "no temporary file remains"


def test_a_killed_run_resumes_to_the_very_same_files(familiar_dir, many, uninterrupted, out, tmp_path):
    arguments = words(familiar_dir, many, out / "answers.csv", dataloader_num_workers=2)
    part = out / "answers.csv.partial" / "answers-00000.jsonl"
    process = start(tmp_path, arguments)
    wait_until(lambda: lines_in(part) >= 40 or process.status is not None)
    process.kill()
    assert process.finish().returncode == -signal.SIGKILL
    assert 40 <= lines_in(part) < 300
    assert not (out / "answers.csv").exists()
    with open(part, "ab") as stream:
        stream.write(b'["half a li')
    resumed = finish(tmp_path, arguments)
    assert resumed.returncode == 0, resumed.stdout
    assert "resuming after" in resumed.stdout
    assert contents(out) == contents(uninterrupted)


def kill_once(process: Process, rows: Path, count: int, wait: float) -> bool:
    """Kills a process some seconds after it has `count` rows; returns whether it was still running."""
    wait_until(lambda: lines_in(rows) >= count or process.status is not None)
    time.sleep(wait)
    if process.status is None:
        process.kill()
    return process.finish().returncode == -signal.SIGKILL


KILLS = 20


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_killed_at_twenty_moments_ends_with_the_very_same_files(
    familiar_dir, many, uninterrupted, tmp_path, num_workers
):
    moments, kills, midway = random.Random(num_workers), 0, 0
    for attempt in itertools.count():
        out = tmp_path / f"out-{attempt}"
        arguments = words(familiar_dir, many, out / "answers.csv", dataloader_num_workers=num_workers)
        rows, alive = out / "answers.csv.partial" / "answers-00000.jsonl", True
        while kills < KILLS and alive:
            # A quarter of them before the first answer, or after the last.
            count = 0 if moments.random() < 0.25 else lines_in(rows) + moments.randint(1, 120)
            alive = kill_once(start(tmp_path, arguments), rows, count, moments.uniform(0, 0.02 if count else 2))
            kills += alive
            midway += alive and 0 < lines_in(rows) < 300
        finished = finish(tmp_path, arguments)
        assert finished.returncode == 0, finished.stdout
        assert contents(out) == contents(uninterrupted)
        if kills == KILLS:
            break
    assert midway >= KILLS // 4


def test_two_processes_give_the_very_same_files_as_one(familiar_dir, many, uninterrupted, out):
    process = run_on_two(words(familiar_dir, many, out / "answers.csv"))
    parts = [out / "answers.csv.partial" / f"answers-{i:05d}.jsonl" for i in range(2)]
    wait_until(lambda: all(map(lines_in, parts)) or process.poll() is not None)
    assert process.poll() is None, "both have answers before the run ends"
    assert process.wait() == 0, process.stdout.read()
    assert contents(out) == contents(uninterrupted)


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_resume_to_the_very_same_files(familiar_dir, many, uninterrupted, out):
    process = run_on_two(words(familiar_dir, many, out / "answers.csv"))
    parts = [out / "answers.csv.partial" / f"answers-{i:05d}.jsonl" for i in range(2)]
    wait_until(lambda: all(lines_in(part) >= 12 for part in parts) or process.poll() is not None)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert process.wait() != 0
    assert not (out / "answers.csv").exists()
    process = run_on_two(words(familiar_dir, many, out / "answers.csv"))
    assert process.wait() == 0, process.stdout.read()
    assert contents(out) == contents(uninterrupted)


def test_a_run_that_gets_sigterm_says_how_to_resume(familiar_dir, many, out, tmp_path):
    process = start(tmp_path, words(familiar_dir, many, out / "answers.csv"))
    wait_until(lambda: lines_in(out / "answers.csv.partial" / "answers-00000.jsonl") or process.status is not None)
    os.kill(process.id, signal.SIGTERM)
    finished = process.finish()
    assert finished.returncode == 75
    assert "the same command resumes" in finished.stdout
    assert "Traceback" not in finished.stdout


def test_a_resumed_run_with_other_arguments_is_refused(familiar_dir, many, tmp_path, capsys):
    folder = tmp_path / "answers.csv.partial"
    folder.mkdir()
    (folder / "run.json").write_text('{"--top_k": 3, "batch_size": 4}')
    assert run(predict.main, words(familiar_dir, many, tmp_path / "answers.csv")) == 2
    error = capsys.readouterr().err
    assert "--top_k 2 instead of 3" in error
    assert error.count("\n") == 1
    assert (folder / "run.json").exists()


def test_jsonl_is_chosen_by_the_suffix_and_has_the_same_predictions(familiar_dir, many, uninterrupted, tmp_path):
    assert run(predict.main, words(familiar_dir, many, tmp_path / "answers.jsonl")) == 0
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    expected = read_csv((uninterrupted / "answers.csv").read_text())
    assert [(row["file"], row["class"], row["certainty"]) for row in rows] == [
        (row["file"], row["class"], row["certainty"]) for row in expected[::2]
    ]


def test_the_list_of_failed_files_of_an_earlier_run_is_removed(familiar_dir, sample_dir, tmp_path):
    (tmp_path / "answers.failed.csv").write_text("file,reason\nold.jpg,torn\n")
    image = next((sample_dir / "Maize").iterdir())
    assert run(predict.main, words(familiar_dir, image, tmp_path / "answers.csv")) == 0
    assert not (tmp_path / "answers.failed.csv").exists()


def test_a_run_in_which_all_images_fail_is_refused_and_leaves_nothing(familiar_dir, tmp_path, capsys):
    (tmp_path / "torn.jpg").write_bytes(b"no image")
    assert run(predict.main, words(familiar_dir, tmp_path, tmp_path / "new" / "answers.csv")) == 2
    assert "torn.jpg" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def peak_memory_kb(familiar_dir: Path, images: Path, folder: Path) -> int:
    output = folder / f"{images.name}.csv"
    finished = finish(folder, words(familiar_dir, images, output, batch_size=32))
    assert finished.returncode == 0, finished.stdout
    with open(output, newline="") as stream:
        assert sum(1 for _ in csv.reader(stream)) == 1 + 2 * sum(1 for _ in images.iterdir())
    return int(finished.stdout.split()[-1])


@pytest.mark.parametrize("count", [2000, pytest.param(20000, marks=pytest.mark.slow)])
def test_memory_for_many_images_equals_that_for_400(familiar_dir, linked, tmp_path, count):
    few, most = (peak_memory_kb(familiar_dir, linked(number), tmp_path) for number in (400, count))
    assert most < 1.1 * few


@pytest.fixture
def inbox(tmp_path, sample_dir) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    drop(sample_dir, folder, 0)
    return folder


def drop(sample_dir: Path, folder: Path, number: int) -> Path:
    source = sorted((sample_dir / SPECIES[number % 4]).iterdir())[number]
    shutil.copyfile(source, folder / f"{number}.jpg")
    os.utime(folder / f"{number}.jpg", (1e9, 1e9))  # long ago: writing has ended
    return folder / f"{number}.jpg"


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_watched_folder_is_answered_as_images_arrive_until_a_signal(
    familiar_dir, sample_dir, inbox, out, tmp_path, ending
):
    arguments = flags(model_name_or_path=familiar_dir, images=[inbox], output_file=out / "answers.csv", watch=True)
    process = start(tmp_path, arguments)
    wait_for_rows(process, out / "answers.csv", 1)
    (inbox / "torn.jpg").write_bytes(b"no image")
    os.utime(inbox / "torn.jpg", (1e9, 1e9))
    drop(sample_dir, inbox, 1)
    wait_for_rows(process, out / "answers.csv", 2)
    os.kill(process.id, ending)
    finished = process.finish()
    assert finished.returncode == 0, finished.stdout
    assert "Traceback" not in finished.stdout
    assert "torn.jpg" in finished.stdout
    assert [Path(row["file"]).name for row in read_csv((out / "answers.csv").read_text())] == ["0.jpg", "1.jpg"]
    assert [Path(row["file"]).name for row in read_csv((out / "answers.failed.csv").read_text())] == ["torn.jpg"]


def test_a_killed_watch_resumes_without_a_missing_or_repeated_row(familiar_dir, sample_dir, inbox, out, tmp_path):
    arguments = flags(model_name_or_path=familiar_dir, images=[inbox], output_file=out / "answers.csv", watch=True)
    process = start(tmp_path, arguments)
    wait_for_rows(process, out / "answers.csv", 1)
    time.sleep(0.3)
    process.kill()
    process.finish()
    with open(out / "answers.csv", "a") as stream:
        stream.write(f"{inbox / '1.jpg'},Maize,0.9\n{inbox}/2.j")
    for number in (1, 2):
        drop(sample_dir, inbox, number)
    process = start(tmp_path, arguments)
    wait_for_rows(process, out / "answers.csv", 3)
    os.kill(process.id, signal.SIGTERM)
    assert process.finish().returncode == 0
    rows = read_csv((out / "answers.csv").read_text())
    assert [Path(row["file"]).name for row in rows] == ["0.jpg", "1.jpg", "2.jpg"]
    assert all(len(row["probability"]) == 8 for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_watch_killed_at_twenty_moments_names_every_image_once(familiar_dir, many, tmp_path):
    # Single images, since batches are others after a kill, and rounding differs between batches of different sizes.
    reference = tmp_path / "reference" / "answers.csv"
    assert finish(tmp_path, words(familiar_dir, many, reference, batch_size=1)).returncode == 0
    expected, moments, kills = reference.read_bytes(), random.Random(0), 0
    for attempt in itertools.count():
        output = tmp_path / f"out-{attempt}" / "answers.csv"
        arguments = words(familiar_dir, many, output, batch_size=1, watch=True)
        while kills < KILLS and lines_in(output) < expected.count(b"\n"):
            count = 0 if moments.random() < 0.25 else lines_in(output) + moments.randint(1, 60)
            count = min(count, expected.count(b"\n"))
            kills += kill_once(start(tmp_path, arguments), output, count, moments.uniform(0, 0.02 if count else 2))
        process = start(tmp_path, arguments)
        wait_for_rows(process, output, expected.count(b"\n") - 1)
        time.sleep(1)  # for a row too many
        os.kill(process.id, signal.SIGTERM)
        assert process.finish().returncode == 0
        assert output.read_bytes() == expected
        if kills == KILLS:
            break


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"threshold": 1.5}, "--threshold at least 0 and at most 1, found 1.5"),
        ({"threshold": 0.5, "format": "kaggle"}, "no --threshold for Kaggle's file"),
        ({"watch": True, "format": "kaggle"}, "no --watch for Kaggle's file"),
        ({"watch": True, "output_file": "a.json"}, "expected a format that can grow for --watch, found json"),
        ({"output_file": "a.xlsx"}, "expected --output_file to end in .csv, .jsonl, .ndjson or .json, found a.xlsx"),
        ({"model_name_or_path": "seedling_hf/nanno"}, "did you mean seedling_hf/nano?"),
        ({"watch": True, "images": [__file__]}, "expected a folder to --watch"),
    ],
)
def test_impossible_flags_are_refused_in_one_sentence(familiar_dir, sample_dir, tmp_path, capsys, wrong, named):
    values = {"model_name_or_path": familiar_dir, "images": [sample_dir], "output_file": tmp_path / "a.csv"} | wrong
    assert run(predict.main, flags(**values)) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_a_watch_does_not_write_into_another_file(familiar_dir, inbox, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("precious")
    words = flags(model_name_or_path=familiar_dir, images=[inbox], output_file=tmp_path / "a.csv", watch=True)
    assert run(predict.main, words) == 2
    assert "expected a new --output_file" in capsys.readouterr().err
    assert (tmp_path / "a.csv").read_text() == "precious"
