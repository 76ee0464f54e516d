"""A run over a list of images: each process answers its share, and a run that is killed can be resumed."""

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from seedling_hf.data.images import find_bad_images
from seedling_hf.data.listing import list_images
from seedling_hf.data.loading import Loader
from seedling_hf.errors import InputError, NonFiniteError
from seedling_hf.files import fitting
from seedling_hf.inference.journal import Journal, Part, abandon, discard, find_equal_name, prepare
from seedling_hf.inference.output import write_and_show
from seedling_hf.inference.predict_arguments import PredictArguments
from seedling_hf.inference.prediction import on_main_process
from seedling_hf.inference.predictor import ImagePredictor
from seedling_hf.inference.waiting import meet
from seedling_hf.progress import Progress
from seedling_hf.signals import RESUMABLE_EXIT_CODE, Stopped, StopSignal

MOST_FILES_NAMED = 5


def predict_listed(arguments: PredictArguments, predictor: ImagePredictor, accelerator: Accelerator) -> int | None:
    """List on the disk → the share of each process → one file; `RESUMABLE_EXIT_CODE` if a signal stopped the run.

    Raises:
        InputError: for no images, images that cannot be decoded, another run with this output, or a model that answers
            NaN or infinity.
    """
    with contextlib.ExitStack() as cleanup:
        open_journal = partial(_open_journal, cleanup, arguments, predictor.batch_size, accelerator.num_processes)
        journal = Journal(on_main_process(accelerator, open_journal))
        with Part(journal, accelerator.process_index) as part:
            if not (arguments.skip_bad_images or journal.checked):
                _refuse_bad_images(journal, part.remaining, accelerator)
            # Without an output file there is nothing to resume.
            with StopSignal("finishing this batch") if arguments.output_file else contextlib.nullcontext() as stop:
                try:
                    if not _answer(arguments, journal, part, predictor, accelerator, stop):
                        return RESUMABLE_EXIT_CODE
                except NonFiniteError:  # resuming would end here again
                    abandon(journal.folder, shared=accelerator.num_processes > 1)
                    raise
        meet(accelerator)
        on_main_process(accelerator, partial(_finish, arguments, predictor.certainty.words, journal))


def _open_journal(cleanup: contextlib.ExitStack, arguments: PredictArguments, batch_size: int, num_parts: int) -> Path:
    images = partial(list_images, arguments.images)
    if arguments.output_file:
        output = Path(arguments.output_file)
        folder = output.with_name(fitting(output.name, ".partial"))
    else:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="predict-")))
    if next(images(), None) is None:
        raise InputError(f"expected images in {', '.join(arguments.images)}, found none; name another folder")
    if arguments.format == "kaggle" and (name := find_equal_name(map(str, images()))):
        raise InputError(f"expected unique file names for Kaggle, found two images named {name}; name one folder only")
    prepare(folder, map(str, images()), identity=arguments.identity, batch_size=batch_size, num_parts=num_parts)
    return folder


def _answer(
    arguments: PredictArguments, journal: Journal, part: Part, predictor: ImagePredictor, accelerator: Accelerator,
    stop: StopSignal | None,
) -> bool:  # fmt: skip
    """Answers what is left of the share of this process; False if a signal stopped it."""
    total = journal.size(journal.share(accelerator.process_index))
    done = total - journal.size(part.remaining)
    if done and accelerator.is_main_process:
        print(f"resuming after {done:,} of {total:,} images", file=sys.stderr)
    # Batches are made by the journal; the loader reads the files of each.
    batches = Loader(
        journal, batch_size=None, sampler=part.remaining, collate_fn=predictor.loader.load_batch,
        num_workers=arguments.dataloader_num_workers, advice="run the same command again, which resumes the run",
    )  # fmt: skip
    batches.waiting.stop = stop
    with contextlib.closing(batches), Progress("classifying", total, done=done) as progress:
        try:
            for batch in batches:
                part.append(predictor(batch))
                progress.update(len(batch["file"]))
        except Stopped:
            done = f"{progress.done:,} of {total:,} images"
            print(f"stopped after {done}; the same command resumes the run", file=sys.stderr)
            return False
    return True


def _finish(arguments: PredictArguments, words: Sequence[str], journal: Journal) -> None:
    """Writes the output and removes the journal; refuses a run in which every image failed."""
    first = next(journal.answers())
    all_failed = all(answer.reason is not None for answer in journal.answers())
    if not all_failed:
        write_and_show(arguments, words, journal)
    discard(journal.folder)
    if all_failed:
        raise InputError(
            f"expected at least one image that can be decoded, found none among {journal.num_images:,}, such as "
            f"{first.file} ({first.reason}); name another folder"
        )


def _refuse_bad_images(journal: Journal, batches: range, accelerator: Accelerator) -> None:
    files = (Path(file) for number in batches for file in journal[number])
    bad = find_bad_images(files, journal.size(batches))
    named = [f"{file} ({reason})" for file, reason in islice(bad, MOST_FILES_NAMED)]
    found = gather_object([(len(named) + sum(1 for _ in bad), named)])
    count, named = sum(number for number, _ in found), sorted(name for _, names in found for name in names)
    if count:
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            discard(journal.folder)
        raise InputError(
            f"expected images that can be decoded, found {count:,} of {journal.num_images:,} that cannot: "
            f"{', '.join(named[:MOST_FILES_NAMED])}{' …' if count > MOST_FILES_NAMED else ''}; remove them, or skip "
            "them with --skip_bad_images"
        )
    if accelerator.is_main_process:
        journal.mark_checked()
