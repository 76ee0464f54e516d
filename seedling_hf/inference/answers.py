"""What a model predicts for an image, and the files and tables that show it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from seedling_hf.escaping import CsvWriter, one_line, pad, width_of

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl"}
FORMATS = ("csv", "jsonl", "kaggle")
Ranking = Sequence[tuple[str, float]]  # classes with their probabilities, the most probable first


class Plant(NamedTuple):
    """A plant in a photograph: its box (left, top, right, bottom) in pixels, and the ranking of its classes."""

    box: tuple[int, int, int, int]
    ranking: Ranking


class Answer(NamedTuple):
    """The ranking of an image, or the plants of a photograph; or the reason why there are none."""

    file: str
    ranking: Ranking
    reason: str | None = None
    plants: Sequence[Plant] = ()


def format_of(path: str | Path | None) -> str:
    """The format for the suffix of a file: CSV unless it is another one's."""
    return SUFFIXES.get(Path(path).suffix.lower(), "csv") if path else "csv"


def is_sure(ranking: Ranking, threshold: float | None) -> bool:
    """Whether the most probable class has at least the probability `threshold`; always without one."""
    return threshold is None or ranking[0][1] >= threshold


def format_count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class AnswerWriter:
    """Writes answers one after another.

    Args:
        output_format: `csv`: file, class, probability, a row for each class of the ranking; `jsonl`: an object an
            image; `kaggle`: bare file names and species.
        threshold: Adds whether the model is sure: the most probable class has at least this probability.
        tiles: Writes each plant of a photograph, with its number and its box after the file.
    """

    def __init__(
        self, stream: TextIO, output_format: str, threshold: float | None = None, *, tiles: bool = False
    ) -> None:
        self.stream, self.output_format, self.threshold, self.tiles = stream, output_format, threshold, tiles
        self.csv = CsvWriter(stream)

    def write_heading(self) -> None:
        if self.output_format == "kaggle":
            self.csv.writerow(["file", "species"])
        elif self.output_format == "csv":
            place = ["plant", "left", "top", "right", "bottom"] if self.tiles else []
            sure = [] if self.threshold is None else ["certainty"]
            self.csv.writerow(["file", *place, "class", "probability", *sure])

    def write(self, answer: Answer) -> None:
        """Writes the rows of an image: none if it cannot be decoded or shows no plant."""
        if answer.reason is not None:
            return
        if not self.tiles:
            self._write({"file": answer.file}, answer.ranking)
        for number, (box, ranking) in enumerate(answer.plants, 1):
            place = dict(zip(("left", "top", "right", "bottom"), box, strict=True))
            self._write({"file": answer.file, "plant": number, **place}, ranking)

    def _write(self, place: dict[str, Any], ranking: Ranking) -> None:
        certainty = "sure" if is_sure(ranking, self.threshold) else "not sure"
        sure = {} if self.threshold is None else {"certainty": certainty}
        if self.output_format == "kaggle":
            self.csv.writerow([Path(place["file"]).name, ranking[0][0]])
        elif self.output_format == "csv":
            self.csv.writerows([*place.values(), name, f"{p:.6f}", *sure.values()] for name, p in ranking)
        else:
            ranked = [{"class": name, "probability": round(p, 6)} for name, p in ranking]
            row = place | ranked[0] | sure | ({"top_k": ranked} if len(ranked) > 1 else {})
            self.stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def format_table(answers: Sequence[Answer], threshold: float | None = None) -> str:
    """Answers for a terminal, with a bar for each probability; empty where there are none."""
    rows = [(answer.file, answer.ranking) for answer in answers if answer.ranking]
    rows += [(f"{a.file}  {number}", plant.ranking) for a in answers for number, plant in enumerate(a.plants, 1)]
    rows = [(one_line(place), [(one_line(name), p) for name, p in ranking]) for place, ranking in rows]
    place_width = max((width_of(place) for place, _ in rows), default=0)
    name_width = max((width_of(name) for _, ranking in rows for name, _ in ranking), default=0)
    return "\n".join(
        f"{pad(place if rank == 0 else '', place_width)}  {pad(name, name_width)}  {probability:6.1%}  "
        f"{'█' * round(20 * probability)}{'' if rank or is_sure(ranking, threshold) else '  not sure'}".rstrip()
        for place, ranking in rows
        for rank, (name, probability) in enumerate(ranking)
    )
