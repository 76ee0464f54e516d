import csv
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_loading import rows, splits_of
from PIL import Image
from sklearn.model_selection import train_test_split

from seedling_hf.data.dataset import load_folder
from seedling_hf.data.duplicates import cluster_duplicates
from seedling_hf.data.inspection import fingerprint_splits
from seedling_hf.data.pool import image_sources
from seedling_hf.data.recognition import write_hashes
from seedling_hf.data.splits import (
    draw_validation,
    hash_split,
    list_lines,
    read_hashes,
    read_split_csv,
    write_split_csv,
)
from seedling_hf.errors import InputError
from seedling_hf.train_arguments import SplitArguments

SEEDLINGS = Path(__file__).resolve().parents[3] / "shared" / "seedlings"


def draw(rows, strategy: str, share: float, seed: int, clusters=None, fold: str | None = None) -> set:
    return draw_validation(
        rows,
        SplitArguments(train_dir="unused", split_strategy=strategy, train_val_split=share, split_seed=seed, fold=fold),
        clusters,
    )


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
    # 30% of 13 images; single images fill up what pairs leave.
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


def test_a_class_of_near_duplicates_validates_its_smallest_cluster():
    rows = [(f"{label}/{i}", label) for label in "ab" for i in range(10)]
    clusters = {row: i for i, row in enumerate(rows)} | {row: 100 + int(row[0][2:]) // 5 for row in rows[10:]}
    for seed in range(10):  # two clusters of five, each more than the three that validate
        chosen = draw(rows, "grouped", 0.3, seed, clusters=clusters)
        assert Counter(label for _, label in chosen) == {"a": 3, "b": 5}
        assert len({clusters[row] for row in chosen if row[1] == "b"}) == 1


def test_a_class_of_one_cluster_is_used_for_training_with_a_warning(caplog):
    rows = [(f"{label}/{i}", label) for label in "ab" for i in range(10)]
    clusters = {row: i for i, row in enumerate(rows)} | dict.fromkeys(rows[10:], 100)
    assert Counter(label for _, label in draw(rows, "grouped", 0.3, 0, clusters=clusters)) == {"a": 3}
    assert "the images of the class b are near-duplicates of one another: all are used for training" in caplog.text


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
def test_an_impossible_fold_is_refused(tree, flags, message):
    with pytest.raises(InputError, match=message):
        splits_of(train_dir=tree, **flags)


def test_a_fold_of_images_with_a_validation_folder_is_refused(tree, plant, tmp_path):
    with pytest.raises(InputError, match="expected --fold for images without a validation split"):
        splits_of(train_dir=tree, validation_dir=plant(tmp_path / "validation"), fold="1/2")


def test_validation_images_from_the_training_folder_are_refused(tree, tmp_path):
    (tmp_path / "link").symlink_to(tree)
    with pytest.raises(InputError, match="expected train and validation in folders of their own"):
        splits_of(train_dir=tree, validation_dir=tmp_path / "link")


def test_the_mle_bench_split_depends_only_on_sorted_classes_and_files(tmp_path, plant):
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


def test_the_only_image_of_a_class_is_used_for_training_with_a_warning(tmp_path, plant, caplog):
    splits = splits_of(train_dir=plant(tmp_path / "tree", Maize=1, Charlock=4))
    assert "the class Maize has one image" in caplog.text
    assert Counter(name for _, name in rows(splits["train"])) == {"Maize": 1, "Charlock": 3}


def test_a_class_that_a_random_split_leaves_without_training_is_named(tmp_path, plant, caplog):
    splits_of(train_dir=plant(tmp_path / "tree", A=1, B=1, C=1), split_strategy="random", train_val_split=0.6)
    assert "no training images are left for these classes: " in caplog.text


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


def test_a_split_may_contain_test_images(tree, tmp_path):
    lines = [f"{file},{label},{split}" for (file, label), split in
             zip(rows(load_folder(tree)), ["train", "validation", "test"] * 3, strict=True)]  # fmt: skip
    (tmp_path / "split.csv").write_text("\n".join(["file,label,split", *lines]))
    splits = splits_of(train_dir=tree, split_file=tmp_path / "split.csv")
    assert {s: len(split) for s, split in splits.items()} == {"train": 3, "validation": 3, "test": 3}


def test_a_split_that_a_spreadsheet_saved_is_read(tree, written):
    written.write_text("\ufeff" + written.read_text().replace("\n", "\r\n"), newline="")
    assert len(splits_of(train_dir=tree, split_file=written)["train"]) == 6


def test_a_split_of_missing_images_is_refused_with_their_names(tree, written):
    missing = next((tree / "Maize").iterdir())
    missing.unlink()
    with pytest.raises(InputError, match=f"found 1 missing: Maize/{missing.name}; restore them or draw a new split"):
        splits_of(train_dir=tree, split_file=written)


def test_a_split_with_another_label_is_refused_with_the_name(tree, written):
    file = next((tree / "Maize").iterdir()).name
    written.write_text(written.read_text().replace(f"Maize/{file},Maize", f"Maize/{file},Charlock"))
    with pytest.raises(InputError, match=rf"found 1 with another class: Maize/{file} \(Charlock, now Maize\)"):
        splits_of(train_dir=tree, split_file=written)


def test_images_that_are_not_in_the_split_are_skipped_with_a_warning(tree, written, plant, caplog):
    expected = {s: rows(split) for s, split in splits_of(train_dir=tree, split_file=written).items()}
    shutil.copyfile(next((tree / "Maize").iterdir()), tree / "Maize" / "new.jpg")
    assert {s: rows(split) for s, split in splits_of(train_dir=tree, split_file=written).items()} == expected
    assert "skipped 1 image not in" in caplog.text and "Maize/new.jpg" in caplog.text


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
def test_a_file_that_is_not_a_split_is_refused(tmp_path, text, message):
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


def test_hashes_of_images_are_read_back_and_change_neither_the_split_nor_its_hash(tree, written, tmp_path):
    splits = splits_of(train_dir=tree, split_seed=7)
    hashes = write_hashes(list_lines(splits, "train", "validation"), fingerprint_splits(splits))
    write_split_csv(splits, tmp_path / "hashed.csv", hashes)
    assert read_hashes(tmp_path / "hashed.csv") == hashes
    assert hash_split(tmp_path / "hashed.csv") == hash_split(written)
    assert read_split_csv(tmp_path / "hashed.csv") == read_split_csv(written)
    assert set(read_hashes(written).values()) == {""}
