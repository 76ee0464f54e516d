"""`make_split`: copies a tree of class folders into train/ and val/, as the tutorial's makedata.py does."""

import filecmp
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seedling_hf.arguments import MISSING, ArgumentGroup, check_range, option, parse_arguments
from seedling_hf.errors import InputError

FOLDERS = {"train": "train", "validation": "val"}


@dataclass(kw_only=True)
class SplitArguments(ArgumentGroup):
    """Flags of `make_split`."""

    train_dir: str = option(MISSING, "folder of class folders")
    output_dir: str = option(MISSING, "folder that gets train/, val/ and split.csv")
    split_strategy: str = option(
        "stratified",
        "how validation pictures are drawn: stratified, or random as in the tutorial (sorted files, state 42)",
        choices=["stratified", "random"],
    )
    train_val_split: float = option(0.3, "share of the pictures that validates, above 0 and below 1")
    split_seed: int = option(42, "seed of the split")
    skip_bad_pictures: bool = option(False, "leave out pictures that cannot be decoded instead of refusing them")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "train_val_split", above=0, below=1)


def main(argv: Sequence[str] | None = None) -> None:
    """The split that `train` would draw, as folders; what is there already is never changed or deleted."""
    arguments = parse_arguments(
        SplitArguments, argv, prog="make_split", description="Copies class folders into train/ and val/."
    )
    from seedling_hf.dataset import describe_splits, load_splits, write_split_csv

    source, target = Path(arguments.train_dir), Path(arguments.output_dir)
    splits = load_splits(
        train_dir=source,
        split_strategy=arguments.split_strategy,
        train_val_split=arguments.train_val_split,
        split_seed=arguments.split_seed,
        skip_bad_pictures=arguments.skip_bad_pictures,
    )
    copies = {target / FOLDERS[split] / file: source / file for split, rows in splits.items() for file in rows["file"]}
    check_target(target, copies)
    for copy, original in copies.items():
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            temporary = copy.with_name(f".{copy.name}.tmp")
            shutil.copy2(original, temporary)
            os.replace(temporary, copy)
    write_split_csv(splits, target / "split.csv")
    print(describe_splits(splits))
    print(f"\nTrain on it with --train_dir {target}")


def check_target(target: Path, copies: dict[Path, Path]) -> None:
    """Refuses a target that holds anything but the copies that belong there, so that a second run is harmless.

    Raises:
        InputError: naming what is in the way.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"expected a folder for --output_dir, found a file at {target}")
    for path in sorted(target.rglob("*")) if target.exists() else []:
        hidden_copy = path.name.startswith(".") and path.name.endswith(".tmp")
        if path.is_dir() or hidden_copy or path == target / "split.csv":
            continue
        if path not in copies or not filecmp.cmp(path, copies[path], shallow=False):
            raise InputError(
                f"expected an empty folder, or the same split, at {target}, found {path.relative_to(target)} that does "
                "not belong to it; choose another --output_dir"
            )
