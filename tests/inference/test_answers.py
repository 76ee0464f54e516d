"""What is written for an answer, letter by letter."""

import csv
import io
import json

import pytest

from seedling_hf.errors import InputError
from seedling_hf.files import open_text
from seedling_hf.inference.answers import Answer, AnswerWriter, Plant, choose_format, format_table

ANSWERS = [
    Answer("a/1.jpg", [("Maize", 0.75), ("Charlock", 0.25)], certainty="sure"),
    Answer("a/torn.jpg", [], "image file is truncated"),
    Answer("b/2.jpg", [("Charlock", 0.5), ("Maize", 0.5)], certainty="not sure"),
]


ONE = Answer("1.jpg", [("Maïs", 1.0)])
CAR = Answer("car.jpg", [("Maize", 0.99)], certainty="unfamiliar")
PLANTS = [
    Plant((0, 5, 10, 15), [("Maize", 0.75), ("Charlock", 0.25)], "sure"),
    Plant((20, 5, 30, 15), [("Charlock", 0.5)], "not sure"),
]
TRAYS = [Answer("a.jpg", [], None, PLANTS), Answer("bare.jpg", [], None), Answer("torn.jpg", [], "truncated")]


def write(format: str, answers=ANSWERS, **further) -> str:
    stream = io.StringIO()
    writer = AnswerWriter(stream, format, **further)
    writer.write_heading()
    for answer in answers:
        writer.write(answer)
    writer.write_end()
    return stream.getvalue()


def test_csv_has_a_row_with_its_rank_for_each_class_of_the_ranking():
    assert write("csv", top_k=2).splitlines() == [
        "file,rank,class,probability",
        "a/1.jpg,1,Maize,0.750000",
        "a/1.jpg,2,Charlock,0.250000",
        "b/2.jpg,1,Charlock,0.500000",
        "b/2.jpg,2,Maize,0.500000",
    ]


def test_one_class_needs_no_rank():
    assert write("csv", [ONE]) == "file,class,probability\n1.jpg,Maïs,1.000000\n"


def test_certainty_is_said_of_the_first_class_only():
    rows = list(csv.DictReader(write("csv", [*ANSWERS, CAR], with_certainty=True, top_k=2).splitlines()))
    assert [row["certainty"] for row in rows] == ["sure", "", "not sure", "", "unfamiliar"]


def test_where_nothing_is_said_of_certainty_a_row_leaves_it_empty():
    answers = [Answer("1.jpg", [("Maize", 1.0)]), CAR]
    assert write("csv", answers, with_certainty=True).splitlines()[1:] == [
        "1.jpg,Maize,1.000000,", "car.jpg,Maize,0.990000,unfamiliar",
    ]  # fmt: skip
    objects = [json.loads(line) for line in write("jsonl", answers, with_certainty=True).splitlines()]
    assert [row["certainty"] for row in objects] == [None, "unfamiliar"]


def test_jsonl_has_an_object_an_image():
    rows = [json.loads(line) for line in write("jsonl", with_certainty=True, top_k=2).splitlines()]
    assert rows[1] == {
        "file": "b/2.jpg", "class": "Charlock", "probability": 0.5, "certainty": "not sure",
        "top_k": [
            {"rank": 1, "class": "Charlock", "probability": 0.5}, {"rank": 2, "class": "Maize", "probability": 0.5},
        ],
    }  # fmt: skip
    assert len(rows) == 2


@pytest.mark.parametrize("count", [0, 1, 2])
def test_json_is_a_list_of_the_objects_of_jsonl(count):
    answers = [ANSWERS[0], ANSWERS[2]][:count]
    objects = [json.loads(line) for line in write("jsonl", answers, with_certainty=True).splitlines()]
    assert len(objects) == count
    assert json.loads(write("json", answers, with_certainty=True)) == objects


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1+1", "@SUM(A1)", "-2+3"])
def test_a_spreadsheet_takes_no_name_for_a_formula(name):
    text = write("csv", [Answer(f"{name}.jpg", [(name, 1.0)])])
    (row,) = csv.DictReader(text.splitlines())
    assert (row["file"], row["class"]) == (f"'{name}.jpg", f"'{name}")


def test_jsonl_without_certainty_and_with_one_class_is_short():
    (line,) = write("jsonl", [ONE]).splitlines()
    assert line == '{"file": "1.jpg", "class": "Maïs", "probability": 1.0}'


def test_a_plant_has_its_number_and_its_box_after_the_file():
    assert write("csv", TRAYS, with_certainty=True, tiles=True, top_k=2).splitlines() == [
        "file,plant,left,top,right,bottom,rank,class,probability,certainty",
        "a.jpg,1,0,5,10,15,1,Maize,0.750000,sure",
        "a.jpg,1,0,5,10,15,2,Charlock,0.250000,",
        "a.jpg,2,20,5,30,15,1,Charlock,0.500000,not sure",
    ]
    _, second = map(json.loads, write("jsonl", TRAYS, tiles=True).splitlines())
    assert second == {
        "file": "a.jpg", "plant": 2, "left": 20, "top": 5, "right": 30, "bottom": 15, "class": "Charlock",
        "probability": 0.5,
    }  # fmt: skip


def test_a_table_numbers_the_plants():
    first, _, second = format_table(TRAYS).splitlines()
    assert first.startswith("a.jpg  1  Maize")
    assert second.startswith("a.jpg  2  Charlock") and second.endswith("not sure")
    assert format_table(TRAYS[1:]) == ""


def test_kaggle_gets_bare_file_names_and_species():
    assert write("kaggle") == "file,species\n1.jpg,Maize\n2.jpg,Charlock\n"


def test_a_table_marks_predictions_that_are_not_sure_and_unfamiliar_images():
    first, _, second, _, third = format_table([*ANSWERS, CAR]).splitlines()
    assert second.endswith("not sure") and third.endswith("unfamiliar")
    assert "sure" not in first


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("a.csv", None, "csv"), ("a.JSONL", None, "jsonl"), ("a.ndjson", None, "jsonl"), ("a.json", None, "json"),
        (None, None, "csv"), (None, "json", "json"), ("a.csv", "kaggle", "kaggle"), ("a.txt", "csv", "csv"),
    ],
)  # fmt: skip
def test_the_suffix_chooses_the_format(name, given, expected):
    assert choose_format(name, given) == expected


@pytest.mark.parametrize("name", ["a.xlsx", "a.txt", "a", "a.csv.gz", ".csv"])
def test_a_suffix_that_says_nothing_is_refused(name):
    with pytest.raises(InputError, match=f"expected --output_file to end in .csv, .* or .json, found {name}; rename"):
        choose_format(name)


@pytest.mark.parametrize(("name", "given"), [("a.json", "csv"), ("a.csv", "jsonl"), ("a.json", "kaggle")])
def test_a_suffix_that_says_something_else_than_the_format_is_refused(name, given):
    with pytest.raises(InputError, match=f"expected an --output_file for --format {given}, found {name}"):
        choose_format(name, given)


def test_a_name_that_is_not_utf8_keeps_its_bytes(tmp_path):
    with open_text(tmp_path / "a.csv") as stream:
        AnswerWriter(stream, "csv").write(Answer(b"\xff.jpg".decode("utf-8", "surrogateescape"), [("Maize", 1.0)]))
    assert (tmp_path / "a.csv").read_bytes() == b"\xff.jpg,Maize,1.000000\n"
