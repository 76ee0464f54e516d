"""`make_split`: copies a tree of class folders into train/ and val/, as the tutorial's makedata.py does."""

import filecmp
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from seedling_hf.arguments import option, parse_arguments
from seedling_hf.errors import InputError
from seedling_hf.files import replacing, temporary_path
from seedling_hf.train_arguments import SplitArguments

FOLDERS = {"train": "train", "validation": "val", "test": "test"}


@dataclass(kw_only=True)
class MakeSplitArguments(SplitArguments):
    """Flags of `make_split`."""

    output_dir: str = option(MISSING, "folder for train/, val/ and split.csv")


def main(argv: Sequence[str] | None = None) -> None:
    """The split that `train` would draw, as folders; what is there already is never changed or deleted."""
    arguments = parse_arguments(
        MakeSplitArguments, argv, prog="make_split", description="Copies class folders into train/ and val/."
    )
    from seedling_hf.data.dataset import describe_splits, load_splits
    from seedling_hf.data.pool import image_sources
    from seedling_hf.data.splits import write_split_csv

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    source, target = Path(arguments.train_dir), Path(arguments.output_dir)
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise InputError(f"expected --output_dir outside of {source}, found {target}; choose another --output_dir")
    splits = load_splits(arguments)
    with tempfile.TemporaryDirectory() as folder:
        write_split_csv(splits, Path(folder, "split.csv"))
        originals = {
            target / FOLDERS[split] / file: path
            for split, rows in splits.items()
            for file, path in zip(rows["file"], image_sources(rows), strict=True)
        }
        originals[target / "split.csv"] = Path(folder, "split.csv")
        check_target(target, originals)
        copy_files(originals)
    print(describe_splits(splits))
    print(f"\nTrain on it with --train_dir {target}")


def check_target(target: Path, originals: dict[Path, Path]) -> None:
    """Refuses a target that holds anything but copies that belong there, so that a second run is harmless.

    Args:
        target: Folder that is to be written.
        originals: What each file in it is a copy of.

    Raises:
        InputError: naming what is in the way.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"expected a folder for --output_dir, found a file at {target}")
    for folder, _, names in os.walk(target):
        for path in (Path(folder, name) for name in names):
            # A copy that was cut short by the end of an earlier run has a name of its own.
            begun = path.with_name(path.name.removeprefix(".").removesuffix(".tmp"))
            if begun in originals and path == temporary_path(begun):
                continue
            if path not in originals or not filecmp.cmp(path, originals[path], shallow=False):
                raise InputError(
                    f"expected an empty folder, or the same split, at {target}, found {path.relative_to(target)} that "
                    "does not belong to it; choose another --output_dir"
                )


def copy_files(originals: dict[Path, Path]) -> None:
    """Copies what is not there yet, each file whole or not at all.

    Raises:
        InputError: if the disk is full or may not be written to.
    """
    for copy, original in originals.items():
        try:
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                with replacing(copy) as temporary:
                    shutil.copyfile(original, temporary)
        except OSError as error:
            raise InputError(f"expected to copy {original} to {copy}, found: {error.strerror}") from error
