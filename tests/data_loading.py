"""Images as `train` loads them, from flags."""

from datasets import DatasetDict

from seedling_hf.data.dataset import load_splits
from seedling_hf.train_arguments import DataArguments


def splits_of(**flags) -> DatasetDict:
    """What `train` loads with these flags and the defaults of the others."""
    return load_splits(DataArguments(**flags))
