"""The page in a real browser: it requests nothing and shows everything."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import open_browser, visit
from PIL import Image
from sample import copy_sample
from small_models import SPECIES, write_model

from seedling_hf.data.dataset import load_folder
from seedling_hf.evaluation.comparison import compare_models
from seedling_hf.evaluation.evaluator import Evaluator
from seedling_hf.evaluation.rendering import image_uri, render_report
from seedling_hf.evaluation.report import Report, evaluate_model
from seedling_hf.evaluation.report_files import write_comparison, write_report
from seedling_hf.evaluation.sentences import describe_not_sure, describe_pair_of_models, percent
from seedling_hf.inference.classifier import load_classifier
from seedling_hf.inference.prediction import build_accelerator


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = copy_sample(tmp_path_factory.mktemp("images"), SPECIES, slice(8))
    odd = next((folder / "Maize").iterdir())
    odd.rename(odd.with_name("a <script>alert(1)</script> & b.jpg".replace("/", "∕")))
    return load_folder(folder, class_names=SPECIES)


@pytest.fixture(scope="module")
def reports(dataset, sample_dir, tmp_path_factory) -> list[Report]:
    found = []
    for images in (4, 2):
        folder = tmp_path_factory.mktemp("models") / f"of-{images}-images"
        write_model(folder, sample_dir, images=images)
        model, image_processor = load_classifier(str(folder))
        found.append(
            evaluate_model(
                Evaluator(model, image_processor, build_accelerator("no"), batch_size=16), dataset, data_name="images",
                target_accuracy=0.7, test_time_augmentation=True,
            )
        )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def folder(reports, dataset, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(reports[0], folder, dataset)
    return folder


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


def overlays(images, predictions):
    return [Image.new("RGB", image.size, "#ff00aa") for image in images]


def text_of(page) -> str:
    return re.sub(r"\s+", " ", page.inner_text("body"))


@pytest.mark.parametrize("width", [390, 1100])
def test_the_page_requests_nothing_and_nothing_overflows(browser, folder, width):
    address = (folder / "report.html").as_uri()
    page, requests, complaints = visit(browser, address, width=width)
    assert [request for request in requests if not request.startswith("data:")] == [address]
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.screenshot(path=folder / f"report-{width}.png", full_page=True)
    shot = np.asarray(Image.open(folder / f"report-{width}.png").convert("L"))
    assert shot.shape[0] > 2000
    assert np.median(shot) > 240, "dark on light"
    page.close()


def test_every_image_is_visible(browser, folder, reports):
    page, _, _ = visit(browser, (folder / "report.html").as_uri())
    sizes = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.width])")
    assert len(sizes) == 3 + len(reports[0].worst_mistakes)
    assert all(natural > 50 and shown > 50 for natural, shown in sizes)
    page.close()


def test_the_figures_are_on_the_page(browser, folder, reports):
    page, _, _ = visit(browser, (folder / "report.html").as_uri())
    text, report = text_of(page), reports[0]
    figures = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    low, high = figures["bootstrap"]["accuracy"]
    assert f"{report.accuracy:.1%} 95% interval {low:.1%} to {high:.1%}" in text
    for number, (name, row) in enumerate(report.per_class.items(), 1):
        assert f"{name} {number} {row['precision']:.1%} {row['recall']:.1%} {row['f1']:.3f} {row['support']}" in text
    assert f"as predicted {figures['calibration']['before']['expected_calibration_error']:.3f}" in text
    assert f"temperature scaled {figures['calibration']['after']['expected_calibration_error']:.3f}" in text
    assert describe_not_sure(report.not_sure) in text
    lost = figures["crop_weed_costs"]["crops_lost"]
    assert f"a crop taken for a weed {lost['count']} of {lost['total']}" in text
    assert f"accuracy {report.accuracy:.1%} {figures['test_time_augmentation']['accuracy']:.1%}" in text
    page.close()


def test_the_gallery_shows_each_mistake_with_truth_prediction_and_probability(browser, folder, reports):
    page, _, _ = visit(browser, (folder / "report.html").as_uri())
    shown = [re.sub(r"\s+", " ", text) for text in page.locator(".gallery li").all_inner_texts()]
    expected = [
        f"truth {m.label} {percent(m.label_probability)} predicted {m.prediction} {percent(m.probability)} {m.file}"
        for m in reports[0].worst_mistakes
    ]
    assert [text.strip() for text in shown] == expected
    page.close()


def test_a_file_name_is_text_and_not_markup(reports, dataset, tmp_path):
    odd = next(row for row in reports[0].predictions if "script" in row.file)
    page = render_report(replace(reports[0], worst_mistakes=[odd]), tmp_path, dataset)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_overlays_are_beside_the_images_and_are_requested_once(browser, folder, reports, dataset):
    requested = []

    def saliency(images, predictions):
        requested.append(list(predictions))
        return overlays(images, predictions)

    path = folder / "with_saliency.html"
    path.write_text(render_report(reports[0], folder, dataset, saliency), encoding="utf-8")
    assert requested == [[m.prediction for m in reports[0].worst_mistakes]]
    page, requests, _ = visit(browser, path.as_uri())
    assert len([r for r in requests if not r.startswith("data:")]) == 1
    assert page.locator(".gallery li img").count() == 2 * len(reports[0].worst_mistakes)
    page.close()


def test_where_no_region_decides_the_gallery_says_so_beside_the_image(folder, reports, dataset):
    mistakes = reports[0].worst_mistakes
    page = render_report(reports[0], folder, dataset, lambda images, names: [images[0], *[None] * (len(images) - 1)])
    assert page.count("No region decides.") == len(mistakes) - 1 > 0
    assert page.count('alt="what speaks for') == 1


def test_without_images_the_gallery_has_only_names(reports, tmp_path):
    page = render_report(reports[0], tmp_path)
    assert "data:image" not in page
    assert reports[0].worst_mistakes[0].label in page


def test_the_page_of_a_comparison_requests_nothing_either(browser, reports, dataset, tmp_path):
    comparison = compare_models(["first", "second"], reports, "images")
    write_comparison(comparison, dataset, tmp_path)
    address = (tmp_path / "comparison.html").as_uri()
    page, requests, complaints = visit(browser, address, width=390)
    assert [request for request in requests if not request.startswith("data:")] == [address]
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator(".gallery li").count() == len(comparison.differences) > 0
    assert describe_pair_of_models(comparison.pairs[0]) in text_of(page)
    page.close()


def test_an_image_in_the_page_is_small_and_the_original_unchanged():
    image = Image.linear_gradient("L").resize((900, 300)).convert("RGB")
    content = base64.b64decode(image_uri(image).removeprefix("data:image/jpeg;base64,"))
    assert len(content) < 20_000
    assert image.size == (900, 300), "the caller's image stays as it is"


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0.0%"), (0.0004, "<0.1%"), (0.12345, "12.3%"), (0.9996, ">99.9%"), (1, "100.0%")]
)
def test_a_share_is_never_rounded_to_certainty(share, text):
    assert percent(share) == text
