"""The page in a real browser: what a person sees, in which language, and that nothing moves."""

import contextlib
import os
import socket
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the extra [all] is not installed")

from browser import open_browser
from demo_server import serve

from seedling_hf import SHIPPED_MODEL
from seedling_hf.commands import demo as command
from seedling_hf.commands import run

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("image", "mode", "shown", "legend", "answer", "examples", "facts")
# Gradio mounts its parts one after the other: all are there, and where they were at the last look.
SETTLED = """parts => {
    const found = parts.map(part => document.getElementById(part))
    if (found.includes(null)) return false
    const places = JSON.stringify(found.map(part => part.getBoundingClientRect()))
    const settled = places === window.lastPlaces
    window.lastPlaces = places
    return settled
}"""
SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--model_name_or_path", "no/such/model"], "no/such/model"),
        (["--model_name_or_path", "a/b", "--threshold", "2"], "--threshold at least 0 and at most 1"),
        (["--host", "203.0.113.1"], "--host, found 203.0.113.1"),
    ],
)
def test_the_command_reports_a_mistake_in_one_sentence(words, named, capsys):
    assert run(command.main, words) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_a_port_that_is_taken_is_one_sentence_before_the_model_is_loaded(capsys, monkeypatch):
    monkeypatch.setattr("seedling_hf.demo.page.load_together", None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert run(command.main, ["--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"found {port} taken by another program" in error
    assert error.count("\n") == 1


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


def serve_here(model: Path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return serve(model, "--threshold", "0.3", environment=environment)


@pytest.fixture(scope="module")
def shipped():
    with serve_here(SHIPPED_MODEL) as (address, _):
        yield address


@pytest.fixture(params=SIZES)
def page(request, browser, shipped):
    """The page of the shipped model, in English, on a desktop or a phone."""
    with visit(browser, shipped, viewport=SIZES[request.param], locale="en-GB") as opened:
        yield opened


@contextlib.contextmanager
def visit(browser, address, **options):
    context = browser.new_context(**options)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("input[type=file]", state="attached")
    page.wait_for_selector("#facts dl")
    page.wait_for_function(SETTLED, arg=PARTS, polling=200)
    try:
        yield page
    finally:
        context.close()


def places(page) -> dict[str, list[int]]:
    """Left, top, width and height of each part of the page, in pixels."""
    script = (
        "id => { const r = document.getElementById(id).getBoundingClientRect(); return [r.x, r.y, r.width, r.height] }"
    )
    return {name: [round(edge) for edge in page.evaluate(script, name)] for name in PARTS}


def wait_for_heading(page, text: str) -> None:
    page.wait_for_selector(f"#sentence h2:has-text('{text}')")


def test_an_example_is_classified_where_nothing_moves(page):
    page.wait_for_function("[...document.querySelectorAll('#examples img')].length === 13")
    before = places(page)
    page.click("#examples button:has-text('Charlock')")
    wait_for_heading(page, "Charlock")
    page.wait_for_function("document.querySelector('#shown img')?.naturalWidth === 384")
    page.evaluate("scrollTo(0, 0)")
    assert places(page) == before
    image, shown = (page.locator(f"#{name} img").bounding_box() for name in ("image", "shown"))
    assert (image["width"], image["height"]) == pytest.approx((shown["width"], shown["height"]), abs=4)
    assert "What speaks for the answer" in page.inner_text("#legend")


def test_one_glance_shows_what_it_is_what_it_knows_and_its_limits(browser, shipped):
    with visit(browser, shipped, viewport=SIZES["desktop"], locale="en-GB") as page:
        facts = page.inner_text("#facts")
        assert all(text in facts for text in ("nano", "96.9%", "Certainty", "Limits"))
        names = page.locator("#examples .caption-label").all_inner_texts()
        assert len(names) == 13 and {"Maize", "Sugar beet", "A whole tray"} <= set(names)
        left, top, width, height = places(page)["facts"]
        assert left >= 0 and left + width <= 1280 and top + height <= 800


def test_a_tray_gets_its_boxes_where_nothing_moves(page, sample_dir):
    before = places(page)
    page.click("#mode label:has-text('a tray of plants')")
    page.set_input_files("input[type=file]", sample_dir.parent / "tray.jpg")
    wait_for_heading(page, "18 plants")
    page.wait_for_selector("#species :text('Cleavers')")
    page.wait_for_function("document.querySelector('#shown img')?.naturalWidth === 1200")
    page.click("#mode label:has-text('one seedling')")
    page.wait_for_selector("#sentence .hint:has-text('There seem to be 18 plants')")
    page.evaluate("scrollTo(0, 0)")
    assert places(page) == before


def test_the_tray_among_the_examples_chooses_its_mode(browser, shipped):
    with visit(browser, shipped, locale="en-GB") as page:
        page.click("#examples button:has-text('A whole tray')")
        wait_for_heading(page, "18 plants")
        assert page.locator("#mode input").nth(1).is_checked()


def test_a_broken_file_gets_a_sentence_where_nothing_moves(page, sample_dir, tmp_path):
    before = places(page)
    (tmp_path / "torn.jpg").write_bytes((sample_dir.parent / "tray.jpg").read_bytes()[:300])
    page.set_input_files("input[type=file]", tmp_path / "torn.jpg")
    wait_for_heading(page, "The image cannot be read")
    assert "Please drop another" in page.inner_text("#sentence")
    assert not page.is_visible("#species")
    assert not page.is_visible("#shown img")
    assert not page.is_visible("#image img")  # the browser's broken frame
    assert "Traceback" not in page.content()
    assert places(page) == before


@pytest.mark.parametrize("locale", ["zh-CN", "zh-TW"])
def test_a_chinese_browser_gets_chinese(browser, shipped, locale):
    with visit(browser, shipped, locale=locale) as page:
        page.wait_for_selector("h1:has-text('这是哪种幼苗')")
        page.wait_for_selector("#facts :text('正确率')")
        page.wait_for_selector("#mode label:has-text('一盘植物')")
        page.click("#examples button:has-text('玉米')")
        wait_for_heading(page, "玉米 Maize")
        page.wait_for_selector("#legend :text('部位')")
        page.wait_for_function("[...document.querySelectorAll('#examples img')].every(image => image.naturalWidth > 0)")


def test_a_model_without_examples_lists_its_classes_asks_no_other_site_and_ends_quietly(browser, model_dir, sample_dir):
    image = sorted((sample_dir / "Maize").iterdir())[0]  # one that the head was fitted to
    with serve_here(model_dir) as (address, process):
        page, requests = browser.new_page(locale="en-GB"), []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.wait_for_selector("#facts :text('It knows 4 classes')")
        assert "Charlock" in page.inner_text("#facts")
        assert "unknown" in page.inner_text("#facts")
        page.set_input_files("input[type=file]", image)
        wait_for_heading(page, "Maize")
        page.click("button[aria-label='Clear'], button[title='Clear'], button[aria-label='Remove Image']")
        page.wait_for_selector("#sentence :text('The answer appears here')")
        assert not page.is_visible("#shown img")
        page.close()
        assert not any(url for url in requests if not url.startswith((address, "data:", "blob:")))
        process.terminate()
        assert "Traceback" not in process.communicate(timeout=30)[0]
