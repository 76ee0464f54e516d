"""What a model predicts for an image, and the files and tables that show it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from seedling_hf.errors import InputError
from seedling_hf.escaping import CsvWriter, one_line, pad, width_of

SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"}
FORMATS = ("csv", "jsonl", "json", "kaggle")
SURE, NOT_SURE, UNFAMILIAR = "sure", "not sure", "unfamiliar"
MARKED = (NOT_SURE, UNFAMILIAR)  # where a person reads answers one by one
Ranking = Sequence[tuple[str, float]]  # classes with their probabilities, the most probable first


class Plant(NamedTuple):
    """A plant in a photograph: its box (left, top, right, bottom) in pixels, and what is said of it."""

    box: tuple[int, int, int, int]
    ranking: Ranking
    certainty: str | None = None


class Answer(NamedTuple):
    """The ranking of an image and its certainty, or the plants of a photograph; or the reason why there are none.

    `certainty` is `SURE`, `NOT_SURE`, `UNFAMILIAR`, or None where the model does not say.
    """

    file: str
    ranking: Ranking
    reason: str | None = None
    plants: Sequence[Plant] = ()
    certainty: str | None = None


def choose_format(path: str | Path | None, format: str | None = None) -> str:
    """The format of a file: the one that is given, or else that of its suffix; CSV on the terminal.

    Raises:
        InputError: for a suffix that says nothing, or something else than the format.
    """
    if path is None:
        return format or "csv"
    meant = SUFFIXES.get(Path(path).suffix.lower())
    if format is None and meant is None:
        *names, last = SUFFIXES
        raise InputError(f"expected --output_file to end in {', '.join(names)} or {last}, found {path}; rename it")
    if format and meant not in (None, "csv" if format == "kaggle" else format):
        raise InputError(f"expected an --output_file for --format {format}, found {path}; rename it or change --format")
    return format or meant


class AnswerWriter:
    """Writes answers one after another.

    Args:
        format: `csv`: file, class, probability, a row for each class of the ranking; `jsonl`: an object an image;
            `json`: a list of these objects; `kaggle`: bare file names and species.
        with_certainty: Adds the certainty of each answer. It says nothing of the classes after the first.
        top_k: Length of the rankings; above 1, each class has its rank.
        tiles: Writes each plant of a photograph, with its number and its box after the file.
    """

    def __init__(
        self, stream: TextIO, format: str, *, with_certainty: bool = False, top_k: int = 1, tiles: bool = False
    ) -> None:
        self.stream, self.format, self.with_certainty = stream, format, with_certainty
        self.top_k, self.tiles = top_k, tiles
        self.csv = CsvWriter(stream)
        self.separator = "\n"

    def write_heading(self) -> None:
        if self.format == "kaggle":
            self.csv.writerow(["file", "species"])
        elif self.format == "csv":
            place = ["plant", "left", "top", "right", "bottom"] if self.tiles else []
            rank = ["rank"] if self.top_k > 1 else []
            certainty = ["certainty"] if self.with_certainty else []
            self.csv.writerow(["file", *place, *rank, "class", "probability", *certainty])
        elif self.format == "json":
            self.stream.write("[")

    def write_end(self) -> None:
        if self.format == "json":
            self.stream.write("\n]\n")

    def write(self, answer: Answer) -> None:
        """Writes the rows of an image: none if it cannot be decoded or shows no plant."""
        if answer.reason is not None:
            return
        if not self.tiles:
            self._write({"file": answer.file}, answer.ranking, answer.certainty)
        for number, plant in enumerate(answer.plants, 1):
            place = dict(zip(("left", "top", "right", "bottom"), plant.box, strict=True))
            self._write({"file": answer.file, "plant": number, **place}, plant.ranking, plant.certainty)

    def _write(self, place: dict[str, Any], ranking: Ranking, certainty: str | None) -> None:
        if self.format == "kaggle":
            self.csv.writerow([Path(place["file"]).name, ranking[0][0]])
        elif self.format == "csv":
            for number, (name, p) in enumerate(ranking, 1):
                rank = [number] if self.top_k > 1 else []
                word = [certainty if number == 1 else ""] if self.with_certainty else []
                self.csv.writerow([*place.values(), *rank, name, f"{p:.6f}", *word])
        else:
            row = place | {"class": ranking[0][0], "probability": round(ranking[0][1], 6)}
            if self.with_certainty:
                row["certainty"] = certainty
            if self.top_k > 1:
                ranked = enumerate(ranking, 1)
                row["top_k"] = [{"rank": n, "class": name, "probability": round(p, 6)} for n, (name, p) in ranked]
            self._write_object(json.dumps(row, ensure_ascii=False))

    def _write_object(self, row: str) -> None:
        self.stream.write(f"{self.separator}{row}" if self.format == "json" else f"{row}\n")
        self.separator = ",\n"


def format_table(answers: Sequence[Answer]) -> str:
    """Answers for a terminal, with a bar for each probability; empty where there are none."""
    rows = [(answer.file, answer) for answer in answers if answer.ranking]
    rows += [(f"{a.file}  {number}", plant) for a in answers for number, plant in enumerate(a.plants, 1)]
    rows = [
        (one_line(place), [(one_line(name), p) for name, p in said.ranking], said.certainty) for place, said in rows
    ]
    place_width = max((width_of(place) for place, *_ in rows), default=0)
    name_width = max((width_of(name) for _, ranking, _ in rows for name, _ in ranking), default=0)
    return "\n".join(
        f"{pad(place if rank == 0 else '', place_width)}  {pad(name, name_width)}  {probability:6.1%}  "
        f"{'█' * round(20 * probability)}{f'  {certainty}' if not rank and certainty in MARKED else ''}".rstrip()
        for place, ranking, certainty in rows
        for rank, (name, probability) in enumerate(ranking)
    )
