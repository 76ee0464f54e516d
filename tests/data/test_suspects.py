import csv
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from seedling_hf.data.suspects import (
    HEADER,
    LabelledImage,
    check_candidates,
    find_suspects,
    read_predictions,
    warn_of_training_images,
    write_candidates,
)
from seedling_hf.errors import InputError
from seedling_hf.files import write_arrays, write_csv
from seedling_hf.origin import ForeignFileError

HEADING = b"file,label,prediction,probability,label_probability\n"
NAMES = ["Charlock", "Cleavers", "Maize"]


@pytest.fixture
def cleanlab():
    return pytest.importorskip("cleanlab", reason="needs cleanlab: pip install -e '.[all]'")


class Answers:
    """Two hundred images of three classes, nine in ten of them answered right, and the files of a report on them."""

    def __init__(self, folder: Path) -> None:
        generator = np.random.default_rng(0)
        self.folder, self.labels = folder, generator.integers(0, 3, 200)
        truth = np.where(generator.random(200) < 0.9, self.labels, (self.labels + 1) % 3)
        logits = generator.normal(0, 1, (200, 3))
        logits[np.arange(200), truth] += 3
        self.probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        self.files = [f"{NAMES[label]}/{number}.png" for number, label in enumerate(self.labels)]
        self.images = [LabelledImage(file, file, file.split("/")[0]) for file in self.files]

    def write(self, **changes) -> Path:
        arrays = {
            "probabilities": self.probabilities, "labels": self.labels, "files": np.array(self.files),
            "class_names": np.array(NAMES),
        }  # fmt: skip
        write_arrays(self.folder / "probabilities.npz", arrays | changes)
        return self.folder / "probabilities.npz"

    def write_rows(self) -> Path:
        rows = []
        for file, label, row in zip(self.files, self.labels, self.probabilities, strict=True):
            rows.append((file, NAMES[label], NAMES[row.argmax()], row.max(), row[label]))
        header = ("file", "label", "prediction", "probability", "label_probability")
        write_csv(self.folder / "predictions.csv", header, rows)
        return self.folder / "predictions.csv"


@pytest.fixture
def answers(tmp_path) -> Answers:
    return Answers(tmp_path)


def count_confident(labels: np.ndarray, probabilities: np.ndarray) -> int:
    """The definition, image by image: above the threshold of which class, the most probable one, other than its own."""
    thresholds = [probabilities[labels == k, k].mean() for k in range(3)]
    count = 0
    for label, row in zip(labels, probabilities, strict=True):
        confident = [k for k in range(3) if row[k] >= thresholds[k]]
        count += bool(confident) and max(confident, key=lambda k: row[k]) != label
    return count


def test_as_many_are_listed_as_are_confidently_of_another_class_and_by_margin(cleanlab, answers):
    number, suspects = find_suspects(read_predictions(answers.write()), answers.images)
    assert number == 200
    assert len(suspects) == count_confident(answers.labels, answers.probabilities) >= 5
    rows = dict(zip(answers.files, answers.probabilities, strict=True))
    margins = {}
    for file, row in rows.items():
        own = NAMES.index(file.split("/")[0])
        margins[file] = np.delete(row, own).max() - row[own]
    expected = sorted(rows, key=lambda file: -margins[file])[: len(suspects)]
    assert [suspect.file for suspect in suspects] == expected
    for suspect in suspects:
        row = rows[suspect.file]
        assert suspect.label == suspect.file.split("/")[0] and suspect.suggestion == NAMES[row.argmax()]
        assert suspect.probability == pytest.approx(row.max(), abs=1e-4)
        assert suspect.label_probability == pytest.approx(row[NAMES.index(suspect.label)], abs=1e-4)
        assert suspect.margin == pytest.approx(margins[suspect.file], abs=1e-4) and suspect.margin > 0


def test_predictions_as_rows_give_the_same_order(cleanlab, answers):
    by_arrays = find_suspects(read_predictions(answers.write()), answers.images)[1]
    by_rows = find_suspects(read_predictions(answers.write_rows()), answers.images)[1]
    assert by_rows == by_arrays  # of three classes the third is what is left


def test_the_rest_is_spread_over_the_other_classes(answers):
    text = "file,label,prediction,probability,label_probability,certainty\n" + "".join(
        f"{label}/1.png,{label},a,0.5,{0.5 if label == 'a' else 0.3},sure\n" for label in "abcd"
    )
    (answers.folder / "predictions.csv").write_text(text)
    found = read_predictions(answers.folder)
    assert found.class_names == ["a", "b", "c", "d"]
    assert np.allclose(found.probabilities[0], [0.5, 1 / 6, 1 / 6, 1 / 6])
    assert np.allclose(found.probabilities[2], [0.5, 0.1, 0.3, 0.1])


def test_a_folder_stands_for_the_arrays_in_it_or_else_the_rows(answers):
    rows, arrays = answers.write_rows(), answers.write()
    assert read_predictions(answers.folder).path == str(arrays)
    arrays.unlink()
    assert read_predictions(answers.folder).path == str(rows)


def test_images_without_predictions_are_not_counted(cleanlab, answers):
    path = answers.write()
    more = [*answers.images, LabelledImage("Oats/1.png", "Oats/1.png", "Oats")]
    assert find_suspects(read_predictions(path), more) == find_suspects(read_predictions(path), answers.images)


def test_predictions_for_files_that_are_gone_are_counted_in_a_warning(cleanlab, answers, caplog):
    number, _ = find_suspects(read_predictions(answers.write()), answers.images[:-2])
    assert number == 198
    assert (
        f"2 of the 200 predictions in {answers.folder / 'probabilities.npz'} are for files that are not" in caplog.text
    )


# What is refused


def refuse(path: Path, images, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        find_suspects(read_predictions(path), images)
    assert len(str(refused.value)) < 700 and "\n" not in str(refused.value)


def test_predictions_for_other_images_are_refused(cleanlab, answers):
    others = [LabelledImage(f"Maize/{number}.jpg", f"Maize/{number}.jpg", "Maize") for number in range(9)]
    refuse(answers.write(), others, r"found those of other files, such as .*name the folder that was predicted")


def test_predictions_without_a_class_of_the_images_are_refused(cleanlab, answers):
    images = [LabelledImage(i.path, i.file, "Oats") for i in answers.images[:1]] + answers.images[1:]
    refuse(answers.write(), images, "for the class Oats, found only those for Charlock, Cleavers, Maize in")


def test_images_of_one_class_are_refused(cleanlab, answers):
    images = [image for image in answers.images if image.label == "Maize"]
    refuse(answers.write(), images, "at least two classes in .*, found one class; predict all")


def test_a_file_of_two_splits_is_refused(cleanlab, answers):
    images = [LabelledImage(f"{split}/{i.file}", i.file, i.label) for split in ("train", "val") for i in answers.images]
    refuse(answers.write(), images, r"in one split, found train/.*, val/.*; give the folder of one split")


def test_two_predictions_for_one_image_are_refused(answers):
    answers.files[7] = answers.files[3]
    with pytest.raises(InputError, match=f"expected each image once in .*, found {answers.files[3]} again"):
        read_predictions(answers.write())


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("predictions.csv", None, "No such file or directory"),
        ("predictions.csv", b"", "the columns of an empty file"),
        ("predictions.csv", b"file,class,probability\na,b,1\n", "the columns file,class,probability"),
        ("predictions.csv", HEADING + b"a/1,a,b,0.9\n", "could not convert"),
        ("predictions.csv", HEADING + b"a/1,a,b,9,0\n", "not between 0 and 1"),
        ("predictions.csv", b"PK\x03\x04\xff\xfe", "the columns PK"),
        ("probabilities.npz", b"", "no archive of NumPy"),
        ("probabilities.npz", b"PK\x03\x04", "no archive of NumPy"),
        ("probabilities.npz", b"file,label\n", "no archive of NumPy"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_predictions_is_refused(tmp_path, name, content, found):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(
        InputError, match=f"that train and evaluate write at .*, found .*{found}.*; check --predictions"
    ):
        read_predictions(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"probabilities": np.full((200, 3), np.nan)}, "not between 0 and 1"),
        ({"probabilities": np.ones((200, 4))}, r"probabilities \(200, 4\) of 200 files and 3 classes"),
        ({"probabilities": np.ones((200, 3), np.int64)}, "of 200 files and 3 classes"),
        ({"files": np.array(["a"])}, "of 1 files and 3 classes"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(answers, changes, found):
    with pytest.raises(InputError, match=f"found .*{found}; check --predictions"):
        read_predictions(answers.write(**changes))


@pytest.mark.parametrize("name", ["probabilities.npz", "predictions.csv", "split.csv", "report.json"])
def test_a_pipe_is_not_waited_for(answers, name):
    path = answers.write()
    if name == "predictions.csv":
        path.unlink()
    (answers.folder / name).unlink(missing_ok=True)
    os.mkfifo(answers.folder / name)
    with pytest.raises(InputError, match="found a pipe, a socket or a device: "):
        warn_of_training_images(read_predictions(answers.folder))


def test_a_damaged_archive_is_refused(answers):
    path = answers.write()
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"that train and evaluate write at .*, found .*; check --predictions"):
        read_predictions(path)


def test_an_archive_of_other_arrays_is_refused(tmp_path):
    write_arrays(tmp_path / "probabilities.npz", {"matrix": np.ones(3)})
    with pytest.raises(InputError, match="found the arrays matrix; check --predictions"):
        read_predictions(tmp_path)


# Images that the model was trained on


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_predictions_for_training_images_are_warned_of_by_the_split_beside_them(answers, caplog):
    files, path = answers.files, answers.write()
    lines = [f"{file},{file.split('/')[0]},{'train' if n < 40 else 'validation'}\n" for n, file in enumerate(files)]
    (answers.folder / "split.csv").write_text("file,label,split\n" + "".join(lines))
    warn_of_training_images(read_predictions(path))
    (message,) = warnings(caplog)
    assert message.startswith("40 of the 200 predictions are for images that the model was trained on, and whose")
    assert files[0] in message and message.endswith(
        "train --fold all/5 predicts each image by a model that has not seen it"
    )


@pytest.mark.parametrize(("excluded", "count"), [(False, 1), (True, 0)])
def test_predictions_for_training_images_are_warned_of_by_the_report_beside_them(answers, caplog, excluded, count):
    path = answers.write()
    values = {"trained_on": {"count": 2, "files": answers.files[:2], "excluded": excluded}}
    (answers.folder / "report.json").write_text(json.dumps(values))
    warn_of_training_images(read_predictions(path))
    assert len(warnings(caplog)) == count


@pytest.mark.parametrize("content", ["", "[]", '{"accuracy": 1}', '{"trained_on": 3}', "[" * 100_000])
def test_validation_images_are_not_warned_of(answers, caplog, content):
    path = answers.write()
    (answers.folder / "split.csv").write_text(
        "file,label,split\n" + "".join(f"{file},{file.split('/')[0]},validation\n" for file in answers.files)
    )
    (answers.folder / "report.json").write_text(content)
    warn_of_training_images(read_predictions(path))
    assert warnings(caplog) == []


# The list


def test_the_list_names_files_as_training_does_and_changes_nothing_as_it_is(cleanlab, answers):
    images = [LabelledImage(f"val/{i.file}", i.file, i.label) for i in answers.images]
    suspects = find_suspects(read_predictions(answers.write()), images)[1]
    path = answers.folder / "labels.csv"
    write_candidates(suspects, path)
    with open(path, newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert tuple(lines[0]) == HEADER and len(lines) == len(suspects)
    for line, suspect in zip(lines, suspects, strict=True):
        assert f"val/{line['file']}" == suspect.file and line["label"] == line["file"].split("/")[0]
        assert line["suggestion"] == suspect.suggestion and float(line["margin"]) == suspect.margin
    check_candidates(path, {})


@pytest.mark.parametrize("label", ["Maize", ""])
def test_a_list_that_somebody_has_edited_is_not_replaced(tmp_path, label):
    path = tmp_path / "labels.csv"
    path.write_text(
        f"file,label,suggestion,margin\nCharlock/1.png,Charlock,Maize,0.9\nCharlock/2.png,{label},Maize,0.8\n"
    )
    with pytest.raises(
        InputError, match=r"changed the labels of Charlock/2.png; move it to keep them, or choose another"
    ):
        check_candidates(path, {})


def test_a_list_of_another_origin_is_not_replaced(tmp_path):
    (tmp_path / "labels.csv").write_text("file,label\nCharlock/1.png,Maize\n")
    with pytest.raises(ForeignFileError, match=r"labels\.csv to be free or an earlier output"):
        check_candidates(tmp_path / "labels.csv", {})
