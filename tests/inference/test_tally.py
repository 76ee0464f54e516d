"""The line that ends a run of `predict`."""

from collections.abc import Sequence

import pytest

from seedling_hf.inference.answers import NOT_SURE, SURE, UNFAMILIAR, Answer, Plant
from seedling_hf.inference.tally import MOST_CLASSES, Tally

WORDS = (SURE, NOT_SURE)


def answers(*pairs: tuple[str, str | None]) -> list[Answer]:
    return [Answer(f"{name}.jpg", [(name, 0.9), ("other", 0.1)], certainty=certainty) for name, certainty in pairs]


def describe(words: Sequence[str], found: list[Answer], **further) -> str:
    tally = Tally(words, **further)
    tally.add(found)
    return tally.describe()


TORN = Answer("torn.jpg", [], "truncated")
FOUND = [*answers(("Charlock", SURE), ("Maize", SURE), ("Maize", NOT_SURE)), TORN]


def test_classes_are_counted_and_those_that_are_not_sure():
    assert describe(WORDS, FOUND) == "3 images, 2 sure and 1 not sure: Maize 2 (1 not sure), Charlock 1"


def test_an_unfamiliar_image_is_counted_and_has_no_class():
    words, strange = (*WORDS, UNFAMILIAR), answers(("Maize", UNFAMILIAR), ("Maize", UNFAMILIAR))
    line = "5 images, 2 sure, 1 not sure and 2 unfamiliar: Maize 2 (1 not sure), Charlock 1"
    assert describe(words, [*FOUND, *strange]) == line
    assert describe(words, strange) == "2 images, 0 sure, 0 not sure and 2 unfamiliar"


def test_a_model_that_knows_no_threshold_counts_what_is_unfamiliar():
    found = answers(("Maize", None), ("Maize", UNFAMILIAR))
    assert describe([UNFAMILIAR], found) == "2 images, 1 unfamiliar: Maize 1"


def test_without_certainty_nothing_is_said_of_it():
    assert describe((), answers(("Charlock", None), ("Maize", None), ("Maize", None))) == (
        "3 images: Maize 2, Charlock 1"
    )


def test_plants_are_counted_and_not_their_photographs():
    plants = [Plant((0, 0, 9, 9), [("Maize", 0.9)], SURE), Plant((9, 0, 18, 9), [("Maize", 0.4)], NOT_SURE)]
    tray, bare = Answer("a.jpg", [], None, plants), Answer("b.jpg", [])
    assert describe(WORDS, [tray, bare], tiles=True) == "2 plants, 1 sure and 1 not sure: Maize 2 (1 not sure)"


@pytest.mark.parametrize("count", [0, 1])
def test_one_answer_needs_no_summary(count):
    assert describe(WORDS, answers(("Maize", SURE))[:count]) == ""


def test_the_rarest_of_many_classes_are_counted_only():
    many = answers(
        ("common", None), *((f"class {number:03d}", None) for number in range(MOST_CLASSES + 1)), ("common", None)
    )
    line = describe((), many)
    assert line.startswith(f"{MOST_CLASSES + 3} images: common 2, class 000 1, ")
    assert line.endswith(f"class {MOST_CLASSES - 2:03d} 1, 2 further classes 2")


def test_a_name_with_a_line_break_stays_on_the_line():
    assert "\n" not in describe((), answers(("a\nb", None), ("a\nb", None)))
