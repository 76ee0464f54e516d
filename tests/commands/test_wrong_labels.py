"""Labels that were made wrong on purpose are found among real images by a real model, corrected, and not lost."""

import csv
import json
import logging
import random
import re
import shutil
import sys
from pathlib import Path

import pytest
from browser import open_browser, visit
from data_loading import rows, splits_of
from predict_runs import flags
from sample import SAMPLE, copy_sample

from seedling_hf import SHIPPED_MODEL
from seedling_hf.commands import evaluate, inspect_dataset, run

SPECIES = sorted(folder.name for folder in SAMPLE.iterdir())
IMAGES = 14  # of each class, 168 in all
PLANTED = 8  # one in twenty


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Sample images of which some lie in the folder of another class, as shuffled labels do: file and true class."""
    pytest.importorskip("cleanlab", reason="needs cleanlab: pip install -e '.[all]'")
    folder = copy_sample(tmp_path_factory.mktemp("planted") / "images", SPECIES, slice(IMAGES))
    generator, moved = random.Random(0), {}
    for file in generator.sample(sorted(folder.glob("*/*")), PLANTED):
        other = generator.choice([name for name in SPECIES if name != file.parent.name])
        moved[f"{other}/{file.name}"] = file.parent.name
        file.rename(folder / other / file.name)
    return folder, moved


@pytest.fixture(scope="module")
def found(planted, tmp_path_factory) -> Path:
    """What `inspect_dataset` writes about them, from the shipped model's report."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("found")
    words = flags(model_name_or_path=SHIPPED_MODEL, test_dir=planted[0], output_dir=folder / "report")
    assert run(evaluate.main, words) == 0
    words = flags(train_dir=planted[0], output_dir=folder, predictions=folder / "report")
    assert run(inspect_dataset.main, words) == 0, "such labels do not count"
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


def candidates(folder: Path) -> list[dict[str, str]]:
    with open(folder / "labels.csv", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_planted_labels_come_first_and_with_their_true_class(planted, found):
    first = candidates(found)[: PLANTED + 2]  # the model is not always right
    right = [line for line in first if planted[1].get(line["file"]) == line["suggestion"]]
    assert len(right) >= PLANTED - 1, first
    assert len(candidates(found)) <= 2 * PLANTED


def test_the_json_and_the_page_hold_the_same_list(planted, found):
    values = json.loads((found / "inspection.json").read_text(encoding="utf-8"))
    assert values["num_predicted"] == len(SPECIES) * IMAGES
    assert [entry["file"] for entry in values["suspects"]] == [line["file"] for line in candidates(found)]
    with open_browser() as browser:
        address = (found / "inspection.html").as_uri()
        page, requests, complaints = visit(browser, address, width=390)
        assert [request for request in requests if not request.startswith("data:")] == [address]
        assert complaints == [] and page.evaluate("document.documentElement.scrollWidth") == 390
        cards = page.locator(".suspects .card")
        assert cards.count() == len(values["suspects"])
        sizes = page.evaluate("[...document.querySelectorAll('.suspects img')].map(i => [i.naturalWidth, i.width])")
        assert len(sizes) == cards.count() and all(min(size) > 50 for size in sizes)
        for number, (text, suspect) in enumerate(zip(cards.all_inner_texts(), values["suspects"], strict=True), 1):
            words = " ".join(text.split())
            assert words == (
                f"{suspect['file']} {number}. label {suspect['label']}, {suspect['label_probability']:.1%} "
                f"answer {suspect['suggestion']}, {suspect['probability']:.1%}"
            )


def test_the_terminal_says_how_many_and_what_to_do(planted, found, tmp_path, capsys, caplog):
    words = flags(train_dir=planted[0], output_dir=tmp_path, predictions=found / "report" / "predictions.csv")
    assert run(inspect_dataset.main, words) == 0
    printed = capsys.readouterr().out
    number = len(candidates(tmp_path))
    assert re.search(
        rf"^labels that look wrong \(of {len(SPECIES) * IMAGES} predicted\) +{number}$", printed, re.MULTILINE
    )
    assert f"edit the column label of {tmp_path / 'labels.csv'}, and train with --label_file" in printed
    (message,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "predictions are for images that the model was trained on" in message  # the report beside them knows


def test_the_list_changes_nothing_until_it_is_edited_and_is_then_kept(planted, found, tmp_path, capsys):
    path = shutil.copyfile(found / "labels.csv", tmp_path / "labels.csv")
    given = {split: rows(images) for split, images in splits_of(train_dir=planted[0]).items()}
    found_rows = splits_of(train_dir=planted[0], label_file=path)
    assert {split: rows(images) for split, images in found_rows.items()} == given

    lines = candidates(tmp_path)
    path.write_text(
        "file,label,suggestion,margin\n"
        + "".join(f"{line['file']},{line['suggestion']},{line['suggestion']},{line['margin']}\n" for line in lines)
    )
    corrected = dict(rows(splits_of(train_dir=planted[0], label_file=path)["train"]))
    wanted = {line["file"]: line["suggestion"] for line in lines}
    assert corrected == {file: wanted.get(file, label) for file, label in given["train"]}
    assert sum(corrected[file] == truth for file, truth in planted[1].items() if file in corrected) >= 3

    edited = path.read_bytes()
    words = flags(train_dir=planted[0], output_dir=tmp_path, predictions=found / "report")
    assert run(inspect_dataset.main, words) == 2
    assert "found that somebody has changed the labels of" in capsys.readouterr().err
    assert path.read_bytes() == edited and not (tmp_path / "inspection.html").exists()


def test_without_cleanlab_predictions_are_refused_before_images_are_read(planted, found, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    words = flags(train_dir=planted[0], output_dir=tmp_path, predictions=found / "report")
    assert run(inspect_dataset.main, words) == 2
    assert "expected cleanlab for --predictions, found none; install it with" in capsys.readouterr().err
    assert not (tmp_path / "inspection.html").exists()
