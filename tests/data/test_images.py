import errno
import os
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_loading import splits_of
from PIL import ExifTags, Image

from seedling_hf.data import images
from seedling_hf.data.dataset import load_folder
from seedling_hf.data.images import ImageError, find_bad_images, map_in_threads, read_image
from seedling_hf.data.splits import read_split_csv, write_split_csv
from seedling_hf.data.transforms import ExampleTransform, build_train_transform
from seedling_hf.errors import InputError
from seedling_hf.replknet import RepLKNetImageProcessor
from seedling_hf.train_arguments import AugmentationArguments


def write_16_bit(path: Path) -> None:
    Image.fromarray(np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)).save(path)


def write_animation(path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(path, save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])


GOOD = {
    "grey.png": lambda path: Image.new("L", (8, 8), 100).save(path),
    "black and white.png": lambda path: Image.new("1", (8, 8), 1).save(path),
    "palette.png": lambda path: Image.new("P", (8, 8), 3).save(path, transparency=3),
    "grey and alpha.png": lambda path: Image.new("LA", (8, 8), (100, 50)).save(path),
    "rgba.png": lambda path: Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(path),
    "cmyk.jpg": lambda path: Image.new("CMYK", (8, 8), (1, 2, 3, 4)).save(path),
    "16 bit.png": write_16_bit,
    "16 bit.tif": write_16_bit,
    "16 bit.pgm": write_16_bit,
    "1×1.png": lambda path: Image.new("RGB", (1, 1)).save(path),
    "wide.png": lambda path: Image.new("RGB", (800, 8)).save(path),
    "animation.gif": write_animation,
    "rotated.jpg": lambda path: Image.new("RGB", (8, 4)).save(path, exif=bytes.fromhex(
        "45786966000049492a0008000000010012010300010000000600000000000000")),
    "CAPITALS.JPEG": lambda path: Image.new("RGB", (8, 8)).save(path),
    'line\nbreak "quotes", comma 🌱.png': lambda path: Image.new("RGB", (8, 8)).save(path),
    "text says png, is jpeg.png": lambda path: Image.new("RGB", (8, 8)).save(path, format="JPEG"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_an_image_of_an_unusual_kind_can_be_used_for_training(tree, name, tmp_path):
    GOOD[name](tree / "Maize" / name)
    splits = splits_of(train_dir=tree, train_val_split=0.01)
    transform = ExampleTransform(build_train_transform(AugmentationArguments(), RepLKNetImageProcessor(crop_size=32)))
    examples = {f: example for split in splits.values()
                for f, example in zip(split["file"], split.with_transform(transform), strict=True)}  # fmt: skip
    assert examples[f"Maize/{name}"]["pixel_values"].shape == (3, 32, 32)
    write_split_csv(splits, tmp_path / "split.csv")
    assert (f"Maize/{name}", "Maize") in read_split_csv(tmp_path / "split.csv")


def test_a_link_out_of_the_tree_is_an_image(tree, sample_dir):
    target = sorted((sample_dir / "Maize").iterdir())[-1]
    (tree / "Maize" / "link.jpg").symlink_to(target)
    assert "Maize/link.jpg" in load_folder(tree)["file"]


def cut(path: Path, source: Path, share: float = 0.5) -> None:
    data = source.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def write_png_that_says(path: Path, width: int, height: int) -> None:
    """A PNG whose head promises so many pixels."""
    Image.new("L", (1, 1)).save(path)
    data = path.read_bytes()
    head = data[12:16] + struct.pack(">II", width, height) + data[24:29]
    path.write_bytes(data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:])


def write_cut_png(path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(path)
    cut(path, path, 0.6)


def write_damaged_png(path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(path)
    data = bytearray(path.read_bytes())
    data[200:216] = bytes(16)
    path.write_bytes(data)


BAD = {
    "empty.png": (lambda path: path.write_bytes(b""), "an empty file"),
    "text.png": (lambda path: path.write_text("This is no image."), "cannot identify image file"),
    "cut.png": (write_cut_png, "truncated"),
    "damaged.png": (write_damaged_png, ""),
    "cut.jpg": (None, "truncated"),
    "bomb.png": (lambda path: write_png_that_says(path, 20_000, 20_000), "more than .* pixels"),
    "half a bomb.png": (lambda path: write_png_that_says(path, 10_000, 10_000), "more than .* pixels"),
    "thin.png": (lambda path: Image.new("RGB", (20_000, 10)).save(path), "20000×10 pixels are too long and thin"),
    "float.tif": (lambda path: Image.new("F", (8, 8)).save(path), "PIL's mode F"),
    "lab.tif": (lambda path: Image.new("LAB", (8, 8)).save(path), "PIL's mode LAB"),
    "nowhere.png": (lambda path: path.symlink_to("nothing here"), "No such file or directory"),
    "pipe.png": (os.mkfifo if hasattr(os, "mkfifo") else None, "no regular file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_refused_by_name_or_skipped(tree, name, caplog):
    write, reason = BAD[name]
    if write is None:
        cut(tree / "Maize" / name, next((tree / "Charlock").iterdir()))
    else:
        write(tree / "Maize" / name)
    with pytest.raises(InputError, match=rf"found 1 of 10 that cannot: .*{name} \(.*{reason}.*\); .*skip_bad_images"):
        splits_of(train_dir=tree)
    splits = splits_of(train_dir=tree, skip_bad_images=True)
    assert sum(map(len, splits.values())) == 9
    assert "skipped 1 of 10 images that cannot be decoded" in caplog.text


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_an_image_without_permission_is_refused_by_name(tree):
    file = next((tree / "Maize").iterdir())
    file.chmod(0)
    with pytest.raises(InputError, match=rf"{file.name} \(Permission denied\)"):
        splits_of(train_dir=tree)


def test_a_class_of_bad_images_only_is_refused_even_if_they_may_be_skipped(tree):
    for file in (tree / "Maize").iterdir():
        file.write_bytes(b"")
    with pytest.raises(InputError, match="found none in Maize"):
        splits_of(train_dir=tree, skip_bad_images=True)


def test_bad_images_are_found_among_good_ones(tree):
    bad = tree / "Maize" / "bad.jpg"
    bad.write_bytes(b"")
    assert [path for path, _ in find_bad_images(sorted(tree.glob("*/*")))] == [bad]


def test_an_image_is_read_upright(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (4, 8)


def test_an_image_that_cannot_be_read_says_what_the_search_for_bad_ones_says(tree):
    bad = sorted(tree.glob("*/*"))[1]
    bad.write_bytes(bad.read_bytes()[:500])
    ((_, reason),) = find_bad_images([bad])
    with pytest.raises(ImageError, match=rf"found {bad} \({reason}\); restore it") as error:
        read_image(bad)
    assert error.value.reason == reason


def test_without_room_for_locks_the_process_maps_by_itself(monkeypatch):
    def refuse(*args) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(images, "ThreadPool", refuse)
    threads = map_in_threads(lambda number: (number, threading.current_thread()), range(3))
    assert list(threads) == [(number, threading.main_thread()) for number in range(3)]


def test_threads_that_wait_for_a_disk_are_not_waited_for():
    def read(number: int) -> int:
        time.sleep(60 if number == 7 else 0)
        return number

    started = time.monotonic()
    found = map_in_threads(read, range(1000), num_threads=2, chunk_size=16)
    assert [next(found) for _ in range(7)] == list(range(7))
    found.close()
    assert time.monotonic() - started < 10
