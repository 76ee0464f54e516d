"""Names of classes that mean something to TeX, Markdown, HTML, spreadsheets and terminals; and many classes."""

import csv
import json
import re
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
from browser import open_browser, visit
from faults import Started, assert_sentence, assert_well, command
from named_classes import only_default_fonts, write_classes, write_model
from PIL import Image

from seedling_hf.data.suspects import COLUMNS
from seedling_hf.escaping import escape_cell
from seedling_hf.files import write_csv

HOSTILE = [
    "$x^2$", "$", "$\\frac{", "小麦", "ナズナ", "a\nb", "a\rb", "a\tb", "=1+1", "+a", "-a", "@sum", "\x1b[31mred",
    "\u202eevil", "![x](http:∕∕127.0.0.1∕x.png)", "<img src=x>", "# heading", "a|b", "`code`", "it's", "a.b", "1",
    "{{ 7 * 7 }}", "---", "null", 'a"b', "x" * 200,
]  # fmt: skip
EVALUATE = ["evaluate", "--model_name_or_path", "model", "--test_dir", "images", "--output_dir", "out"]
TRAIN = [
    "train", "--train_dir", "images", "--output_dir", "out", "--variant", "tiny", "--image_size", "32",
    "--max_steps", "2", "--per_device_train_batch_size", "2",
]  # fmt: skip
MANY = 1000
LEAST_MEMORY_GB = 4.0


# As in HOSTILE, but of pages: and what a reader shall see of them.
SHOWN = {
    "<img src=x onerror=alert(1)>": "<img src=x onerror=alert(1)>",
    "![](http:∕∕127.0.0.1∕y.png)": "![](http:∕∕127.0.0.1∕y.png)",
    "</td><script>alert(1)</script>".replace("/", "∕"): "<∕td><script>alert(1)<∕script>",
    '"><style>*{display:none}': '"><style>*{display:none}',
    "=cmd|' ∕C calc'!A0": "=cmd|' ∕C calc'!A0",
    "\u202eevil": "\\u202eevil",
    "\x1b[31mred": "\\u001b[31mred",
    "&lt;b&gt;": "&lt;b&gt;",
    "{{7*7}}": "{{7*7}}",
    "小麦": "小麦",
    "a\nb": "a\\nb",
    "x" * 120: "x" * 120,
}
# A name that no folder can have, as a model from the Hub may.
REMOTE = "![](http://127.0.0.1:9/y.png) <img src=http://127.0.0.1:9/x>"
PAGES = ["report/report.html", "run/report.html", "comparison/comparison.html", "inspection/inspection.html"]
CJK_LACKS = "no font of this machine has the characters of some names: figures show class"


def limit_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (int(LEAST_MEMORY_GB * 1e9), resource.RLIM_INFINITY))


@pytest.mark.parametrize("name", HOSTILE, ids=[repr(name[:12]) for name in HOSTILE])
def test_a_class_may_have_any_name(name, tmp_path):
    folder = write_classes(tmp_path / "run", [name, "Maize", "Charlock"])
    outcome = command(
        ["evaluate", "--model_name_or_path", "model", "--test_dir", "images", "--output_dir", "out"], folder
    )
    assert_well(outcome)
    assert "Glyph" not in outcome.stderr
    assert not {"\x1b", "\u202e"} & set(outcome.stdout + outcome.stderr)
    markdown = (folder / "out" / "report.md").read_text(encoding="utf-8")
    shown = re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)  # which shows text as it is
    assert "<img" not in shown and "![x]" not in shown
    assert not {"\x1b", "\u202e"} & set(markdown + (folder / "out" / "report.html").read_text(encoding="utf-8"))
    with open(folder / "out" / "predictions.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert len(rows) == 7
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
    assert name in json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))["class_names"]


@pytest.mark.parametrize("name", HOSTILE[:14], ids=[repr(name[:12]) for name in HOSTILE[:14]])
def test_a_split_is_read_as_it_was_written(name, tmp_path):
    folder = write_classes(tmp_path / "run", [name, "Maize"], images=4)
    assert_well(command(["make_split", "--train_dir", "images", "--output_dir", "split"], folder))
    again = ["make_split", "--train_dir", "images", "--split_file", "split/split.csv", "--output_dir", "again"]
    assert_well(command(again, folder))
    assert (folder / "split" / "split.csv").read_bytes() == (folder / "again" / "split.csv").read_bytes()


@pytest.mark.parametrize("name", ["$x^2$", "小麦", "=1+1", "\x1b[31mred", "a\nb"], ids=repr)
def test_a_run_on_any_name_has_curves_a_report_and_a_card(name, tmp_path):
    folder = write_classes(tmp_path / "run", [name, "Maize"], images=4)
    words = [
        "train",
        "--train_dir",
        "images",
        "--output_dir",
        "out",
        "--variant",
        "tiny",
        "--image_size",
        "32",
        "--max_steps",
        "2",
    ]
    outcome = command([*words, "--per_device_train_batch_size", "2"], folder)
    assert_well(outcome)
    assert "could be written" not in outcome.stderr
    assert "\x1b" not in outcome.stdout
    assert (folder / "out" / "README.md").exists() and (folder / "out" / "confusion_matrix.png").exists()


@pytest.mark.parametrize("flags", [["--output_file", "out.csv"], ["--output_file", "out.jsonl"], []], ids=str)
@pytest.mark.parametrize("name", ["=1+1", "\x1b[31mred", "小麦"], ids=repr)
def test_predictions_hold_any_name(name, flags, tmp_path):
    folder = write_classes(tmp_path / "run", [name, "Maize"])
    outcome = command(
        ["predict", "--images", "images", "--model_name_or_path", "model", "--top_k", "2", *flags], folder
    )
    assert_well(outcome)
    written = outcome.stdout if not flags else (folder / flags[1]).read_text(encoding="utf-8")
    assert name in written.replace("\\u001b", "\x1b")
    if not (flags and flags[1].endswith("jsonl")):
        assert ",=1" not in written
    if flags:
        assert "\x1b" not in outcome.stdout


@pytest.mark.parametrize("folder_name", ["maize", "MAIZE", "Maize_", "mai ze", "Maise", "Maı\u0307ze"])
def test_a_folder_near_a_known_class_is_answered_with_it(folder_name, tmp_path):
    folder = write_classes(tmp_path / "run", ["Maize", "Charlock"])
    shutil.move(folder / "images" / "Maize", folder / "images" / folder_name)
    outcome = command(
        ["evaluate", "--model_name_or_path", "model", "--test_dir", "images", "--output_dir", "out"], folder
    )
    assert_sentence(outcome, "Maize", f"rename {folder_name} to Maize")


@pytest.mark.parametrize("folder_name", ["Shepherd’s Purse", "Shepherdâ€™s Purse", "shepherds_purse"])
def test_a_folder_with_another_apostrophe_is_answered_with_the_known_class(folder_name, tmp_path):
    folder = write_classes(tmp_path / "run", ["Shepherd's Purse", "Charlock"])
    shutil.move(folder / "images" / "Shepherd's Purse", folder / "images" / folder_name)
    outcome = command(
        ["evaluate", "--model_name_or_path", "model", "--test_dir", "images", "--output_dir", "out"], folder
    )
    assert_sentence(outcome, f"rename {folder_name} to Shepherd's Purse")


def test_saliency_answers_a_target_that_is_nearly_a_class(tmp_path):
    folder = write_classes(tmp_path / "run", ["Maize", "Charlock"])
    words = [
        "saliency",
        "--images",
        "images",
        "--model_name_or_path",
        "model",
        "--output_dir",
        "out",
        "--target",
        "maise",
    ]
    assert_sentence(command(words, folder), "did you mean Maize?")


def test_a_thousand_classes_are_evaluated_in_little_memory(tmp_path):
    folder = write_classes(tmp_path / "run", [f"Species number {number:04}" for number in range(MANY)])
    assert_well(command(EVALUATE, folder, before=limit_memory, timeout=140))
    assert (folder / "out" / "report.md").read_text(encoding="utf-8").count("| Species number") >= MANY


# Figures.

FIGURES = {
    "evaluate": EVALUATE,
    "saliency": ["saliency", "--model_name_or_path", "model", "--images", "images", "--output_dir", "out"],
    "preview": ["preview_augmentation", "--train_dir", "images", "--output_dir", "out", "--image_size", "32"],
    "probe": ["probe", "--model_name_or_path", "model", "--test_dir", "images", "--output_dir", "out"],
    "train": TRAIN,
    "tray": [
        "predict", "--model_name_or_path", "model", "--images", "tray.png", "--tiles", "--boxes_dir", "boxes",
        "--output_file", "out.csv",
    ],
}  # fmt: skip


@pytest.mark.parametrize("hidden", [None, only_default_fonts], ids=["with fonts", "without"])
@pytest.mark.parametrize("name", ["小麦", "ナズナ", "밀", "🌱"])
@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_says_once_which_number_a_name_without_a_font_has(figure, name, hidden, tmp_path):
    folder = write_classes(tmp_path / "run", ["Maize", name], images=4)
    if figure == "tray":
        pytest.importorskip("skimage")
        write_model(folder / "model", ["Maize", name], answer=name)
        tray = Image.new("RGB", (300, 200), (120, 90, 70))
        tray.paste((40, 180, 40), (60, 60, 120, 120))
        tray.save(folder / "tray.png")
    outcome = command(FIGURES[figure], folder, before=hidden)
    assert_well(outcome)
    assert "Glyph" not in outcome.stderr
    said = outcome.stderr.count(CJK_LACKS)
    assert said <= 1
    if hidden:
        assert said == 1 and f"class 2 for {name}" in outcome.stderr


# Tables on the terminal.


@pytest.mark.parametrize(
    ("words", "column"),
    [
        (["describe_dataset", "--train_dir", "images"], "2"),
        (EVALUATE, "images"),
        (["embed", "--model_name_or_path", "model", "--embeddings_file", "f.parquet", "--images", "images"], None),
    ],
    ids=["describe_dataset", "evaluate", "embed"],
)
@pytest.mark.parametrize("name", ["小麦", "ﾅｽﾞﾅ", "e\u0301toile", "a\nb", "밀"], ids=repr)
def test_numbers_stand_below_each_other_beside_names_of_any_width(name, words, column, tmp_path):
    wcwidth = pytest.importorskip("rich.cells").cell_len
    folder = write_classes(tmp_path / "run", [name, "Maize"])
    outcome = command(words, folder)
    assert_well(outcome)
    if column is None:
        query = ["--query", f"images/{name}/0.png", "--top_k", "4"]
        outcome = command([*words[:5], *query], folder)
        assert_well(outcome)
        ends = [line[: line.rindex("  ")] for line in outcome.stdout.splitlines() if "0.png" in line or "1.png" in line]
        assert len(ends) == 4
    else:
        shown = name.replace("\n", "\\n")
        rows = [line for line in outcome.stdout.splitlines() if line.strip().startswith((shown, "Maize"))]
        ends = [re.match(r".*?\s\d[\d.%]*", row)[0] for row in rows[:2]]
    assert len({wcwidth(end) for end in ends}) == 1, outcome.stdout


# Pages in a browser.


def doubt_a_label_of_each(folder: Path) -> list[str]:
    """Flags with predictions that answer one image of each class with the next class; none without cleanlab."""
    if find_spec("cleanlab") is None:
        return []
    rows, names = [], [*SHOWN]
    for name, following in zip(names, names[1:] + names[:1], strict=True):
        rows += [(f"{name}/{number}.png", name, name, 0.9, 0.9) for number in range(3)]
        rows.append((f"{name}/3.png", name, following, 0.9, 0.05))
    write_csv(folder / "doubts" / "predictions.csv", COLUMNS, rows)
    return ["--predictions", "doubts"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    folder = write_classes(tmp_path_factory.mktemp("pages") / "run", [*SHOWN], images=4)
    write_model(folder / "model", [*SHOWN, REMOTE], answer=REMOTE)
    for name in SHOWN:  # duplicates, which the inspection shows
        shutil.copy(folder / "images" / "小麦" / "0.png", folder / "images" / name / "same.png")
    shutil.copytree(folder / "model", folder / "second")
    both = ["--models", "model", "second", "--data_dir", "images", "--output_dir", "comparison"]
    for words in (
        [*EVALUATE[:-1], "report", "--saliency"],
        ["compare", *both],
        ["inspect_dataset", "--train_dir", "images", "--output_dir", "inspection", *doubt_a_label_of_each(folder)],
        ["run" if word == "out" else word for word in TRAIN],
    ):
        command(words, folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.mark.parametrize("width", [390, 1100])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_names_as_text_and_asks_for_nothing(page, width, pages, browser):
    address = (pages / page).as_uri()
    opened, requests, complaints = visit(browser, address, width=width)
    try:
        assert [request for request in requests if not request.startswith("data:")] == [address]
        assert complaints == []
        assert opened.evaluate("document.scripts.length") == 0
        assert opened.evaluate("[...document.images].every(image => image.src.startsWith('data:'))")
        assert opened.evaluate("document.documentElement.scrollWidth") == width
        text = opened.inner_text("body")
        missing = [shown for shown in SHOWN.values() if shown not in text]
        assert not missing
        assert page != "report/report.html" or REMOTE in text
        assert not {"\x1b", "\u202e"} & set(text)
        # No table is pushed out of a wide page by a long name.
        right = opened.evaluate(
            "Math.max(...[...document.querySelectorAll('td')].map(c => c.getBoundingClientRect().right))"
        )
        assert width < 1000 or right <= width
    finally:
        opened.close()


def test_the_inspection_shows_each_label_that_looks_wrong(pages, browser):
    pytest.importorskip("cleanlab", reason="the extra [all] is not installed")
    opened, _, _ = visit(browser, (pages / "inspection" / "inspection.html").as_uri())
    try:
        cards = [re.sub(r"\s+", " ", text) for text in opened.locator(".suspects .card").all_inner_texts()]
        assert len(cards) == len(SHOWN)
        labels = [re.sub(r"\s+", " ", shown) for shown in SHOWN.values()]
        assert all(any(f"label {label}, 5.0%" in card for card in cards) for label in labels)
        assert all(any(f"answer {label}, 90.0%" in card for card in cards) for label in labels)
    finally:
        opened.close()
    with open(pages / "inspection" / "labels.csv", encoding="utf-8", newline="") as stream:
        assert {row[0] for row in csv.reader(stream) if "3.png" in row[0]} == {escape_cell(f"{n}/3.png") for n in SHOWN}


@pytest.mark.parametrize(
    "name", [REMOTE, "\u202e\x1b[31m<script>alert(1)</script>", "[a](javascript:alert(1)) $x$"], ids=repr
)
def test_the_demo_shows_names_as_text_and_asks_for_nothing(name, tmp_path, browser):
    pytest.importorskip("gradio", reason="the extra [all] is not installed")
    folder = write_classes(tmp_path / "run", ["Maize"])
    write_model(folder / "model", ["Maize", "Charlock", name], answer=name)
    demo = Started(["demo", "--model_name_or_path", "model"], folder)
    try:
        demo.wait_for(lambda: "The page is at" in demo.printed("stdout"), timeout=90)
        address = re.search(r"http://127\.0\.0\.1:\d+", demo.printed("stdout"))[0]
        page, requests, complaints = browser.new_page(), [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.goto(address)
        page.wait_for_selector("input[type=file]", state="attached")
        page.set_input_files("input[type=file]", folder / "images" / "Maize" / "0.png")
        page.wait_for_selector("#species :text('Charlock')")
        page.wait_for_selector("#sentence h2")
        shown = name.replace("\x1b", "\\u001b").replace("\u202e", "\\u202e")
        assert page.inner_text("#sentence h2").strip() == shown
        assert shown in page.inner_text("#species")
        assert page.evaluate("document.querySelectorAll('#sentence img, #sentence a, #sentence script').length") == 0
        assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
        assert complaints == []
        page.close()
    finally:
        demo.send(signal.SIGTERM)
        demo.finish(30)
