"""The line that ends a run of `predict`."""

import pytest

from seedling_hf.inference.answers import Answer, Plant
from seedling_hf.inference.tally import MOST_CLASSES, Tally


def answers(*pairs: tuple[str, float]) -> list[Answer]:
    return [Answer(f"{name}.jpg", [(name, probability), ("other", 0.0)]) for name, probability in pairs]


def describe(threshold: float | None, found: list[Answer], **further) -> str:
    tally = Tally(threshold, **further)
    tally.add(found)
    return tally.describe()


FOUND = [*answers(("Charlock", 0.9), ("Maize", 0.9), ("Maize", 0.5)), Answer("torn.jpg", [], "truncated")]


def test_classes_are_counted_and_those_that_are_not_sure():
    assert describe(0.6, FOUND) == "3 images, 2 sure and 1 not sure: Maize 2 (1 not sure), Charlock 1"


def test_without_a_threshold_nothing_is_said_of_certainty():
    assert describe(None, FOUND) == "3 images: Maize 2, Charlock 1"


def test_plants_are_counted_and_not_their_photographs():
    plants = [Plant((0, 0, 9, 9), [("Maize", 0.9)]), Plant((9, 0, 18, 9), [("Maize", 0.4)])]
    tray, bare = Answer("a.jpg", [], None, plants), Answer("b.jpg", [])
    assert describe(0.6, [tray, bare], tiles=True) == "2 plants, 1 sure and 1 not sure: Maize 2 (1 not sure)"


@pytest.mark.parametrize("count", [0, 1])
def test_one_answer_needs_no_summary(count):
    assert describe(0.6, answers(("Maize", 0.9))[:count]) == ""


def test_the_rarest_of_many_classes_are_counted_only():
    many = answers(
        ("common", 0.9), *((f"class {number:03d}", 0.9) for number in range(MOST_CLASSES + 1)), ("common", 1)
    )
    line = describe(None, many)
    assert line.startswith(f"{MOST_CLASSES + 3} images: common 2, class 000 1, ")
    assert line.endswith(f"class {MOST_CLASSES - 2:03d} 1, 2 further classes 2")


def test_a_name_with_a_line_break_stays_on_the_line():
    assert "\n" not in describe(None, answers(("a\nb", 0.9), ("a\nb", 0.9)))
