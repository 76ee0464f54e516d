"""Class folders, images with a list of labels, or a Hub dataset become a DatasetDict, in named steps.

list the images → rename and name the classes → check that they can be decoded → find duplicates → split → correct
labels → build.
Classes are named before anything is decoded, because a wrong folder is then reported at once. The columns are `image`,
`label`, `file` and `index`, wherever the images come from.
"""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Dataset, DatasetDict

from seedling_hf.data.corrections import correct_training_images, read_corrections
from seedling_hf.data.duplicates import cluster_duplicates
from seedling_hf.data.folders import list_folders, list_labelled_images
from seedling_hf.data.hub_dataset import list_hub
from seedling_hf.data.images import a_few
from seedling_hf.data.label_map import rename_classes
from seedling_hf.data.pool import ImagePool, image_sources, name_classes
from seedling_hf.data.splits import SPLITS, choose_of_each_class, draw_validation, split_as_written
from seedling_hf.errors import InputError
from seedling_hf.escaping import one_line, pad, width_of
from seedling_hf.train_arguments import SplitArguments

Members = dict[str, list[int]]  # for each split, positions in its pool

logger = logging.getLogger(__name__)


def load_splits(arguments: SplitArguments) -> DatasetDict:
    """Loads the images of a run and splits them, the same way on every process; without `train_dir` from the Hub.

    Returns:
        `train`, `validation` (empty for a fraction of 0) and perhaps `test`; columns `image`, `label` (ClassLabel,
        names in byte order), `file` and `index` (row number in its split).

    Raises:
        InputError: for a missing folder, fewer than two classes, an empty class, a class that is in validation only,
            images that cannot be decoded, or corrections of unknown images or classes, with their names.
    """
    if arguments.train_dir is None:
        pools = list_hub(arguments)
    else:
        pools = list_folders(arguments.train_dir, arguments.validation_dir)
    pools = rename_classes(pools, arguments.label_map)
    class_names = name_classes(pools)
    corrections = read_corrections(arguments.label_file, pools, class_names)
    members = _check(pools, skip_bad_images=arguments.skip_bad_images)
    if "validation" not in pools:
        members |= _split(pools["train"], members["train"], arguments, corrections, has_test="test" in pools)
    elif arguments.split_file is not None or arguments.fold is not None:
        flag = "--split_file" if arguments.split_file is not None else "--fold"
        raise InputError(f"expected {flag} for images without a validation split, found one; leave {flag} out")
    elif arguments.train_val_split == 0:
        raise InputError(
            "expected images without a validation split for --train_val_split 0, found one; put them all into one tree "
            "of class folders"
        )
    if arguments.label_file is not None:
        pools, members = correct_training_images(corrections, pools, members, arguments.label_file)
    limits = {"train": arguments.max_train_samples, "validation": arguments.max_eval_samples}
    for split, limit in limits.items():
        rows = pools.get(split, pools["train"]).rows
        members[split] = choose_of_each_class(rows, members[split], limit, arguments.split_seed)
        if not members[split] and (split == "train" or arguments.train_val_split):
            raise InputError(f"expected images for {split}, found none; change --train_val_split or add images")
    splits = _build(pools, class_names, members)
    untrained = sorted(set(class_names) - {class_names[i] for i in splits["train"]["label"]})
    if untrained:
        logger.warning("no training images are left for these classes: %s", a_few(untrained))
    return splits


def load_folders(
    train_dir: str | os.PathLike, *, label_map: str | os.PathLike | None = None, skip_bad_images: bool = False
) -> DatasetDict:
    """Loads all images of a tree as they lie: `train`, and `validation` and `test` if they have folders of their own.

    Raises:
        InputError: as `load_splits` does.
    """
    pools = rename_classes(list_folders(train_dir), label_map)
    class_names = name_classes(pools)
    return _build(pools, class_names, _check(pools, skip_bad_images=skip_bad_images))


def load_folder(
    folder: str | os.PathLike,
    class_names: Sequence[str] | None = None,
    *,
    label_map: str | os.PathLike | None = None,
    skip_bad_images: bool = False,
) -> Dataset:
    """Loads one tree of labelled images, labelled by the position of their classes in `class_names` (default: its own).

    Raises:
        InputError: for a missing folder, an unknown class, or images that cannot be decoded.
    """
    pool = list_labelled_images(Path(folder))
    if not pool.rows:
        raise InputError(f"expected class folders with images, or images with a metadata.csv, in {folder}, found none")
    pool = rename_classes({"test": pool}, label_map, class_names)["test"]
    class_names = class_names or sorted(set(pool.labels))
    pool.check_known_classes(class_names, "the model's classes")
    members = pool.find_good(skip_bad_images=skip_bad_images)
    if not members:
        raise InputError(f"expected images that can be decoded in {folder}, found none")
    return pool.build(class_names, members)


def describe_splits(splits: Mapping[str, Dataset]) -> str:
    """A table with the number of images of each class and split."""
    names = [one_line(name) for name in next(iter(splits.values())).features["label"].names]
    counts = {split: Counter(rows["label"]) for split, rows in splits.items()}
    width = max(map(width_of, ["total", *names]))
    lines = [" " * width + "".join(pad(one_line(split), 12, right=True) for split in splits)]
    lines += [pad(name, width) + "".join(f"{counts[s][i]:12,}" for s in splits) for i, name in enumerate(names)]
    lines.append(pad("total", width) + "".join(f"{len(splits[s]):12,}" for s in splits))
    return "\n".join(lines)


def _check(pools: Mapping[str, ImagePool], *, skip_bad_images: bool) -> Members:
    """The images that can be decoded; every class needs one to train on."""
    members = {split: pool.find_good(skip_bad_images=skip_bad_images) for split, pool in pools.items()}
    train = pools["train"]
    emptied = sorted(set(train.labels) - {train.rows[i][1] for i in members["train"]})
    if emptied:
        raise InputError(
            f"expected images that can be decoded in each class of {train.where}, found none in {a_few(emptied)}; "
            "repair them or remove the class"
        )
    return members


def _split(
    pool: ImagePool, good: list[int], arguments: SplitArguments, corrections: Mapping[str, str], *, has_test: bool
) -> Members:
    """Training and validation images among `good`, and test images if a split.csv names them."""
    rows = [pool.rows[i] for i in good]
    if arguments.split_file is not None:
        split_of = split_as_written(rows, arguments.split_file, corrections, ignore_test=has_test)
    elif arguments.train_val_split == 0:
        split_of = dict.fromkeys(rows, "train")
    else:
        clusters = None
        if arguments.split_strategy == "grouped":
            sources = image_sources(pool.images.select(good))
            clusters = dict(zip(rows, cluster_duplicates(sources, len(good)), strict=True))
        validation = draw_validation(rows, arguments, clusters)
        split_of = dict.fromkeys(rows, "train") | dict.fromkeys(validation, "validation")
    splits = {"train", "validation"} | set(split_of.values())
    return {split: [i for i, row in zip(good, rows, strict=True) if split_of.get(row) == split] for split in splits}


def _build(pools: Mapping[str, ImagePool], class_names: Sequence[str], members: Members) -> DatasetDict:
    return DatasetDict(
        {
            split: pools.get(split, pools["train"]).build(class_names, members[split])
            for split in SPLITS
            if split in members
        }
    )
