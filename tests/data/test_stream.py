"""A stream gives each image once per epoch, from any place on, on any number of processes."""

from collections import Counter
from itertools import islice, takewhile
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from torch.utils.data import DataLoader
from training_runs import NUM_STEPS, Run, kill

from seedling_hf.commands import run as run_command
from seedling_hf.commands.train import main
from seedling_hf.data import stream as streaming
from seedling_hf.data.collator import Collator
from seedling_hf.data.hub_dataset import load_streamed
from seedling_hf.data.stream import Place, TrainingStream
from seedling_hf.data.transforms import ExampleTransform, build_train_transform
from seedling_hf.errors import InputError
from seedling_hf.replknet import RepLKNetImageProcessor
from seedling_hf.train_arguments import AugmentationArguments, DataArguments, TrainArguments

CLASSES = ["Charlock", "Maize"]
SHARDS = [10, 9, 11]  # images


def write_split(folder: Path, split: str, shards: list[int], files: list[Path], broken: int | None = None) -> None:
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=CLASSES)})
    number = 0
    for shard, count in enumerate(shards):
        rows = {"image": [], "label": []}
        for _ in range(count):
            file = files[number % len(files)]
            data = b"no image" if number == broken else file.read_bytes()
            rows["image"].append({"path": f"{number}.jpg", "bytes": data})
            rows["label"].append(CLASSES.index(file.parent.name))
            number += 1
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-{shard}.parquet")


@pytest.fixture
def write(tmp_path, sample_dir, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = [file for name in CLASSES for file in sorted((sample_dir / name).iterdir())[:15]]

    def make(shards=SHARDS, broken=None) -> str:
        folder = tmp_path / "hub"
        folder.mkdir()
        write_split(folder, "train", shards, files, broken)
        write_split(folder, "validation", [6], files[::5])
        return str(folder)

    return make


def stream_of(name: str, **settings) -> TrainingStream:
    augmentation = AugmentationArguments(mixup_prob=0.5)
    transform = build_train_transform(augmentation, RepLKNetImageProcessor(crop_size=32))
    collator = Collator(len(CLASSES), augmentation, seed=1)
    splits = load_streamed(DataArguments(dataset_name=name))
    settings = {"batch_size": 1, "seed": 1} | settings
    return TrainingStream(splits["train"], ExampleTransform(transform, seed=1), collator, **settings)


def indices(batches) -> list[int]:
    return [i for batch in batches for i in batch["index"].tolist()]


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4])
def test_an_epoch_has_each_image_once_on_any_number_of_processes(write, num_processes):
    name, seen = write(), Counter()
    for rank in range(num_processes):
        stream = stream_of(name, process_index=rank, num_processes=num_processes)
        seen.update(indices(takewhile(lambda batch: batch["place"].epoch == 0, stream)))
    assert len(seen) == sum(SHARDS)
    assert set(seen.values()) == {1}


def test_the_order_is_different_in_each_epoch_and_for_each_seed(write):
    name = write()
    twice = indices(islice(stream_of(name), 2 * sum(SHARDS)))
    first, second = twice[: sum(SHARDS)], twice[sum(SHARDS) :]
    assert sorted(first) == sorted(second)
    assert first != second != sorted(second)
    assert first == indices(islice(stream_of(name), sum(SHARDS)))
    assert first != indices(islice(stream_of(name, seed=2), sum(SHARDS)))


@pytest.mark.parametrize("block", [4, 1024])
def test_from_any_place_on_the_stream_is_the_same_to_the_bit(write, monkeypatch, block):
    monkeypatch.setattr(streaming, "BLOCK", block)
    name = write()
    whole = list(islice(stream_of(name, batch_size=4), 20))  # two and a half epochs
    for number in range(19):  # including the end of an epoch
        stream = stream_of(name, batch_size=4)
        stream.set_place(whole[number]["place"])
        for found, expected in zip(stream, whole[number + 1 :], strict=False):
            assert found["index"].equal(expected["index"])
            assert found["pixel_values"].equal(expected["pixel_values"])
            assert found["labels"].equal(expected["labels"])
            assert found["place"] == expected["place"]


def test_a_worker_gives_what_the_process_itself_gives(write):
    name = write()
    alone = list(islice(stream_of(name, batch_size=4), 6))
    loader = DataLoader(stream_of(name, batch_size=4), batch_size=None, num_workers=1)
    for found, expected in zip(islice(loader, 6), alone, strict=True):
        assert found["pixel_values"].equal(expected["pixel_values"])
        assert Place(*found["place"]) == expected["place"]


@pytest.mark.parametrize("names", [{"Charlock": "weed", "Maize": "corn"}, {"Maize": "Charlock"}], ids=["new", "one"])
def test_a_map_gives_the_classes_of_a_stream_other_names_and_numbers(write, tmp_path, names):
    name, path = write(), tmp_path / "map.csv"
    path.write_text("from,to\n" + "".join(f"{old},{new}\n" for old, new in names.items()))
    given, renamed = (load_streamed(DataArguments(dataset_name=name, label_map=each)) for each in (None, str(path)))
    assert renamed["train"].num_shards == given["train"].num_shards == len(SHARDS)
    features = [renamed[split].features["label"] for split in ("train", "validation")]
    assert features[0].names == features[1].names == list(dict.fromkeys(names.get(each, each) for each in CLASSES))
    for split in given:
        was, now = ([split_of[split].features["label"].int2str(row["label"]) for row in split_of[split]]
                    for split_of in (given, renamed))  # fmt: skip
        assert now == [names.get(label, label) for label in was] and len(set(was)) == 2


def test_a_map_of_unknown_names_is_refused_for_a_stream(write, tmp_path):
    (tmp_path / "map.csv").write_text("from,to\nmaize,corn\n")
    with pytest.raises(InputError, match=r"column from of .*map\.csv, found maize \(did you mean Maize\?\); use"):
        load_streamed(DataArguments(dataset_name=write(), label_map=str(tmp_path / "map.csv")))


def test_a_bad_image_is_refused_or_skipped(write):
    name = write(broken=7)
    with pytest.raises(InputError, match=r"found 7\.jpg: cannot identify image file.*skip such images with"):
        for batch in stream_of(name):
            streaming.pop_place([batch])
    kept = indices(islice(stream_of(name, skip_bad_images=True), sum(SHARDS) - 1))
    assert len(set(kept)) == sum(SHARDS) - 1
    assert 7 not in kept


def test_a_stream_of_bad_images_only_ends(write):
    name = write(shards=[1], broken=0)
    (batch,) = stream_of(name, skip_bad_images=True)
    assert "found none in a whole epoch" in batch["error"]


def test_a_dataset_without_validation_is_refused(write, tmp_path):
    name = write()
    (tmp_path / "hub" / "validation-0.parquet").unlink()
    with pytest.raises(InputError, match=r"expected splits for train and validation in .*found train; a stream cannot"):
        load_streamed(DataArguments(dataset_name=name))


def test_a_column_of_another_kind_is_refused(write):
    with pytest.raises(InputError, match="expected ClassLabel in the column 'image'"):
        load_streamed(DataArguments(dataset_name=write(), label_column_name="image"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": -1}, "--max_steps and --eval_steps with --streaming"),
        ({"eval_steps": None}, "--max_steps and --eval_steps with --streaming"),
        ({"dataset_name": None, "train_dir": "images"}, "--dataset_name with --streaming"),
        ({"dataloader_num_workers": 2}, "of 0 or 1 with --streaming, found 2"),
    ],
)
def test_flags_that_do_not_go_with_a_stream_are_refused(changes, message):
    values = {"dataset_name": "name", "max_steps": 5, "eval_steps": 5, "dataloader_num_workers": 0} | changes
    with pytest.raises(InputError, match=message):
        TrainArguments(output_dir="run", variant="tiny", streaming=True, **values)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_run_on_a_stream_that_is_killed_ends_as_if_nothing_had_happened(write, tmp_path, images, num_processes):
    name = write()
    settings = {"num_processes": num_processes, "num_workers": 1, "data": ("--dataset_name", name, "--streaming")}
    reference, killed = (Run(tmp_path / folder, images, **settings) for folder in ("reference", "killed"))
    reference.finish()
    processes = killed.start()
    checkpoint = killed.folder / "run" / "checkpoints" / "step-00000010"
    while not checkpoint.exists():
        assert processes[0].is_alive(), killed.output
    kill(processes)
    killed.finish()
    assert killed.resumed_steps
    assert 8 <= killed.resumed_steps[0] < NUM_STEPS  # the folder is there a moment before `latest` names it
    assert killed.contents() == reference.contents()


def test_another_number_of_processes_is_refused(write, tmp_path, images):
    settings = {"data": ("--dataset_name", write(), "--streaming"), "accumulation": 1}
    run = Run(tmp_path / "run", images, num_processes=2, **settings)
    run.finish()
    alone = Run(tmp_path / "alone", images, **settings)
    (run.folder / "run").rename(alone.folder / "run")
    alone.finish(expected=2)
    assert "expected 2 processes, as many as read the stream" in alone.output


def test_a_stream_trains_without_a_copy_on_the_disk(write, tmp_path):
    name = write()
    flags = "--streaming --variant tiny --image_size 32 --max_steps 4 --eval_steps 4 --per_device_train_batch_size 4"
    assert run_command(main, [*flags.split(), "--dataset_name", name, "--output_dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").exists()
    assert not any("train" in path.name for path in (tmp_path / "cache").rglob("*.arrow"))


def test_a_stream_with_other_names_trains_in_a_worker(write, tmp_path):
    (tmp_path / "map.csv").write_text("from,to\nCharlock,weed\n")
    flags = "--streaming --variant tiny --image_size 32 --max_steps 2 --eval_steps 2 --per_device_train_batch_size 4"
    flags = f"{flags} --dataloader_num_workers 1 --label_map {tmp_path}/map.csv --output_dir {tmp_path}/run"
    assert run_command(main, [*flags.split(), "--dataset_name", write()]) == 0
    assert '"0": "weed"' in (tmp_path / "run" / "config.json").read_text()
