"""Where predictions go: into a file with a list of failed files beside it, or to the terminal."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from seedling_hf.files import replacing
from seedling_hf.inference.answers import Answer, AnswerWriter, format_table, open_text
from seedling_hf.inference.failed_files import print_failed, print_without_plants, write_failed
from seedling_hf.inference.journal import Journal

LONGEST_TABLE = 20


@dataclass(frozen=True, kw_only=True)
class Output:
    """The file to write and its form; see `AnswerWriter`.

    Attributes:
        path: None writes to the terminal.
    """

    path: Path | None
    output_format: str
    threshold: float | None
    tiles: bool

    def writer(self, stream: TextIO) -> AnswerWriter:
        return AnswerWriter(stream, self.output_format, self.threshold, tiles=self.tiles)

    def write_and_show(self, journal: Journal) -> None:
        """Writes the answers of a finished run, and prints a table if they are few, a summary and what failed."""
        if self.path:
            with replacing(self.path) as temporary, open_text(temporary) as stream:
                self._write(journal.answers(), stream)
            write_failed(self.path, journal.failed())
        plants = sum(len(answer.plants) for answer in journal.answers()) if self.tiles else 0
        is_short = (plants if self.tiles else journal.num_images) <= LONGEST_TABLE
        if is_short and (self.path or sys.stdout.isatty()):
            if shown := [answer for answer in journal.answers() if answer.ranking or answer.plants]:
                print(format_table(shown, self.threshold))
        elif not self.path:
            self._write(journal.answers(), sys.stdout)
        if self.path:
            self.print_summary(sum(answer.reason is None for answer in journal.answers()), plants)
        if self.tiles:
            print_without_plants(journal.answers())
        print_failed(journal.failed(), self.path)

    def print_summary(self, count: int, plants: int | None = None, file: TextIO | None = None) -> None:
        """How many images, or plants in photographs, have a prediction in the file."""
        kind = "photographs" if self.tiles else "images"
        of = f"{plants:,} plants in " if self.tiles and plants is not None else ""
        print(f"predictions for {of}{count:,} {kind} are in {self.path}", file=file)

    def _write(self, answers: Iterable[Answer], stream: TextIO) -> None:
        writer = self.writer(stream)
        writer.write_heading()
        for answer in answers:
            writer.write(answer)
