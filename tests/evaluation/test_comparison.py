import csv
import json
from math import comb
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from sample import copy_sample
from sklearn.metrics import accuracy_score, f1_score
from small_models import SPECIES, write_model
from transformers import TimmWrapperForImageClassification

from seedling_hf.commands import compare, run
from seedling_hf.errors import InputError
from seedling_hf.evaluation.calibration import Bootstrap
from seedling_hf.evaluation.comparison import compare_models, holm_correction, mcnemar_test
from seedling_hf.evaluation.report import Prediction, Provenance
from seedling_hf.training.baseline import build_timm_classifier


def counts(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return np.array(first), np.array(second)


def test_mcnemars_test_is_the_binomial_test_of_the_images_that_one_alone_gets_right():
    found = mcnemar_test(*counts(50, 3, 12, 7))
    tail = sum(comb(15, k) for k in range(4)) / 2**15
    assert found["p_value"] == pytest.approx(2 * tail, rel=1e-12)
    assert (found["both"], found["only_first"], found["only_second"], found["neither"]) == (50, 3, 12, 7)
    assert found["difference"] == 9 / 72


def test_images_that_both_get_right_do_not_matter():
    assert mcnemar_test(*counts(5, 3, 12, 7))["p_value"] == mcnemar_test(*counts(5000, 3, 12, 0))["p_value"]


def test_the_same_predictions_are_no_difference():
    assert mcnemar_test(*counts(5, 0, 0, 2))["p_value"] == 1


def test_holms_correction_multiplies_the_smallest_most_and_keeps_the_order():
    assert holm_correction([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_correction([0.9, 0.8]) == [1.0, 1.0]
    assert holm_correction([0.02]) == [0.02]


def stub(predictions: list[int], names: list[str] = SPECIES) -> SimpleNamespace:
    """A report with what a comparison reads; the truth is 0, 1, 2, 3, 0, 1, …"""
    labels = [i % 4 for i in range(len(predictions))]
    return SimpleNamespace(
        class_names=names, trained_on=None, accuracy=0.5, macro_f1=0.5, loss=1.0, expected_calibration_error=0.1,
        bootstrap=Bootstrap([0.4, 0.6], [0.4, 0.6], 2000, 42), per_class={n: {"f1": 0.5} for n in names},
        provenance=Provenance("m", "a", 1, "images", "2026-01-01", 1.0, 1.0, "CPU", 1, "no", {}),
        predictions=[
            Prediction(f"{i}.png", SPECIES[label], SPECIES[found], 0.6, 0.6 if found == label else 0.1 + i / 100)
            for i, (found, label) in enumerate(zip(predictions, labels, strict=True))
        ],
    )  # fmt: skip


def test_images_that_all_get_wrong_are_different_but_not_shown():
    found = compare_models(["a", "b"], [stub([0, 1, 0, 0]), stub([0, 2, 1, 3])], "images")
    assert found.agreement == 0.25
    assert found.num_differences == 3
    assert [row["file"] for row in found.differences] == ["1.png", "3.png"], "2.png is wrong twice"


def test_three_models_are_three_pairs():
    found = compare_models(["a", "b", "c"], [stub([0, 1, 2, 3]), stub([0, 1, 0, 0]), stub([1, 1, 1, 1])], "images")
    assert [(p["first"], p["second"]) for p in found.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [p["only_first"] for p in found.pairs] == [2, 3, 1]


def test_models_of_other_classes_are_refused():
    with pytest.raises(InputError, match="found 3 others in b"):
        compare_models(["a", "b"], [stub([0]), stub([0], SPECIES[:3])], "images")


@pytest.fixture(scope="module")
def models(tmp_path_factory, sample_dir) -> list[Path]:
    """A RepLKNet, and a network of timm whose classes have another order."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "replknet", sample_dir)
    names = SPECIES[::-1]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    model, image_processor = build_timm_classifier("mobilenetv3_small_050", labels, image_size=32)
    assert isinstance(model, TimmWrapperForImageClassification)
    model.save_pretrained(folder / "timm")
    image_processor.crop_size = {"height": 32, "width": 32}
    image_processor.save_pretrained(folder / "timm")
    return [folder / "replknet", folder / "timm"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return copy_sample(tmp_path_factory.mktemp("images"), SPECIES, slice(5))


@pytest.fixture(scope="module")
def output(models, images, tmp_path_factory) -> Path:
    """Of a model that was trained on one of the 20 images, and one that does not say."""
    file = next(images.glob("Maize/*"))
    (models[0] / "split.csv").write_text(f"file,label,split\nMaize/{file.name},Maize,train\n")
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("comparison") / "new"
    words = ["--models", *map(str, models), "--data_dir", str(images), "--output_dir", str(folder)]
    assert run(compare.main, words) == 0
    return folder


def test_the_command_writes_page_text_figures_and_predictions(output):
    names = {"comparison.html", "comparison.md", "comparison.json", "predictions.csv"}
    assert {file.name for file in output.iterdir()} == names


def test_scikit_learn_reproduces_every_figure_from_the_predictions(output):
    figures = json.loads((output / "comparison.json").read_text(encoding="utf-8"))
    with open(output / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [row["label"] for row in rows]
    predictions = [[row[f"prediction: {name}"] for row in rows] for name in ("replknet", "timm")]
    for model, own in zip(figures["models"], predictions, strict=True):
        assert model["accuracy"] == accuracy_score(labels, own)
        assert model["macro_f1"] == pytest.approx(f1_score(labels, own, average="macro"))
        f1 = f1_score(labels, own, average=None, labels=SPECIES, zero_division=0)
        assert [model["f1"][name] for name in SPECIES] == pytest.approx(f1)
    right = [np.array(own) == np.array(labels) for own in predictions]
    (pair,) = figures["pairs"]
    assert pair["only_first"] == np.sum(right[0] & ~right[1])
    assert pair["difference"] == pytest.approx(right[1].mean() - right[0].mean())
    assert figures["num_differences"] == np.sum(np.array(predictions[0]) != np.array(predictions[1]))


def test_each_model_says_how_many_of_the_images_it_was_trained_on(output):
    figures = json.loads((output / "comparison.json").read_text(encoding="utf-8"))
    assert [model["trained_on"] for model in figures["models"]] == [1, None]
    for page in ("comparison.html", "comparison.md"):
        text = (output / page).read_text(encoding="utf-8")
        assert "replknet was trained on 1 of these 20 images, which flatters it." in text
        assert "timm was trained on" not in text


def test_the_markdown_names_both_and_says_whether_it_is_chance(output):
    text = (output / "comparison.md").read_text(encoding="utf-8")
    assert text.startswith("# replknet against timm")
    assert "points more often than" in text or "right equally often" in text


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--models", "{0}"], "expected two or more --models, found 1"),
        (["--models", "{0}", "{0}"], "found one twice"),
        (["--models", "{0}", "no/such/model"], "no/such/model"),
        (["--models", "{0}", "{1}", "--data_dir", "no/such/images"], "no/such/images"),
    ],
)
def test_compare_reports_a_mistake_in_one_sentence(models, images, tmp_path, capsys, words, named):
    words = [word.format(*models) for word in words]
    flags = ["--data_dir", str(images), "--output_dir", str(tmp_path / "new"), *words]
    assert run(compare.main, flags) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_models_of_the_same_name_keep_their_folders():
    assert compare.short_names(["runs/a/nano", "runs/b/nano"]) == ["runs/a/nano", "runs/b/nano"]
    assert compare.short_names(["runs/a/nano/", "runs/b/resnet18"]) == ["nano", "resnet18"]
