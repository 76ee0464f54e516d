"""Names of classes and files are data: one escaping for each place where they are shown.

`visible` and `one_line` are for terminals and figures, `Markdown` is for Markdown, `escape_cell` for spreadsheets. In
HTML, jinja2 escapes the markup and `finish_html` the rest.
"""

import csv
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

# Controls of the terminal (C0, DEL, C1), what orders text from right to left, separators of lines, and bytes of names
# that are not UTF-8.
_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_LINE_BREAKS = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# https://owasp.org/www-community/attacks/CSV_Injection, and the same behind spaces.
_FORMULA = re.compile(r"[\t\r\n]|\s*[=+\-@＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_MARKS = re.compile(r"[*`\[\]|~]|(?<!\w)_|_(?!\w)|(?<=\w):(?=//)|(?<=\bwww)\.", re.IGNORECASE)
_STARTS = re.compile(r"^(#{1,6}|[-+]|\d{1,9}[.)])(?=\s|$)|^(?=[-=]+\s*$)")


def visible(text: str) -> str:
    r"""Text with its control characters written out, as `\u001b`; line breaks and tabs stay.

    Bytes of a name that are not UTF-8, which Python keeps as surrogates (PEP 383), are written as `\xe4`.
    """
    return _HIDDEN.sub(_write_out, text)


def _write_out(match: re.Match) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def one_line(text: object) -> str:
    r"""Text without control characters, and with `\n`, `\r` and `\t` for line breaks and tabs."""
    return visible(re.sub(r"[\n\r\t]", lambda match: _LINE_BREAKS[match[0]], str(text)))


class Markdown(str):
    """Text that is Markdown on purpose, and is shown as such."""

    @classmethod
    def of(cls, text: Any) -> "Markdown":
        """Text of which Markdown shows every character, inside a paragraph, a cell, a heading or an item of a list.

        It loads nothing, links to nothing, and neither begins nor ends a block.
        """
        if isinstance(text, cls):
            return text
        text = visible(" ".join(str(text).split()))
        # As entities, which no extension for formulas or HTML reads as its own.
        text = text.replace("&", "&amp;") if re.search(r"&#?\w+;", text) else text
        text = text.replace("\\", "&#92;").replace("$", "&#36;").replace("<", "&lt;")
        text = _MARKS.sub(lambda match: "\\" + match[0], text)
        text = _STARTS.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1:]}", text)
        return cls(f"&gt;{text[1:]}" if text.startswith(">") else text)

    @classmethod
    def join_all(cls, values: Iterable[Any], separator: str = "") -> "Markdown":
        """Values with `separator`, which is Markdown, between them."""
        return cls(separator.join(map(cls.of, values)))


def finish_markdown(value: Any) -> Any:
    """What a template of Markdown shows of a value, for `finalize` of jinja2."""
    return Markdown.of(value) if isinstance(value, str) else value


def finish_html(value: Any) -> Any:
    """What a template of HTML shows of a value, for `finalize` of jinja2, which escapes the markup itself."""
    return one_line(value) if type(value) is str else value


def escape_cell(value: Any) -> Any:
    """A cell of CSV that no spreadsheet takes for a formula: an apostrophe before what begins as one.

    Numbers stay as they are. `unescape_cell` gives the text back.
    """
    return f"'{value}" if isinstance(value, str) and _is_formula(value.lstrip("'")) else value


def unescape_cell(text: str) -> str:
    """The text of a cell that `escape_cell` made."""
    return text[1:] if text.startswith("'") and _is_formula(text.lstrip("'")) else text


class CsvWriter:
    r"""Writes rows whose cells are escaped, in lines that end in `\n`."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        # Python 3.11 and 3.12 quote a carriage return only where it is part of the end of a line.
        self.writer = csv.writer(self, lineterminator="\r\n")

    def write(self, line: str) -> None:
        self.stream.write(line.removesuffix("\r\n") + "\n")

    def writerow(self, row: Iterable[Any]) -> None:
        self.writer.writerow(map(escape_cell, row))

    def writerows(self, rows: Iterable[Iterable[Any]]) -> None:
        for row in rows:
            self.writerow(row)


def _is_formula(text: str) -> bool:
    return _FORMULA.match(text) is not None and not _NUMBER.fullmatch(text)


def width_of(text: str) -> int:
    """The columns of a terminal that a text takes: two for a Chinese, Japanese or Korean character, none for marks."""
    return sum(0 if _is_mark(each) else 1 + (unicodedata.east_asian_width(each) in "WF") for each in text)


def _is_mark(character: str) -> bool:
    """Whether a character is drawn over the one before it, or not at all: accents, joiners, vowels of Hangul."""
    return character != "\xad" and (
        unicodedata.category(character) in ("Mn", "Me", "Cf") or "\u1160" <= character <= "\u11ff"
    )


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Text with spaces after it, or before it to stand `right`, up to `width` columns of a terminal."""
    spaces = " " * (width - width_of(text))
    return spaces + text if right else text + spaces


def format_count(number: int, noun: str) -> str:
    """A number and what it counts: "1 image", "4,027 images", "2 classes"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


class VisibleStream:
    """A text stream that writes control characters out, as `visible` does, so that no name commands a terminal.

    Each line is flushed: what a command says is of use while it runs, into a log file too.

    Attributes:
        listener: Told of each text by `before_write` and `after_write`, with the stream below.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.listener: Any = None

    def write(self, text: str) -> int:
        if self.listener and text:
            self.listener.before_write(self.stream)
        # Progress bars go back to the start of their line.
        self.stream.write("\r".join(map(visible, text.split("\r"))))
        if "\n" in text:
            with suppress(OSError):  # it is met again where the command ends, and reported there
                self.stream.flush()
        if self.listener and text:
            self.listener.after_write(self.stream, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def visible_output() -> Iterator[None]:
    """Standard output and error write control characters out meanwhile."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and VisibleStream(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def data_output() -> TextIO:
    """Standard output for CSV and JSON: as they are into a file or a pipe, visible on a terminal."""
    stream = sys.stdout
    return stream.stream if isinstance(stream, VisibleStream) and not stream.isatty() else stream
