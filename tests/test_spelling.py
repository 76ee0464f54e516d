"""A name near a known one is answered with it."""

import pytest

from seedling_hf.spelling import describe_difference, find_near, repair_encoding

KNOWN = ["Shepherd's Purse", "Fat Hen", "Löwenzahn", "Black-grass", "Maize", "小麦"]


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Shepherd’s Purse", "Shepherd's Purse"), ("Shepherds Purse", "Shepherd's Purse"),
        ("Shepherdâ€™s Purse", "Shepherd's Purse"), ("fat_hen", "Fat Hen"), ("FAT HEN", "Fat Hen"),
        ("Fat  Hen ", "Fat Hen"), ("FatHen", "Fat Hen"), ("LÃ¶wenzahn", "Löwenzahn"), ("Lo\u0308wenzahn", "Löwenzahn"),
        ("Lowenzahn", "Löwenzahn"), ("black grass", "Black-grass"), ("Maise", "Maize"),
        ("小麦".encode().decode("latin-1"), "小麦"),
    ],
)  # fmt: skip
def test_another_spelling_finds_the_known_name(name, known):
    assert find_near(name, KNOWN) == known


@pytest.mark.parametrize("name", ["Oak", "玉米", "!?", "train"])
def test_another_name_finds_nothing(name):
    assert find_near(name, KNOWN) is None


def test_a_right_name_is_not_repaired():
    assert all(repair_encoding(name) == name for name in KNOWN)


def test_a_difference_names_the_first_name_and_its_neighbour():
    assert describe_difference(["Maize", "fat_hen"], KNOWN) == ", such as fat_hen for Fat Hen"
    assert describe_difference(["Maize"], KNOWN) == ""
