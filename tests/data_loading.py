"""Images as `train` loads them, from flags."""

from datasets import Dataset, DatasetDict

from seedling_hf.data.dataset import load_splits
from seedling_hf.train_arguments import DataArguments


def splits_of(**flags) -> DatasetDict:
    """What `train` loads with these flags and the defaults of the others."""
    return load_splits(DataArguments(**flags))


def rows(split: Dataset) -> list[tuple[str, str]]:
    """File and class name of each image of a split."""
    names = split.features["label"].names
    return [(file, names[label]) for file, label in zip(split["file"], split["label"], strict=True)]
