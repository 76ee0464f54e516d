"""The figures of `describe_dataset` are NumPy's on the pixels themselves."""

import json
import logging
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from seedling_hf.commands import run
from seedling_hf.commands.describe_dataset import main
from seedling_hf.data.statistics import measure_images
from seedling_hf.errors import InputError


@pytest.fixture(scope="module")
def files(sample_dir) -> list[Path]:
    """Five images of each class."""
    return [file for folder in sorted(sample_dir.iterdir()) for file in sorted(folder.iterdir())[:5]]


def pixels_of(file: Path) -> np.ndarray:
    """Pixels (H·W, 3) in float64 on the scale of 0 to 1."""
    return np.asarray(Image.open(file).convert("RGB"), np.float64).reshape(-1, 3) / 255


def test_mean_and_std_are_numpys_over_all_pixels(files):
    found = measure_images(files)
    pixels = np.concatenate([pixels_of(file) for file in files])
    np.testing.assert_allclose(found.mean, pixels.mean(0), rtol=1e-10)
    np.testing.assert_allclose(found.std, pixels.std(0), rtol=1e-10)


def test_the_tutorials_mean_and_std_are_means_over_the_images(files):
    found = measure_images(files)
    images = [pixels_of(file) for file in files]
    np.testing.assert_allclose(found.mean_of_means, np.mean([image.mean(0) for image in images], 0), rtol=1e-10)
    stds = [image.std(0, ddof=1) for image in images]  # torch's std, which the tutorial takes, divides by n - 1
    np.testing.assert_allclose(found.mean_of_stds, np.mean(stds, 0), rtol=1e-10)


def test_images_of_different_sizes_count_by_pixels_or_by_images(tmp_path):
    Image.new("RGB", (30, 10), (255, 0, 51)).save(tmp_path / "large.png")
    Image.new("RGB", (10, 10), (0, 0, 0)).save(tmp_path / "small.png")
    found = measure_images([tmp_path / "large.png", tmp_path / "small.png"])
    assert found.mean == pytest.approx((0.75, 0, 0.15))
    assert found.std == pytest.approx((np.sqrt(0.75 * 0.25), 0, 0.2 * np.sqrt(0.75 * 0.25)))
    assert found.mean_of_means == pytest.approx((0.5, 0, 0.1))
    assert found.mean_of_stds == pytest.approx((0, 0, 0))


def test_sizes_are_those_of_upright_images_and_modes_those_of_the_files(tmp_path, files):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (8, 4)).save(tmp_path / "grey.png")
    found = measure_images([*files[:3], tmp_path / "turned.jpg", tmp_path / "grey.png"])
    expected = Counter(Image.open(file).size for file in files[:3]) + Counter([(4, 8), (8, 4)])
    assert found.sizes == expected
    assert found.modes == {"RGB": 4, "L": 1}
    assert found.num_images == 5


def test_one_pixel_has_a_standard_deviation_of_zero(tmp_path):
    Image.new("RGB", (1, 1), (10, 20, 30)).save(tmp_path / "dot.png")
    assert measure_images([tmp_path / "dot.png"]).mean_of_stds == (0, 0, 0)


def test_figures_do_not_depend_on_the_order_or_on_the_number_of_threads(files):
    one, four = measure_images(files, num_threads=1), measure_images(files[::-1], num_threads=4)
    assert (one.mean, one.std, one.mean_of_means, one.mean_of_stds) == (
        four.mean, four.std, four.mean_of_means, four.mean_of_stds
    )  # fmt: skip


def test_no_images_are_refused():
    with pytest.raises(InputError, match="expected images to measure, found none"):
        measure_images([])


# The command


@pytest.fixture
def tree(tmp_path, sample_dir) -> Path:
    """Four images of Charlock and three of Maize, one of them in 16 bits."""
    for name, count in (("Charlock", 4), ("Maize", 2)):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for file in sorted((sample_dir / name).iterdir())[:count]:
            shutil.copy(file, tmp_path / "tree" / name)
    ramp = np.linspace(0, 65535, 64 * 48, dtype=np.uint16).reshape(64, 48)
    Image.fromarray(ramp).save(tmp_path / "tree" / "Maize" / "deep.png")
    return tmp_path / "tree"


def test_the_command_prints_and_writes_numpys_figures(tree, tmp_path, capsys):
    assert run(main, ["--train_dir", str(tree), "--output_file", str(tmp_path / "out" / "figures.json")]) == 0
    values, text = json.loads((tmp_path / "out" / "figures.json").read_text()), capsys.readouterr().out
    deep = np.asarray(Image.open(tree / "Maize" / "deep.png")) >> 8  # the high byte; PIL's conversion would clip
    images = [pixels_of(file) for file in sorted(tree.glob("*/*.jpg"))]
    images.append(np.repeat(deep.reshape(-1, 1), 3, axis=1) / 255)
    np.testing.assert_allclose(values["mean"], np.concatenate(images).mean(0), rtol=1e-10)
    np.testing.assert_allclose(values["std"], np.concatenate(images).std(0), rtol=1e-10)
    assert values["classes"] == {"Charlock": 4, "Maize": 3}
    assert values["num_images"] == 7
    assert sum(values["modes"].values()) == sum(values["sizes"].values()) == 7
    assert values["sizes"]["48x64"] == 1
    printed = re.search(r"^mean of all pixels +(\S+) +(\S+) +(\S+)$", text, re.MULTILINE)
    np.testing.assert_allclose([float(value) for value in printed.groups()], values["mean"], atol=5e-7)
    assert re.search(r"^Charlock +4$", text, re.MULTILINE)


def test_the_command_counts_each_split(tree, tmp_path, capsys):
    for split in ("train", "val"):
        shutil.copytree(tree, tmp_path / "splits" / split)
    next((tmp_path / "splits" / "val" / "Charlock").iterdir()).unlink()
    assert run(main, ["--train_dir", str(tmp_path / "splits"), "--output_file", str(tmp_path / "f.json")]) == 0
    values = json.loads((tmp_path / "f.json").read_text())
    assert values["splits"] == {"train": {"Charlock": 4, "Maize": 3}, "validation": {"Charlock": 3, "Maize": 3}}
    assert values["classes"] == {"Charlock": 7, "Maize": 6}
    assert re.search(r"^Charlock +4 +3$", capsys.readouterr().out, re.MULTILINE)


def test_the_command_skips_a_damaged_image_if_it_may(tree, capsys, caplog):
    (tree / "Maize" / "cut.jpg").write_bytes(b"no image")
    caplog.set_level(logging.INFO)
    assert run(main, ["--train_dir", str(tree)]) == 2
    assert "cut.jpg" in capsys.readouterr().err
    assert run(main, ["--train_dir", str(tree), "--skip_bad_images"]) == 0
    assert re.search(r"^Maize +3$", capsys.readouterr().out, re.MULTILINE)
