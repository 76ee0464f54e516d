"""Images in folders: listed in byte order, with a count of what was left out and why."""

import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType

from seedling_hf.data.formats import HEIF_ADVICE, HEIF_SUFFIXES, OTHER_IMAGE_SUFFIXES, is_image
from seedling_hf.errors import InputError
from seedling_hf.escaping import one_line

MOST_NAMES_IN_MEMORY = 10_000
MOST_SUFFIXES_NAMED = 5
MISNAMED = "its name is not UTF-8; rename it"
STRAY, FURTHER = "image", "further image"  # in place of a suffix
_said: set[tuple[str, str]] = set()  # folder and suffix, because a folder may be listed again and again

logger = logging.getLogger(__name__)


class LeftOut:
    """The files of a folder that are not read, counted by suffix, and images beside its class folders; none hidden.

    `reasons` says why of files that are counted by their names instead.
    """

    def __init__(self, folder: str | os.PathLike, reasons: Mapping[str, str] = MappingProxyType({})) -> None:
        self.folder, self.counts, self.reasons = str(folder), Counter(), reasons

    def add(self, name: str) -> None:
        if name in self.reasons:
            self.counts[name] += 1
        elif not name.startswith("."):
            self.counts[STRAY if is_image(name) else os.path.splitext(name)[1].lower()] += 1

    def leave_out_images(self, count: int) -> None:
        """Adds images for the reason that `reasons` gives for `FURTHER`."""
        if count:
            self.counts[FURTHER] += count

    def describe(self) -> str:
        """How many files there are of which suffix, and why they are not read; empty for none."""
        kinds = [
            ({s for s in self.counts if s in HEIF_SUFFIXES}, HEIF_ADVICE),
            ({s for s in self.counts if s in OTHER_IMAGE_SUFFIXES}, "convert them to JPEG or PNG"),
            ({s for s in self.counts if s == STRAY}, "in no class folder"),
            *(({s for s in self.counts if s == name}, why) for name, why in self.reasons.items()),
        ]
        kinds.append((self.counts.keys() - set().union(*(k for k, _ in kinds)), "not an image by its suffix"))
        return "; ".join(f"{self._count(suffixes)} ({why})" for suffixes, why in kinds if suffixes)

    def say(self) -> None:
        """Warns of them, of each folder and suffix once."""
        for suffix in list(self.counts):
            if (key := (self.folder, suffix)) in _said:
                del self.counts[suffix]
            else:
                _said.add(key)
        if self.counts:
            logger.warning("left out in %s: %s", one_line(self.folder), self.describe())

    def _count(self, suffixes: set[str]) -> str:
        most = Counter({s: self.counts[s] for s in suffixes}).most_common()
        named = [
            f"{n:,} {one_line(s) or 'without a suffix'}{'s' if s in (STRAY, FURTHER) and n > 1 else ''}"
            for s, n in most[:MOST_SUFFIXES_NAMED]
        ]
        more = sum(n for _, n in most[MOST_SUFFIXES_NAMED:])
        return ", ".join([*named, *([f"{more:,} others"] if more else [])])


def list_images(paths: Iterable[str | os.PathLike]) -> Iterator[Path]:
    """The images among `paths`: files as they are, folders searched in byte order; never all of them in memory.

    What is given twice, by any of its names or with a folder above it, is listed once.

    Hidden files and folders are ignored, and so are links that lead back to a folder above them. At the end of a folder
    other files in it are counted in a warning.

    Raises:
        InputError: for a path that does not exist, or a folder that cannot be read.
    """
    paths = list(_without_repeats([Path(path) for path in paths]))
    given = {os.path.realpath(path) for path in paths if path.is_dir()}
    for path in paths:
        if path.is_dir():
            left_out = LeftOut(path)
            yield from _walk(path, frozenset(given), left_out)
            left_out.say()
        elif path.exists() or path.is_symlink():
            yield path
        else:
            raise InputError(f"expected an image or a folder at {one_line(path)}, found nothing there")


def _without_repeats(paths: list[Path]) -> Iterator[Path]:
    """The paths without those that another one, or a folder among them, covers."""
    folders = {os.path.realpath(path) for path in paths if path.is_dir()}
    seen = set()
    for path in paths:
        # A link to an image is an image of its own, as in a folder; a link to a folder is that folder.
        real = os.path.realpath(path) if path.is_dir() else os.path.join(os.path.realpath(path.parent), path.name)
        if real not in seen and not any(_is_walked(real, folder) for folder in folders):
            seen.add(real)
            yield path


def _is_walked(path: str, folder: str) -> bool:
    """Whether `_walk` comes to a path in `folder`."""
    if path == folder or not path.startswith(os.path.join(folder, "")):
        return False
    inside = os.path.relpath(path, folder).split(os.sep)
    return not any(name.startswith(".") for name in inside) and (os.path.isdir(path) or is_image(inside[-1]))


def walk_folder(folder: Path, left_out: LeftOut) -> list[str]:
    """All images in a folder and in those inside, relative to it, as `list_images` finds them; adds to `left_out`."""
    return [str(path.relative_to(folder)) for path in _walk(folder, frozenset(), left_out)]


def list_folder(folder: Path) -> list[str]:
    """The names in a folder in byte order, which for UTF-8 is Python's order of strings."""
    return list(_names_in_order(folder))


def is_utf8(name: str | os.PathLike) -> bool:
    """Whether a name is text; other names keep their bytes as surrogates (PEP 383), which Arrow cannot hold."""
    try:
        os.fspath(name).encode()
    except UnicodeEncodeError:
        return False
    return True


def _names_in_order(folder: Path) -> Iterator[str]:
    """As `list_folder`, with the names of a large folder sorted on the disk."""
    try:
        with os.scandir(folder) as entries:
            names = (entry.name for entry in entries)
            first = list(islice(names, MOST_NAMES_IN_MEMORY))
            if len(first) < MOST_NAMES_IN_MEMORY:
                yield from sorted(first, key=os.fsencode)
                return
            with closing(sqlite3.connect("")) as database:  # a temporary file on the disk
                database.execute("CREATE TABLE names (name BLOB)")
                rows = ((os.fsencode(name),) for name in chain(first, names))
                database.executemany("INSERT INTO names VALUES (?)", rows)
                del first
                yield from (os.fsdecode(name) for (name,) in database.execute("SELECT name FROM names ORDER BY name"))
    except OSError as error:
        found = {FileNotFoundError: "nothing there", NotADirectoryError: "a file there"}
        raise InputError(
            f"expected a folder that can be read at {one_line(folder)}, found {found.get(type(error), error.strerror)}"
        ) from error


def _walk(folder: Path, above: frozenset[str], left_out: LeftOut) -> Iterator[Path]:
    above |= {os.path.realpath(folder)}
    for name in _names_in_order(folder):
        path = folder / name
        if name.startswith("."):
            continue
        if path.is_dir():
            if os.path.realpath(path) not in above:
                yield from _walk(path, above, left_out)
        elif is_image(name):
            yield path
        else:
            left_out.add(name)
