"""Fonts of this machine that hold the characters of a text, found only when a text needs them."""

import logging
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import suppress
from functools import cache
from itertools import chain
from typing import NamedTuple

from seedling_hf.escaping import one_line

DEFAULT = "DejaVu Sans"  # comes with matplotlib
LONGEST_NAME = 40
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


def draw_names(names: Sequence[str]) -> list[str]:
    """Names as figures show them: on one line, shortened, and as numbers where no font holds their characters."""
    lines = [one_line(name) for name in names]
    _, missing = find_fonts("".join(lines))
    lacking = [name for name in lines if missing.intersection(name)]
    if lacking:
        warn_of_missing(lacking, "figures show class 1, class 2, … in the order of the report's table")
    return [f"class {number}" if missing.intersection(name) else shorten(name) for number, name in enumerate(lines, 1)]


def shorten(name: str) -> str:
    """A name of at most `LONGEST_NAME` characters, without those in its middle."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def find_font_file(text: str) -> str | None:
    """The file of a single font that holds a text, for PIL; None if there is none."""
    return _find_font_file(frozenset(c for c in text if not c.isascii()) | {"0", "A"})


def warn_of_missing(names: Sequence[str], instead: str) -> None:
    """Says, once for each `instead`, that there is no font for some names, and what is drawn instead."""
    if instead not in _said:
        _said.add(instead)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        logger.warning(
            "no font of this machine has the characters of %s%s: %s; install a font such as Noto Sans CJK",
            names[0], more, instead,
        )  # fmt: skip


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


@cache
def _find_font_file(characters: frozenset[str]) -> str | None:
    _find_fonts(characters)  # adds the new fonts if they are needed
    paths = chain([_default_path()], (font.path for font in _candidates()))
    return next((path for path in paths if _held(path, characters) == characters), None)


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
