import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, f1_score, log_loss

from seedling_hf.dataset import load_folder
from seedling_hf.evaluation import (
    evaluate_model,
    format_confusion_matrix,
    format_report,
    markdown_report,
    top_confusions,
    write_report,
)
from seedling_hf.prediction import build_accelerator, build_dataloader, build_model
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification, RepLKNetImageProcessor

SPECIES = ["Black-grass", "Charlock", "Loose Silky-bent", "Maize"]


def write_model(folder: Path, sample_dir: Path, class_names: Sequence[str] = SPECIES, pictures: int = 4) -> None:
    """A small model with random features whose head is fitted to a few pictures, so that its answers differ."""
    torch.manual_seed(0)
    config = RepLKNetConfig.from_variant("tiny", id2label=dict(enumerate(class_names)), drop_path_rate=0.0)
    model = RepLKNetForImageClassification(config).train()
    processor = RepLKNetImageProcessor.from_variant("tiny", image_size=64)
    files = [file for name in class_names for file in sorted((sample_dir / name).iterdir())[:pictures]]
    pixel_values = processor([Image.open(file) for file in files], return_tensors="pt")["pixel_values"]
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # one pass gives statistics that fit; without them all pictures get one answer
    with torch.no_grad():
        model.replknet(pixel_values)
        features = model.eval().replknet(pixel_values).pooler_output.flatten(1)
        mean, targets = features.mean(0), torch.eye(len(class_names)).repeat_interleave(pictures, 0)
        weight = torch.linalg.lstsq(features - mean, 6 * targets, driver="gelsd").solution.T
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(-weight @ mean)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, sample_dir) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, sample_dir)
    return folder


@pytest.fixture(scope="module")
def test_dir(tmp_path_factory, sample_dir) -> Path:
    """Seven pictures of one species, six of the others: 25, which no batch size of these tests divides."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in SPECIES:
        (folder / name).mkdir()
        for file in sorted((sample_dir / name).iterdir())[: 7 if name == "Maize" else 6]:
            (folder / name / file.name).symlink_to(file)
    return folder


@pytest.fixture(scope="module")
def report(model_dir, test_dir) -> dict:
    model, image_processor = build_model(str(model_dir))
    dataset, accelerator = load_folder(test_dir, class_names=SPECIES), build_accelerator("no")
    return evaluate_model(model, image_processor, dataset, accelerator, batch_size=4, data_name="pictures")


@pytest.fixture
def report_of_mistakes() -> dict:
    """Figures of 60 pictures of three species, of which one has none; 15 mistakes of two kinds."""
    matrix = [[30, 0, 10], [0, 0, 0], [5, 0, 15]]
    per_class = {
        "Black-grass": {"precision": 30 / 35, "recall": 0.75, "f1": 0.8, "support": 40},
        "a|b": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
        "Loose Silky-bent": {"precision": 0.6, "recall": 0.75, "f1": 2 / 3, "support": 20},
    }
    return {
        "accuracy": 0.75, "accuracy_interval": [0.628, 0.842], "macro_f1": 0.733, "num_examples": 60, "loss": 0.5,
        "expected_calibration_error": 0.1, "per_class": per_class, "confusion_matrix": matrix,
        "class_names": list(per_class), "top_confusions": top_confusions(matrix, list(per_class)),
        "provenance": {
            "model": "nano", "architecture": "RepLKNetForImageClassification", "num_parameters": 3_000_000,
            "data": "fields", "date": "2026-01-01T00:00:00+00:00", "seconds": 2.0, "images_per_second": 30.0,
            "device": "CPU", "num_processes": 2, "mixed_precision": "no", "versions": {"torch": "2.14.1"},
        },
    }  # fmt: skip


def test_the_figures_are_those_of_the_model_and_its_image_processor_alone(report, model_dir, test_dir):
    model, image_processor = build_model(str(model_dir), merge=False)
    files = sorted(test_dir.glob("*/*"))
    labels = [SPECIES.index(file.parent.name) for file in files]
    with torch.inference_mode():
        logits = torch.cat([model(**image_processor(Image.open(file), return_tensors="pt")).logits for file in files])
    probabilities = logits.double().softmax(-1).numpy()
    answers = probabilities.argmax(1)
    assert 0.3 < report["accuracy"] < 1, "the test needs right and wrong answers"
    assert report["accuracy"] == np.mean(answers == labels)
    assert report["macro_f1"] == pytest.approx(f1_score(labels, answers, average="macro"))
    assert report["confusion_matrix"] == confusion_matrix(labels, answers).tolist()
    # 1e-4: merged kernels and batches sum float32 in another order.
    assert report["loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-4)


def test_each_picture_has_one_row_with_its_own_label(report, test_dir):
    rows = report["predictions"]
    assert [row["file"] for row in rows] == [f.relative_to(test_dir).as_posix() for f in sorted(test_dir.glob("*/*"))]
    assert all(row["label"] == Path(row["file"]).parent.name for row in rows)
    assert report["num_examples"] == 25


def test_the_rows_give_accuracy_and_loss_back(report):
    rows = report["predictions"]
    assert report["accuracy"] == np.mean([row["label"] == row["prediction"] for row in rows])
    assert report["loss"] == pytest.approx(-np.mean(np.log([row["label_probability"] for row in rows])), rel=1e-12)


def test_rows_out_of_order_keep_their_labels(report, model_dir, test_dir):
    model, image_processor = build_model(str(model_dir))
    dataset = load_folder(test_dir, class_names=SPECIES).shuffle(seed=3)
    shuffled = evaluate_model(model, image_processor, dataset, build_accelerator("no"), batch_size=4)
    assert shuffled["confusion_matrix"] == report["confusion_matrix"]


def test_workers_that_load_pictures_change_nothing(report, model_dir, test_dir):
    model, image_processor = build_model(str(model_dir))
    dataset = load_folder(test_dir, class_names=SPECIES)
    again = evaluate_model(model, image_processor, dataset, build_accelerator("no"), batch_size=4, num_workers=1)
    assert again["predictions"] == report["predictions"]


def test_pictures_reach_the_model_as_the_image_processor_makes_them(model_dir, test_dir):
    _, image_processor = build_model(str(model_dir))
    dataset = load_folder(test_dir, class_names=SPECIES)
    loader = build_dataloader(dataset, image_processor, build_accelerator("no"), batch_size=3, num_workers=0)
    expected = image_processor([row["image"] for row in dataset.select(range(3))], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(next(iter(loader))["pixel_values"].cpu(), expected, rtol=0, atol=0)


def test_the_report_says_how_it_was_made(report, model_dir):
    provenance = report["provenance"]
    assert provenance["model"] == str(model_dir)
    assert provenance["data"] == "pictures"
    assert provenance["num_processes"] == 1
    assert provenance["versions"]["torch"] == torch.__version__.split("+")[0]
    assert provenance["num_parameters"] > 10_000


def test_the_most_frequent_mistake_comes_first_and_right_answers_are_none():
    found = top_confusions([[90, 3, 7], [3, 7, 0], [0, 0, 5]], ["a", "b", "c"])
    assert [(c["label"], c["prediction"], c["count"]) for c in found] == [("a", "c", 7), ("b", "a", 3), ("a", "b", 3)]
    assert found[1]["share"] == 0.3


def test_the_files_of_a_report_are_whole_and_no_other_is_left(report, tmp_path):
    write_report(report, tmp_path / "new" / "folder")
    files = {file.name: file for file in (tmp_path / "new" / "folder").iterdir()}
    assert set(files) == {"report.json", "report.md", "confusion_matrix.png", "predictions.csv"}
    written = json.loads(files["report.json"].read_text(encoding="utf-8"))
    assert written == {key: value for key, value in report.items() if key != "predictions"}
    with open(files["predictions.csv"], encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{**row, **{k: float(row[k]) for k in ("probability", "label_probability")}} for row in rows] == (
        report["predictions"]
    )
    assert Image.open(files["confusion_matrix.png"]).width > 300


def test_the_markdown_has_every_figure_of_a_species_in_its_row(report_of_mistakes):
    lines = markdown_report(report_of_mistakes).splitlines()
    assert "| Black-grass | 85.7% | 75.0% | 0.800 | 40 |" in lines
    assert "| accuracy | 75.0% | 45 of 60 pictures; 95% interval 62.8% to 84.2% |" in lines
    assert "| Black-grass | Loose Silky-bent | 10 of 40 (25%) |" in lines
    assert any("3,000,000 parameters" in line for line in lines)


def test_a_name_cannot_break_a_table_and_a_species_without_pictures_has_no_recall(report_of_mistakes):
    assert "| a\\|b | 0.0% | – | 0.000 | 0 |" in markdown_report(report_of_mistakes).splitlines()


def test_a_report_without_mistakes_says_so(report_of_mistakes):
    assert "No picture was taken for another species." in markdown_report(report_of_mistakes | {"top_confusions": []})


def test_the_columns_on_a_terminal_stand_under_each_other(report_of_mistakes):
    lines = format_report(report_of_mistakes).splitlines()
    head = next(line for line in lines if "precision" in line)
    rows = [line for line in lines if line.lstrip().startswith(("Black-grass  ", "Loose Silky-bent  ")) and "%" in line]
    for column, figures in [("precision", ("85.7%", "60.0%")), ("pictures", ("40", "20"))]:
        end = head.index(column) + len(column)
        for row, figure in zip(rows[:2], figures, strict=True):
            assert row[:end].endswith(figure)


def test_the_matrix_in_text_holds_every_count(report_of_mistakes):
    matrix, names = report_of_mistakes["confusion_matrix"], report_of_mistakes["class_names"]
    head, *rows = format_confusion_matrix(matrix, names).splitlines()
    assert head.split() == ["1", "2", "3"]
    for row, name, counts in zip(rows, names, matrix, strict=True):
        assert name in row
        assert [int(word) for word in row.replace("·", "0").split()[-3:]] == counts
    assert len({len(row) for row in (head, *rows)}) == 1
