"""A data set on the Hub becomes the same Datasets as class folders do, or a stream of training images."""

import logging
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from datasets import ClassLabel, Dataset, Image, IterableDataset

from seedling_hf.arguments import DataArguments
from seedling_hf.data.folders import check_classes, check_known_classes, number_rows
from seedling_hf.data.images import a_few, find_good_images
from seedling_hf.data.splits import SPLITS, choose_of_each_class
from seedling_hf.errors import InputError

HUB_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}

logger = logging.getLogger(__name__)


def load_hub(arguments: DataArguments) -> dict[str, Dataset]:
    """The splits of a Hub data set with the columns `image`, `label` and `file`; classes in the order of its train."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    name = arguments.dataset_name
    image_column, label_column = arguments.image_column_name, arguments.label_column_name
    try:
        loaded = load_dataset(name, arguments.dataset_config_name, revision=arguments.dataset_revision)
    except (DatasetNotFoundError, OSError, ValueError) as error:
        raise InputError(f"expected a data set at {name}, found none: {str(error).splitlines()[0]}") from error
    loaded = {HUB_NAMES.get(split, split): dataset for split, dataset in loaded.items()}
    if "train" not in loaded:
        raise InputError(f"expected a split called train in {name}, found {a_few(list(loaded))}")
    unused = sorted(loaded.keys() - set(SPLITS))
    if "test" in loaded and not _is_labelled(loaded["test"], label_column):
        unused.append("test")
    if unused:
        logger.info("left out of %s, being no split that is used or without labels: %s", name, a_few(unused))
    class_names, pools = None, {}
    for split in [split for split in SPLITS if split in loaded and split not in unused]:
        where = f"the split {split} of {name}"
        pools[split] = _hub_pool(
            loaded[split], split, where, image_column, label_column, class_names, arguments.skip_bad_images
        )
        class_names = class_names or pools[split].features["label"].names
    return pools


def load_streamed(arguments: DataArguments) -> dict[str, IterableDataset | Dataset]:
    """The training images of a Hub data set as a stream, and its validation images on the disk.

    Returns:
        `train` with columns `image`, undecoded, and `label`; `validation` as `load_splits` gives it.

    Raises:
        InputError: for a data set without these splits or columns, or whose classes are not named by its features.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    name = arguments.dataset_name
    image_column, label_column = arguments.image_column_name, arguments.label_column_name
    try:
        streams = load_dataset(name, arguments.dataset_config_name, revision=arguments.dataset_revision, streaming=True)
        names = {HUB_NAMES.get(split, split): split for split in streams}
        missing = sorted({"train", "validation"} - names.keys())
        if missing:
            raise InputError(
                f"expected splits for train and validation in {name}, found {a_few(sorted(streams))}; a stream cannot "
                "be split here"
            )
        stream, validation = streams[names["train"]], streams[names["validation"]]
        # By way of its stream, since load_dataset would fetch the other splits with it.
        images = Dataset.from_generator(
            _rows_of, features=validation.features, gen_kwargs={"stream": _undecoded(validation)}, split="validation"
        )
    except (DatasetNotFoundError, OSError, ValueError) as error:
        raise InputError(f"expected a data set at {name}, found none: {str(error).splitlines()[0]}") from error
    where = f"the split train of {name}"
    features = stream.features or {}
    for column, flag, kind in (
        (image_column, "image_column_name", Image), (label_column, "label_column_name", ClassLabel),
    ):  # fmt: skip
        if not isinstance(features.get(column), kind):
            found = features[column] if column in features else f"the columns {a_few(list(features))}"
            raise InputError(
                f"expected {kind.__name__} in the column {column!r} of {where}, found {found}; name another by --{flag}"
            )
    class_names = features[label_column].names
    pool = _hub_pool(
        images, "validation", f"the split validation of {name}", image_column, label_column, class_names,
        arguments.skip_bad_images,
    )  # fmt: skip
    members = list(range(len(pool)))
    if arguments.max_eval_samples is not None:
        members = choose_of_each_class(list(pool["label"]), arguments.max_eval_samples, arguments.split_seed)
    stream = _undecoded(stream.select_columns([image_column, label_column]))
    renamed = {image_column: "image", label_column: "label"}
    stream = stream.rename_columns({old: new for old, new in renamed.items() if old != new})
    return {"train": stream, "validation": number_rows(pool, members)}


def _rows_of(stream: IterableDataset) -> Iterator[dict[str, Any]]:
    yield from stream


def _undecoded(stream: IterableDataset) -> IterableDataset:
    for column, feature in (stream.features or {}).items():
        if isinstance(feature, Image):
            stream = stream.cast_column(column, Image(decode=False))
    return stream


def _hub_pool(
    dataset: Dataset, split: str, where: str, image_column: str, label_column: str, class_names: list[str] | None,
    skip_bad: bool,
) -> Dataset:  # fmt: skip
    """A split with the columns `image`, `label` and `file`, without what cannot be decoded.

    Classes are those of `class_names`, or its own if None.
    """
    labels, names = _hub_labels(dataset, label_column, where)
    class_names = class_names or names
    images = _hub_images(dataset, image_column, where)
    files = _file_names(dataset, images, split)
    rows = list(zip(files, labels, strict=True))
    check_known_classes(rows, class_names, where, "the classes of its train split")
    if split == "train":
        check_classes(rows, where)
    numbers = [class_names.index(label) for label in labels]
    pool = images.add_column("label", numbers, feature=ClassLabel(names=class_names)).add_column("file", files)
    undecoded = images.cast_column("image", Image(decode=False))["image"]
    sources = (Path(image["path"]) if image["bytes"] is None else image["bytes"] for image in undecoded)
    good = find_good_images(files, sources, skip_bad)
    return pool if len(good) == len(pool) else pool.select(good)


def _hub_labels(dataset: Dataset, column: str, where: str) -> tuple[list[str], list[str]]:
    """The class name of each row, and all names in their order."""
    _check_column(dataset, column, where, "label_column_name")
    values, feature = list(dataset[column]), dataset.features[column]
    unlabelled = sum(value is None or value == -1 for value in values)
    if unlabelled:
        raise InputError(f"expected a label for each image in {where}, found {unlabelled} without; remove them")
    if isinstance(feature, ClassLabel):
        return [feature.names[value] for value in values], feature.names
    return [str(value) for value in values], [str(value) for value in sorted(set(values))]


def _hub_images(dataset: Dataset, column: str, where: str) -> Dataset:
    _check_column(dataset, column, where, "image_column_name")
    if not isinstance(dataset.features[column], Image):
        raise InputError(
            f"expected images in the column {column!r} of {where}, found {dataset.features[column]}; name another by "
            "--image_column_name"
        )
    images = dataset.select_columns(column)
    return images if column == "image" else images.rename_column(column, "image")


def _check_column(dataset: Dataset, column: str, where: str, flag: str) -> None:
    if column not in dataset.column_names:
        found = a_few(dataset.column_names)
        raise InputError(f"expected the column {column!r} in {where}, found {found}; name it by --{flag}")


def _is_labelled(dataset: Dataset, column: str) -> bool:
    return column in dataset.column_names and not {None, -1} & set(dataset[column])


def _file_names(dataset: Dataset, images: Dataset, split: str) -> list[str]:
    """What the images are called in a data set, or numbers where that does not tell them apart."""
    if "file" in dataset.column_names:
        names = list(dataset["file"])
    else:
        undecoded = images.cast_column("image", Image(decode=False)).with_format("arrow")
        columns = (batch["image"].combine_chunks() for batch in undecoded.iter(1024))
        names = [path and PurePosixPath(path).name for column in columns for path in column.field("path").to_pylist()]
    if all(names) and len(set(names)) == len(names):
        return names
    return [f"{split}/{i:08d}" for i in range(len(names))]
