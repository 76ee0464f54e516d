"""A long list of images and their answers so far, on the disk: a killed run can be resumed, and memory is constant.

    answers.csv.partial/run.json              all that the answers depend on, and the checksum of the list
    answers.csv.partial/images.jsonl          the images in their order, a JSON string a line
    answers.csv.partial/offsets.bin           where each batch begins in it, int64
    answers.csv.partial/answers-00000.jsonl   the answers of process 0, a line an image with its checksum

The list is made once, and each process answers one stretch of it in order: the number of whole lines shows where to
resume, and the answers of one process after another are in the order of the list. A list that is damaged is made again
and the answers that fit it are kept; only what is recognised as a file of a journal is ever removed.
"""

import hashlib
import json
import os
import re
import sqlite3
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from seedling_hf.errors import InputError
from seedling_hf.files import temporary_path, write_text
from seedling_hf.inference.answers import Answer, Plant

RUN, IMAGES, OFFSETS = "run.json", "images.jsonl", "offsets.bin"
# What the files of a journal begin with, a cut one too.
BEGINNINGS = {
    rf"({RUN}|{temporary_path(RUN).name})": rb"\{\s*\"(written_by|--)",
    IMAGES: rb"\"",
    OFFSETS: bytes(8),
    r"answers-\d{5}.jsonl": rb"[0-9a-f]{8} \[|\[",
}


class Journal(Sequence):
    """The batches of a list of images, as lists of files, and the answers to them, in a folder that `prepare` made.

    Attributes:
        num_images: Length of the list.
        checked: Whether every image was decoded before the run began.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run = _read_run(folder)
        if run is None:
            raise InputError(f"expected {folder} on a disk that all processes share, found no {RUN} in it")
        self.num_images, self.num_parts, self.checked = run["num_images"], run["num_parts"], run["checked"]
        self.batch_size = run["batch_size"]
        self.offsets = np.memmap(folder / OFFSETS, dtype=np.int64, mode="r")

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, number: int) -> list[str]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        with open(self.folder / IMAGES, "rb") as stream:
            stream.seek(self.offsets[number])
            lines = (stream.readline() for _ in range(self.batch_size))
            return [json.loads(line) for line in lines if line]

    def share(self, part: int) -> range:
        """The batches of one process: complete ones, so that batches are the same on any number of processes."""
        return range(part * len(self) // self.num_parts, (part + 1) * len(self) // self.num_parts)

    def size(self, batches: range) -> int:
        """Images in consecutive batches."""
        last_is_short = bool(batches) and batches[-1] == len(self) - 1
        return len(batches) * self.batch_size - (-self.num_images % self.batch_size if last_is_short else 0)

    def mark_checked(self) -> None:
        if (run := _read_run(self.folder)) is not None:  # another process may have given up the run
            _write_run(self.folder, run | {"checked": True})

    def answers(self) -> Iterator[Answer]:
        """All answers in the order of the list.

        Raises:
            InputError: if they are not one for each image.
        """
        count = 0
        for part in range(self.num_parts):
            try:
                with open(_part_path(self.folder, part), "rb") as stream:
                    for line in stream:
                        answer = _read_answer(line)
                        count += 1
                        yield answer
            except (OSError, ValueError):
                break
        if count != self.num_images:
            raise InputError(
                f"expected an answer for each of {self.num_images:,} images in {self.folder}, found {count:,}, since "
                "its files were altered during the run; repeat the command, which answers the rest"
            )

    def failed(self) -> Iterator[Answer]:
        """The answers that give a reason instead of a prediction, in the order of the list."""
        return (answer for answer in self.answers() if answer.reason is not None)


class Part:
    """The answers of one process, to append to.

    Attributes:
        remaining: The batches that have no answers yet; a batch that a kill left incomplete is cut off.
    """

    def __init__(self, journal: Journal, number: int) -> None:
        share = journal.share(number)
        self.file = open(_part_path(journal.folder, number), "a+b")  # noqa: SIM115  closed by `__exit__`
        done, end = _whole_batches(self.file, (journal[i] for i in share))
        self.file.truncate(end)
        self.remaining = share[done:]

    def append(self, answers: Iterable[Answer]) -> None:
        """Adds the answers to one batch, and flushes them to the file."""
        self.file.write(b"".join(map(_format_answer, answers)))
        self.file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()


def prepare(
    folder: Path, images: Iterable[str], *, identity: dict[str, Any], batch_size: int, num_parts: int
) -> Journal:
    """Creates a journal, or opens that of a run that stopped.

    Args:
        images: Files in order; ignored where there is a journal.
        identity: All that the answers depend on.

    Raises:
        InputError: if the run that stopped had another identity, or other files have the names of the journal's.
    """
    _refuse_foreign(folder)
    run = identity | {"batch_size": batch_size, "num_parts": num_parts}
    former = _read_run(folder)
    if former is None:
        discard(folder)
    elif changes := describe_changes(former, run):
        raise InputError(
            f"expected to resume the run with its answers in {folder}, found {changes}; repeat its command, or "
            "remove that folder to start again"
        )
    elif former.get("list_sha256") == _hash_list(folder, former.get("num_images")):
        return Journal(folder)
    elif former.get("list_sha256"):
        print(
            f"warning: {folder / IMAGES} or {OFFSETS} is damaged: the images are listed again, and the answers that "
            "fit are kept",
            file=sys.stderr,
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    _write_run(folder, run)  # first: it marks the folder as ours
    count = position = 0
    with open(folder / IMAGES, "wb") as names, open(folder / OFFSETS, "wb") as offsets:
        for count, image in enumerate(images, 1):
            if count % batch_size == 1 % batch_size:
                offsets.write(np.int64(position).tobytes())
            position += names.write(json.dumps(image).encode() + b"\n")
    if count == 0:
        discard(folder)
        raise InputError("expected images, found none; name another folder")
    checksum = _hash_list(folder, count)
    _write_run(folder, run | {"num_images": count, "checked": False, "list_sha256": checksum})
    return Journal(folder)


def discard(folder: Path) -> None:
    """Removes a journal, and its folder if nothing else is in it; run.json, which marks it, goes last."""
    for path in sorted(_files(folder), key=lambda path: path.name == RUN):
        if _is_ours(path):
            path.unlink()
    with suppress(OSError):
        folder.rmdir()


def abandon(folder: Path, *, shared: bool) -> None:
    """Gives up a run that can never be finished, so that none resumes it.

    Args:
        shared: Whether other processes still read the list: then it stays, for the next run to remove.
    """
    if shared:
        (folder / RUN).unlink(missing_ok=True)
    else:
        discard(folder)


def find_equal_name(files: Iterable[str]) -> str | None:
    """A file name that two of the files share, if any; the names are kept on the disk."""
    with closing(sqlite3.connect("")) as database:
        database.execute("CREATE TABLE names (name BLOB PRIMARY KEY) WITHOUT ROWID")
        for file in files:
            try:
                database.execute("INSERT INTO names VALUES (?)", (os.fsencode(Path(file).name),))
            except sqlite3.IntegrityError:
                return Path(file).name
    return None


def describe_changes(former: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two identities; empty if nothing does."""
    return ", ".join(f"{k} {v!r} instead of {former.get(k)!r}" for k, v in now.items() if v != former.get(k))


def _part_path(folder: Path, part: int) -> Path:
    return folder / f"answers-{part:05d}.jsonl"


def _files(folder: Path) -> list[Path]:
    """What has the name of a file of a journal."""
    return [p for p in folder.glob("*") if any(re.fullmatch(name, p.name) for name in BEGINNINGS)]


def _is_ours(path: Path) -> bool:
    """Whether a file has the name and the beginning of one of a journal, or is empty, or zeros after a power cut."""
    if not path.is_file():
        return False
    with open(path, "rb") as stream:
        beginning = stream.read(64)
    signs = (sign for name, sign in BEGINNINGS.items() if re.fullmatch(name, path.name))
    return not beginning.strip(b"\0") or any(re.match(sign, beginning) for sign in signs)


def _refuse_foreign(folder: Path) -> None:
    """Raises InputError for what is in the place of a journal and was not written by one."""
    found = [folder] if folder.exists() and not folder.is_dir() else [p for p in _files(folder) if not _is_ours(p)]
    if found:
        kind = "a folder" if found[0].is_dir() else "another file"
        raise InputError(
            f"expected {found[0]} to be as this program wrote it, found {kind}; move it away, or remove {folder} to "
            "start again"
        )


def _read_run(folder: Path) -> dict[str, Any] | None:
    """The content of run.json; None if it is missing or, which is said, damaged."""
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        if isinstance(run, dict):
            return run
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError):
        pass
    print(f"warning: {folder / RUN} is damaged, so its answers cannot be used: the run starts again", file=sys.stderr)
    return None


def _write_run(folder: Path, run: dict[str, Any]) -> None:
    write_text(folder / RUN, json.dumps({"written_by": "seedling-hf"} | run, indent=2) + "\n")


def _hash_list(folder: Path, count: int) -> str | None:
    """SHA-256 of the list, its offsets and its length; None if one of them is missing."""
    digest = hashlib.sha256(str(count).encode())
    try:
        for name in (IMAGES, OFFSETS):
            with open(folder / name, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError:
        return None
    return digest.hexdigest()


def _format_answer(answer: Answer) -> bytes:
    text = json.dumps(answer).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _read_answer(line: bytes) -> Answer:
    """The answer of a line; ValueError for one that is not whole."""
    checksum, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        raise ValueError("expected a line with its checksum")
    file, ranking, reason, plants, certainty = json.loads(text)
    plants = tuple(Plant(tuple(box), [tuple(pair) for pair in ranking], word) for box, ranking, word in plants)
    return Answer(file, [tuple(pair) for pair in ranking], reason, plants, certainty)


def _whole_batches(file: Any, batches: Iterable[Sequence[str]]) -> tuple[int, int]:
    """How many of the batches are answered completely, and where these answers end."""
    file.seek(0)
    done = end = 0
    for files in batches:
        for expected in files:
            try:
                if _read_answer(file.readline()).file != expected:
                    return done, end
            except ValueError:
                return done, end
        done, end = done + 1, file.tell()
    return done, end
