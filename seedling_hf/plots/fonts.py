"""Fonts of this machine that hold the characters of a text, found only when a text needs them."""

import logging
import os
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from functools import cache
from itertools import islice
from typing import NamedTuple

from seedling_hf.escaping import one_line, width_of

DEFAULT = "DejaVu Sans"  # comes with matplotlib
LONGEST_NAME = 40  # in columns of a terminal
MOST_SAID = 20
FILLER = "\0"  # stands for the second column of a character while lines are measured; names have none
# Known for their many characters, in this order before all others.
PREFERRED = (
    "Noto Sans CJK", "Source Han Sans", "Microsoft YaHei", "SimHei", "PingFang", "Hiragino Sans", "Heiti", "Yu Gothic",
    "Malgun Gothic", "Apple SD Gothic", "Nanum", "WenQuanYi", "Droid Sans Fallback", "Arial Unicode", "Noto Sans",
    "FreeSans", "Unifont",
)  # fmt: skip
# Colored glyphs cannot be drawn here; the others hold a box for every character.
UNUSABLE = ("Emoji", "Color", "LastResort", "Last Resort", "Adobe Blank")

_said: set[str] = set()

logger = logging.getLogger(__name__)


class Font(NamedTuple):
    """A font of this machine: its family, for matplotlib, and its file, for PIL."""

    family: str
    path: str


def find_fonts(characters: Iterable[str]) -> tuple[list[Font], set[str]]:
    """Fonts that together hold characters which the default font lacks, and the characters that none holds."""
    return _find_fonts(frozenset(characters))


def draw_names(names: Sequence[str], kind: str = "class", *, longest: int = LONGEST_NAME) -> list[str]:
    """Names as figures show them: on one line, at most `longest` columns, and numbered where no font holds them.

    Numbers are the places in `names`, so give all classes. One warning for each `kind` says which number is which name.
    """
    lines = [unicodedata.normalize("NFC", one_line(name)) for name in names]
    _, missing = find_fonts("".join(lines))
    numbers = {number: name for number, name in enumerate(lines, 1) if missing.intersection(name)}
    if numbers:
        _say_numbers(kind, numbers)
    return [f"{kind} {number}" if number in numbers else shorten(name, longest) for number, name in enumerate(lines, 1)]


def _say_numbers(kind: str, numbers: Mapping[int, str]) -> None:
    if kind in _said or os.environ.get("RANK", "0") != "0":  # one of several processes says it
        return
    _said.add(kind)
    named = [f"{kind} {number} for {name}" for number, name in islice(numbers.items(), MOST_SAID)]
    if len(numbers) > MOST_SAID:
        named.append(f"{len(numbers) - MOST_SAID:,} more by their number in the same order")
    logger.warning(
        "no font of this machine has the characters of some names: figures show %s; install a font such as Noto Sans "
        "CJK", ", ".join(named),
    )  # fmt: skip


def shorten(name: str, longest: int = LONGEST_NAME) -> str:
    """A name of at most `longest` columns, without those in its middle."""
    if width_of(name) <= longest:
        return name
    start, end = len(name), 0
    while width_of(name[:start]) > longest // 2 - 1:
        start -= 1
    while width_of(name[end:]) > longest // 2:
        end += 1
    return f"{name[:start]}…{name[end:]}"


def wrap(text: str, columns: int) -> str:
    """Text in lines of at most so many columns, with lines broken inside words that are longer."""
    filled = "".join(character + FILLER * (width_of(character) - 1) for character in text)
    lines = (textwrap.fill(line, columns, break_on_hyphens=False) for line in filled.split("\n"))
    return "\n".join(lines).replace(FILLER, "")


def split_by_font(text: str) -> list[tuple[str, str]]:
    """The parts of a text, each with the file of a font that holds it, for PIL."""
    parts: list[tuple[str, str]] = []
    paths = [_default_path(), *(font.path for font in find_fonts(text)[0])]
    for character in text:
        usual = parts[-1:] and [parts[-1][1]]
        path = next((path for path in [*usual, *paths] if _held(path, {character})), paths[0])
        if [path] == usual:
            parts[-1] = parts[-1][0] + character, path
        else:
            parts.append((character, path))
    return parts


@cache
def _find_fonts(characters: frozenset[str]) -> tuple[list[Font], set[str]]:
    missing = {c for c in characters if not c.isascii()}
    missing -= missing and _held(_default_path(), missing)
    fonts: list[Font] = []
    if missing:
        fonts += _choose(missing)
    if missing:
        _add_new_fonts()
        fonts += _choose(missing)
    return fonts, missing


def _choose(missing: set[str]) -> Iterator[Font]:
    """The fonts that hold some of `missing`, which it removes."""
    for font in _candidates():
        if not missing:
            return
        if held := _held(font.path, missing):
            missing -= held
            yield font


def _held(path: str, characters: Set[str]) -> Set[str]:
    """Those of some characters that a font has; none where matplotlib cannot read it, or it was deleted."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        return {c for c in characters if font.get_char_index(ord(c))}
    except (OSError, RuntimeError):
        return set()


def _add_new_fonts() -> None:
    """Fonts that were installed after matplotlib listed the fonts of this machine, which it does once."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    known = {entry.fname for entry in fontManager.ttflist}
    for path in set(findSystemFonts()) - known:
        with suppress(OSError, RuntimeError, ValueError):
            fontManager.addfont(path)


def _default_path() -> str:
    from matplotlib.font_manager import findfont

    return findfont(DEFAULT)


def _candidates() -> Iterator[Font]:
    """A regular font of each family that matplotlib knows on this machine, the preferred ones first."""
    from matplotlib.font_manager import fontManager

    families: dict[str, Font] = {}
    for entry in sorted(fontManager.ttflist, key=lambda entry: (entry.style != "normal", _weight(entry.weight))):
        if not any(word in entry.name for word in UNUSABLE):
            families.setdefault(entry.name, Font(entry.name, entry.fname))

    def rank(font: Font) -> tuple[int, str]:
        return next(
            (i for i, name in enumerate(PREFERRED) if font.family.startswith(name)), len(PREFERRED)
        ), font.family

    return iter(sorted(families.values(), key=rank))


def _weight(weight: int | str) -> int:
    """How far a weight is from the regular one."""
    return abs(weight - 400) if isinstance(weight, int) else 0 if weight in ("normal", "regular", "book") else 300
