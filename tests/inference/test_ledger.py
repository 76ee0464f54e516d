"""What a watch knows about the images that it has answered."""

import os
import sqlite3
import time

import pytest

from seedling_hf.errors import InputError
from seedling_hf.inference.answers import Answer
from seedling_hf.inference.ledger import SETTLED_S, Ledger


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "1.jpg"
    path.write_bytes(b"image")
    settle(path)
    return path


def settle(path, ago: float = 60) -> None:
    os.utime(path, (time.time() - ago,) * 2)


def test_an_image_is_new_until_it_is_answered(tmp_path, image):
    with Ledger(tmp_path / "ledger", {}) as ledger:
        assert [*ledger.new([image])] == [str(image)]
        ledger.enter([Answer(str(image), [("Maize", 1.0)])], 10)
        assert [*ledger.new([image])] == []
        assert (ledger.count, ledger.length) == (1, 10)


def test_entered_answers_are_kept_on_the_disk(tmp_path, image):
    with Ledger(tmp_path / "ledger", {"top_k": 1}) as ledger:
        ledger.enter([Answer(str(image), [("Maize", 1.0)])], 10)
    with Ledger(tmp_path / "ledger", {"top_k": 1}) as ledger:
        assert [*ledger.new([image])] == []
        assert ledger.length == 10


def test_an_image_that_is_being_written_waits(image):
    settle(image, ago=SETTLED_S / 2)
    with Ledger("", {}) as ledger:
        assert [*ledger.new([image])] == []
        settle(image, ago=SETTLED_S * 2)
        assert [*ledger.new([image])] == [str(image)]


def test_a_failed_image_is_read_again_once_it_is_written_again(image):
    with Ledger("", {}) as ledger:
        ledger.enter([Answer(str(image), [], "truncated")], 0)
        assert [*ledger.new([image])] == []
        assert [(failed.file, failed.reason) for failed in ledger.failed()] == [(str(image), "truncated")]
        image.write_bytes(b"the whole image")
        settle(image)
        assert [*ledger.new([image])] == [str(image)]
        ledger.enter([Answer(str(image), [("Maize", 1.0)])], 0)
        assert [*ledger.failed()] == []


def test_a_deleted_image_is_not_new(tmp_path):
    with Ledger("", {}) as ledger:
        assert [*ledger.new([tmp_path / "gone.jpg"])] == []


def test_a_watch_with_other_arguments_is_refused_by_name(tmp_path):
    with Ledger(tmp_path / "ledger", {"--top_k": 1}):
        pass
    with pytest.raises(InputError, match="found --top_k 2 instead of 1; repeat its command, or name another"):
        Ledger(tmp_path / "ledger", {"--top_k": 2})


def make_ledger(path, image) -> None:
    with Ledger(path, {"--top_k": 1}) as ledger:
        ledger.enter([Answer(str(image), [("Maize", 1.0)])], 10, "7")


@pytest.mark.parametrize("damage", [b"no database", b"SQLite format 3\0", bytes(5000), "cut", "middle"])
def test_a_damaged_ledger_is_a_sentence_that_says_what_is_safe(tmp_path, image, damage):
    path = tmp_path / "answers.csv.watched"
    make_ledger(path, image)
    whole = path.read_bytes()
    changed = {"cut": whole[: len(whole) // 2], "middle": whole[:100] + bytes(4000) + whole[4100:]}.get(damage, damage)
    path.write_bytes(changed)
    with pytest.raises(InputError, match=r"move it away together with .*answers.csv to start again"):
        Ledger(path, {"--top_k": 1}, is_new=False)
    assert path.read_bytes() == changed


@pytest.mark.parametrize("statement", [
    "UPDATE run SET identity = 'no JSON'", "UPDATE run SET identity = '[]'", "UPDATE run SET identity = NULL",
    "UPDATE run SET length = 'long'", "UPDATE run SET length = -1", "INSERT INTO run VALUES ('{}', 3)",
    "ALTER TABLE images RENAME COLUMN stamp TO mark", "DELETE FROM run", "DROP TABLE run",
])  # fmt: skip
def test_a_ledger_of_another_shape_is_a_sentence(tmp_path, image, statement):
    path = tmp_path / "answers.csv.watched"
    make_ledger(path, image)
    with sqlite3.connect(path) as database:
        database.execute(statement)
    database.close()
    with pytest.raises(InputError, match=r"expected the ledger of --watch at .*to start again"):
        Ledger(path, {"--top_k": 1}, is_new=False)


def test_an_emptied_ledger_does_not_stand_for_rows_that_exist(tmp_path, image):
    path = tmp_path / "answers.csv.watched"
    path.touch()
    for _ in range(2):
        with pytest.raises(InputError, match="found: an empty one"):
            Ledger(path, {"--top_k": 1}, is_new=False)


def test_a_folder_in_the_place_of_the_ledger_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="found: something else"):
        Ledger(tmp_path, {})


def test_a_ledger_that_another_program_uses_is_a_sentence(tmp_path, image, monkeypatch):
    path = tmp_path / "answers.csv.watched"
    make_ledger(path, image)
    other = sqlite3.connect(path)
    other.execute("BEGIN EXCLUSIVE")
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path: connect(path, timeout=0))
    with pytest.raises(InputError, match="found another program using it"):
        Ledger(path, {"--top_k": 1}, is_new=False)
    other.close()


def test_the_output_file_is_known_again(tmp_path, image):
    make_ledger(tmp_path / "ledger", image)
    with Ledger(tmp_path / "ledger", {"--top_k": 1}) as ledger:
        assert (ledger.length, ledger.inode) == (10, "7")
        assert ledger.is_entered(str(image)) and not ledger.is_entered("other.jpg")
