"""`predict`: a model folder and images go in, the species of each comes out as CSV or JSON lines."""

import contextlib
import csv
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from seedling_hf.arguments import ArgumentGroup, check_range, option, parse_arguments
from seedling_hf.errors import InputError
from seedling_hf.files import check_writable_folder, replacing
from seedling_hf.inference.answers import FORMATS, Answer, AnswerWriter, format_of, format_table, open_text
from seedling_hf.inference.classifier import InferenceArguments, load_classifier

LONGEST_TABLE = 20
MOST_FILES_NAMED = 5
MOST_FILES_LISTED = 100
SECONDS_BETWEEN_LINES = 30
SECONDS_BETWEEN_LOOKS = 1.0
T = TypeVar("T")


@dataclass(kw_only=True)
class PredictionArguments(ArgumentGroup):
    _argument_group_name = "Prediction"

    images: list[str] = field(metadata={"help": "images, or folders that are searched for images"})
    output_file: str | None = option(
        None, "file to write; without it the answers go to the terminal; a run that is killed goes on with it"
    )
    output_format: str | None = option(
        None,
        "csv: columns file,species,probability; jsonl: an object an image; kaggle: file,species with bare file names "
        "(default: by the suffix of the file, else csv)",
        choices=list(FORMATS),
        aliases=["--format"],
    )
    top_k: int = option(1, "species to name for each image, the most probable first")
    threshold: float | None = option(None, "probability below which an answer is marked as not sure")
    test_time_augmentation: bool = option(
        False, "answer with the mean over the eight symmetries, in eight times the time"
    )
    watch: bool = option(False, "go on with images that come into the folders, until SIGINT or SIGTERM")
    tiles: bool = option(
        False, "name each green plant of each image, a photograph of a tray: adds its number and its box in pixels"
    )
    boxes_dir: str | None = option(None, "folder for the photographs of --tiles with boxes and names drawn")
    min_plant_side: float | None = option(
        None, "smallest plant for --tiles to name, as a share of the photograph's shorter side (default: 0.02)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.output_format = self.output_format or format_of(self.output_file)
        if self.top_k < 1 or (self.output_format == "kaggle" and self.top_k > 1):
            most = "1, which is all that Kaggle takes" if self.output_format == "kaggle" else "1 or more"
            raise InputError(f"expected --top_k of {most}, found {self.top_k}")
        check_range(self, "threshold", least=0, most=1)
        if self.output_format == "kaggle":
            for name in ("threshold", "watch", "tiles"):
                if getattr(self, name) not in (None, False):
                    raise InputError(f"expected no --{name} for Kaggle's file, found it; use csv or jsonl")
        if self.watch and not any(Path(path).is_dir() for path in self.images):
            raise InputError(f"expected a folder to --watch, found {', '.join(self.images)}; name one")
        check_range(self, "min_plant_side", above=0, most=1)
        for name in ("boxes_dir", "min_plant_side"):
            if getattr(self, name) is not None and not self.tiles:
                raise InputError(f"expected --tiles for --{name}, found it without; add --tiles or leave it out")
        if self.boxes_dir is not None:
            check_writable_folder(Path(self.boxes_dir), "--boxes_dir")
            _check_apart(Path(self.boxes_dir), map(Path, self.images))
        if self.output_file is not None:
            if Path(self.output_file).is_dir():
                raise InputError(
                    f"expected a file as --output_file, found the folder {self.output_file}; add a name.csv"
                )
            check_writable_folder(Path(self.output_file).parent, "--output_file")


@dataclass(kw_only=True)
class PredictArguments(InferenceArguments, PredictionArguments):
    """All flags of `predict`."""

    @property
    def files_at_once(self) -> int:
        """Images in a batch; photographs come one by one, and a batch is one of plants."""
        return 1 if self.tiles else self.per_device_eval_batch_size


def main(argv: Sequence[str] | None = None) -> int | None:
    """Model and images → answers → a file."""
    arguments = parse_arguments(
        PredictArguments, argv, prog="predict", description="Names the species of images, as CSV or JSON lines."
    )

    from seedling_hf.inference.prediction import EightSymmetries, build_accelerator, name_batch
    from seedling_hf.inference.tiles import check_scikit_image

    if arguments.tiles:
        check_scikit_image()
    # Processes wait for each other at the end only, and one may have the larger images.
    accelerator = build_accelerator(arguments.mixed_precision, timeout=int(timedelta(days=30).total_seconds()))
    if arguments.watch and accelerator.num_processes > 1:
        raise InputError(f"expected one process for --watch, found {accelerator.num_processes}; start it by itself")
    model, image_processor, class_names = load_classifier(arguments)
    if arguments.top_k > len(class_names):
        raise InputError(f"expected --top_k of at most the model's {len(class_names)} species, found {arguments.top_k}")
    if arguments.test_time_augmentation:
        model = EightSymmetries(model)
    model.to(accelerator.device)
    name = partial(name_batch, model, accelerator, class_names, arguments.top_k)
    load, answer = (_for_trays if arguments.tiles else _for_images)(arguments, image_processor, name)
    code = (_predict_watched if arguments.watch else _predict_listed)(arguments, accelerator, load, answer)
    accelerator.end_training()
    return code


def _for_images(arguments: PredictArguments, image_processor: Any, name: Callable) -> tuple[Any, Callable]:
    """What reads the images of a batch, and what answers it."""
    from seedling_hf.inference.prediction import ImageLoader, name_images

    return ImageLoader(image_processor), partial(name_images, name)


def _for_trays(arguments: PredictArguments, image_processor: Any, name: Callable) -> tuple[Any, Callable]:
    """The same for photographs of trays."""
    from seedling_hf.inference.tiles import MIN_SIDE
    from seedling_hf.inference.trays import TrayLoader, draw_answer, name_plants, write_image

    load = TrayLoader(image_processor, arguments.min_plant_side or MIN_SIDE)

    def answer(batch: dict[str, Any]) -> list[Answer]:
        answers = name_plants(name, load, arguments.per_device_eval_batch_size, batch)
        # Before the answers are kept: a run that is killed between the two draws again.
        for answered, tray in zip(answers, batch["tray"], strict=True):
            if arguments.boxes_dir and tray is not None:
                write_image(draw_answer(tray, answered, arguments.threshold), _boxes_path(arguments, answered.file))
        return answers

    return load, answer


def _boxes_path(arguments: PredictArguments, file: str) -> Path:
    """Where a photograph with boxes goes: under its own name, with as much of its path as tells the folders apart."""
    paths = map(os.path.abspath, arguments.images)
    shared = os.path.commonpath([path if os.path.isdir(path) else os.path.dirname(path) for path in paths])
    return Path(arguments.boxes_dir, os.path.relpath(os.path.abspath(file), shared))


def _check_apart(boxes_dir: Path, images: Iterable[Path]) -> None:
    """Refuses a folder in which photographs lie, or that lies among them: they would be replaced, or read as more."""
    boxes_dir = boxes_dir.resolve()
    for path in map(Path.resolve, images):
        if boxes_dir == path or boxes_dir in path.parents or (path.is_dir() and path in boxes_dir.parents):
            raise InputError(f"expected --boxes_dir apart from {path}, found {boxes_dir}; name another folder")


def _predict_listed(
    arguments: PredictArguments, accelerator: Any, load: Any, answer: Callable[[dict[str, Any]], list[Answer]]
) -> int | None:
    """List on the disk → the share of each process → one file."""
    from seedling_hf.data.images import list_images
    from seedling_hf.inference.journal import Claim, Journal, Part, discard, find_equal_name, prepare
    from seedling_hf.inference.prediction import build_image_dataloader
    from seedling_hf.signals import RESUMABLE_EXIT_CODE, StopSignal

    def open_journal() -> Path:
        if arguments.output_file:
            folder = Path(f"{arguments.output_file}.partial")
            cleanup.callback(partial(_remove_if_empty, folder))
        else:
            folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="predict-")))
        claim = Claim(folder)
        cleanup.callback(claim.release)
        if next(list_images(arguments.images), None) is None:
            raise InputError(f"expected images in {', '.join(arguments.images)}, found none; name another folder")
        if arguments.output_format == "kaggle" and (name := find_equal_name(map(str, list_images(arguments.images)))):
            raise InputError(
                f"expected file names that differ for Kaggle, found two images named {name}; name one folder only"
            )
        prepare(
            folder,
            map(str, list_images(arguments.images)),
            identity=_identity(arguments),
            batch_size=arguments.files_at_once,
            num_parts=accelerator.num_processes,
        )
        return folder

    def finish() -> None:
        none = _none_named(journal)
        if not none:
            _write_and_show(arguments, journal)
        discard(journal.folder)
        (journal.folder / "lock").unlink(missing_ok=True)
        if none:
            raise InputError(none)

    with contextlib.ExitStack() as cleanup:
        journal = Journal(_on_main_process(accelerator, open_journal))
        share = journal.share(accelerator.process_index)
        with Part(journal, accelerator.process_index) as part:
            if not (arguments.skip_bad_images or journal.checked):
                _refuse_bad_images(journal, part.remaining, accelerator)
            total = journal.size(share)
            done = total - journal.size(part.remaining)
            if done and accelerator.is_main_process:
                print(f"going on after {done:,} of {total:,} images", file=sys.stderr)
            dataloader = build_image_dataloader(
                journal, part.remaining, load, num_workers=arguments.dataloader_num_workers
            )
            # Without an output file there is nothing to go on with.
            stopping = StopSignal() if arguments.output_file else contextlib.nullcontext()
            with stopping as stop, _Progress(done, total, quiet=not accelerator.is_main_process) as progress:
                for batch in dataloader:
                    part.append(answer(batch))
                    progress.update(len(batch["file"]))
                    if stop and stop.received:
                        print(f"stopped after {progress.done:,} of {total:,} images; the same command goes on",
                              file=sys.stderr)  # fmt: skip
                        return RESUMABLE_EXIT_CODE
        accelerator.wait_for_everyone()
        _on_main_process(accelerator, finish)


def _predict_watched(
    arguments: PredictArguments, accelerator: Any, load: Any, answer: Callable[[dict[str, Any]], list[Answer]]
) -> int | None:
    """Look → answer what is new → wait, until a signal comes."""
    from concurrent.futures import ThreadPoolExecutor

    from seedling_hf.data.images import list_images
    from seedling_hf.inference.ledger import Ledger
    from seedling_hf.signals import StopSignal

    path = Path(arguments.output_file) if arguments.output_file else None
    ledger_path = Path(f"{path}.watched") if path else ""
    if path and path.exists() and not ledger_path.exists():
        raise InputError(f"expected a new --output_file, or one that --watch has made, found {path}; name another")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as opened:
        ledger = opened.enter_context(Ledger(ledger_path, _identity(arguments)))
        pool = opened.enter_context(ThreadPoolExecutor(max(arguments.dataloader_num_workers, 1)))
        stream = opened.enter_context(open_text(path, "a")) if path else sys.stdout
        stop = opened.enter_context(StopSignal())
        writer = AnswerWriter(stream, arguments.output_format, arguments.threshold, tiles=arguments.tiles)
        if path:
            stream.truncate(ledger.length)
        if ledger.length == 0:
            writer.write_heading()
        print(f"watching {', '.join(arguments.images)}; Ctrl-C ends it", file=sys.stderr, flush=True)
        complaint = None
        while not stop.received:
            started = time.monotonic()
            try:
                new = ledger.new(list_images(arguments.images))
                while not stop.received and (files := list(islice(new, arguments.files_at_once))):
                    answers = answer(load.collate(files, list(pool.map(load, files))))
                    for answered in answers:
                        writer.write(answered)
                    stream.flush()
                    ledger.enter(answers, path.stat().st_size if path else 1)
                    if arguments.tiles:
                        _list_bare(answers)
            except InputError as error:  # a folder may be gone for a while
                if complaint != str(error):
                    complaint = str(error)
                    print(f"warning: {complaint}", file=sys.stderr, flush=True)
            # A look at a large folder takes a while: it should not take all the time.
            _wait(max(SECONDS_BETWEEN_LOOKS, 5 * (time.monotonic() - started)), stop)
        if path:
            _write_bad(path, ledger.bad())
            kind = "photographs" if arguments.tiles else "images"
            print(f"{ledger.count:,} {kind} named in {path}", file=sys.stderr)
        _list_bad(ledger.bad(), path)


def _on_main_process(accelerator: Any, work: Callable[[], T]) -> T:
    """What the main process makes, on all of them; a mistake of the user's is everybody's."""
    from accelerate.utils import broadcast_object_list

    result: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            result[0] = work()
        except InputError as error:
            result[1] = str(error)
    broadcast_object_list(result)
    if result[1] is not None:
        raise InputError(result[1])
    return result[0]


def _identity(arguments: PredictArguments) -> dict[str, Any]:
    """What the answers depend on: flags, and the files of a model folder."""
    folder = Path(arguments.model_name_or_path)
    files = sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return {
        "--images": [os.path.abspath(path) for path in arguments.images],
        "--model_name_or_path": str(folder.resolve()) if files else arguments.model_name_or_path,
        "--model_revision": arguments.model_revision,
        "the model's files, by a checksum,": hashlib.sha1(repr(stamps).encode()).hexdigest()[:8],
        "--mixed_precision": arguments.mixed_precision,
        "--no_merge": arguments.no_merge,
        "--test_time_augmentation": arguments.test_time_augmentation,
        "--top_k": arguments.top_k,
        "--threshold": arguments.threshold,
        "--tiles": arguments.tiles,
        "--boxes_dir": arguments.boxes_dir and os.path.abspath(arguments.boxes_dir),
        "--min_plant_side": arguments.min_plant_side,
        "--output_format": arguments.output_format,
    }


def _refuse_bad_images(journal: Any, batches: range, accelerator: Any) -> None:
    from accelerate.utils import gather_object

    from seedling_hf.data.images import find_bad_images

    bad = find_bad_images(Path(file) for number in batches for file in journal[number])
    named = [f"{file} ({reason})" for file, reason in islice(bad, MOST_FILES_NAMED)]
    found = gather_object([(len(named) + sum(1 for _ in bad), named)])
    count, named = sum(number for number, _ in found), sorted(name for _, names in found for name in names)
    if count:
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            from seedling_hf.inference.journal import discard

            discard(journal.folder)
        raise InputError(
            f"expected images that can be decoded, found {count:,} of {journal.num_images:,} that cannot: "
            f"{', '.join(named[:MOST_FILES_NAMED])}{' …' if count > MOST_FILES_NAMED else ''}; remove them, or leave "
            "them out by --skip_bad_images"
        )
    if accelerator.is_main_process:
        journal.mark_checked()


def _none_named(journal: Any) -> str | None:
    """What to say if not one image has an answer."""
    if any(answer.reason is None for answer in journal.answers()):
        return None
    first = next(journal.answers())
    return (
        f"expected at least one image that can be decoded, found none among {journal.num_images:,}, such as "
        f"{first.file} ({first.reason}); name another folder"
    )


def _write_and_show(arguments: PredictArguments, journal: Any) -> None:
    path = Path(arguments.output_file) if arguments.output_file else None
    if path:
        with replacing(path) as temporary, open_text(temporary) as stream:
            _write(stream, arguments, journal)
        _write_bad(path, _bad(journal))
    plants = sum(len(answer.plants) for answer in journal.answers()) if arguments.tiles else 0
    if (plants if arguments.tiles else journal.num_images) <= LONGEST_TABLE and (path or sys.stdout.isatty()):
        if named := [answer for answer in journal.answers() if answer.species or answer.plants]:
            print(format_table(named, arguments.threshold))
    elif not path:
        _write(sys.stdout, arguments, journal)
    if path:
        count = sum(answer.reason is None for answer in journal.answers())
        named = f"{plants:,} plants of {count:,} photographs" if arguments.tiles else f"{count:,} images"
        print(f"{named} named in {path}")
    if arguments.tiles:
        _list_bare(journal.answers())
    _list_bad(_bad(journal), path)


def _write(stream: Any, arguments: PredictArguments, journal: Any) -> None:
    writer = AnswerWriter(stream, arguments.output_format, arguments.threshold, tiles=arguments.tiles)
    writer.write_heading()
    for answer in journal.answers():
        writer.write(answer)


def _bad(journal: Any) -> Iterator[Answer]:
    return (answer for answer in journal.answers() if answer.reason is not None)


def _bad_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.bad.csv")


def _write_bad(path: Path, bad: Iterator[Answer]) -> None:
    """Writes the list of bad files beside the output, or removes that of a former run."""
    first = next(bad, None)
    if first is None:
        _bad_path(path).unlink(missing_ok=True)
        return
    with replacing(_bad_path(path)) as temporary, open_text(temporary) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["file", "reason"])
        writer.writerow([first.file, first.reason])
        writer.writerows([answer.file, answer.reason] for answer in bad)


def _list_bad(bad: Iterator[Answer], path: Path | None) -> None:
    further = [f"all of them are in {_bad_path(path)}"] if path else []
    _list("left out, because they cannot be decoded", (f"{answer.file}: {answer.reason}" for answer in bad), further)


def _list_bare(answers: Iterable[Answer]) -> None:
    """Names the photographs that show no plant, which have no row."""
    _list("no plant found", (answer.file for answer in answers if answer.reason is None and not answer.plants))


def _list(heading: str, items: Iterator[str], further: Sequence[str] = ()) -> None:
    listed = list(islice(items, MOST_FILES_LISTED))
    if not listed:
        return
    more = sum(1 for _ in items)
    lines = [*listed, *([f"and {more:,} more"] if more else []), *further]
    print(f"{heading}: {len(listed) + more:,}", *lines, sep="\n  ", file=sys.stderr, flush=True)


def _remove_if_empty(folder: Path) -> None:
    if folder.exists() and {path.name for path in folder.iterdir()} <= {"lock"}:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(seconds: float, stop: Any) -> None:
    end = time.monotonic() + seconds
    while not stop.received and time.monotonic() < end:
        time.sleep(0.1)


class _Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, done: int, total: int, *, quiet: bool) -> None:
        from tqdm.auto import tqdm

        self.done, self.total = done, total
        self.with_lines = not quiet and not sys.stderr.isatty()
        self.bar = tqdm(initial=done, total=total, unit="image", leave=False, disable=quiet or self.with_lines)
        self.line_due = time.monotonic() + SECONDS_BETWEEN_LINES

    def update(self, count: int) -> None:
        self.done += count
        self.bar.update(count)
        if self.with_lines and time.monotonic() > self.line_due:
            self.line_due = time.monotonic() + SECONDS_BETWEEN_LINES
            print(f"{self.done:,} of {self.total:,} images", file=sys.stderr, flush=True)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
