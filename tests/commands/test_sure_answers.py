"""What commands say of the certainty of their answers, by default, with their flags, and with older models."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from predict_runs import flags, read_csv
from processes import command_on_two_processes
from sample import copy_sample
from small_models import SPECIES

from seedling_hf.commands import evaluate, predict, run
from seedling_hf.inference.classifier import Pretrained, load_classifier
from seedling_hf.inference.familiarity import FAMILIARITY
from seedling_hf.inference.judgement import Certainty, add_familiarity, judge
from seedling_hf.inference.prediction import EightSymmetries, forward

pytestmark = pytest.mark.usefixtures("unsettled_precision")


@pytest.fixture(scope="module")
def images(tmp_path_factory, strange_image) -> Path:
    """Six images of each of four species, and something else among the maize."""
    folder = copy_sample(tmp_path_factory.mktemp("images"), SPECIES, slice(2, 8))
    shutil.copy(strange_image, folder / "Maize" / "umbrella.png")
    return folder


def answer(model: Path, images: Path, output: Path, **further) -> list[dict]:
    words = flags(model_name_or_path=model, images=[images], output_file=output, **further)
    assert run(predict.main, words) == 0
    text = output.read_text()
    if output.suffix == ".csv":
        return read_csv(text)
    return json.loads(text) if output.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def expect(rows: list[dict], threshold: float) -> list[str]:
    """The certainty that follows from the rows, of which the umbrella is the only unfamiliar one."""
    return [
        "unfamiliar" if Path(row["file"]).name == "umbrella.png"
        else "sure" if float(row["probability"]) >= threshold else "not sure"
        for row in rows
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_without_a_flag_the_thresholds_are_those_of_the_model(familiar_dir, images, tmp_path, capsys, name):
    rows = answer(familiar_dir, images, tmp_path / name)
    said = [row["certainty"] for row in rows]
    assert said == expect(rows, 0.5)
    assert set(said) == {"sure", "not sure", "unfamiliar"}, "the test needs all three"
    counts = f"25 images, {said.count('sure')} sure, {said.count('not sure')} not sure and 1 unfamiliar: "
    shown = capsys.readouterr().err
    assert counts in shown
    assert "certainty" not in shown


def test_the_flag_changes_what_is_sure_and_not_what_is_unfamiliar(familiar_dir, images, tmp_path):
    rows = answer(familiar_dir, images, tmp_path / "a.csv", threshold=1.0)
    assert [row["certainty"] for row in rows] == expect(rows, 1.0)
    assert [row["certainty"] for row in rows].count("unfamiliar") == 1


def test_the_column_can_be_left_out_and_the_rest_stays(familiar_dir, images, tmp_path):
    rows, plain = (
        answer(familiar_dir, images, tmp_path / name, **more)
        for name, more in (("a.csv", {}), ("b.csv", {"no_certainty": True}))
    )
    assert plain == [{key: value for key, value in row.items() if key != "certainty"} for row in rows]


def test_the_column_cannot_be_left_out_and_have_a_threshold(familiar_dir, images, tmp_path, capsys):
    words = flags(model_name_or_path=familiar_dir, images=[images], threshold=0.5, no_certainty=True)
    assert run(predict.main, words) == 2
    assert "expected --threshold or --no_certainty, found both" in capsys.readouterr().err


def test_kaggles_file_is_as_ever(familiar_dir, images, tmp_path):
    rows = answer(familiar_dir, images, tmp_path / "a.csv", format="kaggle")
    assert rows[0].keys() == {"file", "species"} and len(rows) == 25


def test_a_model_without_thresholds_leaves_the_column_out_and_says_so_once(model_dir, images, tmp_path, caplog):
    rows = answer(model_dir, images, tmp_path / "a.csv", per_device_eval_batch_size=2)
    assert rows[0].keys() == {"file", "class", "probability"}
    assert caplog.text.count("certainty is not said") == 1
    rows = answer(model_dir, images, tmp_path / "b.csv", threshold=0.5)
    assert {row["certainty"] for row in rows} == {"sure", "not sure"}
    assert caplog.text.count("certainty") == 1


@pytest.mark.parametrize(("lacking", "words"), [(FAMILIARITY, {"sure", "not sure"}), ("threshold", {"", "unfamiliar"})])
def test_a_model_with_one_of_the_two_says_what_it_can(familiar_dir, images, tmp_path, caplog, lacking, words):
    model = Path(shutil.copytree(familiar_dir, tmp_path / "model"))
    if lacking == FAMILIARITY:
        (model / FAMILIARITY).unlink()
    else:
        config = json.loads((model / "config.json").read_text()) | {"confidence_threshold": None}
        (model / "config.json").write_text(json.dumps(config))
    rows = answer(model, images, tmp_path / "a.csv")
    assert {row["certainty"] for row in rows} == words
    assert caplog.text.count("certainty says only what is ") == 1


def test_symmetries_have_a_certainty_too(familiar_dir, images, tmp_path):
    rows = answer(familiar_dir, images, tmp_path / "a.csv", test_time_augmentation=True)
    model, image_processor = load_classifier(str(familiar_dir))
    model = EightSymmetries(add_familiarity(model, Pretrained(str(familiar_dir))))
    pixel_values = [image_processor(Image.open(row["file"]).convert("RGB"), return_tensors="pt")["pixel_values"][0]
                    for row in rows]  # fmt: skip
    said = judge(forward(model, torch.stack(pixel_values)), SPECIES, Certainty(0.5, True))
    assert [row["certainty"] for row in rows] == [each.certainty for each in said]


def test_each_plant_of_a_tray_has_its_certainty(familiar_dir, sample_dir, tmp_path):
    rows = answer(familiar_dir, sample_dir.parent / "tray.jpg", tmp_path / "a.csv", tiles=True)
    assert len(rows) == 18
    familiar = [row for row in rows if row["certainty"] != "unfamiliar"]
    assert familiar, "the test needs a familiar plant"
    assert [row["certainty"] for row in familiar] == expect(familiar, 0.5)


def test_evaluate_says_of_each_image_what_predict_says(familiar_dir, images, tmp_path, capsys):
    rows = answer(familiar_dir, images, tmp_path / "a.csv")
    words = flags(model_name_or_path=familiar_dir, test_dir=images, output_dir=tmp_path / "one")
    assert run(evaluate.main, words) == 0
    judged = read_csv((tmp_path / "one" / "predictions.csv").read_text())
    assert [row["certainty"] for row in judged] == [row["certainty"] for row in rows]
    sure = [row for row in judged if row["certainty"] == "sure"]
    right = sum(row["label"] == row["prediction"] for row in sure)
    assert f"right on {right} of {len(sure)} images" in capsys.readouterr().out
    words = flags(model_name_or_path=familiar_dir, test_dir=images, output_dir=tmp_path / "high", threshold=1.0)
    assert run(evaluate.main, words) == 0
    trust = json.loads((tmp_path / "high" / "report.json").read_text())["trust"]
    assert (trust["threshold"], trust["sure"]["count"], trust["unfamiliar"]["count"]) == (1.0, 0, 1)


def test_two_processes_say_the_same_as_one(familiar_dir, images, tmp_path):
    one, two = (
        flags(model_name_or_path=familiar_dir, test_dir=images, output_dir=tmp_path / name,
              per_device_eval_batch_size=4)
        for name in ("one", "two")
    )  # fmt: skip
    assert run(evaluate.main, one) == 0
    answered = command_on_two_processes(evaluate.main, two, tmp_path)
    assert answered.returncode == 0, answered.stderr
    first, second = (read_csv((tmp_path / name / "predictions.csv").read_text()) for name in ("one", "two"))
    assert [row["certainty"] for row in first] == [row["certainty"] for row in second]
    assert "unfamiliar" in {row["certainty"] for row in first}
