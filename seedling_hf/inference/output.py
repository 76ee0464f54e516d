"""Where predictions go: into a file with a list of failed files beside it, or to the terminal."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from seedling_hf.escaping import data_output, format_count, one_line
from seedling_hf.files import open_text, replacing, write_csv
from seedling_hf.inference.answers import Answer, AnswerWriter, format_table
from seedling_hf.inference.journal import Journal
from seedling_hf.inference.predict_arguments import PredictArguments, failed_path
from seedling_hf.inference.tally import Tally

LONGEST_TABLE = 20
MOST_FILES_PRINTED = 100


def build_writer(arguments: PredictArguments, words: Sequence[str], stream: TextIO) -> AnswerWriter:
    """The writer that the flags describe; `words` are the certainties that answers may have."""
    return AnswerWriter(
        stream, arguments.format, with_certainty=bool(words), top_k=arguments.top_k, tiles=arguments.tiles
    )  # fmt: skip


def write_and_show(arguments: PredictArguments, words: Sequence[str], journal: Journal) -> None:
    """Writes the answers of a finished run, and prints a table if they are few, what failed, and a summary.

    `words` are the certainties that answers may have.
    """
    path = arguments.output_path
    if path:
        with replacing(path) as temporary, open_text(temporary) as stream:
            _write(arguments, words, journal, stream)
        write_failed(path, journal.failed())
    tally = Tally(words, tiles=arguments.tiles)
    tally.add(journal.answers())
    if (tally.plants if arguments.tiles else journal.num_images) <= LONGEST_TABLE and (path or sys.stdout.isatty()):
        if shown := [answer for answer in journal.answers() if answer.ranking or answer.plants]:
            print(format_table(shown))
    elif not path:
        _write(arguments, words, journal, data_output())
    if path:
        of = f"{format_count(tally.plants, 'plant')} in " if arguments.tiles else ""
        print(f"predictions for {of}{format_count(tally.images, arguments.noun)} are in {path}", flush=True)
    if arguments.tiles:
        print_without_plants(journal.answers())
    print_failed(journal.failed(), path)
    print_tally(tally)


def _write(arguments: PredictArguments, words: Sequence[str], journal: Journal, stream: TextIO) -> None:
    writer = build_writer(arguments, words, stream)
    writer.write_heading()
    for answer in journal.answers():
        writer.write(answer)
    writer.write_end()


def write_failed(output_file: Path, failed: Iterator[Answer]) -> None:
    """Writes the list of failed files beside the output, or removes that of an earlier run if there are none."""
    path, first = failed_path(output_file), next(failed, None)
    if first is None:
        path.unlink(missing_ok=True)
        return
    write_csv(path, ["file", "reason"], ((answer.file, answer.reason) for answer in chain([first], failed)))


def print_failed(failed: Iterable[Answer], output_file: Path | None = None) -> None:
    """Prints the files that cannot be decoded, and where all of them are listed if there is an output file."""
    further = [f"all of them are listed in {failed_path(output_file)}"] if output_file else []
    _print_list("failed to decode", (f"{answer.file}: {answer.reason}" for answer in failed), further)


def print_tally(tally: Tally) -> None:
    """Prints how many answers there are of each class and certainty, if there are some."""
    if line := tally.describe():
        print(line, file=sys.stderr, flush=True)


def print_without_plants(answers: Iterable[Answer]) -> None:
    """Prints the photographs in which no plant was found: they have no row."""
    _print_list("no plant found", (answer.file for answer in answers if answer.reason is None and not answer.plants))


def _print_list(heading: str, items: Iterator[str], further: Sequence[str] = ()) -> None:
    listed = [one_line(item) for item in islice(items, MOST_FILES_PRINTED)]
    if not listed:
        return
    more = sum(1 for _ in items)
    lines = [*listed, *([f"and {more:,} more"] if more else []), *further]
    print(f"{heading}: {len(listed) + more:,}", *lines, sep="\n  ", file=sys.stderr, flush=True)
