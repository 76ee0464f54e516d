"""The page's languages say the same things, and a browser gets its own."""

import re

import pytest

from seedling_hf import SHIPPED_MODEL
from seedling_hf.demo.words import SPECIES, TEXTS, Words, choose_language


def test_both_languages_have_the_same_texts_with_the_same_values():
    english, chinese = ({key: sorted(re.findall(r"\{\w+\}", text)) for key, text in t.items()} for t in TEXTS.values())
    assert english == chinese


def test_every_species_of_the_shipped_model_has_a_chinese_name():
    assert {path.stem for path in (SHIPPED_MODEL / "examples").glob("*.jpg")} == set(SPECIES)


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("zh-TW", "zh"), ("ZH", "zh"), ("en-US,en;q=0.9,zh;q=0.8", "en"),
        ("en;q=0.3, zh;q=0.7", "zh"), ("de-DE,de;q=0.9,zh;q=0.5", "zh"), ("fr", "en"), ("*", "en"), ("", "en"),
        (None, "en"), ("zh;q=x", "en"), (";;,=,", "en"),
    ],
)  # fmt: skip
def test_the_language_is_the_one_that_the_browser_prefers(accepted, language):
    assert choose_language(accepted) == language


def test_a_species_has_its_chinese_name_before_its_own_where_there_is_one():
    assert Words("zh").name("Maize") == "玉米 Maize"
    assert Words("zh").name("Thistle") == "Thistle"
    assert Words("en").name("Maize") == "Maize"
