"""The page: what it says about an image, and that a person sees it, in a real browser."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the extra [demo] is not installed")

import numpy as np
import torch
from browser import open_browser
from PIL import Image

from seedling_hf.commands import demo as command
from seedling_hf.commands import run
from seedling_hf.demo import Demo, seen_image, shrink
from seedling_hf.inference.classifier import load_classifier

ROOT = Path(__file__).resolve().parents[1]
WITH_SALIENCY = all(
    importlib.util.find_spec(name) for name in ("seedling_hf.interpretation.saliency", "captum")
)  # the page works without it


@pytest.fixture(scope="module")
def model(model_dir):
    return load_classifier(str(model_dir))


@pytest.fixture
def image(sample_dir) -> Path:
    return sorted((sample_dir / "Maize").iterdir())[0]  # one that the head was fitted to


def test_an_image_gets_its_class_and_a_probability_for_each(model, image):
    verdict = Demo(*model, threshold=0.3)(str(image))
    assert verdict.sentence.startswith("## Maize\n")
    assert len(verdict.probabilities) == 4
    assert sum(verdict.probabilities.values()) == pytest.approx(1)


def test_below_the_threshold_the_page_is_not_sure(model, image):
    verdict = Demo(*model, threshold=1.0)(str(image))
    assert verdict.sentence.startswith("## Not sure\n\nMost likely Maize")
    assert "below the threshold of 100%" in verdict.sentence


@pytest.mark.parametrize("content", [b"no image", b""])
def test_a_broken_file_gets_a_sentence(model, tmp_path, content):
    (tmp_path / "torn.jpg").write_bytes(content)
    verdict = Demo(*model, threshold=0.5)(str(tmp_path / "torn.jpg"))
    assert verdict.sentence.startswith("## The image cannot be read")
    assert (verdict.probabilities, verdict.overlay) == (None, None)


def test_a_model_that_overflows_gets_a_sentence(model_dir, image):
    model, image_processor = load_classifier(str(model_dir))
    with torch.no_grad():
        model.classifier.weight.fill_(3e38)
    verdict = Demo(model, image_processor, threshold=0.5)(str(image))
    assert verdict.sentence.startswith("## The model cannot answer")
    assert (verdict.probabilities, verdict.overlay) == (None, None)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(model, tmp_path, monkeypatch):
    monkeypatch.setattr("seedling_hf.demo.read_image", None)
    Image.new("1", (11_000, 8_000)).save(tmp_path / "large.png")
    verdict = Demo(*model, threshold=0.5)(str(tmp_path / "large.png"))
    assert verdict.sentence.startswith("## The image is too large\n\nIt has 11,000 × 8,000 pixels")
    assert (verdict.probabilities, verdict.overlay) == (None, None)


def test_a_very_large_image_is_averaged_down_and_others_stay_as_they_are():
    small, large = Image.new("RGB", (4000, 4000)), Image.new("RGB", (4001, 4000))
    assert shrink(small) is small
    assert shrink(large).size == (2001, 2000)
    assert shrink(Image.new("RGB", (17_000_000, 1))).size == (17_000_000, 1)


def test_a_removed_image_leaves_an_empty_page(model):
    assert Demo(*model, threshold=0.5)(None) == ("", None, None)


def test_the_image_under_the_map_is_the_one_that_the_model_sees(model):
    processor = model[1]
    shown = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    mean, std = (torch.tensor(x)[:, None, None] for x in (processor.image_mean, processor.image_std))
    pixels = torch.from_numpy(np.array(shown)).permute(2, 0, 1) / 255
    seen = seen_image((pixels - mean) / std, processor)
    assert seen.size == (384, 384)
    assert seen == shown.resize((384, 384), Image.Resampling.BICUBIC)


@pytest.mark.skipif(not WITH_SALIENCY, reason="no saliency maps here")
def test_the_map_lies_over_the_image(model, image):
    verdict = Demo(*model, threshold=0.5)(str(image))
    assert verdict.overlay.size == (384, 384)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--model_name_or_path", "no/such/model"], "no/such/model"),
        (["--model_name_or_path", "a/b", "--threshold", "2"], "--threshold at least 0 and at most 1"),
    ],
)
def test_the_command_reports_a_mistake_in_one_sentence(words, named, capsys):
    assert run(command.main, words) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


@pytest.fixture
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture
def served(model_dir):
    """The command `demo` in a process of its own; the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "seedling_hf", "demo", "--model_name_or_path", str(model_dir), "--threshold", "0.3"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    line = process.stdout.readline()
    address = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert address, line + process.stdout.read()
    yield address[0], process
    process.kill()
    process.wait()


def test_in_a_browser_an_image_is_classified_and_a_broken_file_gets_a_sentence(browser, served, image, tmp_path):
    address, process = served
    page, requests = browser.new_page(viewport={"width": 1200, "height": 800}), []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.wait_for_selector("input[type=file]", state="attached")

    page.set_input_files("input[type=file]", image)
    page.wait_for_selector("#sentence h2:text-is('Maize')")
    page.wait_for_selector("#species :text('Charlock')")
    if WITH_SALIENCY:
        page.wait_for_function("document.querySelector('#overlay img')?.naturalWidth === 384")
    page.screenshot(path=tmp_path / "answer.png")

    page.click("button[aria-label='Clear'], button[title='Clear'], button[aria-label='Remove Image']")
    page.wait_for_function("!document.querySelector('#sentence')?.innerText.trim()")
    (tmp_path / "torn.jpg").write_bytes(image.read_bytes()[:300])
    page.set_input_files("input[type=file]", tmp_path / "torn.jpg")
    page.wait_for_selector("#sentence h2:has-text('The image cannot be read')")
    assert not page.is_visible("#species")
    assert not page.is_visible("#overlay")
    page.screenshot(path=tmp_path / "broken.png")

    assert all(Image.open(tmp_path / f"{name}.png").size == (1200, 800) for name in ("answer", "broken"))
    assert not any(url for url in requests if not url.startswith((address, "data:", "blob:")))
    assert "Traceback" not in page.content()
    process.terminate()
    assert "Traceback" not in process.communicate(timeout=30)[0]
