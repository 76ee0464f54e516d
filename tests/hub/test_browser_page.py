"""The static page in a real browser, with the shipped model: it answers as Python does, and sends nothing anywhere."""

import contextlib
import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import open_browser
from PIL import Image
from small_models import write_strange_image

from seedling_hf import SHIPPED_MODEL
from seedling_hf.commands import push_space
from seedling_hf.data.images import read_image, to_rgb
from seedling_hf.errors import InputError
from seedling_hf.inference.classifier import Pretrained, load_classifier
from seedling_hf.inference.judgement import add_familiarity, choose_certainty, judge
from seedling_hf.inference.prediction import forward

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="the extra `all` is needed to write ONNX")

pytestmark = pytest.mark.slow  # 33 MB from npm, once
SECONDS = 120_000  # of a browser beside other work, in milliseconds
ORIENTATION = 0x0112


class Quiet(http.server.SimpleHTTPRequestHandler):
    """As a static Space serves: without the headers that isolate a page from others."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("static") / "page"
    try:
        push_space.main(["--model_name_or_path", str(SHIPPED_MODEL), "--static", "--output_dir", str(target)])
    except InputError as error:
        if "npm" in str(error):
            pytest.skip(str(error))
        raise
    return target


@pytest.fixture(scope="module")
def address(folder) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(browser, address):
    """The page, ready; `asked` are the addresses that it and its worker have asked for."""
    context = browser.new_context(locale="en-GB")
    opened = context.new_page()
    opened.asked = []
    context.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(address)
    opened.wait_for_selector("#files:enabled", state="attached", timeout=SECONDS)
    yield opened
    context.close()


@pytest.fixture(scope="module")
def classify():
    """Python's answers: files → rankings with all classes, and certainties."""
    model, image_processor = load_classifier(str(SHIPPED_MODEL))
    model = add_familiarity(model, Pretrained(str(SHIPPED_MODEL)))
    certainty = choose_certainty(model)
    names = list(model.config.id2label.values())

    def answer(files: list[Path]) -> list:
        images = [to_rgb(read_image(file)) for file in files]
        pixel_values = image_processor(images, return_tensors="pt")["pixel_values"]
        return judge(forward(model, pixel_values), names, certainty, len(names))

    answer.image_processor = image_processor
    return answer


def ask(page, files: list[Path]) -> list[dict]:
    """What the page says of files: kind, heading, text, and the species with their shares."""
    if page.is_visible("#clear"):
        page.click("#clear")
    page.set_input_files("#files", files)
    page.locator("article h3").nth(len(files) - 1).wait_for(timeout=SECONDS)
    return page.evaluate("""() => [...document.querySelectorAll("article")].map(article => ({
        kind: article.className, heading: article.querySelector("h3").textContent, text: article.innerText,
        species: [...article.querySelectorAll("li")].map(row =>
            [row.querySelector("span").textContent, row.querySelector("meter").value]),
    }))""")


def test_fifty_images_get_the_answers_of_python(page, classify, sample_dir):
    files = [file for folder in sorted(sample_dir.iterdir()) for file in sorted(folder.glob("*.jpg"))[6:11]][:50]
    assert len(files) == 50
    for found, expected in zip(ask(page, files), classify(files), strict=True):
        assert found["species"][0][0] == expected.ranking[0][0]
        shares = dict(expected.ranking)
        assert len(found["species"]) == 5
        # Another library sums float32 in another order.
        assert max(abs(share - shares[name]) for name, share in found["species"]) < 1e-3
        assert found["kind"] == {"sure": "sure", "not sure": "unsure", "unfamiliar": "unfamiliar"}[expected.certainty]
    assert not page.evaluate("crossOriginIsolated")


def write_odd_images(folder: Path, source: Path) -> list[Path]:
    """With transparency, turned by EXIF, grey, with a palette, large, WebP without loss, and nothing like a plant."""
    image = Image.open(source).convert("RGB")
    opacity = Image.fromarray(np.linspace(0, 255, image.width).astype(np.uint8)[None].repeat(image.height, 0))
    transparent = image.copy()
    transparent.putalpha(opacity)
    transparent.save(folder / "transparent.png")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image.crop((0, 0, 100, 140)).save(folder / "turned.jpg", exif=exif, quality=95)
    image.convert("L").save(folder / "grey.png")
    image.convert("P").save(folder / "palette.png")
    image.save(folder / "lossless.webp", lossless=True)
    image.resize((4000, 3000), Image.Resampling.BICUBIC).save(folder / "large.jpg", quality=90)
    write_strange_image(folder / "stripes.png")
    return sorted(folder.iterdir())


def test_odd_images_become_the_same_pixels_and_answers_as_in_python(page, classify, sample_dir, tmp_path):
    files = write_odd_images(tmp_path, sorted((sample_dir / "Maize").iterdir())[3])
    read = """async ([bytes, preprocessing]) => {
        const { readPixels } = await import("/pixels.js");
        return [...await readPixels(new Blob([new Uint8Array(bytes)]), preprocessing)];
    }"""
    for file in files:
        if file.name != "large.jpg":  # millions of numbers for the driver of the browser
            found = page.evaluate(read, [list(file.read_bytes()), {"shortest_edge": 112, "image_size": [96, 96]}])
            expected = classify.image_processor(
                to_rgb(read_image(file)), do_rescale=False, do_normalize=False, return_tensors="np"
            )["pixel_values"][0].transpose(1, 2, 0)
            np.testing.assert_array_equal(np.array(found).reshape(96, 96, 3), expected, err_msg=file.name)
    for file, found, expected in zip(files, ask(page, files), classify(files), strict=True):
        shares = dict(expected.ranking)
        assert max(abs(share - shares[name]) for name, share in found["species"]) < 1e-3, file.name
        assert (found["kind"] == "unfamiliar") == (expected.certainty == "unfamiliar"), file.name
    assert "stripes.png" in [file.name for file in files]


def test_what_is_no_whole_image_gets_a_sentence(page, sample_dir, tmp_path):
    source = sorted((sample_dir / "Maize").iterdir())[3]
    (tmp_path / "torn.jpg").write_bytes(source.read_bytes()[:-2000])
    Image.open(source).save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-2000])
    (tmp_path / "text.jpg").write_text("no image", encoding="utf-8")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (3000, 20), "green").save(tmp_path / "thin.png")
    files = [tmp_path / name for name in ("torn.jpg", "torn.png", "text.jpg", "empty.png", "thin.png")]
    answers = ask(page, [*files, source])
    for answer, reason in zip(
        answers, ["ends too early"] * 2 + ["cannot decode"] * 2 + ["too long and thin"], strict=False
    ):
        assert (answer["kind"], answer["heading"], answer["species"]) == ("failed", "The image cannot be read", [])
        assert reason in answer["text"]
    assert answers[-1]["species"][0][0] == "Maize"  # the next one is answered


def test_an_example_and_a_dropped_image_are_answered(page, sample_dir):
    if page.is_visible("#clear"):
        page.click("#clear")
    page.click("#examples button:has-text('Charlock')")
    page.wait_for_selector("article h3:has-text('Charlock')", timeout=SECONDS)
    image = sorted((sample_dir / "Cleavers").iterdir())[0]
    page.evaluate("""bytes => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "dropped.jpg"));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
    }""", list(image.read_bytes()))  # fmt: skip
    page.wait_for_selector("article h3:has-text('Cleavers')", timeout=SECONDS)


def test_nothing_leaves_the_origin_and_neither_page_nor_worker_could_send_it(page, address):
    assert {f"{address}model.onnx", f"{address}worker.js"} <= set(page.asked)
    assert not [url for url in page.asked if not url.startswith((address, f"blob:{address}"))]
    with serve_another_site() as (other, seen):
        send = (
            "url => fetch(url, { method: 'POST', mode: 'no-cors', body: 'image' }).then(() => 'sent', () => 'refused')"
        )
        assert page.evaluate(send, other) == "refused"
        (worker,) = page.workers
        assert worker.evaluate(send, other) == "refused"
        assert not seen


@contextlib.contextmanager
def serve_another_site() -> Iterator[tuple[str, list[str]]]:
    """The address of a server, and what it is asked for."""
    seen: list[str] = []

    class Noting(Quiet):
        def do_POST(self) -> None:
            seen.append(self.path)
            self.send_response(204)
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Noting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", seen
    server.shutdown()


@pytest.mark.parametrize("width", [390, 1200])
def test_a_chinese_browser_gets_chinese_and_nothing_is_wider_than_the_screen(browser, address, width):
    context = browser.new_context(locale="zh-CN", viewport={"width": width, "height": 844}, color_scheme="dark")
    opened = context.new_page()
    opened.goto(address, wait_until="domcontentloaded")
    opened.wait_for_selector("h1:has-text('这是哪种幼苗')")
    opened.wait_for_selector("#facts :text('正确率')")
    assert opened.get_attribute("html", "lang") == "zh"
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_the_page_holds_the_models_threshold(folder):
    page = json.loads((folder / "page.json").read_text(encoding="utf-8"))
    assert page["threshold"] == json.loads((SHIPPED_MODEL / "config.json").read_text())["confidence_threshold"]
