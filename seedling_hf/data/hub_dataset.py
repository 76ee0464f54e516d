"""A dataset on the Hub becomes the same pools of images as class folders do, or a stream of training images."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, Image, IterableDataset
from pyarrow import parquet

from seedling_hf.data.images import a_few
from seedling_hf.data.pool import ImageFeature, ImagePool
from seedling_hf.data.splits import SPLITS, choose_of_each_class
from seedling_hf.errors import InputError
from seedling_hf.network import explaining
from seedling_hf.train_arguments import DataArguments

HUB_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}

logger = logging.getLogger(__name__)


def list_hub(arguments: DataArguments) -> dict[str, ImagePool]:
    """The images of the splits of a Hub dataset, decodable or not.

    Raises:
        InputError: for a dataset without a train split, columns of images and classes, or a label for each image.
    """
    name = arguments.dataset_name
    with _opening(name):
        loaded = _load(arguments, streaming=False)
    if "train" not in loaded:
        raise InputError(f"expected a split called train in {name}, found {a_few(list(loaded))}")
    ignored = sorted(loaded.keys() - set(SPLITS))
    if "test" in loaded and not _is_labelled(loaded["test"], arguments.label_column_name):
        ignored.append("test")
    if ignored:
        logger.info("ignored in %s, neither a split to use nor one with labels: %s", name, a_few(ignored))
    return {split: _list_split(loaded[split], split, arguments) for split in SPLITS if split in loaded.keys() - ignored}


def load_streamed(arguments: DataArguments) -> dict[str, IterableDataset | Dataset]:
    """The training images of a Hub dataset as a stream, and its validation images on the disk.

    Returns:
        `train` with columns `image`, undecoded, and `label`; `validation` as `load_splits` gives it.

    Raises:
        InputError: for a dataset without these splits or columns, or whose features do not name the classes.
    """
    name = arguments.dataset_name
    with _opening(name):
        streams = _load(arguments, streaming=True)
        if not {"train", "validation"} <= streams.keys():
            raise InputError(
                f"expected splits for train and validation in {name}, found {a_few(sorted(streams))}; a stream cannot "
                "be split here"
            )
        stream, validation = streams["train"], streams["validation"]
        # From its stream, because load_dataset would download the other splits with it.
        images = Dataset.from_generator(
            _rows_of, features=validation.features, gen_kwargs={"stream": _undecoded(validation)}, split="validation"
        )
    where = f"the split train of {name}"
    _check_column(stream, arguments.image_column_name, where, "image_column_name", Image)
    _check_column(stream, arguments.label_column_name, where, "label_column_name", ClassLabel)
    columns = {arguments.image_column_name: "image", arguments.label_column_name: "label"}
    class_names = stream.features[arguments.label_column_name].names

    pool = _list_split(images, "validation", arguments)
    pool.check_known_classes(class_names, "the classes of its train split")
    members = pool.find_good(skip_bad_images=arguments.skip_bad_images)
    members = choose_of_each_class(pool.rows, members, arguments.max_eval_samples, arguments.split_seed)
    stream = _undecoded(stream.select_columns(list(columns)))
    stream = stream.rename_columns({old: new for old, new in columns.items() if old != new})
    return {"train": stream, "validation": pool.build(class_names, members)}


@contextmanager
def _opening(name: str) -> Iterator[None]:
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    with explaining(f"a dataset at {name}", DatasetNotFoundError, DatasetGenerationError, OSError, ValueError):
        yield


def _load(arguments: DataArguments, *, streaming: bool) -> dict[str, Any]:
    """The splits of the dataset, by our names; a damaged cache of it is made anew."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    name, config = arguments.dataset_name, arguments.dataset_config_name
    load = partial(load_dataset, name, config, revision=arguments.dataset_revision, streaming=streaming)
    _check_shards(name, in_full=False)
    try:
        loaded = load()
    except DatasetGenerationError:
        _check_shards(name, in_full=True)
        raise
    except (pa.ArrowException, FileNotFoundError) as error:
        if isinstance(error, FileNotFoundError) and ".arrow" not in str(error):
            raise
        logger.warning("the cache of %s is damaged (%s) and is made anew", name, str(error).split("\n")[0])
        loaded = load(download_mode="reuse_cache_if_exists")
    return {HUB_NAMES.get(split, split): dataset for split, dataset in loaded.items()}


def _check_shards(name: str, *, in_full: bool) -> None:
    """Raises InputError for a damaged Parquet file in a folder; reads all of it only `in_full`."""
    for file in sorted(Path(name).rglob("*.parquet")) if Path(name).is_dir() else ():
        try:
            with parquet.ParquetFile(file) as shard:
                for _ in shard.iter_batches(1024) if in_full else ():
                    pass
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(
                f"expected a whole Parquet file at {file}, found it damaged ({str(error).splitlines()[0]}); write or "
                "download it again"
            ) from error


def _list_split(dataset: Dataset, split: str, arguments: DataArguments) -> ImagePool:
    image_column, label_column = arguments.image_column_name, arguments.label_column_name
    where = f"the split {split} of {arguments.dataset_name}"
    _check_column(dataset, label_column, where, "label_column_name")
    _check_column(dataset, image_column, where, "image_column_name", Image)
    labels, feature = list(dataset[label_column]), dataset.features[label_column]
    unlabelled = sum(value is None or value == -1 for value in labels)
    if unlabelled:
        raise InputError(f"expected a label for each image in {where}, found {unlabelled} without; remove them")
    names = feature.names if isinstance(feature, ClassLabel) else [str(value) for value in sorted(set(labels))]
    labels = [names[value] if isinstance(feature, ClassLabel) else str(value) for value in labels]
    images = dataset.select_columns(image_column)
    if image_column != "image":
        images = images.rename_column(image_column, "image")
    images = images.cast_column("image", ImageFeature())
    return ImagePool(where, images, list(zip(_file_names(dataset, images, split), labels, strict=True)), names)


def _check_column(
    dataset: Dataset | IterableDataset, column: str, where: str, flag: str, kind: type | None = None
) -> None:
    features = dataset.features or {}
    if column not in features:
        found = a_few(list(features))
        raise InputError(f"expected the column {column!r} in {where}, found {found}; name it with --{flag}")
    if kind is not None and not isinstance(features[column], kind):
        raise InputError(
            f"expected {kind.__name__} in the column {column!r} of {where}, found {features[column]}; name another "
            f"with --{flag}"
        )


def _is_labelled(dataset: Dataset, column: str) -> bool:
    return column in dataset.column_names and not {None, -1} & set(dataset[column])


def _file_names(dataset: Dataset, images: Dataset, split: str) -> list[str]:
    """The names of the images in a dataset, or numbers if the names are not unique."""
    if "file" in dataset.column_names:
        names = list(dataset["file"])
    else:
        undecoded = images.cast_column("image", Image(decode=False)).with_format("arrow")
        columns = (batch["image"].combine_chunks() for batch in undecoded.iter(1024))
        names = [path and PurePosixPath(path).name for column in columns for path in column.field("path").to_pylist()]
    if all(names) and len(set(names)) == len(names):
        return names
    return [f"{split}/{i:08d}" for i in range(len(names))]


def _rows_of(stream: IterableDataset) -> Iterator[dict[str, Any]]:
    yield from stream


def _undecoded(stream: IterableDataset) -> IterableDataset:
    for column, feature in (stream.features or {}).items():
        if isinstance(feature, Image):
            stream = stream.cast_column(column, Image(decode=False))
    return stream
