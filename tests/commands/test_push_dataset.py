"""A folder becomes a dataset on the Hub, and comes back as the same images in the same split."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_loading import splits_of
from hub_client import Client, Repository
from huggingface_hub import DatasetCard
from local_hub import Fault
from local_hub import check_card as check_as_the_hub
from PIL import ExifTags, Image
from sample import copy_sample

from seedling_hf.data.inspection import inspect_folder
from seedling_hf.data.splits import hash_split, write_split_csv
from seedling_hf.hub.dataset_card import Location, find_duplicates

pytest_plugins = ("hub_fixtures",)

CLASSES = ("Charlock", "Common wheat", "Maize")
LICENSE = "cc-by-sa-4.0"
LOAD = """
import hashlib, json, sys
from pathlib import Path
from seedling_hf.train_arguments import DataArguments
from seedling_hf.data.dataset import load_splits
from seedling_hf.data.splits import write_split_csv

source, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
splits = load_splits(DataArguments(**source))
write_split_csv(splits, folder / "split.csv")
rows = {name: [[row["file"], row["label"], row["index"], hashlib.sha256(row["image"].tobytes()).hexdigest()]
               for row in split] for name, split in splits.items()}
print("REPORT" + json.dumps({"rows": rows, "names": splits["train"].features["label"].names}))
"""


@pytest.fixture
def images(tmp_path) -> Path:
    return copy_sample(tmp_path / "images", CLASSES, slice(6))


@pytest.fixture
def repository(hub) -> Repository:
    return Repository(hub, "alice/seedlings", kind="datasets")


def push(client: Client, images: Path, *words: str):
    flags = ("--train_dir", images, "--dataset_name", "seedlings", "--license", LICENSE)
    return client.command("push_dataset", *flags, *words)


def load(client: Client, folder: Path, **source: str) -> dict:
    folder.mkdir()
    result = client.python(LOAD, json.dumps(source), folder)
    assert result.returncode == 0, result.stdout
    return json.loads(result.stdout.split("REPORT")[1])


def test_the_dataset_on_the_hub_equals_the_folder(client, images, repository, tmp_path):
    result = push(client, images, "--train_val_split", "0.5")
    assert result.returncode == 0, result.stdout
    assert set(repository.tree()) == {
        "README.md", "split.csv", "data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"
    }  # fmt: skip
    elsewhere = Client(client.hub, tmp_path / "empty", fresh=True)
    there = load(elsewhere, tmp_path / "there", dataset_name="alice/seedlings")
    here = load(client, tmp_path / "here", train_dir=str(images), train_val_split=0.5)
    assert there == here
    assert [len(rows) for rows in there["rows"].values()] == [9, 9]
    split = (tmp_path / "here" / "split.csv").read_bytes()
    assert repository.read("split.csv") == split == (tmp_path / "there" / "split.csv").read_bytes()


def test_the_split_of_a_run_is_published_unchanged(client, images, repository, tmp_path):
    splits = splits_of(train_dir=images, split_seed=7)
    write_split_csv(splits, tmp_path / "split.csv")
    assert hash_split(tmp_path / "split.csv") != hash_of(splits_of(train_dir=images), tmp_path)
    assert push(client, images, "--split_file", tmp_path / "split.csv").returncode == 0
    assert repository.read("split.csv") == (tmp_path / "split.csv").read_bytes()
    assert "The split is that of an earlier run" in repository.read("README.md").decode()


def hash_of(splits, tmp_path: Path) -> str:
    write_split_csv(splits, tmp_path / "other.csv")
    return hash_split(tmp_path / "other.csv")


def test_the_card_has_classes_split_duplicates_and_licence(client, images, repository, tmp_path):
    maize = sorted((images / "Maize").iterdir())
    shutil.copy(maize[0], images / "Maize" / "again.jpg")
    result = push(client, images, "--source", "Giselsson et al., arXiv 1711.05458")
    assert result.returncode == 0, result.stdout
    text = repository.read("README.md").decode()
    assert check_as_the_hub(text) == ([], [])
    data = DatasetCard(text).data.to_dict()
    assert (data["license"], data["task_categories"]) == (LICENSE, ["image-classification"])
    assert [split["num_examples"] for split in data["dataset_info"]["splits"]] == [13, 6]
    assert "| Common wheat | 4 | 2 |\n| Maize | 5 | 2 |\n| all | 13 | 6 |" in text
    assert f"`{hash_of(splits_of(train_dir=images), tmp_path)}`" in text
    assert "with the same pixels: 1; " in text
    listed = re.search(r"\| files \| splits \|\n\|:--\|:--\|\n\| (.+?) \|", text)[1]
    assert sorted(listed.split(", ")) == sorted([f"Maize/{maize[0].name}", "Maize/again.jpg"])
    assert "Source: Giselsson et al." in text


def test_a_second_push_of_the_same_folder_makes_no_commit(client, images, repository):
    for _ in range(2):
        result = push(client, images, "--hub_tag", "v1")
        assert result.returncode == 0, result.stdout
    assert len(repository.titles()) == 2  # the data, and their card
    assert repository.tags == {"v1": repository.head}


def test_what_people_write_into_the_dataset_card_stays(client, images, repository):
    push(client, images)
    edit = (
        "from huggingface_hub import DatasetCard; card = DatasetCard.load('alice/seedlings');"
        "card.text += '\\nGrown in Flakkebjerg.\\n'; card.push_to_hub('alice/seedlings')"
    )
    assert client.python(edit).returncode == 0
    (sorted((images / "Maize").iterdir())[0]).unlink()
    assert push(client, images).returncode == 0
    text = repository.read("README.md").decode()
    assert text.endswith("\nGrown in Flakkebjerg.\n")
    assert "17 images of plant seedlings" in text


def test_a_dry_run_prints_the_card_without_a_request(client, images):
    result = push(client, images, "--dry_run")
    assert result.returncode == 0
    assert "## Duplicates" in result.stdout
    assert client.hub.log == []


@pytest.mark.parametrize("where", ["/repos/create", "/preupload/", "/commit/"])
def test_a_refusal_of_the_hub_is_one_sentence(client, images, where):
    client.hub.faults.append(Fault(path=where, method="POST", status=403))
    result = push(client, images)
    assert result.returncode == 1
    assert "Traceback" not in result.stdout
    assert "\nerror: the Hub answered 403: this token has no write access (from HF_TOKEN); use one " in result.stdout


def test_a_login_is_required_before_any_work(hub, images, tmp_path):
    result = push(Client(hub, tmp_path / "home", token=None), images)
    assert result.returncode == 2
    assert "error: expected a login to the Hub, found none" in result.stdout


def test_equal_pixels_are_found_under_other_names_and_formats(images):
    original = sorted((images / "Maize").iterdir())[0]
    with Image.open(original) as image:
        image.convert("RGB").save(images / "Charlock" / "copy.png")
        other = np.array(image.convert("RGB"))
    other[0, 0, 0] ^= 1
    Image.fromarray(other).save(images / "Charlock" / "other.png")
    (group,) = find_duplicates(splits_of(train_dir=images))
    assert {(row.file, row.label) for row in group} == {
        (f"Maize/{original.name}", "Maize"), ("Charlock/copy.png", "Charlock")
    }  # fmt: skip
    assert all(isinstance(row, Location) and row.split in ("train", "validation") for row in group)


def test_the_card_and_the_inspection_find_the_same_duplicates(images):
    maize = images / "Maize"
    with Image.open(sorted(maize.iterdir())[0]) as opened:
        original = opened.convert("RGB")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    original.transpose(Image.Transpose.ROTATE_90).save(maize / "turned by exif.png", exif=exif)
    palette = original.quantize(16)
    palette.save(maize / "palette.png")
    palette.convert("RGB").save(maize / "palette as rgb.png")
    for value in (1000, 60000):  # 16 bits, which PIL itself would clip to the same white
        Image.fromarray(np.full((80, 80), value, np.uint16)).save(maize / f"deep {value}.png")
    on_the_card = find_duplicates(splits_of(train_dir=images))
    expected = inspect_folder(images).exact_duplicates
    assert {frozenset(row.file for row in group) for group in on_the_card} == set(map(frozenset, expected))
    assert len(expected) == 2


TRAIN_FLAGS = {
    "variant": "tiny", "image_size": 32, "max_steps": 2, "eval_steps": 2, "save_steps": 2, "logging_steps": 1,
    "per_device_train_batch_size": 6,
}  # fmt: skip


def test_a_run_on_the_dataset_has_the_losses_of_a_run_on_the_folder(client, images, tmp_path):
    assert push(client, images).returncode == 0
    runs = {}
    for name, source in (("there", {"dataset_name": "alice/seedlings"}), ("here", {"train_dir": images})):
        result = client.train(**TRAIN_FLAGS, **source, output_dir=tmp_path / name).finish()
        assert result.returncode == 0, result.stdout
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        runs[name] = [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in lines]
        pushed = Repository(client.hub, "alice/seedlings", kind="datasets").read("split.csv").decode()
        split = (tmp_path / name / "split.csv").read_text(encoding="utf-8")  # with a column of hashes more
        assert [row[:3] for row in csv.reader(split.splitlines())] == [*csv.reader(pushed.splitlines())]
    assert runs["there"] == runs["here"]
    assert runs["here"][0]["loss"] > 0
