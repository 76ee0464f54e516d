"""What the page says about an image."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seedling_hf import SHIPPED_MODEL
from seedling_hf.data.images import read_image, to_rgb
from seedling_hf.demo.markup import render_answer, render_legend
from seedling_hf.demo.verdict import Demo, Verdict, fit, shrink
from seedling_hf.demo.words import Words
from seedling_hf.inference.classifier import Pretrained, load_classifier
from seedling_hf.inference.judgement import Certainty, Judgement, add_familiarity

WITH_SALIENCY = importlib.util.find_spec("captum")
EN, ZH = Words(), Words("zh")


@pytest.fixture(scope="module")
def model(model_dir):
    return load_classifier(str(model_dir))


@pytest.fixture(scope="module")
def shipped():
    return load_classifier(str(SHIPPED_MODEL))


@pytest.fixture
def image(sample_dir):
    return str(sorted((sample_dir / "Maize").iterdir())[0])  # one that the head was fitted to


def test_an_image_gets_its_class_and_a_probability_for_each(model, image):
    verdict = Demo(*model, Certainty(0.3))(image, EN)
    assert verdict.heading == "Maize"
    assert verdict.sentence.startswith("Predicted with a probability of ")
    assert len(verdict.rows) == 4
    assert sum(row.share for row in verdict.rows) == pytest.approx(1)
    assert len(Demo(*model, Certainty(0.3), top_k=2)(image, EN).rows) == 2


def test_below_the_threshold_the_page_is_not_sure(model, image):
    verdict = Demo(*model, Certainty(1.0))(image, EN)
    assert verdict.heading == "Not sure"
    assert verdict.sentence.startswith("Most likely Maize")
    assert "below the threshold of 100%" in verdict.sentence


def test_in_chinese_it_says_the_same(model, image):
    assert Demo(*model, Certainty(0.3))(image, ZH).heading == "玉米 Maize"
    assert Demo(*model, Certainty(1.0))(image, ZH).heading == "不确定"


@pytest.fixture(scope="module")
def familiar(familiar_dir):
    model, image_processor = load_classifier(str(familiar_dir))
    return add_familiarity(model, Pretrained(str(familiar_dir))), image_processor


def test_an_unfamiliar_image_gets_no_answer_and_what_would_have_been_said_in_grey(familiar, strange_image, image):
    demo = Demo(*familiar, Certainty(0.0, True))
    verdict = demo(str(strange_image), EN)
    assert verdict.heading == "Unfamiliar"
    assert verdict.sentence.startswith("The image does not look like those that the model was trained on")
    assert (verdict.is_answer, len(verdict.rows), verdict.image, verdict.legend) == (False, 4, None, None)
    assert 'class="grey"' in render_answer(verdict, EN)
    assert demo(str(strange_image), ZH).heading == "陌生的图片"
    known = demo(image, EN)
    assert known.heading == "Maize" and known.is_answer
    assert 'class="grey"' not in render_answer(known, EN)


@pytest.mark.skipif(not WITH_SALIENCY, reason="no saliency maps here")
def test_a_familiar_image_has_its_map(familiar, image):
    assert Demo(*familiar, Certainty(0.0, True))(image, EN).legend in ("map", "no map")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sure"] * 18, "Each with a probability of at least 50%."),
        (["unfamiliar", "not sure", *["sure"] * 16], "1 of them not sure: their probability is below 50%. 1 of them "
         "unlike the images that the model was trained on: no answer."),
        (["unfamiliar"] * 18, "18 of them unlike the images that the model was trained on: no answer."),
    ],
)  # fmt: skip
def test_an_unfamiliar_plant_of_a_tray_has_no_species(familiar, sample_dir, monkeypatch, words, expected):
    demo = Demo(*familiar, Certainty(0.5, True))
    said = [Judgement([("Maize", 0.9)], word) for word in words]
    monkeypatch.setattr(demo, "judge", lambda pixel_values, top_k: [said.pop(0) for _ in pixel_values])
    verdict = demo(str(sample_dir.parent / "tray.jpg"), EN, tray=True)
    assert verdict.sentence == expected
    rows = {row.name: row.figure for row in verdict.rows}
    assert rows.get("Unfamiliar", "0") == str(words.count("unfamiliar"))
    assert rows.get("Maize", "0") == str(18 - words.count("unfamiliar"))


def test_the_page_takes_the_thresholds_of_the_model(familiar_dir, strange_image, image):
    pytest.importorskip("gradio", reason="the extra [all] is not installed")
    from seedling_hf.demo.page import build_demo

    page = build_demo(str(familiar_dir))
    facts = str(vars(page.translations))
    assert "below 50% the answer is marked" in facts
    assert "called “unfamiliar” and get no answer" in facts
    show = page.fns[0].fn
    assert "<h2>Unfamiliar</h2>" in show(str(strange_image), "one", None)[0]
    assert "below 30% the answer is marked" in str(vars(build_demo(str(familiar_dir), threshold=0.3).translations))


@pytest.mark.parametrize("content", [b"no image", b""])
@pytest.mark.parametrize("tray", [False, True])
def test_a_broken_file_gets_a_sentence(model, tmp_path, content, tray):
    (tmp_path / "torn.jpg").write_bytes(content)
    verdict = Demo(*model, Certainty(0.5))(str(tmp_path / "torn.jpg"), EN, tray=tray)
    assert verdict.heading == "The image cannot be read"
    assert (verdict.rows, verdict.image) == ((), None)


@pytest.mark.parametrize("tray", [False, True])
def test_a_model_that_overflows_gets_a_sentence(model_dir, sample_dir, tray):
    model, image_processor = load_classifier(str(model_dir))
    with torch.no_grad():
        model.classifier.weight.fill_(3e38)
    demo = Demo(model, image_processor, Certainty(0.5))
    verdict = demo(str(sample_dir.parent / "tray.jpg"), EN, tray=tray)
    assert verdict.heading == "The model cannot answer"
    assert (verdict.rows, verdict.image) == ((), None)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(model, tmp_path, monkeypatch):
    monkeypatch.setattr("seedling_hf.demo.verdict.read_image", None)
    Image.new("1", (11_000, 8_000)).save(tmp_path / "large.png")
    verdict = Demo(*model, Certainty(0.5))(str(tmp_path / "large.png"), EN)
    assert verdict.heading == "The image is too large"
    assert verdict.sentence.startswith("It has 11,000 × 8,000 pixels")
    assert verdict.image is None


def test_a_very_large_image_is_averaged_down_and_others_stay_as_they_are():
    small, large = Image.new("RGB", (4000, 4000)), Image.new("RGB", (4001, 4000))
    assert shrink(small) is small
    assert shrink(large).size == (2001, 2000)
    assert shrink(Image.new("RGB", (17_000_000, 1))).size == (17_000_000, 1)


def test_a_removed_image_leaves_an_empty_page(model):
    assert Demo(*model, Certainty(0.5))(None, EN) == Verdict()


@pytest.mark.skipif(not WITH_SALIENCY, reason="no saliency maps here")
@pytest.mark.parametrize("size", [(150, 150), (300, 120), (2000, 1000)])
def test_the_map_lies_over_the_whole_image_in_its_proportions(model, tmp_path, size):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    verdict = Demo(*model, Certainty(0.5))(str(tmp_path / "image.png"), EN)
    assert verdict.legend in ("map", "no map")
    assert verdict.image.size == fit(Image.fromarray(pixels)).size
    assert verdict.image.width / verdict.image.height == pytest.approx(size[0] / size[1], abs=0.01)
    # What the model does not see, its central crop, is half as bright.
    corner = np.asarray(fit(Image.fromarray(pixels)), dtype=float)[0, 0]
    assert np.asarray(verdict.image, dtype=float)[0, 0] == pytest.approx(corner / 2, abs=1)


@pytest.mark.skipif(not WITH_SALIENCY, reason="no saliency maps here")
def test_of_a_seedling_the_page_shows_what_speaks_for_its_species(shipped, sample_dir):
    path = sorted((sample_dir / "Charlock").iterdir())[0]
    verdict = Demo(*shipped, Certainty(0.3))(str(path), EN)
    assert verdict.legend == "map"
    assert "What speaks for the answer" in render_legend(verdict, EN)
    plain = np.asarray(fit(to_rgb(read_image(path))), dtype=int)
    middle = plain.shape[0] // 4, plain.shape[0] * 3 // 4
    assert np.abs(np.asarray(verdict.image, dtype=int) - plain)[slice(*middle), slice(*middle)].max() > 50


@pytest.mark.skipif(not WITH_SALIENCY, reason="no saliency maps here")
@pytest.mark.parametrize(("words", "sentence"), [(EN, "No single region of the image decides"), (ZH, "单独决定答案")])
def test_where_no_region_decides_the_page_says_so_and_shows_no_map(model_dir, image, words, sentence):
    model, image_processor = load_classifier(str(model_dir))
    with torch.no_grad():
        model.classifier.weight.zero_()
    verdict = Demo(model, image_processor, Certainty(0.0))(image, words)
    assert verdict.legend == "no map"
    assert sentence in render_legend(verdict, words)
    plain = np.asarray(fit(to_rgb(read_image(Path(image)))), dtype=int)
    middle = slice(plain.shape[0] // 4, plain.shape[0] * 3 // 4)
    assert np.array_equal(np.asarray(verdict.image, dtype=int)[middle, middle], plain[middle, middle])


def test_a_tray_gets_a_number_and_a_class_for_each_plant(shipped, sample_dir):
    verdict = Demo(*shipped, Certainty(0.5))(str(sample_dir.parent / "tray.jpg"), EN, tray=True)
    assert (verdict.heading, verdict.legend) == ("18 plants", "boxes")
    assert sum(int(row.figure) for row in verdict.rows) == 18
    assert verdict.rows[0].name == "Cleavers" and verdict.rows[0].figure == "3"
    numbers = ", ".join(row.note.removeprefix("no. ") for row in verdict.rows).replace("?", "").split(", ")
    assert sorted(map(int, numbers)) == list(range(1, 19))


def test_plants_below_the_threshold_have_a_question_mark(shipped, sample_dir):
    verdict = Demo(*shipped, Certainty(1.0))(str(sample_dir.parent / "tray.jpg"), EN, tray=True)
    assert verdict.sentence.startswith("18 of them not sure")
    assert all("?" in row.note for row in verdict.rows)


def test_a_tray_without_plants_says_so(shipped, tmp_path):
    Image.new("RGB", (200, 200), "gray").save(tmp_path / "ground.png")
    verdict = Demo(*shipped, Certainty(0.5))(str(tmp_path / "ground.png"), EN, tray=True)
    assert verdict.heading == "No plants were found"


def test_an_image_without_a_plant_or_with_many_gets_a_hint(shipped, sample_dir, tmp_path, image):
    demo = Demo(*shipped, Certainty(0.5))
    Image.new("RGB", (200, 200), "white").save(tmp_path / "paper.png")
    assert demo(str(tmp_path / "paper.png"), EN).hint.startswith("No green plant was found")
    assert demo(str(sample_dir.parent / "tray.jpg"), EN).hint.startswith("There seem to be 18 plants")
    assert demo(image, EN).hint == ""
