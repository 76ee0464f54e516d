"""What a model says of an image, and the files and tables that tell it."""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl"}
FORMATS = ("csv", "jsonl", "kaggle")
SURE, NOT_SURE = "sure", "not sure"
Species = Sequence[tuple[str, float]]  # the most probable first, with their probabilities


class Plant(NamedTuple):
    """One of the plants in a photograph: its box (left, top, right, bottom) in pixels, and its species."""

    box: tuple[int, int, int, int]
    species: Species


class Answer(NamedTuple):
    """The species of one image, or the plants of a photograph; or why there are none."""

    file: str
    species: Species
    reason: str | None = None
    plants: Sequence[Plant] = ()


def format_of(path: str | Path | None) -> str:
    """The format that the suffix of a file stands for; CSV unless it says otherwise."""
    return SUFFIXES.get(Path(path).suffix.lower(), "csv") if path else "csv"


def certainty(species: Species, threshold: float) -> str:
    """`not sure` where the most probable species has less than `threshold`."""
    return SURE if species[0][1] >= threshold else NOT_SURE


class AnswerWriter:
    """Writes answers one after another.

    Args:
        stream: Where to; `open_text` opens a file.
        output_format: `csv`: file, species, probability, a row for each species named; `jsonl`: an object an image;
            `kaggle`: bare file names and species.
        threshold: Adds whether the model is sure: the most probable species has at least this probability.
        tiles: Writes each plant of a photograph for itself, with its number and its box behind the file.
    """

    def __init__(
        self, stream: TextIO, output_format: str, threshold: float | None = None, *, tiles: bool = False
    ) -> None:
        self.stream, self.output_format, self.threshold, self.tiles = stream, output_format, threshold, tiles
        self.csv = csv.writer(stream, lineterminator="\n")

    def write_heading(self) -> None:
        if self.output_format == "kaggle":
            self.csv.writerow(["file", "species"])
        elif self.output_format == "csv":
            place = ["plant", "left", "top", "right", "bottom"] if self.tiles else []
            sure = [] if self.threshold is None else ["certainty"]
            self.csv.writerow(["file", *place, "species", "probability", *sure])

    def write(self, answer: Answer) -> None:
        """Writes what is known of an image; one that could not be read, or that shows no plant, has no row."""
        if answer.reason is not None:
            return
        if not self.tiles:
            self._write({"file": answer.file}, answer.species)
        for number, (box, species) in enumerate(answer.plants, 1):
            left, top, right, bottom = box
            place = {"plant": number, "left": left, "top": top, "right": right, "bottom": bottom}
            self._write({"file": answer.file} | place, species)

    def _write(self, place: dict[str, Any], species: Species) -> None:
        sure = [] if self.threshold is None else [certainty(species, self.threshold)]
        if self.output_format == "kaggle":
            self.csv.writerow([Path(place["file"]).name, species[0][0]])
        elif self.output_format == "csv":
            self.csv.writerows([*place.values(), name, f"{p:.6f}", *sure] for name, p in species)
        else:
            ranked = [{"species": name, "probability": round(p, 6)} for name, p in species]
            row = {**place, **ranked[0], **({"certainty": sure[0]} if sure else {})}
            if len(ranked) > 1:
                row["top_k"] = ranked
            self.stream.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def open_text(path: str | Path, mode: str = "w") -> Iterator[TextIO]:
    """A file for answers; names that are not UTF-8 keep their bytes."""
    with open(path, mode, encoding="utf-8", errors="surrogateescape", newline="") as stream:
        yield stream


def format_table(answers: Sequence[Answer], threshold: float | None = None) -> str:
    """Answers for a terminal, with a bar for each probability; empty where there are none."""
    rows = [(answer.file, answer.species) for answer in answers if answer.species]
    rows += [(f"{a.file}  {number}", plant.species) for a in answers for number, plant in enumerate(a.plants, 1)]
    place_width = max((len(place) for place, _ in rows), default=0)
    name_width = max((len(name) for _, species in rows for name, _ in species), default=0)
    return "\n".join(
        f"{place if rank == 0 else '':<{place_width}}  {name:<{name_width}}  {probability:6.1%}  "
        f"{'█' * round(20 * probability)}{_doubt(species, threshold) if rank == 0 else ''}".rstrip()
        for place, species in rows
        for rank, (name, probability) in enumerate(species)
    )


def _doubt(species: Species, threshold: float | None) -> str:
    return f"  {NOT_SURE}" if threshold is not None and certainty(species, threshold) == NOT_SURE else ""
