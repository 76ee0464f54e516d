"""The known name that a name nearly is."""

import difflib
import re
import unicodedata
from collections.abc import Iterable

LEAST_SIMILARITY = 0.75
_APOSTROPHES = re.compile("[\u2018\u2019\u201b\u02bc\u00b4`\u2032\uff07']")


def find_near(name: str, known: Iterable[str]) -> str | None:
    """The name among `known` that differs only in spelling, or else is most alike; None if none is.

    Spelling is case, spaces, underscores, hyphens, apostrophes, accents, forms of Unicode, and UTF-8 that was read as
    another encoding.
    """
    keys: dict[str, str] = {}
    for other in known:
        keys.setdefault(spelling_key(other), other)
    if (key := spelling_key(name)) in keys:
        return keys[key]
    near = difflib.get_close_matches(key, keys, n=1, cutoff=LEAST_SIMILARITY)
    return keys[near[0]] if near else None


def describe_difference(names: Iterable[str], known: Iterable[str]) -> str:
    """A part of a sentence with the first of `names` that is not known, and the known one that it nearly is."""
    known = list(known)
    for name in sorted(set(names) - set(known)):
        near = find_near(name, known)
        return f", such as {name}" + (f" for {near}" if near else "")
    return ""


def spelling_key(name: str) -> str:
    """Equal for names that differ only in spelling; empty for a name without letters and digits is that name."""
    text = unicodedata.normalize("NFKD", _APOSTROPHES.sub("", repair_encoding(name)))
    key = "".join(c for c in text.casefold() if c.isalnum() and not unicodedata.combining(c))
    return key or name


def repair_encoding(name: str) -> str:
    """A name whose UTF-8 was read as Windows-1252, Latin-1, code page 437 or 850, as unpacking does, repaired."""
    for encoding in ("cp1252", "latin-1", "cp437", "cp850"):
        try:
            repaired = name.encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
        if repaired != name:
            return repaired
    return name
