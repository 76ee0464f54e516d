import logging
from collections import Counter
from pathlib import Path

import pytest
from data_loading import rows, splits_of
from sample import copy_sample

from seedling_hf.commands import run
from seedling_hf.commands.make_split import main as make_split
from seedling_hf.data.corrections import read_labels
from seedling_hf.data.splits import write_split_csv
from seedling_hf.errors import InputError
from seedling_hf.train_arguments import DataArguments


@pytest.fixture
def tree(tmp_path) -> Path:
    """Ten images each of three classes, three of which validate."""
    return copy_sample(tmp_path / "tree", ("Charlock", "Cleavers", "Maize"), slice(10))


@pytest.fixture
def given(tree) -> dict[str, list[tuple[str, str]]]:
    return {split: rows(images) for split, images in splits_of(train_dir=tree).items()}


@pytest.fixture
def write(tmp_path):
    """Writes a label file of pairs of file and class, or of a text as it is."""

    def write(labels: dict[str, str] | str, name: str = "labels.csv") -> Path:
        lines = labels if isinstance(labels, str) else "\n".join(
            ["file,label", *(f"{file},{label}" for file, label in labels.items())]
        )  # fmt: skip
        (tmp_path / name).write_text(lines, encoding="utf-8")
        return tmp_path / name

    return write


def first_of(rows, label: str) -> str:
    return next(file for file, name in rows if name == label)


def test_training_images_are_corrected_and_left_out_and_nothing_else_changes(tree, given, write, caplog):
    caplog.set_level(logging.INFO)
    corrected, left_out = first_of(given["train"], "Maize"), first_of(given["train"], "Charlock")
    path = write({corrected: "Cleavers", left_out: ""})
    found = {split: rows(images) for split, images in splits_of(train_dir=tree, label_file=path).items()}
    expected = [(file, "Cleavers" if file == corrected else label) for file, label in given["train"]]
    assert found["train"] == [row for row in expected if row[0] != left_out]
    assert found["validation"] == given["validation"]
    assert f"{path}: 1 training image corrected, 1 left out" in caplog.messages


def test_validation_images_keep_their_labels_and_are_counted(tree, given, write, caplog):
    caplog.set_level(logging.INFO)
    files = [file for file, _ in given["validation"]][:4]
    path = write({files[0]: "Maize", files[1]: "", files[3]: "Maize", first_of(given["train"], "Maize"): "Charlock"})
    found = splits_of(train_dir=tree, label_file=path)
    assert rows(found["validation"]) == given["validation"]
    assert f"{path}: 1 training image corrected, 0 left out; 3 images not trained on stay as given" in caplog.messages


def test_a_split_of_folders_is_corrected_in_training_only(tmp_path, write):
    names = ("Charlock", "Maize")
    both = copy_sample(tmp_path / "both" / "train", names, slice(3)).parent
    copy_sample(both / "val", names, slice(3))
    file = rows(splits_of(train_dir=both)["train"])[0][0]
    found = splits_of(train_dir=both, label_file=write({file: "Maize"}))
    assert (file, "Maize") in rows(found["train"]) and (file, "Charlock") in rows(found["validation"])


def test_images_are_numbered_after_some_are_left_out(tree, given, write):
    file = given["train"][2][0]
    train = splits_of(train_dir=tree, label_file=write({file: ""}))["train"]
    assert train["index"] == list(range(20))
    assert [Path(path.filename).name for path in train["image"]] == [Path(name).name for name in train["file"]]


def test_images_are_chosen_evenly_from_the_corrected_classes(tree, given, write):
    """Four of the seven Cleavers become Maize, so that three are left."""
    files = [file for file, label in given["train"] if label == "Cleavers"][:4]
    path = write(dict.fromkeys(files, "Maize"))
    train = rows(splits_of(train_dir=tree, label_file=path, max_train_samples=12)["train"])
    counts = Counter(label for _, label in train)
    assert counts["Cleavers"] == 3 and {counts["Charlock"], counts["Maize"]} == {4, 5}


def test_a_class_without_images_after_corrections_is_named(tree, given, write, caplog):
    splits_of(train_dir=tree, label_file=write({file: "" for file, label in given["train"] if label == "Maize"}))
    assert "no training images are left for these classes: Maize" in caplog.text


def test_a_split_that_was_written_after_corrections_is_read_with_them(tree, given, write, tmp_path):
    corrected, left_out = first_of(given["train"], "Maize"), first_of(given["train"], "Charlock")
    path, split = write({corrected: "Cleavers", left_out: ""}), tmp_path / "split.csv"
    written = splits_of(train_dir=tree, label_file=path, split_seed=5)
    write_split_csv(written, split)
    again = splits_of(train_dir=tree, label_file=path, split_file=split)
    assert {s: rows(images) for s, images in again.items()} == {s: rows(images) for s, images in written.items()}


def test_a_split_that_was_written_after_corrections_is_refused_without_them(tree, given, write, tmp_path):
    corrected = first_of(given["train"], "Maize")
    write_split_csv(splits_of(train_dir=tree, label_file=write({corrected: "Cleavers"})), tmp_path / "split.csv")
    with pytest.raises(InputError, match=rf"{corrected} \(Cleavers, now Maize\).* give the --label_file or"):
        splits_of(train_dir=tree, split_file=tmp_path / "split.csv")


def test_a_split_that_was_written_before_corrections_is_read_with_them(tree, given, write, tmp_path):
    write_split_csv(splits_of(train_dir=tree), tmp_path / "split.csv")
    corrected = first_of(given["train"], "Maize")
    found = splits_of(train_dir=tree, label_file=write({corrected: "Cleavers"}), split_file=tmp_path / "split.csv")
    assert (corrected, "Cleavers") in rows(found["train"]) and rows(found["validation"]) == given["validation"]


# What a label file may look like


@pytest.mark.parametrize(
    "text",
    [
        "file,label\na/1.png,Maize\na/2.png,\n",
        "\ufefffile,label\r\na/1.png,Maize\r\na/2.png,\r\n\r\n",
        "rank,label,note,file\n1,Maize,sure,a/1.png\n2,  ,,a/2.png\n",
        'file,label,suggestion,margin\na/1.png,"Maize",Charlock,0.9\na/2.png,"",Maize,0.8\n',
    ],
    ids=["plain", "of a spreadsheet", "other columns", "as it is written"],
)
def test_labels_are_read_from_their_columns(write, text):
    assert read_labels(write(text)) == {"a/1.png": "Maize", "a/2.png": ""}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns file and label in .*, found nothing; change the labels.csv that inspect_dataset"),
        ("file;label\na;b\n", "separated by commas, found file;label;"),
        ("file,class\na,b\n", "columns file and label in .*, found file,class;"),
        ("file,label,label\na,b,c\n", "found file,label,label;"),
        ("file,label\na,b\nc\n", "found 1 cell in row 3;"),
        ("file,label\na,b,c\n", "found 3 cells in row 2;"),
        ("file,label\na,b\nc,d\na,b\n", "each file once in .*, found a again in row 4; keep one"),
        ('file,label\n"' + "x" * 200_000, "field larger than field limit"),
        ("x" * 10_000_000, "found"),
    ],
    ids=["empty", "semicolons", "columns", "twice", "short row", "long row", "duplicate", "huge field", "huge file"],
)
def test_a_file_that_holds_no_labels_is_refused(write, text, message):
    with pytest.raises(InputError, match=message) as refused:
        read_labels(write(text))
    assert len(str(refused.value)) < 600 and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", [".", "missing.csv"])
def test_a_folder_and_a_missing_file_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"expected a CSV with the columns file and label at .*, found: "):
        read_labels(tmp_path / name)


def test_an_unknown_file_is_refused_with_the_one_that_it_nearly_is(tree, given, write):
    file = given["train"][0][0]
    path = write({file.lower(): "Maize"})
    with pytest.raises(InputError, match=rf"found {file.lower()} \(did you mean {file}\?\); name them as split"):
        splits_of(train_dir=tree, label_file=path)


def test_unknown_files_are_refused_before_images_are_decoded(tree, write):
    (tree / "Maize" / "broken.jpg").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"found nowhere/1\.png; name them"):
        splits_of(train_dir=tree, label_file=write({"nowhere/1.png": "Maize"}))


def test_an_unknown_class_is_refused_with_the_one_that_it_nearly_is(tree, given, write):
    path = write({given["train"][0][0]: "maize "})
    with pytest.raises(
        InputError, match=r"found maize  \(did you mean Maize\?\); use Charlock, Cleavers, Maize, or an"
    ):
        splits_of(train_dir=tree, label_file=path)


def test_a_stream_is_not_corrected(write):
    with pytest.raises(InputError, match="expected --label_file without --streaming"):
        DataArguments(dataset_name="user/name", streaming=True, label_file=str(write({})))


# Copies


def test_corrected_images_are_copied_into_the_folders_of_their_classes(tree, given, write, tmp_path):
    corrected, left_out = first_of(given["train"], "Maize"), first_of(given["train"], "Charlock")
    path = write({corrected: "Cleavers", left_out: ""})
    flags = ["--train_dir", str(tree), "--output_dir", str(tmp_path / "out"), "--label_file", str(path)]
    assert run(make_split, flags) in (0, None)
    files = {str(file.relative_to(tmp_path / "out")) for file in tmp_path.glob("out/*/*/*")}
    assert f"train/Cleavers/{Path(corrected).name}" in files and len(files) == 29
    assert not any(file.endswith(Path(left_out).name) for file in files)


def test_two_images_of_one_name_are_not_brought_together(tree, write, tmp_path, capsys):
    for maize, cleavers in zip(sorted(tree.glob("Maize/*")), sorted(tree.glob("Cleavers/*")), strict=True):
        maize.rename(maize.with_name(cleavers.name))
    train = {file for file, _ in rows(splits_of(train_dir=tree)["train"])}
    name = next(
        Path(file).name for file in train if {f"Maize/{Path(file).name}", f"Cleavers/{Path(file).name}"} <= train
    )
    flags = ["--train_dir", str(tree), "--output_dir", str(tmp_path / "out")]
    assert run(make_split, [*flags, "--label_file", str(write({f"Maize/{name}": "Cleavers"}))]) == 2
    assert f"Maize/{name} for the same folder; rename one of them" in capsys.readouterr().err
    assert not (tmp_path / "out" / "train").exists()
