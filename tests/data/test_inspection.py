import json
import logging
import re
import shutil
from pathlib import Path

import pytest
from data_loading import splits_of
from PIL import Image
from sample import copy_sample

from seedling_hf.commands import run
from seedling_hf.commands.inspect_dataset import main
from seedling_hf.data.inspection import (
    find_shared_images,
    fingerprint_splits,
    inspect_folder,
    render_page,
    report_shared_images,
    write_inspection,
)
from seedling_hf.data.splits import write_split_csv


@pytest.fixture
def tree(tmp_path) -> Path:
    """Six images of Maize and six of Charlock, no two of them alike."""
    return copy_sample(tmp_path / "tree", ("Maize", "Charlock"), slice(6))


@pytest.fixture
def flawed(tree) -> Path:
    """The same with one flaw of each kind, whose file says which."""
    maize = sorted((tree / "Maize").iterdir())
    shutil.copyfile(maize[0], tree / "Maize" / "copy.jpg")
    shutil.copyfile(maize[1], tree / "Charlock" / "foreign copy.jpg")
    with Image.open(maize[2]) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tree / "Maize" / "flipped.png")
    (tree / "Maize" / "cut.jpg").write_bytes(maize[3].read_bytes()[:900])
    Image.effect_noise((40, 400), 90).convert("RGB").save(tree / "Charlock" / "grey <and> thin.png")
    return tree


def names(tree: Path, *numbers: int) -> list[str]:
    files = [file for file in sorted((tree / "Maize").iterdir()) if file.stem not in ("copy", "flipped", "cut")]
    return [f"Maize/{files[i].name}" for i in numbers]


def test_a_tree_without_flaws_is_clean(tree):
    inspection = inspect_folder(tree)
    assert inspection.is_clean
    assert inspection.num_images == 12
    assert inspection.classes == {"train": {"Charlock": 6, "Maize": 6}}


def test_each_flaw_is_found_as_what_it_is(flawed):
    inspection = inspect_folder(flawed)
    first, second, third = names(flawed, 0, 1, 2)
    assert [entry["file"] for entry in inspection.corrupt] == ["Maize/cut.jpg"]
    assert "truncated" in inspection.corrupt[0]["reason"]
    assert [sorted(group) for group in inspection.exact_duplicates] == [
        sorted(["Charlock/foreign copy.jpg", second]), sorted([first, "Maize/copy.jpg"]),
    ]  # fmt: skip
    assert [sorted(pair["files"]) for pair in inspection.near_duplicates] == [sorted([third, "Maize/flipped.png"])]
    assert [sorted(files) for files in inspection.in_two_classes] == [sorted(["Charlock/foreign copy.jpg", second])]
    outliers = {(outlier["file"], outlier["what"]) for outlier in inspection.outliers}
    assert {("Charlock/grey <and> thin.png", side) for side in ("width", "height")} <= outliers
    assert inspection.classes == {"train": {"Charlock": 8, "Maize": 8}}
    assert inspection.num_images == 17


def test_an_outlier_alone_is_not_a_problem(tree):
    Image.effect_noise((40, 400), 90).convert("RGB").save(tree / "Maize" / "odd.png")
    inspection = inspect_folder(tree)
    assert inspection.outliers
    assert inspection.is_clean


def test_an_image_in_two_given_splits_is_found(tree, tmp_path):
    for split in ("train", "val"):
        shutil.copytree(tree, tmp_path / "splits" / split)
    for file in sorted((tmp_path / "splits" / "val" / "Maize").iterdir())[1:]:
        file.unlink()
    shutil.rmtree(tmp_path / "splits" / "val" / "Charlock")
    inspection = inspect_folder(tmp_path / "splits")
    name = names(tree, 0)[0]
    assert inspection.in_two_splits == [[f"train/{name}", f"val/{name}"]]
    assert inspection.classes["validation"] == {"Charlock": 0, "Maize": 1}


def test_the_page_loads_nothing_else(flawed):
    page = render_page(inspect_folder(flawed))
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources
    assert all(source.startswith(("data:image/jpeg;base64,", "data:,", "#")) for source in sources)
    assert "url(" not in page and "@import" not in page and "<script" not in page


def test_the_page_shows_both_images_of_a_pair_and_the_reason_for_a_corrupt_one(flawed):
    page = render_page(inspect_folder(flawed))
    near = page[page.index('id="near"') : page.index('id="outliers"')]
    assert near.count("<img") == 2
    assert "Maize/flipped.png</figcaption>" in near
    assert re.search(r"<td>Maize/cut.jpg</td><td>.*truncated", page)


def test_a_name_cannot_become_markup(flawed):
    page = render_page(inspect_folder(flawed))
    assert "<and>" not in page
    assert "grey &lt;and&gt; thin.png" in page


def test_a_clean_page_links_to_no_section(tree):
    page = render_page(inspect_folder(tree))
    assert "there are no duplicates" in page
    assert 'href="#' not in page


def test_the_json_holds_all_that_was_found(flawed, tmp_path):
    inspection = inspect_folder(flawed)
    write_inspection(inspection, tmp_path / "out")
    values = json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert values["is_clean"] is False
    assert values["near_duplicates"] == inspection.near_duplicates
    assert values["in_two_classes"] == inspection.in_two_classes


@pytest.mark.parametrize(("which", "code"), [("tree", 0), ("flawed", 1)])
def test_the_exit_code_says_whether_something_was_found(which, code, request, tmp_path, capsys):
    folder = request.getfixturevalue(which)
    assert run(main, ["--train_dir", str(folder), "--output_dir", str(tmp_path / "out")]) == code
    assert re.search(rf"pairs of near-duplicates +{code}\n", capsys.readouterr().out)
    assert (tmp_path / "out" / "inspection.html").exists()


def test_a_missing_folder_is_an_error_and_not_a_finding(tmp_path, capsys):
    assert run(main, ["--train_dir", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out")]) == 2
    assert "found nothing there" in capsys.readouterr().err


# Images that validate and are trained on


@pytest.fixture
def shared(flawed, tmp_path):
    """A split with `flipped.png` and `copy.jpg` in validation and their originals in training."""
    (flawed / "Maize" / "cut.jpg").unlink()
    splits = splits_of(train_dir=flawed)
    write_split_csv(splits, tmp_path / "split.csv")
    lines = (tmp_path / "split.csv").read_text().splitlines()
    moved = ("Maize/flipped.png", "Maize/copy.jpg")
    lines = [f"{line.rsplit(',', 1)[0]},{'validation' if line.startswith(moved) else 'train'}" for line in lines[1:]]
    (tmp_path / "split.csv").write_text("\n".join(["file,label,split", *lines]) + "\n")
    return splits_of(train_dir=flawed, split_file=tmp_path / "split.csv")


def test_validation_images_are_listed_with_their_duplicates_in_training(shared, flawed):
    first, third = names(flawed, 0, 2)
    found = find_shared_images(shared, fingerprint_splits(shared))
    assert set(found) == {("Maize/copy.jpg", first), ("Maize/flipped.png", third)}


def test_training_warns_once_of_shared_images_and_writes_them_down(shared, tmp_path, caplog):
    report_shared_images(shared, tmp_path / "near_duplicates.json", "hash")
    (message,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert message.startswith("2 of 2 validation images have duplicates in training: Maize/copy.jpg (as Maize/")
    assert message.endswith("--split_strategy grouped keeps duplicates on one side")
    values = json.loads((tmp_path / "near_duplicates.json").read_text())
    assert values["validation_images"] == 2
    assert [pair["validation"] for pair in values["pairs"]] == ["Maize/copy.jpg", "Maize/flipped.png"]


def test_a_grouped_split_gives_no_reason_to_warn(flawed, tmp_path, caplog):
    (flawed / "Maize" / "cut.jpg").unlink()
    for seed in range(3):
        splits = splits_of(train_dir=flawed, split_strategy="grouped", split_seed=seed)
        report_shared_images(splits, tmp_path / "near_duplicates.json", "hash")
        assert json.loads((tmp_path / "near_duplicates.json").read_text())["pairs"] == []
    assert caplog.text == ""


def test_what_was_not_looked_for_leaves_no_file_behind(shared, tmp_path):
    (tmp_path / "near_duplicates.json").write_text("of an earlier run")
    report_shared_images(shared, tmp_path / "near_duplicates.json", "hash", look=False)
    assert not (tmp_path / "near_duplicates.json").exists()


def test_what_was_found_is_kept_for_the_same_split_only(shared, tmp_path, monkeypatch):
    path, looks = tmp_path / "near_duplicates.json", []
    monkeypatch.setattr("seedling_hf.data.inspection.find_shared_images", lambda *_: looks.append(1) or [])
    report_shared_images(shared, path, "hash", keep=True)
    written = path.read_bytes()
    report_shared_images(shared, path, "hash", keep=True)
    assert len(looks) == 1
    report_shared_images(shared, path, "other hash", keep=True)
    assert len(looks) == 2
    damaged = b'{"pairs": [1], "split_sha256": "hash"}'
    for content in (b"", written[:30], b"[]", b"null", b"\xff", b"[" * 100_000, damaged):
        path.write_bytes(content)
        report_shared_images(shared, path, "hash", keep=True)
        assert path.read_bytes() == written, content
    report_shared_images(shared, path, "hash")
    assert len(looks) == 10


def test_too_many_images_are_reported_as_unchecked(shared, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("seedling_hf.data.inspection.MOST_COMPARED", 10)
    caplog.set_level(logging.INFO)
    report_shared_images(shared, tmp_path / "near_duplicates.json", "hash")
    assert "16 images are more than 10; use inspect_dataset" in caplog.text
    assert not (tmp_path / "near_duplicates.json").exists()
