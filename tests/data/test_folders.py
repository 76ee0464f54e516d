import logging
import os
import shutil
import sys

import pytest
from data_loading import rows, splits_of

from seedling_hf.data.dataset import load_folders
from seedling_hf.data.formats import image_suffixes
from seedling_hf.errors import InputError


def test_folders_of_splits_are_used_as_they_are(tmp_path, plant):
    for split, count in (("train", 4), ("val", 3), ("test", 2)):
        plant(tmp_path / split, Maize=count, Charlock=count)
    assert {s: len(split) for s, split in splits_of(train_dir=tmp_path).items()} == {
        "train": 8, "validation": 6, "test": 4,
    }  # fmt: skip


def test_a_validation_folder_may_lie_elsewhere_and_lack_a_class(tmp_path, plant):
    plant(tmp_path / "a", Maize=2, Charlock=2)
    splits = splits_of(train_dir=tmp_path / "a", validation_dir=plant(tmp_path / "b", Maize=3))
    assert rows(splits["validation"])[0][1] == "Maize"
    assert splits["validation"].features == splits["train"].features
    assert len(splits["train"]) == 4


def test_two_validation_folders_are_refused(tmp_path, plant):
    for split in ("train", "val", "validation"):
        plant(tmp_path / split)
    with pytest.raises(InputError, match="found val and validation; remove one"):
        splits_of(train_dir=tmp_path)


def test_a_flat_test_folder_and_other_folders_are_ignored_with_a_notice(tmp_path, plant, caplog):
    caplog.set_level(logging.INFO)
    for split in ("train", "holdout"):
        plant(tmp_path / split)
    shutil.copytree(tmp_path / "train" / "Maize", tmp_path / "test")
    assert load_folders(tmp_path).keys() == {"train"}
    assert f"ignored {tmp_path / 'test'}, whose images are not in class folders" in caplog.text
    assert "not a split: holdout" in caplog.text


@pytest.mark.parametrize(("name", "advice"), [("Oak", "rename or remove it"), ("maize", "rename maize to Maize")])
def test_a_class_without_training_images_is_refused_by_name(tmp_path, plant, name, advice):
    plant(tmp_path / "train", Maize=2, Charlock=2)
    plant(tmp_path / "val", **{"Charlock": 2, name: 2})
    with pytest.raises(
        InputError, match=f"found also {name}; {advice}, or let --label_map .*; the classes are Charlock, Maize"
    ):
        splits_of(train_dir=tmp_path)


def test_classes_that_differ_only_in_case_are_separate_with_a_warning(tmp_path, plant, caplog):
    splits = splits_of(train_dir=plant(tmp_path / "tree", Maize=2, maize=2))
    assert splits["train"].features["label"].names == ["Maize", "maize"]
    assert "differ only in spelling are separate classes: Maize, maize" in caplog.text


# Other files


def test_other_files_are_ignored_with_one_notice(tree, caplog):
    caplog.set_level(logging.INFO)
    expected = {s: rows(split) for s, split in splits_of(train_dir=tree).items()}
    for name in (".DS_Store", "readme.txt", "stray.png", "Maize/Thumbs.db", "Maize/.hidden.jpg", "Maize/notes.txt"):
        (tree / name).write_bytes(b"x")
    for name in (".git/Oak", "__MACOSX/Maize", "Charlock/__MACOSX", "Charlock/.ipynb_checkpoints"):
        (tree / name).mkdir(parents=True)
    caplog.clear()
    assert {s: rows(split) for s, split in splits_of(train_dir=tree).items()} == expected
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("tree: 1 image (in no class folder); 2 .txt, 1 .db (not an image by its suffix)")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: shutil.rmtree(root), "found nothing there"),
        (lambda root: (shutil.rmtree(root), root.write_text("")), "found a file there"),
        (lambda root: shutil.rmtree(root / "Maize"), "at least two classes in .* found Charlock"),
        (lambda root: [shutil.rmtree(root / name) for name in ("Maize", "Charlock")], "found none"),
        (lambda root: (root / "Oak").mkdir(), "images in the class folder Oak .* found none; add some or remove it"),
        (lambda root: shutil.copytree(root / "Maize", root / "Maize" / "Maize"), "found the folder Maize in it"),
        (lambda root: shutil.move(root, root.with_name("x")) and shutil.move(root.with_name("x"), root / "Oak"),
         "found the folder Charlock in it; name the folder that holds the class folders"),
    ],
    ids=["missing", "file", "one class", "no class", "empty class", "class folder in itself", "a folder too high"],
)  # fmt: skip
def test_a_tree_without_two_classes_of_images_is_refused_with_the_reason(tree, make, message):
    make(tree)
    with pytest.raises(InputError, match=message):
        splits_of(train_dir=tree)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_a_class_folder_without_permission_is_refused_by_name(tree):
    (tree / "Maize").chmod(0)
    with pytest.raises(InputError, match=r"can be read at .*Maize, found Permission denied"):
        splits_of(train_dir=tree)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_an_image_whose_name_is_not_utf8_is_refused_by_name_or_skipped(tree):
    shutil.copyfile(next((tree / "Maize").iterdir()), os.fsencode(tree / "Maize") + b"/\xff.jpg")
    with pytest.raises(InputError, match=r"found 1 of 10 that cannot: b'Maize/.xff.jpg' \(its name is not UTF-8; rena"):
        splits_of(train_dir=tree)
    assert sum(map(len, splits_of(train_dir=tree, skip_bad_images=True).values())) == 9


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_class_whose_name_or_whose_images_are_not_utf8_is_refused_although_bad_images_may_be_skipped(tree):
    other = os.fsencode(tree) + b"/Ma\xefs"
    shutil.copytree(os.fsencode(tree / "Maize"), other)
    with pytest.raises(InputError, match=r"a folder whose name is UTF-8, found b'.*/Ma.xefs'; rename it"):
        splits_of(train_dir=tree, skip_bad_images=True)
    shutil.rmtree(other)
    for number, file in enumerate(list((tree / "Maize").iterdir())):
        os.rename(file, os.fsencode(tree / "Maize") + b"/\xff%d.jpg" % number)
    with pytest.raises(InputError, match=r"Maize, found only b'.xff0.jpg' \(its name is not UTF-8; rename it\)"):
        splits_of(train_dir=tree, skip_bad_images=True)


def test_a_class_folder_of_images_that_are_not_read_says_why(tree):
    for file in (tree / "Maize").iterdir():
        file.rename(file.with_suffix(".HEIC" if ".heic" not in image_suffixes() else ".CR2"))
    with pytest.raises(InputError, match=r"Maize of .*, found only 4 \.\w+ \(.*convert the.* to JPEG.*\); add some"):
        splits_of(train_dir=tree)
