"""A long list of images and their answers so far, on the disk: a killed run can be resumed, and memory is constant.

    answers.csv.partial/images.jsonl        the images in their order, a JSON string a line
    answers.csv.partial/offsets.bin           where each batch begins in it, int64
    answers.csv.partial/run.json              all that the answers depend on; written last
    answers.csv.partial/answers-00000.jsonl   the answers of process 0, a line an image, appended batch by batch

The list is made once, and each process answers one stretch of it in order: the number of complete lines shows where to
resume, and the answers of one process after another are in the order of the list.
"""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import numpy as np

from seedling_hf.errors import InputError
from seedling_hf.files import write_text
from seedling_hf.inference.answers import Answer, Plant


class Journal(Sequence):
    """The batches of a list of images, as lists of files, and the answers to them, in a folder that `prepare` made.

    Attributes:
        num_images: Length of the list.
        checked: Whether every image was decoded before the run began.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        self.num_images, self.num_parts, self.checked = run["num_images"], run["num_parts"], run["checked"]
        self.batch_size = run["batch_size"]
        self.offsets = np.memmap(folder / "offsets.bin", dtype=np.int64, mode="r")

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, number: int) -> list[str]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        with open(self.folder / "images.jsonl", "rb") as stream:
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
        run = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        write_text(self.folder / "run.json", json.dumps(run | {"checked": True}, indent=2) + "\n")

    def answers(self) -> Iterator[Answer]:
        """All answers in the order of the list; a RuntimeError if they are not one for each image."""
        count = 0
        for part in range(self.num_parts):
            with open(_part_path(self.folder, part), encoding="utf-8") as stream:
                for line in stream:
                    count += 1
                    yield _read_answer(line)
        if count != self.num_images:
            raise RuntimeError(f"expected an answer for each of {self.num_images} images, found {count}")

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
        self.file.write("".join(json.dumps(answer) + "\n" for answer in answers).encode())
        self.file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()


class Claim:
    """Locks an output, so that a second run cannot write it until this process ends.

    Raises:
        InputError: if another run has locked it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        import fcntl  # which Windows lacks

        self.file = open(folder / "lock", "wb")  # noqa: SIM115  held until the process ends
        try:
            # Not flock, which the loader's workers would hold for a while after this process is killed.
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            self.file.close()
            raise InputError(
                f"expected {folder} to be free, found another run using it; wait, or name another file"
            ) from error
        except OSError:  # a file system without locks
            pass

    def release(self) -> None:
        self.file.close()


def prepare(
    folder: Path, images: Iterable[str], *, identity: dict[str, Any], batch_size: int, num_parts: int
) -> Journal:
    """Creates a journal, or opens that of a run that stopped.

    Args:
        images: Files in order; ignored where there is a journal.
        identity: All that the answers depend on.

    Raises:
        InputError: if the run that stopped had another identity.
    """
    run = identity | {"batch_size": batch_size, "num_parts": num_parts}
    if (folder / "run.json").exists():
        if changes := describe_changes(json.loads((folder / "run.json").read_text(encoding="utf-8")), run):
            raise InputError(
                f"expected to resume the run with its answers in {folder}, found {changes}; repeat its command, or "
                "remove that folder to start again"
            )
        return Journal(folder)
    discard(folder)
    folder.mkdir(parents=True, exist_ok=True)
    count = position = 0
    with open(folder / "images.jsonl", "wb") as names, open(folder / "offsets.bin", "wb") as offsets:
        for count, image in enumerate(images, 1):
            if count % batch_size == 1 % batch_size:
                offsets.write(np.int64(position).tobytes())
            position += names.write(json.dumps(image).encode() + b"\n")
    if count == 0:
        discard(folder)
        raise InputError("expected images, found none; name another folder")
    write_text(folder / "run.json", json.dumps(run | {"num_images": count, "checked": False}, indent=2) + "\n")
    return Journal(folder)


def discard(folder: Path) -> None:
    """Removes a journal; run.json goes first, so that one half removed does not count."""
    (folder / "run.json").unlink(missing_ok=True)
    for path in folder.iterdir() if folder.exists() else ():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


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


def _read_answer(line: str | bytes) -> Answer:
    file, ranking, reason, plants = json.loads(line)
    plants = tuple(Plant(tuple(box), [tuple(pair) for pair in ranking]) for box, ranking in plants)
    return Answer(file, [tuple(pair) for pair in ranking], reason, plants)


def _whole_batches(file: Any, batches: Iterable[Sequence[str]]) -> tuple[int, int]:
    """How many of the batches are answered completely, and where these answers end."""
    file.seek(0)
    done = end = 0
    for files in batches:
        for expected in files:
            line = file.readline()
            try:
                if not line.endswith(b"\n") or _read_answer(line).file != expected:
                    return done, end
            except (ValueError, TypeError):
                return done, end
        done, end = done + 1, file.tell()
    return done, end
