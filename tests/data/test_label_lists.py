"""Images beside a list of labels are read as `datasets` reads them, and as class folders of the same images are."""

import csv
import json
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from data_loading import rows, splits_of
from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from sample import copy_sample

from seedling_hf.commands import run
from seedling_hf.commands.make_split import main as make_split
from seedling_hf.data.dataset import load_folder, load_folders
from seedling_hf.data.folders import list_labelled_images
from seedling_hf.data.formats import image_suffixes
from seedling_hf.data.inspection import inspect_folder, report_shared_images
from seedling_hf.errors import InputError

NAMES = ("Charlock", "Maize")


@pytest.fixture
def tree(tmp_path) -> Path:
    """Ten images of each of two classes in class folders."""
    return copy_sample(tmp_path / "tree", NAMES, slice(10))


@pytest.fixture
def flat(tree, tmp_path) -> Path:
    """The same images in one folder, with their classes in metadata.csv, in the order of their names."""
    return flatten(tree, tmp_path / "flat")


def flatten(tree: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    files = sorted(tree.glob("*/*"), key=lambda file: file.name)
    for file in files:
        shutil.copyfile(file, folder / file.name)
    write(folder, [(file.name, file.parent.name) for file in files])
    return folder


def write(folder: Path, lines: Sequence[Sequence], header: Sequence[str] = ("file_name", "label")) -> None:
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *lines])


def read(folder: Path) -> list[list[str]]:
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))[1:]


def by_name(found: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(Path(file).name, label) for file, label in found]


# As class folders and as `datasets`


def test_a_flat_folder_with_a_list_is_read_as_class_folders_in_the_same_order(tree, flat):
    assert by_name(rows(load_folder(tree))) == rows(load_folder(flat))


@pytest.mark.parametrize("flags", [{}, {"split_strategy": "grouped"}], ids=["stratified", "grouped"])
def test_a_list_is_split_as_class_folders_are(tree, flat, flags):
    ours, theirs = (splits_of(train_dir=folder, **flags) for folder in (flat, tree))
    assert {name: rows(split) for name, split in ours.items()} == {
        name: by_name(rows(split)) for name, split in theirs.items()
    }
    assert ours["train"].features == theirs["train"].features


def test_datasets_gives_the_same_images_the_same_labels(flat, tmp_path):
    theirs = load_dataset("imagefolder", data_dir=str(flat), cache_dir=str(tmp_path / "cache"))["train"]
    assert sorted((Path(row["image"].filename).name, row["label"]) for row in theirs) == sorted(rows(load_folder(flat)))


def write_lines(folder: Path, lines: Sequence[Sequence[str]]) -> None:
    text = "\n".join(json.dumps({"file_name": file, "label": label, "day": 3}) for file, label in lines)
    (folder / "metadata.jsonl").write_text(text)


def write_parquet(folder: Path, lines: Sequence[Sequence[str]]) -> None:
    files, labels = zip(*lines, strict=True)
    Dataset.from_dict({"file_name": files, "label": labels}).to_parquet(folder / "metadata.parquet")


def write_numbers_with_names(folder: Path, lines: Sequence[Sequence[str]]) -> None:
    files, labels = zip(*lines, strict=True)
    features = Features({"file_name": Value("string"), "label": ClassLabel(names=[*NAMES])})
    columns = {"file_name": files, "label": [NAMES.index(label) for label in labels]}
    Dataset.from_dict(columns, features=features).to_parquet(folder / "metadata.parquet")


@pytest.mark.parametrize("write_other", [write_lines, write_parquet, write_numbers_with_names])
def test_a_list_may_be_json_or_parquet(flat, write_other):
    expected = rows(load_folder(flat))
    write_other(flat, read(flat))
    (flat / "metadata.csv").unlink()
    assert rows(load_folder(flat)) == expected


def test_a_list_may_have_other_columns_a_byte_order_mark_and_blank_lines(flat):
    expected = rows(load_folder(flat))
    lines = [f"{label},{number},{file}" for number, (file, label) in enumerate(read(flat))]
    (flat / "metadata.csv").write_text("\ufefflabel,day,file_name\r\n" + "\r\n\r\n".join(lines), encoding="utf-8")
    assert rows(load_folder(flat)) == expected


def test_images_may_lie_in_folders_and_paths_be_those_of_windows(flat):
    expected = rows(load_folder(flat))
    (flat / "day one").mkdir()
    (flat / "masks").mkdir()
    for file, _ in expected[::2]:
        shutil.copyfile(flat / file, flat / "masks" / file)
        (flat / file).rename(flat / "day one" / file)
    moved = {file for file, _ in expected[::2]}
    write(flat, [(f".\\day one\\{file}" if file in moved else f"./{file}", label) for file, label in expected])
    found = rows(load_folder(flat))
    assert sorted(by_name(found)) == sorted(expected)
    assert {file for file, _ in found if "/" in file} == {f"day one/{file}" for file in moved}


def test_splits_may_each_have_a_list(tree, tmp_path):
    for split in ("train", "val", "test"):
        flatten(tree, tmp_path / "splits" / split)
    splits = splits_of(train_dir=tmp_path / "splits")
    assert {name: len(split) for name, split in splits.items()} == {"train": 20, "validation": 20, "test": 20}
    assert load_folders(tmp_path / "splits").keys() == {"train", "validation", "test"}
    splits = splits_of(train_dir=tree, validation_dir=tmp_path / "splits" / "val")
    assert by_name(rows(splits["train"])) == rows(splits["validation"])


def test_a_test_folder_whose_list_has_no_labels_is_ignored_with_a_notice(tree, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    flatten(tree, tmp_path / "splits" / "train")
    write(flatten(tree, tmp_path / "splits" / "test"), [["1.png", "3"]], ("file_name", "day"))
    assert load_folders(tmp_path / "splits").keys() == {"train"}
    assert f"ignored {tmp_path / 'splits' / 'test'}" in caplog.text


# What follows from labels


def test_lists_of_splits_and_corrections_name_files_as_the_list_does(flat, tmp_path):
    from seedling_hf.data.splits import write_split_csv

    splits = splits_of(train_dir=flat, split_seed=3)
    write_split_csv(splits, tmp_path / "split.csv")
    again = splits_of(train_dir=flat, split_file=tmp_path / "split.csv")
    assert {name: rows(split) for name, split in again.items()} == {name: rows(split) for name, split in splits.items()}
    file = next(file for file, label in rows(splits["train"]) if label == "Maize")
    (tmp_path / "labels.csv").write_text(f"file,label\n{file},Charlock\n")
    corrected = splits_of(train_dir=flat, split_seed=3, label_file=tmp_path / "labels.csv")
    assert (file, "Charlock") in rows(corrected["train"])


def test_duplicates_are_found_and_inspected_as_in_class_folders(flat, tmp_path, caplog):
    file, label = read(flat)[0]
    shutil.copyfile(flat / file, flat / "copy.jpg")
    write(flat, [*read(flat), ("copy.jpg", next(name for name in NAMES if name != label))])
    found = inspect_folder(flat)
    assert found.exact_duplicates == [sorted([file, "copy.jpg"])] or found.exact_duplicates == [["copy.jpg", file]]
    assert len(found.in_two_classes) == 1 and found.classes == {"train": {"Charlock": 10, "Maize": 10} | {
        next(name for name in NAMES if name != label): 11}}  # fmt: skip
    splits = splits_of(
        train_dir=flat, validation_dir=flatten(copy_sample(tmp_path / "b", NAMES, slice(2)), tmp_path / "c")
    )
    report_shared_images(splits, tmp_path / "near.json", "x")
    assert "validation images have duplicates in training" in caplog.text


def test_make_split_makes_class_folders_of_a_list(flat, tmp_path):
    flags = ["--train_dir", str(flat), "--output_dir", str(tmp_path / "out"), "--split_strategy", "grouped"]
    assert run(make_split, flags) in (0, None)
    assert sorted(rows(load_folder(flat))) == sorted(
        (path.name, path.parent.name) for path in tmp_path.glob("out/*/*/*")
    )
    made, given = splits_of(train_dir=tmp_path / "out"), splits_of(train_dir=flat, split_strategy="grouped")
    assert {name: by_name(rows(split)) for name, split in made.items()} == {
        name: rows(split) for name, split in given.items()
    }


def test_make_split_refuses_two_images_of_a_class_and_a_name(flat, tmp_path, capsys):
    lines = read(flat)
    (flat / "b").mkdir()
    for file, _ in lines:
        shutil.copyfile(flat / file, flat / "b" / file)
    write(flat, [*lines, *((f"b/{file}", label) for file, label in lines)])
    assert run(make_split, ["--train_dir", str(flat), "--output_dir", str(tmp_path / "out")]) == 2
    assert re.search(r"names in the class Charlock, found .* and .* for the same folder", capsys.readouterr().err)
    assert not (tmp_path / "out" / "train").exists()


@pytest.mark.parametrize("name", ["../../outside", "/outside", "..", ".hidden", "a/b"])
def test_make_split_refuses_a_class_that_is_no_folder(flat, tmp_path, capsys, name):
    write(flat, [(file, name if label == "Maize" else label) for file, label in read(flat)])
    before = {path for path in tmp_path.rglob("*") if path != tmp_path / "out"}
    assert run(make_split, ["--train_dir", str(flat), "--output_dir", str(tmp_path / "out" / "made")]) == 2
    assert f"names that folders can have, found {name}; let --label_map" in capsys.readouterr().err
    assert not any(path.suffix == ".jpg" for path in {*tmp_path.rglob("*")} - before)


# What is left out


def test_images_that_are_not_listed_are_left_out_and_counted(flat, caplog):
    write(flat, read(flat)[2:])
    (flat / "notes.txt").write_text("x")
    assert len(load_folder(flat)) == 18
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "2 further images (not in metadata.csv); 1 .txt (not an image by its suffix)"
    ]


def test_class_folders_beside_a_list_of_other_things_stay_class_folders(tree, caplog):
    expected = rows(load_folder(tree))
    write(tree, [["Maize/1.png", "3"]], ("file_name", "day"))
    assert rows(load_folder(tree)) == expected
    assert "1 metadata.csv (without the columns file_name and label)" in caplog.text


# What is refused


def refuse(folder: Path, message: str) -> str:
    with pytest.raises(InputError, match=message) as refused:
        list_labelled_images(folder)
    sentence = str(refused.value)
    assert len(sentence) < 700 and "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (["file", "class"], "columns file_name and label in .*, found file,class; call the column of"),
        (["file_name;label"], "separated by commas, found file_name;label; call"),
        (["file_name", "species"], "found file_name,species; call .* and that of their classes label"),
        ([], "found nothing; call"),
    ],
)  # fmt: skip
def test_a_list_with_other_columns_is_refused(flat, header, message):
    write(flat, read(flat) if len(header) == 2 else [], header)
    refuse(flat, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [[rows[0][0], ""], [rows[1][0], "  "], *rows[2:]],
         r"a label for each image in .*, found 2 without: \w+\.jpg \(row 2\), \w+\.jpg \(row 3\); write them"),
        (lambda rows: [*rows, [rows[3][0], "Maize"]], r"each image once in .*, found \w+\.jpg \(row 22\) again; keep"),
        (lambda rows: [*rows, [f"./{rows[3][0]}", "Maize"]], r"found \w+\.jpg \(row 22\) again"),
        (lambda rows: [*rows, ["", "Maize"]], r"the name of a file in each row of .*, found none in row 22; write it"),
        (lambda rows: [*rows, ["lost.jpg", "Maize"]],
         r"images that .* lists, found 1 of 21 missing: lost\.jpg; correct file_name, restore them, or remove"),
        (lambda rows: [["1.png", "Maize"]] * 1 + [[f"{i}.png", "Maize"] for i in range(2, 9)] + rows,
         r"found 8 of 28 missing: 1\.png, 2\.png, 3\.png and 5 more; correct"),
        (lambda rows: [[rows[0][0], f" {rows[0][1]}"], *rows[1:]],
         r"labels without spaces around them in .*, found 1 with: ' \w+' \(row 2\); remove the spaces"),
        (lambda rows: [*rows, ["../tree/Maize/x.jpg", "Maize"]],
         r"files in .*flat in the column file_name of .*, found \.\./tree/Maize/x\.jpg \(row 22\); write them"),
        (lambda rows: [*rows, ["a/../../x.jpg", "Maize"], ["/etc/x.jpg", "Maize"], ["file:///x.jpg", "Maize"],
                       ["C:\\x.jpg", "Maize"]],
         r"found a/\.\./\.\./x\.jpg \(row 22\), /etc/x\.jpg \(row 23\), file:///x\.jpg \(row 24\) and 1 more; write"),
        (lambda rows: [*rows, ["metadata.csv", "Maize"]],
         r"expected images in the column file_name of .*, found metadata\.csv, no images by their suffix; convert"),
        (lambda rows: [*rows, ["a.jpg"]], r"found 1 cell in row 22; call"),
    ],
    ids=["empty", "twice", "twice in two spellings", "no file", "missing", "many missing", "spaces", "above",
         "elsewhere", "no image", "short row"],
)  # fmt: skip
def test_a_row_that_does_not_fit_is_refused_by_its_number(flat, change, message):
    write(flat, change(read(flat)))
    refuse(flat, message)


@pytest.mark.parametrize("spelled", [str.upper, lambda name: name.removesuffix(".jpg"), lambda name: f"a/{name}"])
def test_a_missing_file_is_named_with_the_one_that_is_probably_meant(flat, spelled):
    file, label = read(flat)[0]
    write(flat, [(spelled(file), label), *read(flat)[1:]])
    refuse(flat, rf"missing: {spelled(file)} \(did you mean {file}\?\); correct file_name")


def test_a_file_in_a_folder_that_the_list_leaves_out_is_proposed(flat):
    file, _ = read(flat)[0]
    (flat / "images").mkdir()
    (flat / file).rename(flat / "images" / file)
    refuse(flat, rf"missing: {file} \(did you mean images/{file}\?\)")


def test_a_listed_image_that_is_not_read_says_why(flat):
    name = "a.heic" if ".heic" not in image_suffixes() else "a.cr2"
    (flat / name).write_bytes(b"x")
    write(flat, [*read(flat), (name, "Maize")])
    refuse(flat, rf"found {name}, no images by their suffix; .*JPEG")


def test_another_encoding_is_refused(flat):
    text = (flat / "metadata.csv").read_text().replace("Maize", "Shepherd’s Purse")
    (flat / "metadata.csv").write_bytes(text.encode("cp1252"))
    refuse(flat, r"expected UTF-8 in .*, found \w+\.jpg,Shepherd\\x92s Purse \(row \d+\); save it as UTF-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "a.jpg", "label": "Maize"\n', "an object of JSON in each line of .*, found: Expecting"),
        ("[1, 2]\n", "found: line 1 is no object"),
        ('{"file_name": "a.jpg"}\n', "columns file_name and label in .*, found file_name; call"),
        ('{"file_name": "{0}", "label": null}\n', "a label for each image"),
        ('{"file_name": "{0}", "label": true}\n', r"names of classes in the column label of .*, found True \(row 1\)"),
        ('{"file_name": "{0}", "label": 1.5}\n', r"names of classes in the column label of .*, found 1\.5 \(row 1\)"),
        ('{"file_name": 3, "label": "Maize"}\n', "the name of a file in each row of .*, found none in row 1"),
        ("", "found none; call"),
    ],
)
def test_a_damaged_list_of_json_is_refused(flat, text, message):
    (flat / "metadata.jsonl").write_text(text.replace("{0}", read(flat)[0][0]))
    (flat / "metadata.csv").unlink()
    refuse(flat, message)


def test_a_damaged_list_of_parquet_is_refused(flat):
    (flat / "metadata.csv").rename(flat / "metadata.parquet")
    refuse(flat, r"expected a Parquet file at .*metadata\.parquet, found: ")


def test_two_lists_are_refused(flat):
    (flat / "metadata.jsonl").write_text("")
    refuse(flat, r"one list of labels in .*flat, found metadata\.csv and metadata\.jsonl; keep one")


def test_class_folders_that_the_list_does_not_name_are_refused(flat, tree):
    shutil.copytree(tree / "Maize", flat / "Maize")
    refuse(flat, "class folders or metadata.csv in .*, found both: it lists no image of the folder Maize; remove")


def test_class_folders_that_the_list_contradicts_are_refused_and_others_are_not(tree):
    files = sorted(str(file.relative_to(tree)) for file in tree.glob("*/*"))
    write(tree, [(file, file.split("/")[0]) for file in files])
    assert rows(load_folder(tree)) == [(file, file.split("/")[0]) for file in files]
    write(tree, [(file, "Maize") for file in files])
    assert {label for _, label in rows(load_folder(tree))} == {"Maize"}, "Charlock is no class of the list"
    write(tree, [(files[0], "Maize"), *((file, file.split("/")[0]) for file in files[1:])])
    refuse(tree, rf"found both, which differ: in metadata\.csv, {files[0]} is Maize; remove metadata\.csv to use")


def test_one_list_for_several_splits_is_refused(tree, tmp_path):
    folder = tmp_path / "splits"
    for split in ("train", "val"):
        flatten(tree, folder / split)
        (folder / split / "metadata.csv").rename(folder / "metadata.csv")
    write(folder, [(f"{split}/{file}", label) for split in ("train", "val") for file, label in read(folder)])
    refuse(folder, r"a list in each of train and val in .*, found metadata\.csv for all of them; write one into each")


def test_numbers_are_refused_until_a_map_names_them(flat, tmp_path):
    expected = rows(load_folder(flat))
    write(flat, [(file, NAMES.index(label)) for file, label in read(flat)])
    with pytest.raises(InputError, match=r"names of classes in .*metadata\.csv, found the numbers 0, 1; write names"):
        load_folders(flat)
    (tmp_path / "map.csv").write_text("from,to\n0,Charlock\n1,Maize\n")
    assert rows(load_folders(flat, label_map=tmp_path / "map.csv")["train"]) == expected


def test_one_class_is_refused_with_the_list_that_names_it(flat):
    write(flat, [(file, "Maize") for file, _ in read(flat)])
    with pytest.raises(InputError, match=r"at least two classes in .*flat, found Maize; .*metadata\.csv"):
        load_folders(flat)


def test_an_image_that_cannot_be_decoded_is_refused_or_skipped(flat):
    file = read(flat)[0][0]
    (flat / file).write_bytes(b"broken")
    with pytest.raises(InputError, match=f"found 1 of 20 that cannot: {file}"):
        splits_of(train_dir=flat)
    assert sum(map(len, splits_of(train_dir=flat, skip_bad_images=True).values())) == 19
