"""A dataset on the Hub becomes the same pools of images as class folders do, or a stream of training images."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetBuilder, Features, Image, IterableDataset
from datasets.config import DATASET_INFO_FILENAME, DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import dataset_info
from huggingface_hub.errors import HFValidationError

from seedling_hf.data.images import a_few
from seedling_hf.data.label_map import check_label_map, read_label_map
from seedling_hf.data.pool import ImageFeature, ImagePool
from seedling_hf.data.shards import check_downloads, check_sets, check_shards, name_shards, read_shard
from seedling_hf.data.splits import SPLITS, choose_of_each_class
from seedling_hf.errors import InputError
from seedling_hf.network import explaining
from seedling_hf.train_arguments import DataArguments

SAVED_STATES = (DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME)  # of save_to_disk
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
    declared = class_names = stream.features[arguments.label_column_name].names

    pool = _list_split(images, "validation", arguments)
    if arguments.label_map is not None:
        names = read_label_map(arguments.label_map)
        check_label_map(names, arguments.label_map, [*declared, *pool.labels], name)
        class_names, pool = list(dict.fromkeys(names.get(each, each) for each in declared)), pool.rename(names)
    pool.check_known_classes(class_names, "the classes of its train split")
    members = pool.find_good(skip_bad_images=arguments.skip_bad_images)
    members = choose_of_each_class(pool.rows, members, arguments.max_eval_samples, arguments.split_seed)
    stream = _undecoded(stream.select_columns(list(columns)))
    stream = stream.rename_columns({old: new for old, new in columns.items() if old != new})
    if class_names != declared:
        numbers = [class_names.index(names.get(each, each)) for each in declared]
        features = Features({**stream.features, "label": ClassLabel(names=class_names)})
        stream = stream.map(partial(_renumber, numbers=numbers), features=features)
    return {"train": stream, "validation": pool.build(class_names, members)}


@contextmanager
def _opening(name: str) -> Iterator[None]:
    with explaining(f"a dataset at {name}", DatasetNotFoundError, DatasetGenerationError, OSError, ValueError):
        yield


def _load(arguments: DataArguments, *, streaming: bool) -> dict[str, Any]:
    """The splits of the dataset, by our names; a damaged cache of it is made anew.

    Raises:
        InputError: for shards that are missing or damaged.
    """
    from datasets import load_dataset_builder

    name = arguments.dataset_name
    if any(Path(name, state).is_file() for state in SAVED_STATES):
        raise InputError(
            f"expected Parquet files or images at {name}, found a dataset that save_to_disk wrote; use to_parquet"
        )
    try:
        builder = load_dataset_builder(name, arguments.dataset_config_name, revision=arguments.dataset_revision)
    except (DatasetNotFoundError, ConnectionError):
        with suppress(HFValidationError):  # a path
            dataset_info(name, revision=arguments.dataset_revision)  # raises the reason, which is lost here
        raise
    files = {str(split): list(map(str, found)) for split, found in (builder.config.data_files or {}).items()}
    everything = list(chain.from_iterable(files.values()))
    check_sets(everything)
    check_shards((file for file in everything if Path(file).is_file()), in_full=False)
    if streaming:
        loaded = builder.as_streaming_dataset()
        for split in loaded.keys() & files.keys():
            name_shards(loaded[split], files[split])
    else:
        loaded = _prepare(builder, everything)
    return {HUB_NAMES.get(split, split): dataset for split, dataset in loaded.items()}


def _prepare(builder: DatasetBuilder, files: Sequence[str]) -> dict[str, Dataset]:
    """Downloads the files and makes the cache that the splits are read from; one that is there but damaged, anew."""
    place, mode = Path(builder.cache_dir), None
    if (place / DATASET_INFO_FILENAME).exists():
        try:
            builder.download_and_prepare()
            return builder.as_dataset()
        except (OSError, ValueError, pa.ArrowException) as error:
            logger.warning("the cache in %s is damaged (%s) and is made anew", place, str(error).split("\n")[0])
            mode = "reuse_cache_if_exists"  # of the downloads
    check_downloads(files)
    try:
        builder.download_and_prepare(download_mode=mode)
    except (DatasetGenerationError, pa.ArrowException):
        check_shards(files, in_full=True)
        raise
    return builder.as_dataset()


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
    for shard in range(stream.num_shards):
        yield from read_shard(stream, shard, "run the command again")


def _renumber(row: dict[str, Any], numbers: Sequence[int]) -> dict[str, Any]:
    """A row with the new number of its class; of one without a class, as it is."""
    label = row["label"]
    return {**row, "label": label if label is None or label < 0 else numbers[label]}


def _undecoded(stream: IterableDataset) -> IterableDataset:
    for column, feature in (stream.features or {}).items():
        if isinstance(feature, Image):
            stream = stream.cast_column(column, Image(decode=False))
    return stream
