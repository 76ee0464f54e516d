"""Datasets of the Hub, as Parquet files in a folder."""

import logging
from collections import Counter

import datasets
import pytest
from data_loading import rows, splits_of
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from sample import SAMPLE

from seedling_hf.data.splits import write_split_csv
from seedling_hf.errors import InputError

FILE = next((SAMPLE / "Maize").iterdir())


@pytest.fixture
def hub(tmp_path, sample_dir, monkeypatch):
    """Writes splits of (class, path name, bytes) and gives the name to load them by."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    bytes_of = {name: next((sample_dir / name).iterdir()).read_bytes() for name in ("Maize", "Charlock")}

    def write(classes=("Maize", "Charlock"), image="image", label="label", **splits) -> str:
        folder = tmp_path / "hub"
        folder.mkdir()
        for split, images in splits.items():
            columns = {image: [{"path": path, "bytes": data or bytes_of.get(name, b"")} for name, path, data in images]}
            features = {image: ImageFeature()}
            if classes is None:
                columns[label], features[label] = [name for name, *_ in images], Value("string")
            else:
                columns[label] = [-1 if name is None else classes.index(name) for name, *_ in images]
                features[label] = ClassLabel(names=[*classes])
            Dataset.from_dict(columns, features=Features(features)).to_parquet(folder / f"{split}-0.parquet")
        return str(folder)

    return write


def images(count: int, prefix: str = "", name: str | None = None, path: bool = True) -> list[tuple]:
    return [
        (name or ("Maize", "Charlock")[i % 2], f"{prefix}{i}.jpg" if path else None, None) for i in range(count)
    ]  # fmt: skip


def test_a_hub_dataset_keeps_its_classes_splits_and_path_names(hub):
    splits = splits_of(dataset_name=hub(train=images(6), validation=images(4, "v"), test=images(2, "t")))
    assert {s: len(split) for s, split in splits.items()} == {"train": 6, "validation": 4, "test": 2}
    assert splits["train"].features["label"].names == ["Maize", "Charlock"]
    assert splits["validation"]["file"] == ["v0.jpg", "v1.jpg", "v2.jpg", "v3.jpg"]
    assert splits["validation"]["index"] == [0, 1, 2, 3]
    assert splits["validation"][0]["image"].size == (150, 150)


def test_a_hub_dataset_without_validation_is_split_as_a_folder_is(hub, tmp_path):
    name = hub(train=images(20))
    splits = splits_of(dataset_name=name, split_seed=3)
    assert Counter(rows_label for _, rows_label in rows(splits["validation"])) == {"Maize": 3, "Charlock": 3}
    assert splits["validation"]["index"] == list(range(6))
    assert [row["index"] for row in splits["validation"]] == list(range(6))
    write_split_csv(splits, tmp_path / "split.csv")
    again = splits_of(dataset_name=name, split_file=tmp_path / "split.csv")
    assert {s: rows(split) for s, split in again.items()} == {s: rows(split) for s, split in splits.items()}


def test_images_of_the_hub_without_names_are_numbered(hub):
    splits = splits_of(dataset_name=hub(train=images(4, path=False), validation=[("Maize", "same", None)] * 2))
    assert splits["train"]["file"] == [f"train/{i:08d}" for i in range(4)]
    assert splits["validation"]["file"] == ["validation/00000000", "validation/00000001"]


def test_labels_of_the_hub_may_be_words_in_a_column_of_another_name(hub):
    name = hub(classes=None, image="photo", label="species", train=images(4), validation=images(2))
    splits = splits_of(dataset_name=name, image_column_name="photo", label_column_name="species")
    assert splits["train"].features["label"].names == ["Charlock", "Maize"]
    assert [label for _, label in rows(splits["validation"])] == ["Maize", "Charlock"]


def test_a_map_renames_and_merges_the_classes_of_a_hub_dataset_in_their_order(hub, tmp_path):
    name = hub(classes=("Maize", "Charlock"), train=images(6), validation=images(2))
    (tmp_path / "map.csv").write_text("from,to\nMaize,corn\n")
    splits = splits_of(dataset_name=name, label_map=tmp_path / "map.csv")
    assert splits["train"].features["label"].names == ["corn", "Charlock"]
    assert [label for _, label in rows(splits["validation"])] == ["corn", "Charlock"]


def test_numbers_of_a_hub_dataset_get_their_names_from_a_map(hub, tmp_path):
    name = hub(classes=None, train=[(f"{i % 11}", f"{i}.jpg", FILE.read_bytes()) for i in range(22)])
    (tmp_path / "map.csv").write_text("from,to\n" + "".join(f"{i},class {10 - i}\n" for i in range(11)))
    splits = splits_of(dataset_name=name, label_map=tmp_path / "map.csv", train_val_split=0.5)
    found = {file: label for split in splits.values() for file, label in rows(split)}
    assert found == {f"{i}.jpg": f"class {10 - i % 11}" for i in range(22)}


def test_a_hub_split_that_lacks_a_class_gets_the_numbers_of_training(hub):
    splits = splits_of(dataset_name=hub(classes=None, train=images(4), validation=images(2, name="Maize")))
    assert list(splits["validation"]["label"]) == [1, 1]
    assert splits["validation"].features == splits["train"].features


def test_a_hub_test_split_without_labels_is_ignored_with_a_notice(hub, caplog):
    caplog.set_level(logging.INFO)
    name = hub(train=images(4), validation=images(2), test=[(None, "t.jpg", None)])
    assert splits_of(dataset_name=name).keys() == {"train", "validation"}
    assert "nor one with labels: test" in caplog.text


def test_a_bad_image_of_the_hub_is_refused_by_name_or_skipped(hub):
    name = hub(train=[*images(4), ("Maize", "bad.jpg", b"no image")], validation=images(2))
    with pytest.raises(InputError, match=r"found 1 of 5 that cannot: bad.jpg \(cannot identify image file\)"):
        splits_of(dataset_name=name)
    splits = splits_of(dataset_name=name, skip_bad_images=True)
    assert splits["train"]["file"] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert splits["train"]["index"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("data", "flags", "message"),
    [
        ({"train": images(4)}, {"image_column_name": "photo"}, "column 'photo' in .* name it with --image_column_name"),
        ({"train": images(4)}, {"label_column_name": "kind"}, "column 'kind' in .* name it with --label_column_name"),
        ({"train": images(4)}, {"image_column_name": "label"}, "expected Image in the column 'label'"),
        ({"train": [*images(4), (None, "x.jpg", None)]}, {}, "a label for each image .* found 1 without"),
        ({"train": images(4, name="Maize")}, {}, "at least two classes in .* found Maize"),
        ({"test": images(4)}, {}, "expected a split called train in .* found test"),
    ],
    ids=["image column", "label column", "no images", "no label", "one class", "no train"],
)
def test_a_hub_dataset_that_cannot_be_trained_on_is_refused(hub, data, flags, message):
    with pytest.raises(InputError, match=message):
        splits_of(dataset_name=hub(**data), **flags)


def test_a_hub_class_without_training_images_is_refused_by_name(hub):
    name = hub(classes=None, train=images(4), validation=images(1, name="Oak"))
    with pytest.raises(InputError, match=r"expected only the classes of the split train of .* found also Oak"):
        splits_of(dataset_name=name)


def test_a_dataset_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected a dataset at .*nowhere, found: "):
        splits_of(dataset_name=str(tmp_path / "nowhere"))
