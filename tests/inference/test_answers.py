"""What is written for an answer, letter by letter."""

import csv
import io
import json

import pytest

from seedling_hf.files import open_text
from seedling_hf.inference.answers import Answer, AnswerWriter, Plant, format_count, format_of, format_table

ANSWERS = [
    Answer("a/1.jpg", [("Maize", 0.75), ("Charlock", 0.25)]),
    Answer("a/torn.jpg", [], "image file is truncated"),
    Answer("b/2.jpg", [("Charlock", 0.5), ("Maize", 0.5)]),
]


PLANTS = [Plant((0, 5, 10, 15), [("Maize", 0.75), ("Charlock", 0.25)]), Plant((20, 5, 30, 15), [("Charlock", 0.5)])]
TRAYS = [Answer("a.jpg", [], None, PLANTS), Answer("bare.jpg", [], None), Answer("torn.jpg", [], "truncated")]


def write(output_format: str, threshold: float | None = None, answers=ANSWERS, **further) -> str:
    stream = io.StringIO()
    writer = AnswerWriter(stream, output_format, threshold, **further)
    writer.write_heading()
    for answer in answers:
        writer.write(answer)
    return stream.getvalue()


def test_csv_has_a_row_for_each_class_of_the_ranking():
    assert write("csv").splitlines() == [
        "file,class,probability",
        "a/1.jpg,Maize,0.750000",
        "a/1.jpg,Charlock,0.250000",
        "b/2.jpg,Charlock,0.500000",
        "b/2.jpg,Maize,0.500000",
    ]


def test_a_threshold_adds_a_column_that_says_not_sure_below_it():
    rows = list(csv.DictReader(write("csv", 0.6).splitlines()))
    assert [row["certainty"] for row in rows] == ["sure", "sure", "not sure", "not sure"]


def test_a_probability_that_equals_the_threshold_is_sure():
    assert {row["certainty"] for row in csv.DictReader(write("csv", 0.5).splitlines())} == {"sure"}


def test_jsonl_has_an_object_an_image():
    rows = [json.loads(line) for line in write("jsonl", 0.6).splitlines()]
    assert rows[1] == {
        "file": "b/2.jpg", "class": "Charlock", "probability": 0.5, "certainty": "not sure",
        "top_k": [{"class": "Charlock", "probability": 0.5}, {"class": "Maize", "probability": 0.5}],
    }  # fmt: skip
    assert len(rows) == 2


def test_jsonl_without_a_threshold_and_with_one_class_is_short():
    (line,) = write("jsonl", answers=[Answer("1.jpg", [("Maïs", 1.0)])]).splitlines()
    assert line == '{"file": "1.jpg", "class": "Maïs", "probability": 1.0}'


def test_a_plant_has_its_number_and_its_box_after_the_file():
    assert write("csv", 0.6, TRAYS, tiles=True).splitlines() == [
        "file,plant,left,top,right,bottom,class,probability,certainty",
        "a.jpg,1,0,5,10,15,Maize,0.750000,sure",
        "a.jpg,1,0,5,10,15,Charlock,0.250000,sure",
        "a.jpg,2,20,5,30,15,Charlock,0.500000,not sure",
    ]
    _, second = map(json.loads, write("jsonl", answers=TRAYS, tiles=True).splitlines())
    assert second == {
        "file": "a.jpg", "plant": 2, "left": 20, "top": 5, "right": 30, "bottom": 15, "class": "Charlock",
        "probability": 0.5,
    }  # fmt: skip


def test_a_table_numbers_the_plants():
    first, _, second = format_table(TRAYS, 0.6).splitlines()
    assert first.startswith("a.jpg  1  Maize")
    assert second.startswith("a.jpg  2  Charlock") and second.endswith("not sure")
    assert format_table(TRAYS[1:]) == ""


def test_kaggle_gets_bare_file_names_and_species():
    assert write("kaggle") == "file,species\n1.jpg,Maize\n2.jpg,Charlock\n"


def test_a_table_marks_predictions_that_are_not_sure():
    first, _, second, _ = format_table(ANSWERS, 0.6).splitlines()
    assert second.endswith("not sure")
    assert "not sure" not in first


@pytest.mark.parametrize(
    ("name", "expected"), [("a.csv", "csv"), ("a.JSONL", "jsonl"), ("a.ndjson", "jsonl"), ("a", "csv"), (None, "csv")]
)
def test_the_suffix_chooses_the_format(name, expected):
    assert format_of(name) == expected


def test_one_is_singular():
    assert [format_count(n, "image") for n in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]


def test_a_name_that_is_not_utf8_keeps_its_bytes(tmp_path):
    with open_text(tmp_path / "a.csv") as stream:
        AnswerWriter(stream, "csv").write(Answer(b"\xff.jpg".decode("utf-8", "surrogateescape"), [("Maize", 1.0)]))
    assert (tmp_path / "a.csv").read_bytes() == b"\xff.jpg,Maize,1.000000\n"
