"""A label map gives classes the names that a model, or another folder, has for them."""

import re
import shutil
from pathlib import Path

import pytest
from data_loading import rows, splits_of
from sample import SAMPLE, copy_sample

from seedling_hf.data.dataset import load_folder, load_folders
from seedling_hf.data.inspection import inspect_folder
from seedling_hf.data.label_map import read_label_map
from seedling_hf.errors import InputError
from seedling_hf.spelling import spelling_key

SPELLED = {"Shepherd’s Purse": "Shepherds Purse", "fat_hen": "Fat Hen", "SUGAR-BEET": "Sugar beet"}


@pytest.fixture
def tree(tmp_path) -> Path:
    """Six images of each of three species, in folders that spell them otherwise, and of Maize."""
    folder = copy_sample(tmp_path / "tree", [*SPELLED.values(), "Maize"], slice(6))
    for spelled, name in SPELLED.items():
        (folder / name).rename(folder / spelled)
    return folder


@pytest.fixture
def write(tmp_path):
    def write(names: dict[str, str] | str) -> Path:
        lines = names if isinstance(names, str) else "\n".join(["from,to", *map(",".join, names.items())])
        (tmp_path / "map.csv").write_text(lines, encoding="utf-8")
        return tmp_path / "map.csv"

    return write


KNOWN = ["Fat Hen", "Maize", "Shepherds Purse", "Sugar beet"]


def test_names_that_differ_in_spelling_are_refused_with_the_lines_of_a_map_that_is_then_taken(tree, write):
    with pytest.raises(InputError) as refused:
        load_folder(tree, class_names=KNOWN)
    proposed = re.search(r"rename (.*), or let --label_map do so: a CSV with the header from,to and lines such as (\S+ "
                         r"\S+);", str(refused.value))  # fmt: skip
    names = dict(pair.split(" to ") for pair in proposed[1].split(", "))
    assert names == SPELLED and proposed[2] == "SUGAR-BEET,Sugar beet"
    found = load_folder(tree, class_names=KNOWN, label_map=write(names))
    assert {(Path(file).parts[0], label) for file, label in rows(found)} == {*SPELLED.items(), ("Maize", "Maize")}
    assert found.features["label"].names == KNOWN


def test_a_map_changes_nothing_but_names(tree, write):
    given, found = (splits_of(train_dir=tree, label_map=path) for path in (None, write({"fat_hen": "Fat Hen"})))
    assert found["train"].features["label"].names == ["Fat Hen", "Maize", "SUGAR-BEET", "Shepherd’s Purse"]
    for split in given:
        expected = [(file, {"fat_hen": "Fat Hen"}.get(label, label)) for file, label in rows(given[split])]
        # The seed of a class's draw is its name, so that only the renamed one may be drawn otherwise.
        assert [row for row in rows(found[split]) if row[1] != "Fat Hen"] == [
            row for row in expected if row[1] != "Fat Hen"
        ]


def test_several_names_become_one_class(tree, write):
    path = write({"fat_hen": "weed", "Shepherd’s Purse": "weed", "Maize": "crop", "SUGAR-BEET": "crop"})
    splits = splits_of(train_dir=tree, label_map=path)
    assert splits["train"].features["label"].names == ["crop", "weed"]
    assert sum(map(len, splits.values())) == 24
    assert inspect_folder(tree, label_map=path).classes == {"train": {"crop": 12, "weed": 12}}


def test_each_name_changes_once_so_that_two_can_be_exchanged(tree, write):
    found = load_folders(tree, label_map=write({"fat_hen": "Maize", "Maize": "fat_hen"}))["train"]
    assert {(Path(file).parts[0], label) for file, label in rows(found)} >= {("Maize", "fat_hen"), ("fat_hen", "Maize")}


def test_validation_images_are_renamed_too(tree, write, tmp_path):
    other = copy_sample(tmp_path / "other", list(SPELLED.values()), slice(6, 8))
    with pytest.raises(InputError, match=r"found also Fat Hen, Shepherds Purse, Sugar beet; rename Fat Hen to fat_hen"):
        splits_of(train_dir=tree, validation_dir=other)
    splits = splits_of(train_dir=tree, validation_dir=other, label_map=write(SPELLED))
    assert splits["validation"].features["label"].names == KNOWN and len(splits["validation"]) == 6


def test_one_map_serves_several_folders_of_a_model(tree, write):
    """Names of classes that are not in this folder, or rightly spelled, do no harm."""
    shutil.rmtree(tree / "SUGAR-BEET")
    (tree / "fat_hen").rename(tree / "Fat Hen")
    found = load_folder(tree, class_names=KNOWN, label_map=write(SPELLED | {"oat": "Maize"}))
    assert {label for _, label in rows(found)} == {"Fat Hen", "Maize", "Shepherds Purse"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {"oat": "Maize"},
            r"the classes of .*tree in the column from of .*map\.csv, found oat; use Maize, SUGAR-BEET, ",
        ),
        ({"Fat_hen": "Maize"}, r"found Fat_hen \(did you mean fat_hen\?\); use .*, or remove these rows"),
        ({"maize ": "corn"}, r"found maize  \(did you mean Maize\?\)"),
    ],
)
def test_an_unknown_name_is_refused_with_the_one_that_it_nearly_is(tree, write, names, message):
    with pytest.raises(InputError, match=message):
        splits_of(train_dir=tree, label_map=write(names))


def test_a_name_that_would_change_a_known_class_in_vain_is_refused(tree, write):
    with pytest.raises(InputError, match=r"column from of .*, found Maise \(did you mean Maize\?\)"):
        load_folder(tree, class_names=KNOWN, label_map=write(SPELLED | {"Maise": "Fat Hen"}))


def test_a_class_that_the_model_does_not_know_is_refused(tree, write):
    with pytest.raises(
        InputError, match=r"model's classes in the column to of .*, found Fat Hens \(did you mean Fat Hen"
    ):
        load_folder(tree, class_names=KNOWN, label_map=write(SPELLED | {"fat_hen": "Fat Hens"}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"columns from and to in .*, found nothing; write the header from,to, and below it"),
        ("fat_hen: Fat Hen\n", r"columns from and to in .*, separated by commas, found fat_hen: Fat Hen; write"),
        ("from,to\nfat_hen,\n", r"two names in each row of .*, found 'fat_hen' and '' in row 2; write both"),
        ("from,to\n,Fat Hen\n", r"found '' and 'Fat Hen' in row 2"),
        ("from,to\nfat_hen, Fat Hen\n", r"found 'fat_hen' and ' Fat Hen' in row 2; write both, without spaces"),
        ("from,to\nfat_hen,a\nfat_hen,b\n", r"each name once in the column from of .*, found fat_hen again in row 3"),
        ("from,to\nfat_hen\n", r"found 1 cell in row 2"),
    ],
)
def test_a_file_that_is_no_map_is_refused(write, text, message):
    with pytest.raises(InputError, match=message) as refused:
        read_label_map(write(text))
    assert "\n" not in str(refused.value)


def test_another_encoding_is_refused(tmp_path):
    (tmp_path / "map.csv").write_bytes("from,to\nShepherd’s Purse,Shepherds Purse\n".encode("cp1252"))
    with pytest.raises(InputError, match=r"UTF-8 in .*, found Shepherd\\x92s Purse,Shepherds Purse in row 2; save it"):
        read_label_map(tmp_path / "map.csv")


def test_a_missing_map_is_refused(tree, tmp_path):
    with pytest.raises(InputError, match=r"a CSV with the columns from and to at .*, found: .*No such file"):
        load_folders(tree, label_map=tmp_path / "map.csv")


def test_the_map_of_the_documentation_gives_each_species_another_spelling_of_its_name(tmp_path):
    text = Path(__file__).resolve().parents[2].joinpath("docs", "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^from,to\n(?:[^`\n]+\n)+", text, re.MULTILINE)
    block = next(each for each in blocks if "loose_silkybent" in each)
    (tmp_path / "map.csv").write_text(block, encoding="utf-8")
    names = read_label_map(tmp_path / "map.csv")
    assert all(spelling_key(old) == spelling_key(new) for old, new in names.items())
    assert sorted(names.values()) == sorted(folder.name for folder in SAMPLE.iterdir())
