import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from predict_runs import flags, read_csv
from processes import command_on_two_processes
from sample import copy_sample
from small_models import SPECIES

from seedling_hf.commands import evaluate, predict, run
from seedling_hf.data.dataset import load_splits
from seedling_hf.data.inspection import fingerprint_splits
from seedling_hf.data.recognition import write_hashes
from seedling_hf.data.splits import list_lines, write_split_csv
from seedling_hf.inference.classifier import load_classifier
from seedling_hf.inference.prediction import EightSymmetries
from seedling_hf.train_arguments import SplitArguments

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("unsettled_precision")


@pytest.fixture
def images(tmp_path) -> Path:
    """Three images of each of four species."""
    return copy_sample(tmp_path / "images", SPECIES, slice(2, 5))


def break_image(folder: Path) -> Path:
    file = sorted(folder.glob("*/*"))[4]
    file.write_bytes(file.read_bytes()[:500])
    return file


def test_a_report_shows_where_the_model_looked_and_what_it_relies_on(model_dir, images, tmp_path):
    words = flags(model_name_or_path=model_dir, test_dir=images, output_dir=tmp_path / "report", saliency=True,
                  probes=True)  # fmt: skip
    assert run(evaluate.main, words) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    probes = {row["name"]: row for row in report["probing"]["probes"]}
    assert report["probing"]["probes"][0]["accuracy"] == report["accuracy"]
    assert {"silhouette", "background_only", "rotation_90"} <= probes.keys()
    page = (tmp_path / "report" / "report.html").read_text()
    overlays = page.count('alt="what speaks for'), page.count("No region decides.")
    assert sum(overlays) == len(report["worst_mistakes"]) > 0
    assert "What it relies on" in page
    assert "| silhouette" in (tmp_path / "report" / "report.md").read_text()


def test_saliency_without_captum_is_refused_before_any_work(model_dir, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    words = flags(model_name_or_path=model_dir, test_dir=images, output_dir=tmp_path / "report", saliency=True)
    assert run(evaluate.main, words) == 2
    assert "expected captum for saliency maps, found none; install it with" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_evaluate_writes_a_report_and_shows_it(model_dir, images, tmp_path, capsys):
    words = flags(model_name_or_path=model_dir, test_dir=images, output_dir=tmp_path / "report")
    assert run(evaluate.main, words) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["num_examples"] == 12
    assert {"accuracy", "macro_f1", "per_class"} <= report.keys()
    shown = capsys.readouterr().out
    assert f"{report['accuracy']:.1%}" in shown
    assert str(tmp_path / "report" / "report.html") in shown


@pytest.fixture
def trained_model(model_dir, images, tmp_path) -> Path:
    """The model with the split.csv of a run on `images`: eight trained on, four validated on."""
    folder = shutil.copytree(model_dir, tmp_path / "trained")
    splits = load_splits(SplitArguments(train_dir=str(images)))
    hashes = write_hashes(list_lines(splits, "train", "validation"), fingerprint_splits(splits))
    write_split_csv(splits, folder / "split.csv", hashes)
    return folder


def test_evaluate_counts_and_names_the_images_that_the_model_was_trained_on(trained_model, images, tmp_path, capsys):
    words = flags(model_name_or_path=trained_model, test_dir=images, output_dir=tmp_path / "report")
    assert run(evaluate.main, words) == 0
    figures = json.loads((tmp_path / "report" / "report.json").read_text())
    known = figures["trained_on"]
    assert (known["count"], known["same_name"], known["by_content"], known["excluded"]) == (8, 8, True, False)
    rows = {row["file"]: row for row in read_csv((tmp_path / "report" / "predictions.csv").read_text())}
    others = [row for file, row in rows.items() if file not in known["files"]]
    assert known["others"]["count"] == len(others) == 4
    assert known["others"]["correct"] == sum(row["label"] == row["prediction"] for row in others)
    start = "8 of these 12 images were trained on (recognised by name and content)"
    assert start in capsys.readouterr().out
    for page in ("report.html", "report.md"):
        text = (tmp_path / "report" / page).read_text().replace("\\", "")
        assert start in text
        assert all(file in text for file in known["files"])


def test_training_images_are_left_out_on_request(trained_model, images, tmp_path, capsys):
    words = flags(
        model_name_or_path=trained_model, test_dir=images, output_dir=tmp_path / "report", exclude_training=True
    )
    assert run(evaluate.main, words) == 0
    figures = json.loads((tmp_path / "report" / "report.json").read_text())
    evaluated = {row["file"] for row in read_csv((tmp_path / "report" / "predictions.csv").read_text())}
    everything = {str(file.relative_to(images)) for file in images.glob("*/*")}
    assert figures["num_examples"] == len(evaluated) == 4
    assert evaluated == everything - set(figures["trained_on"]["files"])
    assert "8 images that the model was trained on were left out" in capsys.readouterr().out


def test_a_model_without_a_split_says_nothing_and_leaves_nothing_out(model_dir, images, tmp_path, capsys):
    words = flags(model_name_or_path=model_dir, test_dir=images, output_dir=tmp_path / "report")
    assert run(evaluate.main, words) == 0
    assert "trained_on" not in json.loads((tmp_path / "report" / "report.json").read_text())
    assert "trained on" not in capsys.readouterr().out
    words = flags(model_name_or_path=model_dir, test_dir=images, output_dir=tmp_path / "new", exclude_training=True)
    assert run(evaluate.main, words) == 2
    assert "found none that says what it was trained on; leave --exclude_training out" in capsys.readouterr().err
    assert not (tmp_path / "new" / "report.json").exists()


def test_a_split_that_is_none_is_a_warning_and_not_an_error(trained_model, images, tmp_path, caplog):
    (trained_model / "split.csv").write_text("a,b\n1,2\n")
    words = flags(model_name_or_path=trained_model, test_dir=images, output_dir=tmp_path / "report")
    assert run(evaluate.main, words) == 0
    assert "which images the model was trained on is not known: expected columns file,label,split" in caplog.text
    assert "trained_on" not in json.loads((tmp_path / "report" / "report.json").read_text())


def test_a_folder_of_training_images_only_leaves_nothing_to_evaluate(trained_model, images, tmp_path, capsys):
    for file in load_splits(SplitArguments(train_dir=str(images)))["validation"]["file"]:
        (images / file).unlink()
    words = flags(
        model_name_or_path=trained_model, test_dir=images, output_dir=tmp_path / "report", exclude_training=True
    )
    assert run(evaluate.main, words) == 2
    assert "found none among 8; give other images, or leave --exclude_training out" in capsys.readouterr().err


def test_the_flags_of_a_report_reach_it(model_dir, images, tmp_path):
    copy_sample(tmp_path / "others", SPECIES, slice(9, 10))
    words = flags(
        model_name_or_path=model_dir, test_dir=images, output_dir=tmp_path / "report", seed=7, not_sure_accuracy=0.5,
        calibration_dir=tmp_path / "others", test_time_augmentation=True,
    )  # fmt: skip
    assert run(evaluate.main, words) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["bootstrap"]["seed"] == 7
    assert report["not_sure"]["target_accuracy"] == 0.5
    assert report["calibration"]["fitted_on"] == str(tmp_path / "others")
    assert report["calibration"]["num_fitted"] == 4
    assert report["test_time_augmentation"]["cost"] > 0
    assert "data:image/jpeg" in (tmp_path / "report" / "report.html").read_text()


def test_two_processes_report_as_one_and_each_image_once(model_dir, images, tmp_path):
    one, two = (
        flags(
            model_name_or_path=model_dir,
            test_dir=images,
            output_dir=tmp_path / name,
            per_device_eval_batch_size=size,
        )
        for name, size in (("one", 4), ("two", 5))
    )
    assert run(evaluate.main, one) == 0
    answer = command_on_two_processes(evaluate.main, two, tmp_path)
    assert answer.returncode == 0, answer.stderr
    first, second = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    assert (first["provenance"].pop("num_processes"), second["provenance"].pop("num_processes")) == (1, 2)
    assert first["confusion_matrix"] == second["confusion_matrix"]
    # 1e-5: batches of another size sum float32 in another order.
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
    rows = [read_csv((tmp_path / name / "predictions.csv").read_text()) for name in ("one", "two")]
    assert [row["file"] for row in rows[1]] == [row["file"] for row in rows[0]]
    assert len({row["file"] for row in rows[1]}) == 12
    assert [row["prediction"] for row in rows[1]] == [row["prediction"] for row in rows[0]]
    assert answer.stdout.count("accuracy") == 1, "only the main process shows the report"


def test_a_folder_with_a_part_of_the_species_can_be_evaluated(model_dir, images, tmp_path):
    for name in SPECIES[1:]:
        for file in (images / name).iterdir():
            file.unlink()
        (images / name).rmdir()
    words = flags(model_name_or_path=model_dir, test_dir=images, output_dir=tmp_path / "report")
    assert run(evaluate.main, words) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [row["support"] for row in report["per_class"].values()] == [3, 0, 0, 0]


def test_a_species_that_the_model_does_not_know_is_refused(model_dir, images, tmp_path, capsys):
    (images / "Maize").rename(images / "Palm")
    words = flags(model_name_or_path=model_dir, test_dir=images, output_dir=tmp_path / "report")
    assert run(evaluate.main, words) == 2
    assert "Palm" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("skip", [False, True])
def test_evaluate_refuses_a_broken_image_or_leaves_it_out_on_request(model_dir, images, tmp_path, capsys, skip):
    broken = break_image(images)
    words = flags(model_name_or_path=model_dir, test_dir=images, output_dir=tmp_path / "report")
    assert run(evaluate.main, words + ["--skip_bad_images"] * skip) == (0 if skip else 2)
    if skip:
        assert json.loads((tmp_path / "report" / "report.json").read_text())["num_examples"] == 11
    else:
        assert broken.name in capsys.readouterr().err
        assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"model_name_or_path": "no/such/model"}, "no/such/model"),
        ({"test_dir": "no/such/images"}, "no/such/images"),
        ({"output_dir": f"{__file__}/report"}, "a file; choose another"),
        ({"per_device_eval_batch_size": 0}, "--per_device_eval_batch_size at least 1, found 0"),
        ({"not_sure_accuracy": 1.5}, "--not_sure_accuracy above 0 and at most 1, found 1.5"),
        ({"calibration_dir": "no/such/images"}, "no/such/images"),
        ({"no_such_flag": 1}, "--no_such_flag"),
    ],
)
def test_evaluate_says_what_is_wrong_in_one_sentence(model_dir, images, tmp_path, capsys, wrong, named):
    values = {"model_name_or_path": model_dir, "test_dir": images, "output_dir": tmp_path / "report"} | wrong
    assert run(evaluate.main, flags(**values)) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_predict_and_evaluate_give_the_same_predictions(model_dir, images, tmp_path):
    run(evaluate.main, flags(model_name_or_path=model_dir, test_dir=images, output_dir=tmp_path / "report"))
    file = tmp_path / "new" / "answers.csv"
    assert run(predict.main, flags(model_name_or_path=model_dir, images=[images], output_file=file)) == 0
    expected = read_csv((tmp_path / "report" / "predictions.csv").read_text())
    found = read_csv(file.read_text())
    assert [row["file"] for row in found] == [str(images / row["file"]) for row in expected]
    assert [row["class"] for row in found] == [row["prediction"] for row in expected]
    assert len({row["class"] for row in found}) > 1
    # Six places are written.
    assert [float(row["probability"]) for row in found] == pytest.approx(
        [float(row["probability"]) for row in expected], abs=1e-6
    )
    assert [path.name for path in file.parent.iterdir()] == ["answers.csv"]


def test_without_an_output_file_the_csv_alone_goes_to_stdout(model_dir, images, capsys):
    image = next(images.glob("Maize/*"))
    assert run(predict.main, flags(model_name_or_path=model_dir, images=[image])) == 0
    (row,) = read_csv(capsys.readouterr().out)
    assert row.keys() == {"file", "class", "probability"}
    assert row["file"] == str(image)
    assert row["class"] in SPECIES


def test_on_a_terminal_a_few_images_are_a_table(model_dir, images, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run(predict.main, flags(model_name_or_path=model_dir, images=[images / "Maize"], top_k=2)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all("%" in line and "," not in line for line in lines)


def test_kaggle_gets_bare_file_names_and_species_only(model_dir, images, tmp_path):
    words = flags(model_name_or_path=model_dir, images=[images], output_file=tmp_path / "s.csv", format="kaggle")
    assert run(predict.main, words) == 0
    rows = read_csv((tmp_path / "s.csv").read_text())
    assert rows[0].keys() == {"file", "species"}
    assert [row["file"] for row in rows] == [file.name for file in sorted(images.glob("*/*"))]


def test_kaggle_refuses_two_images_of_one_name(model_dir, images, tmp_path, capsys):
    file = next(images.glob("Maize/*"))
    (images / "Charlock" / file.name).write_bytes(file.read_bytes())
    words = flags(model_name_or_path=model_dir, images=[images], output_file=tmp_path / "s.csv", format="kaggle")
    assert run(predict.main, words) == 2
    assert file.name in capsys.readouterr().err
    assert not (tmp_path / "s.csv").exists()


def test_top_k_names_the_most_probable_class_first_and_all_add_up_to_one(model_dir, images, capsys):
    image = next(images.glob("Maize/*"))
    assert run(predict.main, flags(model_name_or_path=model_dir, images=[image], top_k=4)) == 0
    probabilities = [float(row["probability"]) for row in read_csv(capsys.readouterr().out)]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=4e-6)  # six places are written


def test_predict_names_a_broken_image_and_writes_nothing(model_dir, images, tmp_path, capsys):
    broken = break_image(images)
    words = flags(model_name_or_path=model_dir, images=[images], output_file=tmp_path / "answers.csv")
    assert run(predict.main, words) == 2
    assert str(broken) in capsys.readouterr().err
    assert not (tmp_path / "answers.csv").exists()


def test_two_processes_skip_a_broken_image_and_list_it_once(model_dir, images, tmp_path):
    broken = break_image(images)
    words = flags(model_name_or_path=model_dir, images=[images], output_file=tmp_path / "two.csv", skip_bad_images=True)
    answer = command_on_two_processes(predict.main, words, tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr.count(str(broken)) == 1
    found = [row["file"] for row in read_csv((tmp_path / "two.csv").read_text())]
    assert found == [str(file) for file in sorted(images.glob("*/*")) if file != broken]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"images": ["no/such/image.png"]}, "no/such/image.png"),
        ({"top_k": 5}, "at most the model's 4 classes, found 5"),
        ({"top_k": 0}, "--top_k of 1 or more, found 0"),
        ({"top_k": 2, "format": "kaggle"}, "all that Kaggle takes"),
        ({"output_file": ROOT}, "found the folder"),
        ({"model_name_or_path": ROOT}, "folder without one"),
        ({"format": "xml"}, "xml"),
    ],
)
def test_predict_says_what_is_wrong_in_one_sentence(model_dir, images, tmp_path, capsys, wrong, named):
    values = {"model_name_or_path": model_dir, "images": [images], "output_file": tmp_path / "answers.csv"} | wrong
    assert run(predict.main, flags(**values)) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert not (tmp_path / "answers.csv").exists()


def test_a_folder_without_images_is_refused(model_dir, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(predict.main, flags(model_name_or_path=model_dir, images=[tmp_path / "empty"])) == 2
    assert "found none" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_help_does_not_wait_for_torch(command):
    code = (
        f"import sys; from seedling_hf.commands.{command} import main\n"
        "try: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--model_name_or_path" in answer.stdout
    assert answer.stdout.splitlines()[-1] == "False"


def test_predictions_may_be_those_of_the_eight_symmetries(model_dir, images, tmp_path):
    output = tmp_path / "answers.csv"
    words = flags(model_name_or_path=model_dir, images=images, output_file=output, test_time_augmentation=True)
    assert run(predict.main, words) == 0
    model, image_processor = load_classifier(str(model_dir))
    for row in read_csv(output.read_text()):
        with Image.open(row["file"]) as image:
            pixel_values = image_processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            (expected,) = EightSymmetries(model)(pixel_values).logits.softmax(-1)
        assert float(row["probability"]) == pytest.approx(expected.max().item(), abs=1e-3)  # resized in another way
        assert row["class"] == model.config.id2label[expected.argmax().item()]
