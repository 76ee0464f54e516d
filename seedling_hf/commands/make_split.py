"""`make_split`: copies labelled images into class folders in train/ and val/, as the tutorial's makedata.py does."""

import filecmp
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seedling_hf.arguments import option, parse_arguments
from seedling_hf.errors import InputError, WriteError
from seedling_hf.files import replacing, temporary_path
from seedling_hf.locks import is_lock, lock_folder
from seedling_hf.train_arguments import SplitArguments

if TYPE_CHECKING:
    from datasets import DatasetDict

FOLDERS = {"train": "train", "validation": "val", "test": "test"}


@dataclass(kw_only=True)
class MakeSplitArguments(SplitArguments):
    """Copies labelled images into class folders in train/ and val/.

    Examples:
        seedling-hf make_split --train_dir seedlings --output_dir outputs/split --split_strategy grouped
    """

    output_dir: str = option(MISSING, "folder for train/, val/ and split.csv", writable=True, apart=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Copies the split that `train` would use into folders; existing files are never changed or deleted."""
    arguments = parse_arguments(MakeSplitArguments, argv, prog="make_split")
    from seedling_hf.data.dataset import describe_splits, load_splits
    from seedling_hf.data.splits import write_split_csv

    target = Path(arguments.output_dir)
    lock_folder(target)
    splits = load_splits(arguments)
    with tempfile.TemporaryDirectory() as folder:
        write_split_csv(splits, Path(folder, "split.csv"))
        originals = list_copies(splits, target)
        originals[target / "split.csv"] = Path(folder, "split.csv")
        check_target(target, originals)
        copy_files(originals)
    print(describe_splits(splits))
    print(f"\nTrain on it with --train_dir {target}")


def list_copies(splits: "DatasetDict", target: Path) -> dict[Path, Path]:
    """Where each image is copied to, into the folder of its class, and what it is a copy of.

    Raises:
        InputError: if two images of a class, which folders or labels kept apart, have one name; or for a class whose
            name a list or a map gives, and no folder can have.
    """
    from seedling_hf.data.folders import UNREAD
    from seedling_hf.data.images import a_few
    from seedling_hf.data.pool import image_sources

    originals = {}
    names = next(iter(splits.values())).features["label"].names
    if unfit := [name for name in names if name.startswith(UNREAD) or "/" in name or "\0" in name]:
        raise InputError(
            f"expected classes with names that folders can have, found {a_few(unfit)}; let --label_map give others"
        )
    for split, rows in splits.items():
        labels = rows.features["label"].int2str(rows["label"])
        for file, label, original in zip(rows["file"], labels, image_sources(rows), strict=True):
            copy = target / FOLDERS[split] / label / Path(file).name
            if copy in originals:
                raise InputError(
                    f"expected images of different names in the class {label}, found {originals[copy]} and {original} "
                    "for the same folder; rename one of them"
                )
            originals[copy] = original
    return originals


def check_target(target: Path, originals: dict[Path, Path]) -> None:
    """Refuses a target with other files than the copies of `originals`, so that a second run is harmless.

    Raises:
        InputError: with the name of one of the other files.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"expected a folder for --output_dir, found a file at {target}")
    for folder, _, names in os.walk(target):
        for path in (Path(folder, name) for name in names if not is_lock(name)):
            # An earlier run that was interrupted leaves an incomplete copy under a temporary name.
            begun = path.with_name(path.name.removeprefix(".").removesuffix(".tmp"))
            if begun in originals and path == temporary_path(begun):
                continue
            if path not in originals or not filecmp.cmp(path, originals[path], shallow=False):
                raise InputError(
                    f"expected an empty folder, or the same split, at {target}, found {path.relative_to(target)}, "
                    "which is not part of it; choose another --output_dir"
                )


def copy_files(originals: dict[Path, Path]) -> None:
    """Copies the files that are missing, each completely or not at all.

    Raises:
        InputError: if an original cannot be read.
        WriteError: if the disk is full or may not be written to.
    """
    for copy, original in originals.items():
        try:
            if not copy.exists():
                with replacing(copy) as temporary:
                    shutil.copyfile(original, temporary)
        except WriteError:
            raise
        except OSError as error:
            raise InputError(f"expected to copy {original} to {copy}, found: {error.strerror}") from error
