"""Folders of class folders, or a Hub data set, become a DatasetDict; the split is drawn here.

The columns are `image`, `label`, `file` and `index`, wherever the images come from.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping

from datasets import Dataset, DatasetDict, Image

from seedling_hf.arguments import SplitArguments
from seedling_hf.data.duplicates import cluster_duplicates
from seedling_hf.data.folders import load_folders, number_rows
from seedling_hf.data.hub_dataset import load_hub
from seedling_hf.data.images import a_few
from seedling_hf.data.splits import SPLITS, Row, choose_of_each_class, draw_validation, split_as_written
from seedling_hf.errors import InputError

logger = logging.getLogger(__name__)


def load_splits(arguments: SplitArguments) -> DatasetDict:
    """Loads the images of a run and splits them, the same way on every process.

    Args:
        arguments: A folder and its split; `DataArguments` without `train_dir` name a data set of the Hub.

    Returns:
        `train`, `validation` and perhaps `test`; columns `image`, `label` (ClassLabel, names in byte order), `file`
        and `index` (row number in its split).

    Raises:
        InputError: for a missing folder, fewer than two classes, an empty class, a class that is in validation only, or
            images that cannot be decoded, with their names.
    """
    if arguments.train_dir is None:
        pools = load_hub(arguments)
    else:
        pools = load_folders(arguments.train_dir, arguments.validation_dir, skip_bad_images=arguments.skip_bad_images)
    members = {split: list(range(len(pool))) for split, pool in pools.items()}
    if "validation" not in pools:
        pool, rows = pools["train"], _rows(pools["train"])
        if arguments.split_file is not None:
            split_of = split_as_written(rows, arguments.split_file, ignore_test="test" in pools)
        else:
            clusters = None
            if arguments.split_strategy == "grouped":
                clusters = dict(zip(rows, cluster_duplicates(image_sources(pool)), strict=True))
            chosen = draw_validation(
                rows,
                arguments.split_strategy,
                arguments.train_val_split,
                arguments.split_seed,
                fold=arguments.fold,
                clusters=clusters,
            )
            split_of = dict.fromkeys(rows, "train") | dict.fromkeys(chosen, "validation")
        for split in {"train", "validation"} | set(split_of.values()):
            pools[split] = pool
            members[split] = [i for i, row in enumerate(rows) if split_of.get(row) == split]
    elif arguments.split_file is not None or arguments.fold is not None:
        flag = "--split_file" if arguments.split_file is not None else "--fold"
        raise InputError(f"expected {flag} for images in one place, found a validation split beside them")
    for split, limit in (("train", arguments.max_train_samples), ("validation", arguments.max_eval_samples)):
        if limit is not None:
            labels = pools[split].select(members[split])["label"]
            members[split] = [
                members[split][i] for i in choose_of_each_class(list(labels), limit, arguments.split_seed)
            ]
        if not members[split]:
            raise InputError(f"expected images for {split}, found none; change --train_val_split or add images")
    splits = DatasetDict({name: number_rows(pools[name], members[name]) for name in SPLITS if name in pools})
    names = splits["train"].features["label"].names
    untrained = sorted(set(names) - {names[i] for i in set(splits["train"]["label"])})
    if untrained:
        logger.warning("no image is left to train these classes: %s", a_few(untrained))
    return splits


def image_paths(dataset: Dataset) -> list[str]:
    """Where the images of a dataset lie, in its order."""
    return [image["path"] for image in dataset.cast_column("image", Image(decode=False))["image"]]


def image_sources(dataset: Dataset) -> Iterator[str | bytes]:
    """The images of a dataset as they are stored, in its order: paths, or bytes where they are in the data set."""
    for batch in dataset.select_columns("image").cast_column("image", Image(decode=False)).iter(256):
        for image in batch["image"]:
            yield image["path"] if image["bytes"] is None else image["bytes"]


def describe_splits(splits: Mapping[str, Dataset]) -> str:
    """A table of images a class and split."""
    names = next(iter(splits.values())).features["label"].names
    counts = {split: Counter(rows["label"]) for split, rows in splits.items()}
    width = max(len("total"), *map(len, names))
    lines = [f"{'':{width}}" + "".join(f"{split:>12}" for split in splits)]
    lines += [f"{name:{width}}" + "".join(f"{counts[s][i]:12,}" for s in splits) for i, name in enumerate(names)]
    lines.append(f"{'total':{width}}" + "".join(f"{len(splits[s]):12,}" for s in splits))
    return "\n".join(lines)


def _rows(pool: Dataset) -> list[Row]:
    names = pool.features["label"].names
    return [(file, names[i]) for file, i in zip(pool["file"], pool["label"], strict=True)]
