"""Files without a prediction: listed at the end of a run, and in a CSV file beside its output."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from seedling_hf.files import write_csv
from seedling_hf.inference.answers import Answer

MOST_FILES_PRINTED = 100


def failed_path(output_file: Path) -> Path:
    """The list of failed files that belongs to an output file."""
    return output_file.with_name(f"{output_file.stem}.failed.csv")


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


def print_without_plants(answers: Iterable[Answer]) -> None:
    """Prints the photographs in which no plant was found: they have no row."""
    _print_list("no plant found", (answer.file for answer in answers if answer.reason is None and not answer.plants))


def _print_list(heading: str, items: Iterator[str], further: Sequence[str] = ()) -> None:
    listed = list(islice(items, MOST_FILES_PRINTED))
    if not listed:
        return
    more = sum(1 for _ in items)
    lines = [*listed, *([f"and {more:,} more"] if more else []), *further]
    print(f"{heading}: {len(listed) + more:,}", *lines, sep="\n  ", file=sys.stderr, flush=True)
