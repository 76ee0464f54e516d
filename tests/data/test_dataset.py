import csv
import logging
import os
import shutil
import struct
import sys
import zlib
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from data_loading import splits_of
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import ExifTags, Image
from sklearn.model_selection import train_test_split

from seedling_hf.data import images as image_files
from seedling_hf.data.dataset import describe_splits, load_folder, load_folders
from seedling_hf.data.duplicates import cluster_duplicates
from seedling_hf.data.images import find_bad_images, list_images, read_image
from seedling_hf.data.pool import image_sources
from seedling_hf.data.splits import draw_validation, hash_split, read_split_csv, write_split_csv
from seedling_hf.data.transforms import ExampleTransform, build_train_transform
from seedling_hf.errors import InputError
from seedling_hf.replknet import RepLKNetImageProcessor
from seedling_hf.train_arguments import AugmentationArguments, SplitArguments

SEEDLINGS = Path(__file__).resolve().parents[3] / "shared" / "seedlings"


@pytest.fixture
def plant(sample_dir):
    """Fills a folder with class folders of so many real images each."""

    def fill(folder: Path, **counts: int) -> Path:
        for name, count in (counts or {"Maize": 4, "Charlock": 5}).items():
            (folder / name).mkdir(parents=True)
            source = sample_dir / (name if (sample_dir / name).exists() else "Cleavers")
            for file in sorted(source.iterdir())[:count]:
                shutil.copyfile(file, folder / name / file.name)
        return folder

    return fill


@pytest.fixture
def tree(tmp_path, plant) -> Path:
    """Four images of Maize, five of Charlock."""
    return plant(tmp_path / "tree")


def draw(rows, strategy: str, share: float, seed: int, clusters=None, fold: str | None = None) -> set:
    return draw_validation(
        rows,
        SplitArguments(train_dir="unused", split_strategy=strategy, train_val_split=share, split_seed=seed, fold=fold),
        clusters,
    )


def rows(split: Dataset) -> list[tuple[str, str]]:
    names = split.features["label"].names
    return [(file, names[label]) for file, label in zip(split["file"], split["label"], strict=True)]


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


# The split


def test_a_stratified_split_has_the_share_of_each_class(sample_dir):
    splits = splits_of(train_dir=sample_dir, train_val_split=0.25)
    assert set(Counter(splits["validation"]["label"]).values()) == {10}
    assert set(Counter(splits["train"]["label"]).values()) == {30}


def test_a_split_depends_on_its_seed(sample_dir):
    first, again, other = (set(splits_of(train_dir=sample_dir, split_seed=s)["validation"]["file"]) for s in (1, 1, 2))
    assert first == again != other


def test_another_class_moves_no_image_of_the_others(tree, plant):
    before = set(rows(splits_of(train_dir=tree)["validation"]))
    plant(tree, Cleavers=6)
    after = set(rows(splits_of(train_dir=tree)["validation"]))
    assert {row for row in after if row[1] != "Cleavers"} == before


def test_the_random_split_is_the_tutorials(sample_dir):
    files = sorted(str(path) for path in sample_dir.glob("*/*.jpg"))
    expected = train_test_split(files, test_size=0.3, random_state=42)
    splits = splits_of(train_dir=sample_dir, split_strategy="random")
    for split, wanted in zip(("train", "validation"), expected, strict=True):
        assert sorted(map(str, image_sources(splits[split]))) == sorted(wanted)


def test_the_random_split_sorts_whole_paths_where_one_class_name_begins_another(tmp_path, plant):
    root = plant(tmp_path / "tree", **{"Maize": 7, "Maize early": 7})
    files = sorted(str(path) for path in root.glob("*/*.jpg"))
    expected = train_test_split(files, test_size=0.3, random_state=42)[1]
    found = splits_of(train_dir=root, split_strategy="random")["validation"]
    assert sorted(map(str, image_sources(found))) == sorted(expected)


@pytest.fixture(scope="module")
def doubled(sample_dir, tmp_path_factory) -> Path:
    """Ten images of each of three classes; of three in each there is a mirrored copy beside them."""
    root = tmp_path_factory.mktemp("doubled")
    for name in ("Maize", "Charlock", "Cleavers"):
        (root / name).mkdir()
        for i, file in enumerate(sorted((sample_dir / name).iterdir())[:10]):
            shutil.copyfile(file, root / name / file.name)
            if i < 3:
                with Image.open(file) as image:
                    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / name / f"{file.stem} mirrored.png")
    return root


def sides(root: Path, validation: set[str]) -> Counter:
    """How many pairs lie with both images in validation, with one, with none."""
    pairs = [(f"{m.parent.name}/{m.stem.split()[0]}.jpg", f"{m.parent.name}/{m.name}") for m in root.glob("*/*.png")]
    assert len(pairs) == 9
    return Counter(sum(file in validation for file in pair) for pair in pairs)


@pytest.mark.parametrize("seed", range(4))
def test_a_grouped_split_keeps_near_duplicates_on_one_side_and_the_share_of_each_class(doubled, seed):
    splits = splits_of(train_dir=doubled, split_strategy="grouped", split_seed=seed)
    assert sides(doubled, set(splits["validation"]["file"])).keys() <= {0, 2}
    # 30 % of 13 images; single images fill up what pairs leave.
    assert set(Counter(splits["validation"]["label"]).values()) == {4}


def test_the_stratified_split_of_the_same_images_parts_some_pairs(doubled):
    splits = splits_of(train_dir=doubled)
    assert sides(doubled, set(splits["validation"]["file"]))[1] > 0


def test_a_grouped_split_takes_pairs_no_more_often_than_their_share():
    rows = [(f"{label}/{i}", label) for label in "ab" for i in range(100)]
    clusters = {row: int(row[0][2:]) // 2 if int(row[0][2:]) < 60 else int(row[0][2:]) for row in rows}
    clusters = {row: (row[1] == "b") * 1000 + number for row, number in clusters.items()}
    counts = []
    for seed in range(20):
        chosen = draw(rows, "grouped", 0.3, seed, clusters=clusters)
        assert Counter(label for _, label in chosen) == {"a": 30, "b": 30}
        counts.append(sum(int(file[2:]) < 60 for file, _ in chosen))
    # 0.3 of 120 images in pairs are 36; the mean of 20 draws has a standard error of about 1.6.
    assert abs(np.mean(counts) - 36) < 6


def test_a_grouped_split_depends_on_clusters_and_seed_and_not_on_their_numbers_or_the_order():
    rows = [(f"{label}/{i}", label) for label in "ab" for i in range(30)]
    clusters = {row: i // 2 for i, row in enumerate(rows)}
    expected = draw(rows, "grouped", 0.3, 1, clusters=clusters)
    renamed = {row: 1000 - 7 * number for row, number in clusters.items()}
    assert draw(rows[::-1], "grouped", 0.3, 1, clusters=renamed) == expected
    assert draw(rows, "grouped", 0.3, 2, clusters=clusters) != expected
    assert draw(rows[::-1], "grouped", 0.3, 1, clusters=renamed, fold="2/5") == draw(
        rows, "grouped", 0.3, 1, clusters=clusters, fold="2/5"
    )


def test_without_duplicates_the_grouped_split_is_the_stratified_one(tree):
    grouped, stratified = (splits_of(train_dir=tree, split_strategy=s) for s in ("grouped", "stratified"))
    assert {s: rows(split) for s, split in grouped.items()} == {s: rows(split) for s, split in stratified.items()}


def test_a_cluster_over_two_classes_stays_on_one_side():
    rows = [(f"{label}/{i}", label) for label in "ab" for i in range(10)]
    clusters = {row: i for i, row in enumerate(rows)} | {("b/3", "b"): 2, ("a/2", "a"): 2}
    for seed in range(10):
        chosen = draw(rows, "grouped", 0.3, seed, clusters=clusters)
        assert (("a/2", "a") in chosen) == (("b/3", "b") in chosen)


@pytest.mark.parametrize("strategy", ["stratified", "grouped"])
def test_folds_part_the_images(doubled, strategy):
    folds = [splits_of(train_dir=doubled, split_strategy=strategy, fold=f"{i}/4") for i in (1, 2, 3, 4)]
    validated = [file for fold in folds for file in fold["validation"]["file"]]
    assert len(validated) == len(set(validated)) == 39
    for fold in folds:
        assert sorted([*fold["train"]["file"], *fold["validation"]["file"]]) == sorted(validated)
        # 13 images of a class in four folds are 3 or 4 each; a pair may shift one more.
        assert all(2 <= count <= 5 for count in Counter(fold["validation"]["label"]).values())
        assert strategy == "stratified" or sides(doubled, set(fold["validation"]["file"])).keys() <= {0, 2}


def test_folds_depend_on_the_seed(tree):
    first, again, other = (
        set(splits_of(train_dir=tree, fold="1/4", split_seed=s)["validation"]["file"]) for s in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"fold": "0/5"}, "expected --fold i/n .* found 0/5"),
        ({"fold": "6/5"}, "found 6/5"),
        ({"fold": "1/1"}, "found 1/1"),
        ({"fold": "2"}, "found 2$"),
        ({"fold": "1/5"}, "at least 5 images of each class for 5 folds, found 4 of Maize"),
        ({"fold": "1/2", "split_strategy": "random"}, "stratified or grouped, found random"),
        ({"fold": "1/2", "split_strategy": "mle_bench"}, "stratified or grouped, found mle_bench"),
    ],
)
def test_a_fold_that_is_none_is_refused(tree, flags, message):
    with pytest.raises(InputError, match=message):
        splits_of(train_dir=tree, **flags)


def test_a_fold_of_images_with_a_validation_folder_is_refused(tree):
    with pytest.raises(InputError, match="expected --fold for images without a validation split"):
        splits_of(train_dir=tree, validation_dir=tree, fold="1/2")


def test_the_mle_bench_split_sorts_classes_then_files_and_asks_for_nothing_else(tmp_path, plant):
    root = plant(tmp_path / "tree", **{"Maize": 9, "Maize early": 8, "Charlock": 9})
    # As MLE-bench's prepare.py walks through the folders.
    files = [f"{label}/{file}" for label in sorted(os.listdir(root)) for file in sorted(os.listdir(root / label))]
    expected = train_test_split(files, test_size=0.14, random_state=0)[1]
    for flags in ({}, {"split_seed": 5, "train_val_split": 0.5}):
        found = splits_of(train_dir=root, split_strategy="mle_bench", **flags)["validation"]["file"]
        assert sorted(found) == sorted(expected)


def test_the_mle_bench_split_of_4750_images_validates_666_as_its_sample_submission_has_rows():
    rows = [(f"{label}/{i:04}.png", label) for label in "abcdefghijkl" for i in range(396)][:4750]
    chosen = draw(rows, "mle_bench", 0.3, 42)
    assert len(chosen) == 666
    assert draw(rows[::-1], "mle_bench", 0.3, 1) == chosen


@pytest.mark.slow
@pytest.mark.skipif(not SEEDLINGS.is_dir(), reason=f"needs the 4,027 seedlings in {SEEDLINGS}")
@pytest.mark.parametrize("flags", [{}, {"fold": "1/5"}], ids=str)
def test_a_grouped_split_of_the_seedlings_keeps_every_cluster_together(flags):
    splits = splits_of(train_dir=SEEDLINGS, split_strategy="grouped", **flags)
    files = sorted(SEEDLINGS.glob("*/*"))
    validation = set(image_sources(splits["validation"]))
    side_of = {}
    for file, cluster in zip(files, cluster_duplicates(files), strict=True):
        assert side_of.setdefault(cluster, file in validation) == (file in validation)
    totals = Counter(file.parent.name for file in files)
    share = 0.2 if flags else 0.3
    for label, count in Counter(Path(file).parent.name for file in splits["validation"]["file"]).items():
        # A fold shifts a cluster of three at most, a drawn share rounds to one image.
        assert abs(count - share * totals[label]) <= (3 if flags else 0.5)


def test_a_class_of_one_image_is_trained_on_with_a_warning(tmp_path, plant, caplog):
    splits = splits_of(train_dir=plant(tmp_path / "tree", Maize=1, Charlock=4))
    assert "the class Maize has one image" in caplog.text
    assert Counter(name for _, name in rows(splits["train"])) == {"Maize": 1, "Charlock": 3}


def test_a_class_that_a_random_split_leaves_without_training_is_named(tmp_path, plant, caplog):
    splits_of(train_dir=plant(tmp_path / "tree", A=1, B=1, C=1), split_strategy="random", train_val_split=0.6)
    assert "no training images are left for these classes: " in caplog.text


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


# Folders of splits


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


def test_a_flat_test_folder_and_other_folders_are_left_out_with_a_notice(tmp_path, plant, caplog):
    caplog.set_level(logging.INFO)
    for split in ("train", "holdout"):
        plant(tmp_path / split)
    shutil.copytree(tmp_path / "train" / "Maize", tmp_path / "test")
    assert load_folders(tmp_path).keys() == {"train"}
    assert f"ignored {tmp_path / 'test'}, whose images are not in class folders" in caplog.text
    assert "not a split: holdout" in caplog.text


@pytest.mark.parametrize(("name", "advice"), [("Oak", "rename or remove it"), ("maize", "rename maize to Maize")])
def test_a_class_that_only_validates_is_refused_by_name(tmp_path, plant, name, advice):
    plant(tmp_path / "train", Maize=2, Charlock=2)
    plant(tmp_path / "val", **{"Charlock": 2, name: 2})
    with pytest.raises(InputError, match=f"found also {name}; {advice}; the classes are Charlock, Maize"):
        splits_of(train_dir=tmp_path)


def test_classes_that_differ_in_capitals_are_kept_apart_with_a_warning(tmp_path, plant, caplog):
    splits = splits_of(train_dir=plant(tmp_path / "tree", Maize=2, maize=2))
    assert splits["train"].features["label"].names == ["Maize", "maize"]
    assert "differ only in case are separate classes: Maize, maize" in caplog.text


def test_an_evaluation_folder_is_labelled_as_the_model_is(tree):
    dataset = load_folder(tree, class_names=["Oak", "Maize", "Beech", "Charlock"])
    assert Counter(dataset["label"]) == {1: 4, 3: 5}
    assert dataset["index"] == list(range(9))


def test_a_class_that_the_model_does_not_know_is_refused_by_name(tree):
    with pytest.raises(InputError, match="found also Charlock; rename or remove it; the classes are Maize, Oak"):
        load_folder(tree, class_names=["Maize", "Oak"])


# What is no image of a class


def test_strangers_are_left_out_with_one_notice(tree, caplog):
    caplog.set_level(logging.INFO)
    expected = {s: rows(split) for s, split in splits_of(train_dir=tree).items()}
    for name in (".DS_Store", "readme.txt", "stray.png", "Maize/Thumbs.db", "Maize/.hidden.jpg", "Maize/notes.txt"):
        (tree / name).write_bytes(b"x")
    for name in (".git/Oak", "__MACOSX/Maize", "Charlock/__MACOSX", "Charlock/.ipynb_checkpoints"):
        (tree / name).mkdir(parents=True)
    caplog.clear()
    assert {s: rows(split) for s, split in splits_of(train_dir=tree).items()} == expected
    assert len(caplog.messages) == 1
    assert ".DS_Store" in caplog.text and "and 5 more" in caplog.text


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
def test_a_name_that_is_not_utf8_is_refused(tree):
    shutil.copyfile(next((tree / "Maize").iterdir()), os.fsencode(tree / "Maize") + b"/\xff.jpg")
    with pytest.raises(InputError, match=r"names in UTF-8 in .*Maize, found b'.xff.jpg'; rename it"):
        splits_of(train_dir=tree)


# Images of every kind


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
def test_an_image_of_an_unusual_kind_is_trained_on(tree, name, tmp_path):
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
    "empty.png": (lambda path: path.write_bytes(b""), "cannot identify image file"),
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
def test_a_bad_image_is_refused_by_name_or_left_out(tree, name, caplog):
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


def test_a_class_of_bad_images_only_is_refused_though_they_may_be_skipped(tree):
    for file in (tree / "Maize").iterdir():
        file.write_bytes(b"")
    with pytest.raises(InputError, match="found none in Maize"):
        splits_of(train_dir=tree, skip_bad_images=True)


def test_bad_images_are_found_among_good_ones(tree):
    bad = tree / "Maize" / "bad.jpg"
    bad.write_bytes(b"")
    assert [path for path, _ in find_bad_images(sorted(tree.glob("*/*")))] == [bad]


# split.csv


@pytest.fixture
def written(tree, tmp_path) -> Path:
    write_split_csv(splits_of(train_dir=tree, split_seed=7), tmp_path / "split.csv")
    return tmp_path / "split.csv"


def test_a_split_is_read_back_as_it_was_written(tree, written):
    expected, found = splits_of(train_dir=tree, split_seed=7), splits_of(train_dir=tree, split_file=written)
    assert {s: rows(split) for s, split in found.items()} == {s: rows(split) for s, split in expected.items()}


def test_a_split_names_file_label_and_split(tree, written):
    with open(written, newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert lines[0].keys() == {"file", "label", "split"}
    assert {(line["file"], line["label"]) for line in lines} == set(rows(load_folder(tree)))
    assert {line["split"] for line in lines} == {"train", "validation"}


def test_a_split_may_say_what_tests(tree, tmp_path):
    lines = [f"{file},{label},{split}" for (file, label), split in
             zip(rows(load_folder(tree)), ["train", "validation", "test"] * 3, strict=True)]  # fmt: skip
    (tmp_path / "split.csv").write_text("\n".join(["file,label,split", *lines]))
    splits = splits_of(train_dir=tree, split_file=tmp_path / "split.csv")
    assert {s: len(split) for s, split in splits.items()} == {"train": 3, "validation": 3, "test": 3}


def test_a_split_that_a_spreadsheet_saved_is_read(tree, written):
    written.write_text("\ufeff" + written.read_text().replace("\n", "\r\n"), newline="")
    assert len(splits_of(train_dir=tree, split_file=written)["train"]) == 6


def test_a_split_of_images_that_are_gone_is_refused_with_their_names(tree, written):
    gone = next((tree / "Maize").iterdir())
    gone.unlink()
    with pytest.raises(InputError, match=f"found 1 missing: Maize/{gone.name}; restore them or draw a new split"):
        splits_of(train_dir=tree, split_file=written)


def test_a_split_with_another_label_is_refused_with_the_name(tree, written):
    file = next((tree / "Maize").iterdir()).name
    written.write_text(written.read_text().replace(f"Maize/{file},Maize", f"Maize/{file},Charlock"))
    with pytest.raises(InputError, match=rf"found 1 with another class: Maize/{file} \(Charlock, now Maize\)"):
        splits_of(train_dir=tree, split_file=written)


def test_images_that_a_split_does_not_know_are_left_out_with_a_warning(tree, written, plant, caplog):
    expected = {s: rows(split) for s, split in splits_of(train_dir=tree, split_file=written).items()}
    shutil.copyfile(next((tree / "Maize").iterdir()), tree / "Maize" / "new.jpg")
    assert {s: rows(split) for s, split in splits_of(train_dir=tree, split_file=written).items()} == expected
    assert "skipped 1 images that are not in" in caplog.text and "Maize/new.jpg" in caplog.text


def test_a_split_file_beside_a_validation_folder_is_refused(tmp_path, plant, written):
    for split in ("train", "val"):
        plant(tmp_path / "both" / split)
    with pytest.raises(InputError, match="--split_file for images without a validation split"):
        splits_of(train_dir=tmp_path / "both", split_file=written)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns file,label,split"),
        ("file,split\na,train\n", "columns file,label,split"),
        ("file,label,split\na,b,elsewhere\n", "with train, validation or test"),
        ("file,label,split\na,b\n", "columns file,label,split"),
        ("file,label,split\na,b,train\na,b,validation\n", "found a in train and validation"),
        ('file,label,split\n"' + "x" * 200_000, "field larger than field limit"),
        ("x" * 10_000_000, "found"),
    ],
    ids=["empty", "columns", "split", "short line", "two splits", "huge field", "huge file"],
)
def test_a_file_that_is_no_split_is_refused(tmp_path, text, message):
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_split_csv(tmp_path / "split.csv")


def test_a_missing_split_file_is_refused(tree):
    with pytest.raises(InputError, match=r"expected a split\.csv at .*, found: .*No such file"):
        splits_of(train_dir=tree, split_file=tree / "none.csv")


def test_the_hash_of_a_split_does_not_depend_on_the_order_of_lines(written):
    before = hash_split(written)
    head, *lines = written.read_text().splitlines(keepends=True)
    written.write_text("".join([head, *reversed(lines)]))
    assert hash_split(written) == before
    written.write_text("".join([head, *lines]).replace("train", "validation", 1))
    assert hash_split(written) != before


def test_the_hash_knows_equal_names_in_two_split_folders(tmp_path, plant):
    for split in ("train", "val"):
        plant(tmp_path / split)
    splits = splits_of(train_dir=tmp_path)
    write_split_csv(splits, tmp_path / "both.csv")
    write_split_csv({"train": splits["train"]}, tmp_path / "train.csv")
    assert hash_split(tmp_path / "both.csv") != hash_split(tmp_path / "train.csv")


def test_a_table_shows_images_of_each_class_and_split(tree):
    lines = [line.split() for line in describe_splits(splits_of(train_dir=tree)).splitlines()]
    assert lines == [["train", "validation"], ["Charlock", "3", "2"], ["Maize", "3", "1"], ["total", "6", "3"]]


# Images to predict


def test_images_are_listed_in_byte_order_without_strangers(tree):
    (tree / "Maize" / ".hidden.jpg").write_bytes(b"")
    (tree / "Maize" / "notes.txt").write_bytes(b"")
    (tree / ".cache").mkdir()
    (tree / ".cache" / "a.jpg").write_bytes(b"")
    assert list(list_images([tree])) == sorted(tree.glob("[CM]*/[!.]*.jpg"))


def test_a_folder_too_large_for_memory_is_listed_in_the_same_order(tree, monkeypatch):
    (tree / "Maize" / "Ä.jpg").write_bytes(b"")
    (tree / "Maize" / "\U0001f331.jpg").write_bytes(b"")
    (tree / "Maize" / "\uff21.jpg").write_bytes(b"")
    expected = list(list_images([tree]))
    monkeypatch.setattr(image_files, "MOST_NAMES_IN_MEMORY", 2)
    assert list(list_images([tree])) == expected == sorted(expected)


def test_an_image_is_read_upright(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (4, 8)


def test_an_image_that_cannot_be_read_says_what_the_search_for_bad_ones_says(tree):
    bad = sorted(tree.glob("*/*"))[1]
    bad.write_bytes(bad.read_bytes()[:500])
    ((_, reason),) = find_bad_images([bad])
    with pytest.raises(InputError) as error:
        read_image(bad)
    assert str(error.value) == reason


def test_a_file_is_listed_whatever_it_is_called(tmp_path):
    (tmp_path / ".a").write_bytes(b"")
    assert list(list_images([tmp_path / ".a", str(tmp_path / ".a")])) == [tmp_path / ".a"] * 2


def test_a_link_to_a_folder_above_is_not_followed(tree):
    (tree / "Maize" / "up").symlink_to(tree)
    assert len(list(list_images([tree]))) == 9


def test_a_link_to_a_folder_beside_is_followed(tree, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "all").symlink_to(tree)
    assert len(list(list_images([tmp_path / "links"]))) == 9


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected an image or a folder at .*nowhere, found nothing there"):
        list(list_images([tmp_path / "nowhere"]))


# Data sets of the Hub, as Parquet files in a folder


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


def test_a_hub_data_set_keeps_its_classes_splits_and_path_names(hub):
    splits = splits_of(dataset_name=hub(train=images(6), validation=images(4, "v"), test=images(2, "t")))
    assert {s: len(split) for s, split in splits.items()} == {"train": 6, "validation": 4, "test": 2}
    assert splits["train"].features["label"].names == ["Maize", "Charlock"]
    assert splits["validation"]["file"] == ["v0.jpg", "v1.jpg", "v2.jpg", "v3.jpg"]
    assert splits["validation"]["index"] == [0, 1, 2, 3]
    assert splits["validation"][0]["image"].size == (150, 150)


def test_a_hub_data_set_without_validation_is_split_as_a_folder_is(hub, tmp_path):
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


def test_a_hub_split_that_lacks_a_class_gets_the_numbers_of_training(hub):
    splits = splits_of(dataset_name=hub(classes=None, train=images(4), validation=images(2, name="Maize")))
    assert list(splits["validation"]["label"]) == [1, 1]
    assert splits["validation"].features == splits["train"].features


def test_a_hub_test_split_without_labels_is_left_out_with_a_notice(hub, caplog):
    caplog.set_level(logging.INFO)
    name = hub(train=images(4), validation=images(2), test=[(None, "t.jpg", None)])
    assert splits_of(dataset_name=name).keys() == {"train", "validation"}
    assert "nor one with labels: test" in caplog.text


def test_a_bad_image_of_the_hub_is_refused_by_name_or_left_out(hub):
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
def test_a_hub_data_set_that_cannot_be_trained_on_is_refused(hub, data, flags, message):
    with pytest.raises(InputError, match=message):
        splits_of(dataset_name=hub(**data), **flags)


def test_a_hub_class_that_only_validates_is_refused_by_name(hub):
    name = hub(classes=None, train=images(4), validation=images(1, name="Oak"))
    with pytest.raises(InputError, match=r"expected only the classes of the split train of .* found also Oak"):
        splits_of(dataset_name=name)


def test_a_data_set_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected a data set at .*nowhere, found none: "):
        splits_of(dataset_name=str(tmp_path / "nowhere"))
