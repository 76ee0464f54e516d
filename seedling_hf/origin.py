"""Whose a file is: the marks that outputs carry, and the forms by which those without a mark are known.

A command replaces what is `is_ours`, and refuses anything else before it starts. CSV, JSON, Parquet and exported models
are known by their form; pages, figures and archives carry a mark, and older ones are known by their form where that is
possible.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from seedling_hf.errors import InputError

SOFTWARE = "seedling_hf"  # in the metadata of images, of exported models and of Parquet
HTML_MARK = b'<meta name="generator" content="seedling_hf">'
TEXT_MARK = b"generator: seedling_hf"  # ends a page in Markdown, within a comment, and is the comment of an archive

# Of a report, but for report.json: a damaged one of ours would be refused too.
REPORT_FILES = (
    "report.html", "report.md", "predictions.csv", "probabilities.npz", "confusion_matrix.png", "reliability.png",
    "coverage_risk.png",
)  # fmt: skip
# By the name of the output; a user may have chosen another one for the file.
HEADINGS = {
    "predictions": (
        b"file,class,",
        b"file,rank,class,",
        b"file,species\n",
        b"file,plant,left,",
        b'{"file": ',
        b'[\n{"file": ',
        b"[\n]\n",
    ),
    "failed files": (b"file,reason\n",),
    "predictions.csv": (b"file,label,prediction,probability,", b"file,label,prediction: ", b'file,label,"prediction: '),
    "corrections.csv": (b"file,label\n",),
    "labels.csv": (b"file,label,suggestion,margin\n",),
    "erf.csv": (b"model,image_size,num_images,threshold,side,",),
}
JSON_KEYS = {
    "statistics": {"classes", "splits", "mean_of_means", "mean_of_stds"},
    "inspection.json": {"num_images", "classes", "corrupt", "exact_duplicates", "near_duplicates"},
    "report.json": {"per_class", "confusion_matrix", "coverage_risk"},
    "comparison.json": {"models", "pairs", "agreement", "num_differences"},
    "probes.json": {"model", "data", "num_examples", "guess", "probes"},
    "benchmark.json": {"machine", "dtype", "rows"},
}
# In the beginning of a page without a mark.
OLDER_PAGES = {
    "report.html": b":root { --ink: #22302a;", "comparison.html": b":root { --ink: #22302a;",
    "inspection.html": b"<title>Inspection of ", "report.md": b"\n| figure | value | |\n",
    "comparison.md": b"\n| model | accuracy | 95% interval | macro-F1 |",
    "probes.md": b" altered in one way at a time; seed ", "benchmark.md": b" threads, torch ",
}  # fmt: skip
OLDER_ARRAYS = {"probabilities.npy", "labels.npy", "files.npy", "class_names.npy"}
LABELS = "labels.csv"
HEAD, TAIL = 8192, 1 << 20


class ForeignFileError(InputError):
    """A file of somebody else is in the place of an output."""


def is_ours(path: str | os.PathLike, output: str | None = None, *, read: Callable[[Path], bool] | None = None) -> bool:
    """Whether nothing is lost with a file: it is not there, or empty, or this package has written it.

    Args:
        output: What this output is called where a user chose another name for the file: a key of `HEADINGS` or
            `JSON_KEYS`, or any name with its suffix.
        read: Whether a file that is there and not empty is ours, for outputs that no reader here knows.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return True
    try:
        if not path.is_file():
            return False
        return path.stat().st_size == 0 or (read or _reader(output or path.name))(path)
    except (OSError, ValueError, RecursionError, BadZipFile):  # cut short, or of another kind
        return False


def check_ours(
    path: str | os.PathLike, flag: str, output: str | None = None, *, read: Callable[[Path], bool] | None = None
) -> None:
    """Refuses to replace a file of somebody else; arguments as of `is_ours`.

    Raises:
        ForeignFileError: names it.
    """
    if not is_ours(path, output, read=read):
        found = "a file of another origin"
        if os.path.isdir(path):
            found = "a folder"
        elif not os.path.exists(path):
            found = "a link that leads nowhere"
        raise ForeignFileError(
            f"expected {path} to be free or an earlier output of seedling_hf, found {found}; move it or choose another "
            f"{flag}"
        )


def check_outputs(folder: str | os.PathLike, names: Iterable[str], flag: str) -> None:
    """`check_ours` for files of a folder."""
    for name in names:
        check_ours(Path(folder, name), flag)


def mark_archive(path: str | os.PathLike) -> None:
    """Marks an archive of NumPy, which stays as it is for those who read it."""
    with ZipFile(path, "a") as archive:
        archive.comment = TEXT_MARK


def _reader(output: str) -> Callable[[Path], bool]:
    if output in HEADINGS:
        return lambda path: _head(path).startswith(HEADINGS[output])
    if output in JSON_KEYS:
        return lambda path: _holds_keys(path.read_bytes(), JSON_KEYS[output])
    readers = {
        ".html": _is_page, ".md": _is_page, ".png": _is_figure, ".npz": _is_archive, ".onnx": _is_onnx,
        ".pt2": _is_program, ".parquet": _is_embeddings,
    }  # fmt: skip
    return readers.get(Path(output).suffix, lambda path: False)


def _head(path: Path) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(HEAD)


def _holds_keys(content: bytes, keys: set[str]) -> bool:
    values = json.loads(content)
    return isinstance(values, dict) and keys <= values.keys()


def _is_page(path: Path) -> bool:
    if path.suffix == ".html":
        return HTML_MARK in _head(path) or _is_older_page(path)
    # What people write below the mark is theirs.
    return path.read_bytes().rstrip().removesuffix(b"-->").rstrip().endswith(TEXT_MARK) or _is_older_page(path)


def _is_older_page(path: Path) -> bool:
    content = path.read_bytes() if path.suffix == ".md" else _head(path)
    form = OLDER_PAGES.get(path.name)
    return form is not None and form in content[:HEAD] and HTML_MARK not in content and TEXT_MARK not in content


def _is_figure(path: Path) -> bool:
    """Older figures are those of Matplotlib beside an older page."""
    head = _head(path)
    if b"tEXtSoftware\0" + SOFTWARE.encode() in head:
        return True
    pages = (path.with_name(name) for name in OLDER_PAGES)
    return b"tEXtSoftware\0Matplotlib" in head and any(page.is_file() and _is_older_page(page) for page in pages)


def _is_archive(path: Path) -> bool:
    with ZipFile(path) as archive:
        return archive.comment == TEXT_MARK or set(archive.namelist()) == OLDER_ARRAYS


def _is_onnx(path: Path) -> bool:
    """The properties of a model are a key and a value each, in Protobuf, at the end."""
    key = SOFTWARE.encode()
    with open(path, "rb") as stream:
        stream.seek(max(0, path.stat().st_size - TAIL))
        return b"\x0a" + bytes([len(key)]) + key + b"\x12" in stream.read()


def _is_program(path: Path) -> bool:
    with ZipFile(path) as archive:
        names = (name for name in archive.namelist() if name.endswith("/metadata.json"))
        return any(_holds_keys(archive.read(name), {SOFTWARE, "classes"}) for name in names)


def _is_embeddings(path: Path) -> bool:
    from pyarrow import ArrowException, parquet

    try:
        return SOFTWARE.encode() in (parquet.read_schema(path).metadata or {})
    except ArrowException:
        return False
