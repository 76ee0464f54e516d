"""Names are shown as what they are, wherever they are shown."""

import csv
import io

import pytest

from seedling_hf.escaping import (
    CsvWriter,
    Markdown,
    VisibleStream,
    escape_cell,
    format_count,
    one_line,
    pad,
    unescape_cell,
    width_of,
)


@pytest.mark.parametrize("text", ["=1+1", "+a", "-a", "@x", "\tx", "\rx", " =1", "'=1", "''=1", "＝1", "-", "=\n"])
def test_a_formula_becomes_text_in_a_cell_and_comes_back(text):
    assert escape_cell(text) == f"'{text}"
    assert unescape_cell(escape_cell(text)) == text


@pytest.mark.parametrize("value", ["Maize", "'quoted", "-1.5", "+2", "1e-5", "小麦", "", -3, 0.5])
def test_other_cells_and_numbers_stay(value):
    assert escape_cell(value) == value
    assert unescape_cell(str(value)) == str(value)


def test_lines_of_csv_hold_any_name():
    names = ["a\rb", "a\nb", 'a"b', "a,b", "=a", "\u2028"]
    stream = io.StringIO(newline="")
    CsvWriter(stream).writerows([names, ["x"]])
    rows = list(csv.reader(io.StringIO(stream.getvalue(), newline="")))
    assert [[unescape_cell(cell) for cell in row] for row in rows] == [names, ["x"]]
    assert stream.getvalue().endswith("\nx\n")


def test_controls_are_visible_on_one_line():
    assert (
        one_line("a\x1b[31m\u202eb\n\x9b\udce9") == "a\\u001b[31m\\u202eb\\n\\u009b\\xe9"
    )  # the byte of a name that is not UTF-8


def test_a_stream_writes_controls_out_and_lets_progress_bars_return():
    stream = io.StringIO(newline="")
    print("\r10%", "\x1b[2J\u202e", file=VisibleStream(stream))
    assert stream.getvalue() == "\r10% \\u001b[2J\\u202e\n"


HOSTILE = [
    "![x](http://a.b/c.png)", "<img src=x onerror=y>", "# heading", "- item", "1. item", "---", "> quote", "a|b",
    "`code`", "**bold**", "_em_", "~~gone~~", "[a](b)", "https://a.b", "&lt;", "$$x^2$$", "\\(x\\)", "a\n\nb",
    "<!-- end results -->",
    "<https://a.b>", "[x]: http://a.b", "===", "+ item", "\\[x](y)",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_shows_every_character_of_a_name(name):
    parser = (
        pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    )
    for text in (Markdown.of(name), f"- {Markdown.of(name)}"):
        tokens = [token for token in parser.parse(text) if token.type == "inline"]
        assert len(tokens) == 1
        assert {child.type for child in tokens[0].children} <= {"text", "text_special"}
        assert "".join(child.content for child in tokens[0].children) == " ".join(name.split())


def test_markdown_that_is_meant_stays():
    assert Markdown.of(Markdown("[a](b)")) == "[a](b)"
    assert Markdown.join_all(["a|b", Markdown("**c**")], " | ") == "a\\|b | **c**"


@pytest.mark.parametrize("name", ["Small-flowered Cranesbill", "a_b.png", "12.5%", "+1.2", "Shepherd's Purse", "小麦"])
def test_ordinary_names_are_untouched_in_markdown(name):
    assert Markdown.of(name) == name


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("小麦 a", 6), ("ﾅｽﾞﾅ", 4), ("＝", 2), ("e\u0301", 1), ("밀", 2), ("\u1106\u1175\u11af", 2), ("กำ", 2),
        ("🌱", 2), ("\u200d", 0),
    ],
)  # fmt: skip
def test_a_text_takes_the_columns_of_a_terminal(text, width):
    assert width_of(text) == width


def test_texts_are_padded_to_columns():
    assert pad("小麦", 5) == "小麦 "
    assert pad("小麦", 5, right=True) == " 小麦"
    assert pad("小麦", 3) == "小麦"


def test_one_is_singular():
    assert [format_count(n, "image") for n in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]
    assert [format_count(n, "class") for n in (1, 2)] == ["1 class", "2 classes"]
