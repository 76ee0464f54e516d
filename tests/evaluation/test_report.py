import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sample import copy_sample
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, f1_score, log_loss
from small_models import SPECIES

from seedling_hf.data.dataset import load_folder
from seedling_hf.evaluation.calibration import PRIOR_DEVIATION, Bootstrap, Kept, NotSure
from seedling_hf.evaluation.evaluator import Evaluator, open_evaluator
from seedling_hf.evaluation.metrics import HARD_PAIR, confused_pair
from seedling_hf.evaluation.rendering import format_confusion_matrix, markdown_report, render_report
from seedling_hf.evaluation.report import CoverageRisk, Prediction, Provenance, Report, evaluate_model, top_confusions
from seedling_hf.evaluation.report_files import format_report, write_report
from seedling_hf.evaluation.training_data import OtherImages, TrainedOn
from seedling_hf.inference.classifier import load_classifier
from seedling_hf.inference.prediction import build_accelerator, build_dataloader


@pytest.fixture(scope="module")
def test_dir(tmp_path_factory) -> Path:
    """Seven images of one class, six of the others: 25, which no batch size of these tests divides."""
    folder = copy_sample(tmp_path_factory.mktemp("images"), SPECIES, slice(6))
    return copy_sample(folder, ["Maize"], slice(6, 7))


@pytest.fixture(scope="module")
def report(model_dir, test_dir) -> Report:
    model, image_processor = load_classifier(str(model_dir))
    dataset, accelerator = load_folder(test_dir, class_names=SPECIES), build_accelerator("no")
    evaluator = Evaluator(model, image_processor, accelerator, batch_size=4)
    return evaluate_model(evaluator, dataset, data_name="images", target_accuracy=0.8, test_time_augmentation=True)


@pytest.fixture
def report_of_mistakes() -> Report:
    """Figures of 60 images of three classes, of which one has none; 15 mistakes of two kinds."""
    matrix = [[30, 0, 10], [0, 0, 0], [5, 0, 15]]
    per_class = {
        "Black-grass": {"precision": 30 / 35, "recall": 0.75, "f1": 0.8, "support": 40},
        "a|b": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
        "Loose Silky-bent": {"precision": 0.6, "recall": 0.75, "f1": 2 / 3, "support": 20},
    }
    return Report(
        accuracy=0.75, accuracy_interval=[0.628, 0.842], macro_f1=0.733, num_examples=60, loss=0.5,
        expected_calibration_error=0.1, per_class=per_class, confusion_matrix=matrix,
        class_names=list(per_class), top_confusions=top_confusions(matrix, list(per_class)),
        bootstrap=Bootstrap(accuracy=[0.65, 0.85], macro_f1=[0.612, 0.834], resamples=2000, seed=42),
        hard_pair=confused_pair(matrix, list(per_class), HARD_PAIR), crop_weed_costs=None, calibration=None,
        coverage_risk=CoverageRisk(area=0.1, curve=[{"threshold": 0.4, "coverage": 1.0, "risk": 0.25}]),
        not_sure=NotSure(0.95, threshold=0.8, coverage=0.5, accuracy=0.96, cross_fitted=Kept(0.45, 0.93)),
        test_time_augmentation=None,
        worst_mistakes=[Prediction("Black-grass/<b>.png", "Black-grass", "a|b", 0.9996, 0.0002)],
        provenance=Provenance(
            model="nano", architecture="RepLKNetForImageClassification", num_parameters=3_000_000, data="fields",
            date="2026-01-01T00:00:00+00:00", seconds=2.0, images_per_second=30.0, device="CPU", num_processes=2,
            mixed_precision="no", versions={"torch": "2.14.1"},
        ),
        predictions=[], probabilities=np.empty((0, 3)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("count", "others", "excluded", "said"),
    [
        (1, OtherImages(59, 1, 1 / 59, [0.003, 0.09]), False, "1 of these 60 images was trained on (recognised by name "
         "and content), which flatters the figures. Of the other 59, 1 is right: 1.7%, 95% interval 0.3% to 9.0%. "
         "--exclude_training reports on those alone."),
        (60, None, False, "The model was trained on all of these 60 images (recognised by name and content)"),
        (1, None, True, "1 image that the model was trained on was left out"),
        (0, None, False, "None of these 60 images is a training image of the model (compared by name and content)."),
    ],
)  # fmt: skip
def test_a_report_says_how_many_of_its_images_were_trained_on(report_of_mistakes, count, others, excluded, said):
    files = [f"Black-grass/{number}.png" for number in range(count)]
    known = TrainedOn(count, count, by_content=True, excluded=excluded, files=files, others=others)
    report = replace(report_of_mistakes, trained_on=known)
    assert said in " ".join(format_report(report).split()) or not count
    assert said in markdown_report(report)
    page = render_report(report, "nowhere")
    assert said in page
    assert ('<span class="name">Trained on</span>' in page) == (count > 0 and not excluded)
    assert page.count("Black-grass/0.png") == (count > 0)


@pytest.mark.parametrize(("coverage", "shown"), [(1.0, False), (0.5, True)])
def test_a_threshold_that_keeps_everything_is_no_card(report_of_mistakes, coverage, shown):
    not_sure = NotSure(0.75, threshold=0.2, coverage=coverage, accuracy=0.75, cross_fitted=Kept(0.9, 0.8))
    report = replace(report_of_mistakes, not_sure=not_sure)
    assert ("“Not sure” below" in render_report(report, "nowhere")) == shown
    needless = "It need not: of all predictions together 75.0% are right, and 75% were requested."
    assert (needless in markdown_report(report)) != shown


def test_the_figures_are_those_of_the_model_and_its_image_processor_alone(report, model_dir, test_dir):
    model, image_processor = load_classifier(str(model_dir), merge=False)
    files = sorted(test_dir.glob("*/*"))
    labels = [SPECIES.index(file.parent.name) for file in files]
    with torch.inference_mode():
        logits = torch.cat([model(**image_processor(Image.open(file), return_tensors="pt")).logits for file in files])
    probabilities = logits.double().softmax(-1).numpy()
    predicted = probabilities.argmax(1)
    assert 0.3 < report.accuracy < 1, "the test needs right and wrong predictions"
    assert report.accuracy == np.mean(predicted == labels)
    assert report.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert report.confusion_matrix == confusion_matrix(labels, predicted).tolist()
    # 1e-4: merged kernels and batches sum float32 in another order.
    assert report.loss == pytest.approx(log_loss(labels, probabilities), rel=1e-4)


def test_each_image_has_one_row_with_its_own_label(report, test_dir):
    rows = report.predictions
    assert [row.file for row in rows] == [f.relative_to(test_dir).as_posix() for f in sorted(test_dir.glob("*/*"))]
    assert all(row.label == Path(row.file).parent.name for row in rows)
    assert report.num_examples == 25


def test_the_rows_reproduce_accuracy_and_loss(report):
    rows = report.predictions
    assert report.accuracy == np.mean([row.label == row.prediction for row in rows])
    assert report.loss == pytest.approx(-np.mean(np.log([row.label_probability for row in rows])), rel=1e-12)


def test_rows_out_of_order_keep_their_labels(report, model_dir, test_dir):
    model, image_processor = load_classifier(str(model_dir))
    dataset = load_folder(test_dir, class_names=SPECIES).shuffle(seed=3)
    shuffled = evaluate_model(Evaluator(model, image_processor, build_accelerator("no"), batch_size=4), dataset)
    assert shuffled.confusion_matrix == report.confusion_matrix


def test_loading_workers_change_nothing(report, model_dir, test_dir):
    model, image_processor = load_classifier(str(model_dir))
    dataset = load_folder(test_dir, class_names=SPECIES)
    again = evaluate_model(Evaluator(model, image_processor, build_accelerator("no"), 4, num_workers=1), dataset)
    assert again.predictions == report.predictions


def test_images_reach_the_model_as_the_image_processor_makes_them(model_dir, test_dir):
    _, image_processor = load_classifier(str(model_dir))
    dataset = load_folder(test_dir, class_names=SPECIES)
    loader = build_dataloader(dataset, image_processor, build_accelerator("no"), batch_size=3, num_workers=0)
    expected = image_processor([row["image"] for row in dataset.select(range(3))], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(next(iter(loader))["pixel_values"].cpu(), expected, rtol=0, atol=0)


def test_the_report_says_how_it_was_made(report, model_dir):
    provenance = report.provenance
    assert provenance.model == str(model_dir)
    assert provenance.data == "images"
    assert provenance.num_processes == 1
    assert provenance.versions["torch"] == torch.__version__.split("+")[0]
    assert provenance.num_parameters > 10_000


def test_the_most_frequent_mistake_comes_first_and_right_predictions_are_not_listed():
    found = top_confusions([[90, 3, 7], [3, 7, 0], [0, 0, 5]], ["a", "b", "c"])
    assert [(c.label, c.prediction, c.count) for c in found] == [("a", "c", 7), ("b", "a", 3), ("a", "b", 3)]
    assert found[1].share == 0.3


def test_the_files_of_a_report_are_complete_and_there_is_no_other(report, tmp_path):
    write_report(report, tmp_path / "new" / "folder")
    files = {file.name: file for file in (tmp_path / "new" / "folder").iterdir()}
    assert set(files) == {
        "report.html", "report.json", "report.md", "confusion_matrix.png", "reliability.png", "coverage_risk.png",
        "predictions.csv", "probabilities.npz",
    }  # fmt: skip
    written = json.loads(files["report.json"].read_text(encoding="utf-8"))
    assert written == report.to_json()
    assert not {"predictions", "probabilities", "probing"} & written.keys()
    with open(files["predictions.csv"], encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = ("probability", "label_probability")
    assert [Prediction(**{**row, **{k: float(row[k]) for k in numbers}}) for row in rows] == report.predictions
    assert Image.open(files["confusion_matrix.png"]).width > 300


def test_the_markdown_has_every_figure_of_a_class_in_its_row(report_of_mistakes):
    lines = markdown_report(report_of_mistakes).splitlines()
    assert "| Black-grass | 85.7% | 75.0% | 0.800 | 40 |" in lines
    assert "| accuracy | 75.0% | 45 of 60 images; 95% interval 62.8% to 84.2%, bootstrap 65.0% to 85.0% |" in lines
    assert "| Black-grass | Loose Silky-bent | 10 of 40 (25%) |" in lines
    assert any("3,000,000 parameters" in line for line in lines)


def test_a_name_cannot_break_a_table_and_a_class_without_images_has_no_recall(report_of_mistakes):
    assert "| a\\|b | 0.0% | – | 0.000 | 0 |" in markdown_report(report_of_mistakes).splitlines()


def test_a_report_without_mistakes_says_so(report_of_mistakes):
    assert "No image was taken for another class." in markdown_report(replace(report_of_mistakes, top_confusions=[]))


def test_the_columns_on_a_terminal_are_aligned(report_of_mistakes):
    lines = format_report(report_of_mistakes).splitlines()
    head = next(line for line in lines if "precision" in line)
    rows = [line for line in lines if line.lstrip().startswith(("Black-grass  ", "Loose Silky-bent  ")) and "%" in line]
    for column, figures in [("precision", ("85.7%", "60.0%")), ("images", ("40", "20"))]:
        end = head.index(column) + len(column)
        for row, figure in zip(rows[:2], figures, strict=True):
            assert row[:end].endswith(figure)


def test_the_matrix_in_text_holds_every_count(report_of_mistakes):
    matrix, names = report_of_mistakes.confusion_matrix, report_of_mistakes.class_names
    head, *rows = format_confusion_matrix(matrix, names).splitlines()
    assert head.split() == ["1", "2", "3"]
    for row, name, counts in zip(rows, names, matrix, strict=True):
        assert name in row
        assert [int(word) for word in row.replace("·", "0").split()[-3:]] == counts
    assert len({len(row) for row in (head, *rows)}) == 1


@pytest.fixture(scope="module")
def written(report, test_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_report(report, folder, load_folder(test_dir, class_names=SPECIES))
    return folder


@pytest.fixture(scope="module")
def raw(written) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels as the file beside the report has them."""
    with np.load(written / "probabilities.npz") as file:
        return file["probabilities"], file["labels"]


@pytest.fixture(scope="module")
def figures(written) -> dict:
    return json.loads((written / "report.json").read_text(encoding="utf-8"))


def test_the_raw_probabilities_are_those_of_the_rows(raw, written, report):
    with np.load(written / "probabilities.npz") as file:
        assert file["files"].tolist() == [row.file for row in report.predictions]
        assert file["class_names"].tolist() == SPECIES
    np.testing.assert_array_equal(raw[0].max(1), [row.probability for row in report.predictions])


def test_scikit_learn_reproduces_the_figures_of_each_class(raw, figures):
    probabilities, labels = raw
    expected = classification_report(
        labels, probabilities.argmax(1), labels=range(4), target_names=SPECIES, output_dict=True, zero_division=0
    )
    assert figures["accuracy"] == expected["accuracy"]
    assert figures["macro_f1"] == pytest.approx(expected["macro avg"]["f1-score"], rel=1e-12)
    assert figures["loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-9)
    assert figures["confusion_matrix"] == confusion_matrix(labels, probabilities.argmax(1)).tolist()
    for name, row in figures["per_class"].items():
        found = [row[key] for key in ("precision", "recall", "f1", "support")]
        assert found == pytest.approx([expected[name][k] for k in ("precision", "recall", "f1-score", "support")])


def test_the_bootstrap_interval_is_that_of_resampled_images(raw, figures):
    probabilities, labels = raw
    predicted, generator = probabilities.argmax(1), np.random.default_rng(0)
    draws = [generator.integers(len(labels), size=len(labels)) for _ in range(600)]
    accuracy = [np.mean(predicted[d] == labels[d]) for d in draws]
    macro_f1 = [f1_score(labels[d], predicted[d], average="macro") for d in draws]
    # Ends of 600 other draws: their standard error is about 0.01, and an accuracy of 25 images has steps of 0.04.
    assert figures["bootstrap"]["accuracy"] == pytest.approx(np.percentile(accuracy, [2.5, 97.5]), abs=0.041)
    assert figures["bootstrap"]["macro_f1"] == pytest.approx(np.percentile(macro_f1, [2.5, 97.5]), abs=0.041)


def test_the_reliability_diagram_is_scikit_learns_calibration_curve(raw, figures):
    probabilities, labels = raw
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    accuracy, mean_confidence = calibration_curve(correct, confidence, n_bins=15, strategy="uniform")
    bins = figures["calibration"]["before"]["bins"]
    assert [row["accuracy"] for row in bins] == pytest.approx(accuracy)
    assert [row["confidence"] for row in bins] == pytest.approx(mean_confidence)
    error = sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / len(labels)
    assert figures["calibration"]["before"]["expected_calibration_error"] == pytest.approx(error)
    assert figures["expected_calibration_error"] == pytest.approx(error)


def test_no_temperature_near_it_is_more_probable(raw, figures):
    probabilities, labels = raw

    def loss(temperature: float) -> float:
        scaled = torch.from_numpy(probabilities).log().div(temperature).softmax(-1).numpy()
        return log_loss(labels, scaled) + (np.log(temperature) / PRIOR_DEVIATION) ** 2 / 2 / len(labels)

    best = figures["calibration"]["temperature"]
    assert loss(best) < min(loss(0.98 * best), loss(1.02 * best))
    assert figures["calibration"]["num_fitted"] == 25
    assert figures["calibration"]["fitted_on"] == "images"


def test_the_loss_after_scaling_is_that_of_halves_that_scale_each_other(raw, figures):
    probabilities, labels = raw
    order, losses = np.random.default_rng(42).permutation(25), []
    for fitted, judged in ((order[:12], order[12:]), (order[12:], order[:12])):
        inverse = torch.ones((), dtype=torch.float64, requires_grad=True)
        logits, target = torch.from_numpy(probabilities).log(), torch.from_numpy(labels)
        optimizer = torch.optim.LBFGS([inverse], max_iter=100, line_search_fn="strong_wolfe")

        def closure(fitted=fitted, inverse=inverse, logits=logits, target=target, optimizer=optimizer):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(logits[fitted] * inverse, target[fitted])
            loss = loss + (inverse.log() / PRIOR_DEVIATION).square() / 2 / len(fitted)
            loss.backward()
            return loss

        optimizer.step(closure)
        losses.append(
            torch.nn.functional.cross_entropy(logits[judged] * inverse.detach(), target[judged]) * len(judged)
        )
    assert figures["calibration"]["after"]["loss"] == pytest.approx(float(sum(losses)) / 25, rel=1e-4)
    assert figures["calibration"]["cross_fitted"]


def test_the_threshold_for_not_sure_is_the_lowest_that_is_accurate_enough(raw, figures):
    probabilities, labels = raw
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    enough = [t for t in confidence if correct[confidence >= t].mean() >= 0.8]
    assert figures["not_sure"]["threshold"] == min(enough)
    kept = confidence >= min(enough)
    assert 0 < kept.mean() < 1, "the test needs a threshold that divides"
    assert figures["not_sure"]["coverage"] == pytest.approx(kept.mean())
    assert figures["not_sure"]["accuracy"] == pytest.approx(accuracy_score(labels[kept], probabilities.argmax(1)[kept]))


def test_the_curve_of_risk_is_that_of_sorted_predictions(raw, figures):
    probabilities, labels = raw
    wrong = (probabilities.argmax(1) != labels)[np.argsort(-probabilities.max(1))]
    risk = np.cumsum(wrong) / np.arange(1, 26)
    curve = figures["coverage_risk"]["curve"]
    assert [point["risk"] for point in curve] == pytest.approx(risk)
    assert [point["coverage"] for point in curve] == pytest.approx(np.arange(1, 26) / 25)
    assert figures["coverage_risk"]["area"] == pytest.approx(risk.mean())


def test_crops_and_weeds_are_counted_from_the_predictions(raw, figures):
    probabilities, labels = raw
    maize = SPECIES.index("Maize")
    lost = np.sum((labels == maize) & (probabilities.argmax(1) != maize))
    missed = np.sum((labels != maize) & (probabilities.argmax(1) == maize))
    costs = figures["crop_weed_costs"]
    assert (costs["crops_lost"]["count"], costs["crops_lost"]["total"]) == (lost, 7)
    assert (costs["weeds_missed"]["count"], costs["weeds_missed"]["total"]) == (missed, 18)
    assert costs["accuracy"] == accuracy_score(labels == maize, probabilities.argmax(1) == maize)


def test_the_hard_pair_is_counted_both_ways(raw, figures):
    probabilities, labels = raw
    predicted, pair = probabilities.argmax(1), figures["hard_pair"]
    assert pair["first_as_second"] == np.sum((labels == 0) & (predicted == 2))
    assert pair["second_as_first"] == np.sum((labels == 2) & (predicted == 0))
    assert pair["share"] == (pair["first_as_second"] + pair["second_as_first"]) / 12


def test_the_worst_mistakes_are_wrong_and_the_most_confident_comes_first(report):
    wrong = [row for row in report.predictions if row.label != row.prediction]
    assert report.worst_mistakes == sorted(wrong, key=lambda row: -row.probability)
    assert wrong


def test_test_time_augmentation_is_the_mean_over_turned_and_mirrored_images(report, model_dir, test_dir):
    model, image_processor = load_classifier(str(model_dir))
    files = sorted(test_dir.glob("*/*"))
    pixels = image_processor([Image.open(file) for file in files], return_tensors="pt")["pixel_values"].numpy()
    # The group of the square from two other members: transposition and reflection, in every order.
    versions = [pixels]
    for step in ("transpose", "flip") * 3 + ("transpose",):
        last = versions[-1]
        versions.append(last.swapaxes(2, 3) if step == "transpose" else last[..., ::-1])
    assert len({v.tobytes() for v in versions}) == 8
    with torch.inference_mode():
        probabilities = np.mean(
            [model(torch.from_numpy(v.copy())).logits.double().softmax(-1).numpy() for v in versions], 0
        )
    labels = [SPECIES.index(file.parent.name) for file in files]
    # 1e-4: batches of another size sum float32 in another order.
    assert report.test_time_augmentation.loss == pytest.approx(log_loss(labels, probabilities), rel=1e-4)
    assert report.test_time_augmentation.accuracy == accuracy_score(labels, probabilities.argmax(1))
    assert report.test_time_augmentation.seconds > 0


def test_the_gain_is_what_augmentation_fixes_less_what_it_breaks(report):
    augmented = report.test_time_augmentation
    gain = (augmented.fixed - augmented.broken) / report.num_examples
    assert augmented.accuracy_gain == pytest.approx(gain)
    assert augmented.accuracy == pytest.approx(report.accuracy + gain)


def test_the_report_says_that_its_temperature_was_fitted_on_other_images(model_dir, test_dir, tmp_path):
    copy_sample(tmp_path, SPECIES, slice(10, 13))
    model, image_processor = load_classifier(str(model_dir))
    evaluator = Evaluator(model, image_processor, build_accelerator("no"), batch_size=8)
    dataset, other = (load_folder(folder, class_names=SPECIES) for folder in (test_dir, tmp_path))
    found = evaluate_model(evaluator, dataset, calibration=(other, "three others a class"))
    own = evaluate_model(evaluator, other)
    assert found.calibration.temperature == pytest.approx(own.calibration.temperature, rel=1e-4)
    assert not found.calibration.cross_fitted
    text = markdown_report(found)
    assert "fitted on 12 images: three others a class" in text
    assert "None of them is evaluated here" in text


def test_the_report_says_that_its_temperature_was_fitted_on_its_own_images(report):
    text = markdown_report(report)
    assert "fitted on 25 images: images." in text
    assert "no image affects its own temperature" in text


def test_one_image_has_a_report(model_dir, test_dir, tmp_path):
    model, image_processor = load_classifier(str(model_dir))
    dataset = load_folder(test_dir, class_names=SPECIES).select([0])
    report = evaluate_model(Evaluator(model, image_processor, build_accelerator("no"), batch_size=4), dataset)
    write_report(report, tmp_path, dataset)
    assert report.calibration is None
    assert "Are its probabilities calibrated?" not in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trusted(familiar_dir, test_dir) -> Report:
    dataset = load_folder(test_dir, class_names=SPECIES)
    return evaluate_model(open_evaluator(str(familiar_dir), build_accelerator("no"), 4, 0), dataset)


def test_a_report_counts_what_is_sure_not_sure_and_unfamiliar(trusted, report, tmp_path):
    said = [row.certainty for row in trusted.predictions]
    assert [row.prediction for row in trusted.predictions] == [row.prediction for row in report.predictions]
    assert {word: answers.count for word, answers in trusted.trust.rows} == {
        word: said.count(word) for word in ("sure", "not sure", "unfamiliar")
    }
    familiar = [row for row in trusted.predictions if row.certainty != "unfamiliar"]
    assert {row.certainty for row in familiar} == {"sure", "not sure"}, "the test needs both"
    assert all((row.probability >= 0.5) == (row.certainty == "sure") for row in familiar)
    write_report(trusted, tmp_path)
    figures = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["trust"]
    assert figures["threshold"] == 0.5
    assert figures["sure"]["count"] == said.count("sure")
    with open(tmp_path / "predictions.csv", encoding="utf-8", newline="") as file:
        assert [row["certainty"] for row in csv.DictReader(file)] == said


def test_terminal_and_pages_say_how_many_are_sure(trusted):
    sure = trusted.trust.sure
    sentence = f"right on {sure.correct} of {sure.count} images ({sure.accuracy:.1%}; 95% interval "
    assert sentence in format_report(trusted)
    assert sentence in markdown_report(trusted)
    page = render_report(trusted, "nowhere")
    assert "An answer is sure from a probability of 0.500 on, and not sure below; unfamiliar, " in page
    assert '<span class="name">Sure</span>' in page


def test_a_report_of_a_model_that_says_nothing_is_as_before(report, tmp_path):
    write_report(report, tmp_path)
    assert "trust" not in json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert "certainty" not in (tmp_path / "predictions.csv").read_text(encoding="utf-8")
    assert "How far it says" not in markdown_report(report) + render_report(report, "nowhere")
