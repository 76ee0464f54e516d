"""Where predictions go: into a file with a list of failed files beside it, or to the terminal."""

import sys
from typing import TextIO

from seedling_hf.files import replacing
from seedling_hf.inference.answers import AnswerWriter, format_count, format_table, open_text
from seedling_hf.inference.failed_files import print_failed, print_without_plants, write_failed
from seedling_hf.inference.journal import Journal
from seedling_hf.inference.predict_arguments import PredictArguments

LONGEST_TABLE = 20


def build_writer(arguments: PredictArguments, stream: TextIO) -> AnswerWriter:
    return AnswerWriter(stream, arguments.output_format, arguments.threshold, tiles=arguments.tiles)


def write_and_show(arguments: PredictArguments, journal: Journal) -> None:
    """Writes the answers of a finished run, and prints a table if they are few, a summary and what failed."""
    path = arguments.output_path
    if path:
        with replacing(path) as temporary, open_text(temporary) as stream:
            _write(arguments, journal, stream)
        write_failed(path, journal.failed())
    plants = sum(len(answer.plants) for answer in journal.answers()) if arguments.tiles else 0
    if (plants if arguments.tiles else journal.num_images) <= LONGEST_TABLE and (path or sys.stdout.isatty()):
        if shown := [answer for answer in journal.answers() if answer.ranking or answer.plants]:
            print(format_table(shown, arguments.threshold))
    elif not path:
        _write(arguments, journal, sys.stdout)
    if path:
        count = sum(answer.reason is None for answer in journal.answers())
        of = f"{format_count(plants, 'plant')} in " if arguments.tiles else ""
        print(f"predictions for {of}{format_count(count, arguments.noun)} are in {path}")
    if arguments.tiles:
        print_without_plants(journal.answers())
    print_failed(journal.failed(), path)


def _write(arguments: PredictArguments, journal: Journal, stream: TextIO) -> None:
    writer = build_writer(arguments, stream)
    writer.write_heading()
    for answer in journal.answers():
        writer.write(answer)
