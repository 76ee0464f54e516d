"""A cache of decoded images gives what the files give, is written once, and is whole or not there."""

import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
from data_loading import splits_of
from PIL import Image
from training_runs import Run

from seedling_hf.data import image_cache
from seedling_hf.data.image_cache import (
    FromCache,
    cache_training_images,
    cache_validation_images,
    prepared_examples,
)
from seedling_hf.data.transforms import EvalTransform, ExampleTransform
from seedling_hf.errors import InputError
from seedling_hf.replknet import RepLKNetImageProcessor
from seedling_hf.train_arguments import TrainArguments

SIDE = 64
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "seedling_hf"


@pytest.fixture
def processor():
    return RepLKNetImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})


@pytest.fixture
def folder(tmp_path, images) -> Path:
    """Class folders of their own, with images of several sizes, modes and orientations among them."""
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    file = sorted((folder / "Maize").iterdir())[0]
    image = Image.open(file)
    image.resize((200, 90)).save(folder / "Maize" / "wide.png")
    image.resize((30, 50)).save(folder / "Maize" / "small.png")
    image.convert("LA").save(folder / "Maize" / "grey.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees
    image.resize((120, 70)).save(folder / "Maize" / "turned.png", exif=exif)
    return folder


@pytest.fixture
def split(folder):
    return splits_of(train_dir=folder)["train"]


def paths(split) -> list[str]:
    return [image["path"] for image in split.cast_column("image", datasets.Image(decode=False))["image"]]


def restored(cached) -> list[Image.Image]:
    images = FromCache(lambda rows: rows["image"])(cached[:])
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def test_images_that_are_no_larger_come_back_as_they_are_in_their_files(split, processor):
    cached = cache_training_images(split, 10_000, processor)
    assert {"30×50", "200×90", "70×120"} & {"×".join(map(str, image.size)) for image in split["image"]}
    for found, expected in zip(restored(cached), split["image"], strict=True):
        assert found.mode == "RGB"
        np.testing.assert_array_equal(found, expected.convert("RGB"))
    assert list(cached["label"]) == list(split["label"])
    assert list(cached["index"]) == list(range(len(split)))


def test_larger_images_are_shrunk_to_the_side_and_keep_their_form(split, processor):
    cached = cache_training_images(split, SIDE, processor)
    for found, original in zip(restored(cached), split["image"], strict=True):
        shorter = min(original.size)
        factor = min(1, SIDE / shorter)
        assert found.size == tuple(round(length * factor) for length in original.size)
        expected = original.convert("RGB").resize(found.size, Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(found, expected)


def test_validation_has_the_very_values_that_the_processor_makes_of_the_files(split, processor):
    direct = split.with_transform(ExampleTransform(EvalTransform(processor)))[:]
    cached = cache_validation_images(split, processor).with_transform(prepared_examples)[:]
    assert cached.keys() == direct.keys()
    for found, expected in zip(cached["pixel_values"], direct["pixel_values"], strict=True):
        assert found.dtype == expected.dtype
        assert found.equal(expected)
    assert (list(cached["labels"]), list(cached["index"])) == (list(direct["labels"]), list(direct["index"]))


def test_the_second_run_finds_what_the_first_has_written_and_each_says_so(folder, processor, cache_dir, caplog):
    caplog.set_level(logging.INFO, "seedling_hf")
    for _ in range(2):
        split = splits_of(train_dir=folder)["train"]
        cached = cache_training_images(split, SIDE, processor)
    size = sum(map(os.path.getsize, set(cached["path"])))
    assert size > 3 * 30 * SIDE**2
    first, second = [record.getMessage() for record in caplog.records if record.name == image_cache.__name__]
    what = f"{len(split)} training images, shorter side at most {SIDE} pixels: {size / 1e6:.0f} MB"
    assert first.startswith(f"decoded {what} written to {cache_dir} in ")
    assert second == f"found {what} in {cache_dir}"


@pytest.mark.parametrize("change", ["side", "content", "touched", "processor"])
def test_other_images_and_other_settings_have_a_cache_of_their_own(folder, processor, cache_dir, change):
    split = splits_of(train_dir=folder)["train"]
    make = partial(cache_training_images, split, SIDE, processor)
    if change == "processor":
        make = partial(cache_validation_images, split, processor)
    before = make()
    if change == "side":
        make = partial(cache_training_images, split, SIDE + 1, processor)
    elif change == "processor":
        processor.image_mean = [0.1, 0.2, 0.3]
    else:
        path = Path(paths(split)[0])
        status = path.stat()
        if change == "content":
            Image.new("RGB", (SIDE, SIDE), "red").save(path, "PNG")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    after = make()
    assert set(after["path"]) != set(before["path"])
    if change == "content":
        assert restored(after)[0].getpixel((0, 0)) == (255, 0, 0)


def test_images_inside_a_dataset_are_known_by_their_bytes(split, processor, tmp_path):
    images = [{"bytes": Path(path).read_bytes(), "path": None} for path in paths(split)]
    caches = []
    for changed in (False, False, True):
        rows = images[:-1] + images[:1] if changed else images
        columns = {"image": rows, "label": split["label"], "index": split["index"]}
        inside = datasets.Dataset.from_dict({k: list(v) for k, v in columns.items()}).cast_column(
            "image", datasets.Image()
        )
        caches.append(cache_training_images(inside, SIDE, processor))
    outside = cache_training_images(split, SIDE, processor)
    for found, expected in zip(restored(caches[0]), restored(outside), strict=True):
        np.testing.assert_array_equal(found, expected)
    first, second, third = (set(cached["path"]) for cached in caches)
    assert first == second != third


def write_slowly(split, processor, started) -> None:
    shrink = image_cache._shrink

    def slow(image, side):
        started.set()
        time.sleep(0.05)
        return shrink(image, side)

    image_cache._shrink = slow
    cache_training_images(split, SIDE, processor)


def test_what_a_killed_process_has_half_written_is_never_used(split, processor, cache_dir):
    started = FORK.Event()
    writer = FORK.Process(target=write_slowly, args=(split, processor, started))
    writer.start()
    assert started.wait(60)
    time.sleep(0.3)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert list(cache_dir.rglob("*.incomplete"))
    assert not list(cache_dir.rglob("dataset_info.json"))
    cached = cache_training_images(split, SIDE, processor)
    assert len(cached) == len(split)
    assert [min(image.size) for image in restored(cached)] == [min(SIDE, *image.size) for image in split["image"]]
    assert not list(cache_dir.rglob("*.incomplete"))


def test_a_process_that_comes_while_another_writes_waits_and_reads(split, processor, caplog):
    caplog.set_level(logging.INFO, "seedling_hf")
    started = FORK.Event()
    writer = FORK.Process(target=write_slowly, args=(split, processor, started))
    writer.start()
    assert started.wait(60)
    cached = cache_training_images(split, SIDE, processor)
    writer.join()
    assert writer.exitcode == 0
    assert len(cached) == len(split)
    assert [r.getMessage().split()[0] for r in caplog.records if r.name == image_cache.__name__] == ["found"]


def write_on_a_full_disk(split, processor, answer) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    try:
        cache_training_images(split, SIDE, processor)
    except InputError as error:
        answer.put(str(error))


def test_a_full_disk_is_reported_in_one_sentence_and_leaves_no_files(split, processor, cache_dir):
    answer = FORK.Queue()
    writer = FORK.Process(target=write_on_a_full_disk, args=(split, processor, answer))
    writer.start()
    message = answer.get(timeout=60)
    writer.join()
    assert message.startswith(f"expected to keep {len(split)} decoded images in {cache_dir}, found: [Errno 27] File")
    assert "HF_DATASETS_CACHE" in message
    assert not [path for path in cache_dir.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_side_below_the_images_of_training_is_refused(split, processor, cache_dir):
    with pytest.raises(InputError, match=r"expected --cache_images of at least 32, the side of the .*, found 31"):
        cache_training_images(split, 31, processor)
    assert not cache_dir.exists()


def test_a_stream_is_not_cached():
    with pytest.raises(InputError, match="expected --cache_images without --streaming"):
        TrainArguments(
            output_dir="run", dataset_name="user/seedlings", variant="nano", streaming=True, cache_images=128,
            max_steps=10, eval_steps=5,
        )  # fmt: skip


def _use_cache(folder: Path) -> None:
    datasets.config.HF_DATASETS_CACHE = folder


def test_a_run_with_whole_images_in_the_cache_is_the_run_without_to_the_last_bit(tmp_path, images, cache_dir):
    use = partial(_use_cache, cache_dir.parent)
    plain = Run(tmp_path / "plain", images, max_steps=6)
    cached = Run(tmp_path / "cached", images, max_steps=6, num_workers=1, cache_images=10_000)
    plain.finish()
    cached.finish(before=use)
    expected, found = ((run.folder / "run" / "metrics.jsonl").read_text() for run in (plain, cached))
    assert found == expected
    assert {"loss", "eval_loss"} <= {name for line in found.splitlines() for name in json.loads(line)}


def test_a_run_with_another_side_is_refused_at_resume(tmp_path, images, cache_dir):
    use = partial(_use_cache, cache_dir.parent)
    run = Run(tmp_path / "run", images, num_processes=2, max_steps=4)
    run.finish("--cache_images", "40", before=use)
    assert run.output.count("33 training images, shorter side at most 40 pixels") == 1
    run.finish("--cache_images", "41", before=use, expected=2)
    assert "cache_images was 40 and is 41" in run.output
