"""A run that watches folders: it answers images as they arrive, until a signal stops it."""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from seedling_hf.data.listing import list_images
from seedling_hf.errors import InputError
from seedling_hf.files import open_text
from seedling_hf.inference.answers import format_count
from seedling_hf.inference.ledger import Ledger
from seedling_hf.inference.output import build_writer, print_failed, print_without_plants, write_failed
from seedling_hf.inference.predict_arguments import PredictArguments
from seedling_hf.inference.predictor import ImagePredictor
from seedling_hf.signals import StopSignal

SECONDS_BETWEEN_LOOKS = 1.0


def predict_watched(arguments: PredictArguments, predictor: ImagePredictor) -> None:
    """Look → answer what is new → wait, until a signal comes.

    Raises:
        InputError: for an output file that no watch has made, or that of a watch with another identity.
    """
    path, loader = arguments.output_path, predictor.loader
    ledger_path = Path(f"{path}.watched") if path else ""
    if path and path.exists() and not ledger_path.exists():
        raise InputError(f"expected a new --output_file, or one that --watch has made, found {path}; name another")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        ledger = opened.enter_context(Ledger(ledger_path, arguments.identity))
        pool = opened.enter_context(ThreadPoolExecutor(max(arguments.dataloader_num_workers, 1)))
        stream = opened.enter_context(open_text(path, "a")) if path else sys.stdout
        stop = opened.enter_context(StopSignal())
        writer = build_writer(arguments, stream)
        if path:
            stream.truncate(ledger.length)
        if ledger.length == 0:
            writer.write_heading()

        def answer(files: list[str]) -> None:
            answers = predictor(loader.collate(files, list(pool.map(loader, files))))
            for each in answers:
                writer.write(each)
            stream.flush()
            ledger.enter(answers, path.stat().st_size if path else 1)
            if arguments.tiles:
                print_without_plants(answers)

        print(f"watching {', '.join(arguments.images)}; Ctrl-C stops it", file=sys.stderr, flush=True)
        _watch(arguments.images, ledger, answer, predictor.batch_size, stop)
        if path:
            write_failed(path, ledger.failed())
            print(f"predictions for {format_count(ledger.count, arguments.noun)} are in {path}", file=sys.stderr)
        print_failed(ledger.failed(), path)


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
        except InputError as error:  # a folder may be missing for a while
            if complaint != str(error):
                complaint = str(error)
                print(f"warning: {complaint}", file=sys.stderr, flush=True)
        # A look at a large folder takes a while: it should not take all the time.
        end = time.monotonic() + max(SECONDS_BETWEEN_LOOKS, 5 * (time.monotonic() - started))
        while not stop.received and time.monotonic() < end:
            time.sleep(0.1)
