"""A list and its answers on the disk, killed at every byte."""

import json

import pytest

from seedling_hf.errors import InputError
from seedling_hf.inference.answers import Answer, Plant
from seedling_hf.inference.journal import Journal, Part, abandon, find_equal_name, prepare

IMAGES = [f"{i:03d}.jpg" for i in range(11)]


def make(folder, images=IMAGES, batch_size=3, num_parts=1, **identity) -> Journal:
    return prepare(folder / "run", images, identity=identity, batch_size=batch_size, num_parts=num_parts)


def answer(journal: Journal, part: int = 0, batches: int | None = None) -> None:
    with Part(journal, part) as answers:
        for number in answers.remaining[:batches]:
            answers.append(Answer(file, [("Maize", 0.5)]) for file in journal[number])


def answered(journal: Journal) -> list[str]:
    return [found.file for found in journal.answers()]


def test_the_batches_are_the_list_in_its_order(tmp_path):
    journal = make(tmp_path)
    assert [*journal] == [IMAGES[0:3], IMAGES[3:6], IMAGES[6:9], IMAGES[9:]]


def test_batches_of_one_image_are_complete(tmp_path):
    assert [*make(tmp_path, batch_size=1)] == [[name] for name in IMAGES]


def test_names_with_line_breaks_and_invalid_bytes_are_kept(tmp_path):
    names = ["a\nb.jpg", b"\xff.jpg".decode("utf-8", "surrogateescape"), 'x",".jpg']
    assert [name for batch in make(tmp_path, names, 2) for name in batch] == names


@pytest.mark.parametrize("num_parts", [1, 2, 3, 4, 7])
def test_the_shares_of_all_processes_are_every_batch_once(tmp_path, num_parts):
    journal = make(tmp_path, num_parts=num_parts)
    shares = [journal.share(part) for part in range(num_parts)]
    assert [number for share in shares for number in share] == [0, 1, 2, 3]
    assert sum(map(journal.size, shares)) == 11


def test_answers_of_three_processes_are_in_the_order_of_the_list(tmp_path):
    journal = make(tmp_path, num_parts=3)
    for part in (2, 0, 1):
        answer(journal, part)
    assert answered(journal) == IMAGES


def test_a_part_cut_anywhere_resumes_without_a_missing_or_repeated_answer(tmp_path):
    journal = make(tmp_path)
    answer(journal)
    path = journal.folder / "answers-00000.jsonl"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        answer(journal)
        assert path.read_bytes() == whole


def test_zeros_after_a_power_cut_are_cut_off(tmp_path):
    journal = make(tmp_path)
    answer(journal, batches=2)
    with open(journal.folder / "answers-00000.jsonl", "ab") as stream:
        stream.write(bytes(100) + b"\n")
    answer(journal)
    assert answered(journal) == IMAGES


def test_the_list_of_a_run_that_stopped_is_not_made_again(tmp_path):
    answer(make(tmp_path, top_k=1), batches=1)
    assert make(tmp_path, ["another.jpg"], top_k=1).num_images == 11


def test_a_run_with_other_arguments_is_refused_by_name(tmp_path):
    make(tmp_path, top_k=1)
    with pytest.raises(InputError, match="found top_k 2 instead of 1; repeat its command, or remove"):
        make(tmp_path, top_k=2)
    with pytest.raises(InputError, match="num_parts 2 instead of 1"):
        make(tmp_path, top_k=1, num_parts=2)


def test_a_list_that_was_killed_half_written_is_started_again(tmp_path):
    journal = make(tmp_path)
    answer(journal)
    (journal.folder / "run.json").unlink()
    journal = make(tmp_path, IMAGES[:4])
    assert [*journal] == [IMAGES[:3], IMAGES[3:4]]
    assert not (journal.folder / "answers-00000.jsonl").exists()


def test_missing_answers_are_an_error(tmp_path):
    journal = make(tmp_path)
    answer(journal, batches=3)
    with pytest.raises(InputError, match=r"each of 11 images in .*, found 9"):
        answered(journal)


def test_an_empty_list_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="expected images, found none"):
        make(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_a_checked_list_stays_checked(tmp_path):
    journal = make(tmp_path)
    assert not journal.checked
    journal.mark_checked()
    assert make(tmp_path).checked


def test_the_answer_of_a_failed_image_keeps_its_reason(tmp_path):
    journal = make(tmp_path, ["a.jpg"])
    with Part(journal, 0) as part:
        part.append([Answer("a.jpg", [], "image file is truncated")])
    assert [*journal.answers()] == [Answer("a.jpg", [], "image file is truncated")]
    assert json.loads((journal.folder / "run.json").read_text())["num_images"] == 1


def test_the_certainty_of_an_answer_is_kept_with_it(tmp_path):
    journal = make(tmp_path, ["a.jpg", "b.jpg"])
    ranking = [("Maize", 0.75)]
    answers = [Answer("a.jpg", ranking, certainty="sure"), Answer("b.jpg", ranking)]
    with Part(journal, 0) as part:
        part.append(answers)
    assert [*journal.answers()] == answers


def test_the_plants_of_a_photograph_are_kept_with_it(tmp_path):
    journal = make(tmp_path, ["a.jpg"])
    answer = Answer(
        "a.jpg",
        [],
        None,
        (Plant((1, 2, 3, 4), [("Maize", 0.75)], "unfamiliar"), Plant((5, 6, 7, 8), [("Charlock", 0.5)])),
    )
    with Part(journal, 0) as part:
        part.append([answer])
    assert [*journal.answers()] == [answer]
    with Part(journal, 0) as part:
        assert not part.remaining


def test_equal_names_in_two_folders_are_found():
    assert find_equal_name(["a/1.jpg", "a/2.jpg", "b/1.jpg"]) == "1.jpg"
    assert find_equal_name(["a/1.jpg", "a/2.jpg"]) is None


@pytest.mark.parametrize("shared", [False, True])
def test_a_run_that_was_given_up_is_not_resumed(tmp_path, shared):
    journal = make(tmp_path, top_k=1)
    abandon(journal.folder, shared=shared)
    journal.mark_checked()  # by a process that does not know yet
    assert journal.folder.exists() == shared
    assert len(make(tmp_path, ["another.jpg"], top_k=2)) == 1
