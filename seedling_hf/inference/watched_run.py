"""A run that watches folders: it answers images as they arrive, until a signal stops it."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from io import StringIO
from itertools import islice
from pathlib import Path

from seedling_hf.data.images import map_in_threads
from seedling_hf.data.listing import list_images
from seedling_hf.errors import InputError, NonFiniteError
from seedling_hf.escaping import data_output, format_count
from seedling_hf.inference.answers import AnswerWriter
from seedling_hf.inference.ledger import SUFFIX, Ledger
from seedling_hf.inference.output import (
    build_writer,
    print_failed,
    print_tally,
    print_without_plants,
    write_failed,
)
from seedling_hf.inference.predict_arguments import PredictArguments
from seedling_hf.inference.predictor import ImagePredictor
from seedling_hf.inference.tally import Tally
from seedling_hf.inference.watched_output import WatchedOutput
from seedling_hf.progress import idling
from seedling_hf.signals import Stopped, StopSignal

SECONDS_BETWEEN_LOOKS = 1.0


def predict_watched(arguments: PredictArguments, predictor: ImagePredictor) -> None:
    """Look → answer what is new → wait, until a signal comes.

    Raises:
        InputError: for an output file that no watch has made, that of a watch with another identity, or a model that
            answers NaN or infinity.
    """
    path, loader, words = arguments.output_path, predictor.loader, predictor.certainty.words
    ledger_path = Path(f"{path}{SUFFIX}") if path else ""
    if path and path.exists() and not ledger_path.exists():
        raise InputError(f"expected a new --output_file, or one that --watch has made, found {path}; name another")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        is_new = not (path and path.is_file() and path.stat().st_size)
        ledger = opened.enter_context(Ledger(ledger_path, arguments.identity, is_new=is_new))
        output, tally = _open_output(opened, arguments, words, ledger), Tally(words, tiles=arguments.tiles)
        stop = opened.enter_context(StopSignal("ending the watch"))

        def answer(files: list[str]) -> None:
            with stop.raising():
                images = list(map_in_threads(loader, files, max(arguments.dataloader_num_workers, 1)))
            answers = predictor(loader.collate(files, images))
            _write(output, _format(arguments, words, lambda writer: [writer.write(each) for each in answers]))
            ledger.enter(answers, *([output.length, output.inode] if output else [0]))
            tally.add(answers)
            if arguments.tiles:
                print_without_plants(answers)

        print(f"watching {', '.join(arguments.images)}; Ctrl-C stops it", file=sys.stderr, flush=True)
        try:
            with suppress(Stopped), idling():
                _watch(arguments.images, ledger, answer, predictor.batch_size, stop)
        except NonFiniteError:
            if output and not ledger.count and path.is_file() and path.read_bytes() == output.heading:
                opened.close()
                path.unlink()
                ledger_path.unlink()
            raise
        if path:
            write_failed(path, ledger.failed())
            print(f"predictions for {format_count(ledger.count, arguments.noun)} are in {path}", file=sys.stderr)
        print_failed(ledger.failed(), path)
        print_tally(tally)


def _open_output(
    opened: ExitStack, arguments: PredictArguments, words: Sequence[str], ledger: Ledger
) -> WatchedOutput | None:
    """The output file, resumed where the ledger says; None for the terminal. Both have the heading then."""
    heading = _format(arguments, words, AnswerWriter.write_heading)
    if not arguments.output_path:
        _write(None, heading)
        return None
    encoded = heading.encode("utf-8", "surrogateescape")
    output = opened.enter_context(WatchedOutput(arguments.output_path, encoded, arguments.images))
    output.resume(ledger.length, ledger.inode, ledger.is_entered)
    ledger.enter([], output.length, output.inode)
    return output


def _format(arguments: PredictArguments, words: Sequence[str], write: Callable[[AnswerWriter], object]) -> str:
    stream = StringIO(newline="")
    write(build_writer(arguments, words, stream))
    return stream.getvalue()


def _write(output: WatchedOutput | None, rows: str) -> None:
    if output:
        output.append(rows.encode("utf-8", "surrogateescape"))
    else:
        stream = data_output()
        stream.write(rows)
        stream.flush()


def _watch(
    images: list[str], ledger: Ledger, answer: Callable[[list[str]], None], batch_size: int, stop: StopSignal
) -> None:
    """Looks for new images again and again, and has them answered in batches."""
    complaint = None
    while not stop.received:
        started = time.monotonic()
        try:
            new = ledger.new(list_images(images))
            while not stop.received and (files := list(islice(new, batch_size))):
                answer(files)
        except NonFiniteError:
            raise
        except InputError as error:  # a folder may be missing for a while
            if complaint != str(error):
                complaint = str(error)
                print(f"warning: {complaint}", file=sys.stderr, flush=True)
        # A look at a large folder takes a while: it should not take all the time.
        end = time.monotonic() + max(SECONDS_BETWEEN_LOOKS, 5 * (time.monotonic() - started))
        while not stop.received and time.monotonic() < end:
            time.sleep(0.1)
