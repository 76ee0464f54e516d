"""Caches that are damaged between two runs or under one: of decoded images, of datasets, and Parquet files."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import pytest
from damage import append, cut, cut_by_one, empty, flip_at, put_html, put_zeros
from faults import Started, assert_sentence, assert_well, command

TRAIN = [
    "train", "--train_dir", "images", "--output_dir", "run", "--variant", "tiny", "--image_size", 32, "--max_steps", 4,
    "--eval_steps", 2, "--logging_steps", 1, "--per_device_train_batch_size", 8, "--cache_images", 48,
]  # fmt: skip


def use_cache(folder: Path) -> None:
    datasets.config.HF_DATASETS_CACHE = folder


def remove(file: Path) -> None:
    file.unlink()


def put_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def put_other(file: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(file.with_name("other"))
    shutil.copy(next(file.with_name("other").glob("*.arrow")), file)
    shutil.rmtree(file.with_name("other"))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "cut short": cut, "cut by a byte": cut_by_one, "emptied": empty, "a byte at the start": partial(flip_at, 0.0),
    "a byte of the schema": partial(flip_at, 0.0005), "a byte of a pixel": partial(flip_at, 0.5),
    "a byte at the end": partial(flip_at, 1.0), "zeros": put_zeros, "a page of HTML": put_html, "longer": append,
    "removed": remove, "a folder": put_folder, "another table": put_other,
}  # fmt: skip


def losses(folder: Path) -> list:
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


@pytest.fixture(scope="module")
def first(images, tmp_path_factory) -> Path:
    """A run that has filled its cache."""
    folder = tmp_path_factory.mktemp("first") / "folder"
    folder.mkdir()
    shutil.copytree(images, folder / "images")
    assert_well(command(TRAIN, folder, before=partial(use_cache, folder / "cache")))
    return folder


@pytest.fixture
def second(first, tmp_path) -> Path:
    """The same images and cache, to be damaged; the run itself is new."""
    folder = tmp_path / "folder"
    shutil.copytree(first / "cache", folder / "cache")
    (folder / "images").symlink_to(first / "images")
    # The key of a cache is made of absolute paths.
    return folder


def train(folder: Path, first: Path):
    words = [first / "images" if word == "images" else word for word in TRAIN]
    return command(words, folder, before=partial(use_cache, folder / "cache"))


@pytest.mark.parametrize("which", ["training", "validation"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_of_images_is_made_anew(first, second, damage, which):
    files = sorted((second / "cache").rglob("*.arrow"), key=lambda file: file.stat().st_size)
    assert len(files) == 2
    DAMAGE[damage](files[which == "training"])
    outcome = train(second, first)
    assert_well(outcome)
    assert losses(second) == losses(first)
    again = train(second.rename(second.with_name("again")), first) if damage == "cut short" else None
    assert again is None or "anew" not in again.stderr


@pytest.mark.parametrize("name", ["dataset_info.json", "checksums.json"])
@pytest.mark.parametrize("damage", ["cut short", "emptied", "a page of HTML", "removed", "a folder"])
def test_a_cache_whose_description_is_damaged_is_made_anew(first, second, damage, name):
    for file in (second / "cache").rglob(name):
        DAMAGE[damage](file)
    assert_well(train(second, first))
    assert losses(second) == losses(first)


@pytest.mark.parametrize("damage", ["cut short", "emptied", "removed"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_that_is_cut_during_a_run_ends_it_with_a_sentence(first, second, damage, workers):
    words = [first / "images" if word == "images" else 10_000 if word == 4 else word for word in TRAIN]
    started = Started(
        [*words, "--dataloader_num_workers", workers], second, before=partial(use_cache, second / "cache")
    )
    metrics = second / "run" / "metrics.jsonl"
    started.wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 3)
    for file in (second / "cache").rglob("*.arrow"):
        DAMAGE[damage](file)
    if damage == "removed":  # the descriptor stays
        started.send(15)
        assert started.finish(60).code == 75
    else:
        assert_sentence(started.finish(60), ".arrow", "cut short", "start again")


# Parquet files of `embed`, and datasets


@pytest.fixture(scope="module")
def embeddings(model_dir, images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings") / "folder"
    folder.mkdir()
    words = ["embed", "--model_name_or_path", model_dir, "--images", images, "--embeddings_file", "e.parquet"]
    assert_well(command(words, folder))
    return folder / "e.parquet"


@pytest.mark.parametrize("damage", [*(name for name in DAMAGE if name not in ("removed",)), "a byte of an embedding"])
def test_damaged_embeddings_are_named(embeddings, model_dir, images, tmp_path, damage):
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(embeddings, folder / "e.parquet")
    DAMAGE.get(damage, partial(flip_at, 0.3))(folder / "e.parquet")
    query = next((images / "Maize").iterdir())
    words = ["embed", "--model_name_or_path", model_dir, "--embeddings_file", "e.parquet", "--query", query]
    outcome = command(words, folder)
    if damage == "a byte at the start":  # a mark that nothing depends on
        assert_well(outcome)
    else:
        assert_sentence(outcome, "e.parquet")


# What the pages of a Parquet file, which have no checksums, do not show: its schema stands at the end.
UNSEEN = {"removed", "a byte of the schema", "a byte of a pixel", "longer"}


@pytest.fixture(scope="module")
def dataset(images, tmp_path_factory) -> Path:
    """A dataset of Parquet shards, with images inside."""
    folder = tmp_path_factory.mktemp("dataset")
    files = sorted(images.rglob("*.jpg")) + sorted(images.rglob("*.png"))
    names = sorted({file.parent.name for file in files})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    columns = {
        "image": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "label": [names.index(file.parent.name) for file in files],
    }
    table = datasets.Dataset.from_dict(columns, features=features)
    for number in range(3):
        table.shard(3, number).to_parquet(folder / f"train-0000{number}-of-00003.parquet")
    return folder


def flip_length_of_the_footer(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # of the four bytes before the last four
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [*(name for name in DAMAGE if name not in UNSEEN), "the length of the footer"])
def test_a_damaged_shard_of_a_dataset_is_named(dataset, tmp_path, damage):
    folder = tmp_path / "folder"
    shutil.copytree(dataset, folder / "data")
    DAMAGE.get(damage, flip_length_of_the_footer)(folder / "data" / "train-00001-of-00003.parquet")
    words = ["train", "--dataset_name", "data", *[word for word in TRAIN[3:] if word not in ("--cache_images", 48)]]
    outcome = command(words, folder, before=partial(use_cache, tmp_path / "cache"))
    if damage == "a byte at the start":  # a mark that nothing depends on
        assert_well(outcome)
    else:
        assert_sentence(outcome, "train-00001-of-00003.parquet")


@pytest.mark.parametrize(
    "damage", ["cut short", "emptied", "a byte at the start", "zeros", "a page of HTML", "removed"]
)
def test_a_damaged_cache_of_a_dataset_is_made_anew(dataset, tmp_path, damage):
    folder = tmp_path / "folder"
    shutil.copytree(dataset, folder / "data")
    words = ["train", "--dataset_name", "data", *[word for word in TRAIN[3:] if word not in ("--cache_images", 48)]]
    use = partial(use_cache, tmp_path / "cache")
    assert_well(command(words, folder, before=use))
    (folder / "run").rename(folder / "first")
    (file,) = [file for file in (tmp_path / "cache").rglob("*.arrow") if "train" in file.name]
    DAMAGE[damage](file)
    assert_well(command(words, folder, before=use))
    first = (folder / "first").rename(tmp_path / "run")
    assert losses(folder) == losses(first.parent)
