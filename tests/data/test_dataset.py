import shutil
from collections import Counter
from pathlib import Path

import pytest
from data_loading import rows, splits_of
from PIL import Image

from seedling_hf.data.dataset import describe_splits, load_folder
from seedling_hf.data.pool import image_sources
from seedling_hf.errors import InputError
from seedling_hf.escaping import width_of


def test_a_tree_of_class_folders_gives_images_with_label_file_and_number(tree):
    splits = splits_of(train_dir=tree)
    assert splits.keys() == {"train", "validation"}
    for split in splits.values():
        assert split["index"] == list(range(len(split)))
        for row in split:
            assert row["image"].tobytes() == Image.open(tree / row["file"]).tobytes()
            assert split.features["label"].int2str(row["label"]) == Path(row["file"]).parent.name
    assert sorted(path for split in splits.values() for path in image_sources(split)) == sorted(tree.glob("*/*"))


def test_classes_are_in_byte_order(tmp_path, plant):
    plant(tmp_path / "tree", Zup=2, a_low=2, Common_10=2, Ähre=2)
    assert splits_of(train_dir=tmp_path / "tree")["train"].features["label"].names == [
        "Common_10", "Zup", "a_low", "Ähre",
    ]  # fmt: skip


def test_class_folders_may_be_called_like_splits(tmp_path, plant):
    plant(tmp_path / "tree", **{"train": 2, "val": 2, "test weed": 2, "a[1]*": 2})
    splits = splits_of(train_dir=tmp_path / "tree")
    assert Counter(name for split in splits.values() for _, name in rows(split)) == {
        "train": 2, "val": 2, "test weed": 2, "a[1]*": 2,
    }  # fmt: skip


def test_equal_file_names_in_two_classes_are_two_images(tmp_path, plant):
    root = plant(tmp_path / "tree")
    for name in ("Maize", "Charlock"):
        shutil.copyfile(next((root / name).iterdir()), root / name / "same.jpg")
    splits = splits_of(train_dir=root)
    files = [*splits["train"]["file"], *splits["validation"]["file"]]
    assert {"Maize/same.jpg", "Charlock/same.jpg"} <= set(files)
    assert len(set(files)) == len(files) == 11


def test_fewer_images_are_taken_evenly_from_the_classes(tmp_path, plant):
    root = plant(tmp_path / "tree", Maize=20, Charlock=10, Cleavers=4)
    splits = splits_of(train_dir=root, train_val_split=0.5, max_train_samples=6, max_eval_samples=3)
    assert Counter(name for _, name in rows(splits["train"])) == {"Maize": 2, "Charlock": 2, "Cleavers": 2}
    assert Counter(name for _, name in rows(splits["validation"])) == {"Maize": 1, "Charlock": 1, "Cleavers": 1}
    assert splits["train"]["index"] == list(range(6))


def test_a_limit_above_the_number_of_images_changes_nothing(tree):
    limited = splits_of(train_dir=tree, max_train_samples=1000, max_eval_samples=1000)
    assert {s: rows(split) for s, split in limited.items()} == {
        s: rows(split) for s, split in splits_of(train_dir=tree).items()
    }


def test_an_evaluation_folder_is_labelled_as_the_model_is(tree):
    dataset = load_folder(tree, class_names=["Oak", "Maize", "Beech", "Charlock"])
    assert Counter(dataset["label"]) == {1: 4, 3: 5}
    assert dataset["index"] == list(range(9))


def test_a_class_that_the_model_does_not_know_is_refused_by_name(tree):
    with pytest.raises(
        InputError, match=r"found also Charlock; rename or remove it, or .*; the classes are Maize, Oak"
    ):
        load_folder(tree, class_names=["Maize", "Oak"])


def test_a_table_shows_images_of_each_class_and_split(tree):
    lines = [line.split() for line in describe_splits(splits_of(train_dir=tree)).splitlines()]
    assert lines == [["train", "validation"], ["Charlock", "3", "2"], ["Maize", "3", "1"], ["total", "6", "3"]]


def test_the_numbers_of_the_table_are_aligned_under_names_of_any_width(tree):
    (tree / "Charlock").rename(tree / "小\n麦")
    lines = describe_splits(splits_of(train_dir=tree)).splitlines()
    assert [width_of(line) for line in lines] == [30] * 4
    assert "小\\n麦" in lines[2]
