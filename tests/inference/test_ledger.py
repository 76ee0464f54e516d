"""What a watch knows about the images that it has answered."""

import os
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
