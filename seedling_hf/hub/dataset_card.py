"""The card of a dataset: classes, split, duplicates, licence; its text is `dataset_card.md`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict
from huggingface_hub import DatasetCardData
from jinja2 import Environment, StrictUndefined

from seedling_hf.data.duplicates import digest_images, find_exact_duplicates
from seedling_hf.data.pool import image_sources
from seedling_hf.escaping import Markdown, finish_markdown
from seedling_hf.hub.cards import describe_split

MOST_LISTED = 50
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}


class Location(NamedTuple):
    """Where an image is, and as what."""

    split: str
    file: str
    label: str


def find_duplicates(splits: Mapping[str, Dataset]) -> list[list[Location]]:
    """Groups of images with the same pixels, as `inspect_dataset` finds them."""
    locations = [
        Location(split, file, dataset.features["label"].int2str(label))
        for split, dataset in splits.items()
        for file, label in zip(dataset["file"], dataset["label"], strict=True)
    ]
    sources = (source for dataset in splits.values() for source in image_sources(dataset))
    digests = digest_images(sources, sum(map(len, splits.values())))
    return [[locations[i] for i in group] for group in find_exact_duplicates(digests)]


def render_dataset_card(
    splits: DatasetDict,
    repo_id: str,
    *,
    split_hash: str,
    duplicates: Sequence[Sequence[Location]],
    arguments: Mapping[str, Any],
) -> str:
    """The text of the card, of what `load_splits`, `hash_split` and `find_duplicates` give.

    `arguments` are the flags that drew the split, and `license` and `source`.
    """
    class_names = splits["train"].features["label"].names
    total, name = sum(map(len, splits.values())), repo_id.split("/")[-1]
    metadata = DatasetCardData(
        license=arguments["license"],
        task_categories=["image-classification"],
        pretty_name=name,
        size_categories=next((size for most, size in _SIZES.items() if total < most), "n>1M"),
        tags=["plants", "seedlings"],
    )
    environment = Environment(
        undefined=StrictUndefined, finalize=finish_markdown, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["markdown"] = Markdown
    template = environment.from_string(Path(__file__).with_suffix(".md").read_text(encoding="utf-8"))
    return template.render(
        metadata=Markdown(metadata.to_yaml()),
        total=total,
        name=name,
        repo_id=repo_id,
        class_names=class_names,
        counts={
            split: np.bincount(rows["label"], minlength=len(class_names)).tolist() for split, rows in splits.items()
        },
        source=arguments["source"],
        split_description=describe_split(arguments),
        split_hash=split_hash,
        duplicates=duplicates,
        num_across_splits=sum(len({row.split for row in group}) > 1 for group in duplicates),
        num_across_classes=sum(len({row.label for row in group}) > 1 for group in duplicates),
        most_listed=MOST_LISTED,
        license=arguments["license"],
    )
