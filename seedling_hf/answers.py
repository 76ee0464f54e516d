"""What a model says of a picture, and the files and tables that tell it."""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl"}
FORMATS = ("csv", "jsonl", "kaggle")
SURE, NOT_SURE = "sure", "not sure"


class Answer(NamedTuple):
    """The species of one picture, the most probable first, with their probabilities; or why there are none."""

    file: str
    species: Sequence[tuple[str, float]]
    reason: str | None = None


def format_of(path: str | Path | None) -> str:
    """The format that the suffix of a file stands for; CSV unless it says otherwise."""
    return SUFFIXES.get(Path(path).suffix.lower(), "csv") if path else "csv"


def certainty(answer: Answer, threshold: float) -> str:
    """`not sure` where the most probable species has less than `threshold`."""
    return SURE if answer.species[0][1] >= threshold else NOT_SURE


class AnswerWriter:
    """Writes answers one after another.

    Args:
        stream: Where to; `open_text` opens a file.
        output_format: `csv`: file, species, probability, a row for each species named; `jsonl`: an object a picture;
            `kaggle`: bare file names and species.
        threshold: Adds whether the model is sure: the most probable species has at least this probability.
    """

    def __init__(self, stream: TextIO, output_format: str, threshold: float | None = None) -> None:
        self.stream, self.output_format, self.threshold = stream, output_format, threshold
        self.csv = csv.writer(stream, lineterminator="\n")

    def write_heading(self) -> None:
        if self.output_format == "kaggle":
            self.csv.writerow(["file", "species"])
        elif self.output_format == "csv":
            self.csv.writerow(["file", "species", "probability", *([] if self.threshold is None else ["certainty"])])

    def write(self, answer: Answer) -> None:
        """Writes what is known of a picture; one that could not be read has no row."""
        if answer.reason is not None:
            return
        sure = [] if self.threshold is None else [certainty(answer, self.threshold)]
        if self.output_format == "kaggle":
            self.csv.writerow([Path(answer.file).name, answer.species[0][0]])
        elif self.output_format == "csv":
            self.csv.writerows([answer.file, name, f"{p:.6f}", *sure] for name, p in answer.species)
        else:
            ranked = [{"species": name, "probability": round(p, 6)} for name, p in answer.species]
            row = {"file": answer.file, **ranked[0], **({"certainty": sure[0]} if sure else {})}
            if len(ranked) > 1:
                row["top_k"] = ranked
            self.stream.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def open_text(path: str | Path, mode: str = "w") -> Iterator[TextIO]:
    """A file for answers; names that are not UTF-8 keep their bytes."""
    with open(path, mode, encoding="utf-8", errors="surrogateescape", newline="") as stream:
        yield stream


def format_table(answers: Sequence[Answer], threshold: float | None = None) -> str:
    """Answers for a terminal, with a bar for each probability."""
    answers = [answer for answer in answers if answer.reason is None]
    file_width = max(len(answer.file) for answer in answers)
    name_width = max(len(name) for answer in answers for name, _ in answer.species)
    return "\n".join(
        f"{answer.file if rank == 0 else '':<{file_width}}  {name:<{name_width}}  {probability:6.1%}  "
        f"{'█' * round(20 * probability)}{_doubt(answer, threshold) if rank == 0 else ''}".rstrip()
        for answer in answers
        for rank, (name, probability) in enumerate(answer.species)
    )


def _doubt(answer: Answer, threshold: float | None) -> str:
    return f"  {NOT_SURE}" if threshold is not None and certainty(answer, threshold) == NOT_SURE else ""
