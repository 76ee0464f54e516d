import shutil
from pathlib import Path

import pytest
from data_loading import splits_of
from PIL import Image

from seedling_hf.data.dataset import load_folder
from seedling_hf.data.inspection import fingerprint_splits
from seedling_hf.data.recognition import find_training_images, read_known_images, write_hashes
from seedling_hf.data.splits import list_lines, write_split_csv


@pytest.fixture
def split_file(tree, tmp_path) -> Path:
    """Of six training and three validation images, with hashes."""
    splits = splits_of(train_dir=tree)
    hashes = write_hashes(list_lines(splits, "train", "validation"), fingerprint_splits(splits))
    write_split_csv(splits, tmp_path / "split.csv", hashes)
    return tmp_path / "split.csv"


@pytest.fixture
def names_only(tree, tmp_path) -> Path:
    write_split_csv(splits_of(train_dir=tree), tmp_path / "names.csv")
    return tmp_path / "names.csv"


def find(folder: Path, split_file: Path):
    return find_training_images(load_folder(folder), [read_known_images(split_file)])[0]


def trained(tree: Path) -> list[str]:
    return sorted(splits_of(train_dir=tree)["train"]["file"])


def test_training_images_are_recognised_and_validation_images_are_not(tree, split_file):
    found = find(tree, split_file)
    assert found.files == trained(tree)
    assert (found.same_name, found.by_content) == (6, True)


@pytest.mark.parametrize("change", ["png", "jpeg", "smaller", "brighter", "turned", "mirrored"])
def test_copies_under_other_names_are_recognised(tree, split_file, tmp_path, change):
    files = sorted(tree.glob("*/*"))
    for number, file in enumerate(files):
        folder = tmp_path / "copies" / file.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image = {
                "smaller": lambda image: image.resize((101, 101)),
                "brighter": lambda image: image.point(lambda value: value * 0.8 + 30),
                "turned": lambda image: image.rotate(90),
                "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            }.get(change, Image.Image.copy)(image)
        image.save(folder / f"{number}.{'jpg' if change == 'jpeg' else 'png'}", quality=60)
    found = find(tmp_path / "copies", split_file)
    known = [number for number, file in enumerate(files) if str(file.relative_to(tree)) in trained(tree)]
    assert sorted(int(Path(file).stem) for file in found.files) == known
    assert found.same_name == 0


def test_another_image_of_the_name_of_a_training_image_is_not_taken_for_it(tree, split_file, sample_dir):
    first, second = trained(tree)[:2]
    shutil.copyfile(sorted((sample_dir / "Cleavers").iterdir())[0], tree / first)
    assert find(tree, split_file).files == trained(tree)[1:]
    (tree / first).unlink()
    shutil.copyfile(tree / second, tree / first)
    assert find(tree, split_file).files == trained(tree), "it has the content of a training image"


def test_without_hashes_names_decide_whatever_the_suffix(tree, names_only):
    first = trained(tree)[0]
    (tree / first).rename((tree / first).with_suffix(".jpeg"))
    found = find(tree, names_only)
    assert [Path(file).stem for file in found.files] == [Path(file).stem for file in trained(tree)]
    assert (found.same_name, found.by_content) == (6, False)


def test_a_name_in_training_and_validation_decides_nothing(tree, tmp_path):
    file = trained(tree)[0]
    lines = [f"{file},{Path(file).parent.name},{split}" for split in ("train", "validation")]
    (tmp_path / "names.csv").write_text("\n".join(["file,label,split", *lines]))
    assert find(tree, tmp_path / "names.csv").files == []


def test_images_without_detail_are_told_by_their_names(tree, tmp_path):
    for number in range(4):
        Image.new("RGB", (50, 50), "white").save(tree / "Maize" / f"white {number}.png")
    splits = splits_of(train_dir=tree)
    hashes = write_hashes(list_lines(splits, "train", "validation"), fingerprint_splits(splits))
    assert len(hashes) == 9
    write_split_csv(splits, tmp_path / "split.csv", hashes)
    assert find(tree, tmp_path / "split.csv").files == trained(tree)


def test_a_damaged_hash_is_none(tree, split_file):
    text = split_file.read_text().splitlines()
    split_file.write_text("\n".join([text[0], *(f"{line.rsplit(',', 1)[0]},1.2E+15" for line in text[1:])]))
    found = find(tree, split_file)
    assert (found.files, found.by_content) == (trained(tree), False)
