"""`predict`: a model folder and pictures go in, the species of each comes out as CSV."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from seedling_hf.arguments import ArgumentGroup, option, parse_arguments
from seedling_hf.commands.evaluate import InferenceArguments, check_writable_folder
from seedling_hf.errors import InputError
from seedling_hf.files import write_text

LONGEST_TABLE = 20
MOST_FILES_NAMED = 5


@dataclass(kw_only=True)
class PredictionArguments(ArgumentGroup):
    _argument_group_name = "Prediction"

    images: list[str] = field(metadata={"help": "pictures, or folders that are searched for pictures"})
    output_file: str | None = option(None, "CSV to write; without it the answers go to the terminal")
    output_format: str = option(
        "csv",
        "columns file,species,probability, or Kaggle's file,species with bare file names",
        choices=["csv", "kaggle"],
    )
    top_k: int = option(1, "species to name for each picture, a row each, the most probable first")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k < 1 or (self.output_format == "kaggle" and self.top_k > 1):
            most = "1, which is all that Kaggle takes" if self.output_format == "kaggle" else "1 or more"
            raise InputError(f"expected --top_k of {most}, found {self.top_k}")
        if self.output_file is not None:
            if Path(self.output_file).is_dir():
                raise InputError(
                    f"expected a file as --output_file, found the folder {self.output_file}; add a name.csv"
                )
            check_writable_folder(Path(self.output_file).parent, "--output_file")


@dataclass(kw_only=True)
class PredictArguments(InferenceArguments, PredictionArguments):
    """All flags of `predict`."""


def main(argv: Sequence[str] | None = None) -> int | None:
    """Model and pictures → answers → CSV."""
    arguments = parse_arguments(
        PredictArguments, argv, prog="predict", description="Names the species of pictures, as CSV."
    )

    from accelerate.utils import gather_object

    from seedling_hf.dataset import find_bad_pictures, list_images
    from seedling_hf.prediction import (
        build_accelerator,
        build_dataloader,
        build_model,
        format_csv,
        format_table,
        predict,
        rank_species,
        unlabelled_dataset,
    )

    files = [str(file) for file in list_images(arguments.images)]
    if not files:
        raise InputError(f"expected pictures in {', '.join(arguments.images)}, found none; name another folder")
    if arguments.output_format == "kaggle":
        _refuse_equal_names(files)
    accelerator = build_accelerator(arguments.mixed_precision)
    model, image_processor = build_model(
        arguments.model_name_or_path,
        revision=arguments.model_revision,
        trust_remote_code=arguments.trust_remote_code,
        merge=not arguments.no_merge,
    )
    class_names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    if arguments.top_k > len(class_names):
        raise InputError(f"expected --top_k of at most the model's {len(class_names)} species, found {arguments.top_k}")
    share = files[accelerator.process_index :: accelerator.num_processes]
    bad = sorted((str(file), reason) for file, reason in gather_object(list(find_bad_pictures(map(Path, share)))))
    if bad and not arguments.skip_bad_pictures:
        named = ", ".join(f"{file} ({reason})" for file, reason in bad[:MOST_FILES_NAMED])
        raise InputError(
            f"expected pictures that can be decoded, found {len(bad):,} of {len(files):,} that cannot: {named}"
            f"{' …' if len(bad) > MOST_FILES_NAMED else ''}; remove them, or leave them out by --skip_bad_pictures"
        )
    left_out = {file for file, _ in bad}
    files = [file for file in files if file not in left_out]
    if not files:
        raise InputError(f"expected at least one picture that can be decoded, found none among {len(bad):,}")

    dataloader = build_dataloader(
        unlabelled_dataset(files),
        image_processor,
        accelerator,
        batch_size=arguments.per_device_eval_batch_size,
        num_workers=arguments.dataloader_num_workers,
    )
    logits, _ = predict(model.to(accelerator.device), dataloader, accelerator)
    answers = rank_species(logits, class_names, arguments.top_k)

    if accelerator.is_main_process:
        text = format_csv(files, answers, arguments.output_format)
        if arguments.output_file:
            _write_whole(text, Path(arguments.output_file))
        if len(files) <= LONGEST_TABLE and (arguments.output_file or sys.stdout.isatty()):
            print(format_table(files, answers))
        elif not arguments.output_file:
            print(text, end="")
        if arguments.output_file:
            print(f"{len(files):,} pictures named in {arguments.output_file}")
        if bad:
            lines = [f"{file}: {reason}" for file, reason in bad]
            print(f"left out, because they cannot be decoded: {len(bad):,}", *lines, sep="\n  ", file=sys.stderr)
    accelerator.end_training()


def _refuse_equal_names(files: list[str]) -> None:
    names = Counter(Path(file).name for file in files)
    name, count = names.most_common(1)[0]
    if count > 1:
        raise InputError(
            f"expected file names that differ for Kaggle, found {count} named {name}; name one folder only"
        )


def _write_whole(text: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
