"""The card of a data set: classes, split, images that are there twice, licence."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict
from huggingface_hub import DatasetCardData

from seedling_hf.data.duplicates import digest_images, find_exact_duplicates
from seedling_hf.data.pool import image_sources
from seedling_hf.hub.cards import describe_split, escape_cell

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
    digests = digest_images(source for dataset in splits.values() for source in image_sources(dataset))
    return [[locations[i] for i in group] for group in find_exact_duplicates(digests)]


def render_dataset_card(
    splits: DatasetDict,
    repo_id: str,
    *,
    split_hash: str,
    duplicates: Sequence[Sequence[Location]],
    arguments: Mapping[str, Any],
) -> str:
    """The text of the card.

    Args:
        splits: As `dataset.load_splits` gives them.
        repo_id: Where the data set is published.
        split_hash: As `dataset.hash_split` gives it.
        duplicates: As `find_duplicates` gives them.
        arguments: The flags that drew the split, and `license` and `source`.
    """
    total = sum(map(len, splits.values()))
    data = DatasetCardData(
        license=arguments["license"],
        task_categories=["image-classification"],
        pretty_name=repo_id.split("/")[-1],
        size_categories=next((name for most, name in _SIZES.items() if total < most), "n>1M"),
        tags=["plants", "seedlings"],
    )
    source = f"\n\nSource: {arguments['source']}" if arguments["source"] else ""
    return f"""---
{data.to_yaml()}
---

# {repo_id.split("/")[-1]}

<!-- Each push rewrites the sections between marks; text outside them is yours and stays. -->

<!-- begin content -->
{total:,} images of plant seedlings of {len(_class_names(splits))} species, as they are in the files, with the split
that they were published with.{source}

{_class_table(splits)}

Columns: `image`, `label`, and `file`, the path of the image in the folder that was published.
<!-- end content -->

<!-- begin use -->
## Use

```python
from datasets import load_dataset

splits = load_dataset("{repo_id}")
```

`seedling-hf train --dataset_name {repo_id}` trains on it.
<!-- end use -->

<!-- begin split -->
## Split

{describe_split(arguments)}

Its SHA-256 is `{split_hash}`, the same as in the card of a model that was trained on it; split.csv lists its files.
<!-- end split -->

<!-- begin duplicates -->
## Images that are there twice

{_describe_duplicates(duplicates)}
<!-- end duplicates -->

<!-- begin licence -->
## Licence

{arguments["license"]}
<!-- end licence -->
"""


def _class_names(splits: DatasetDict) -> list[str]:
    return splits["train"].features["label"].names


def _class_table(splits: DatasetDict) -> str:
    columns = {split: rows["label"] for split, rows in splits.items()}
    lines = [f"| species | {' | '.join(columns)} |", "|:--|" + "--:|" * len(columns)]
    for number, name in enumerate(_class_names(splits)):
        counts = " | ".join(f"{list(labels).count(number):,}" for labels in columns.values())
        lines.append(f"| {escape_cell(name)} | {counts} |")
    lines.append(f"| all | {' | '.join(f'{len(labels):,}' for labels in columns.values())} |")
    return "\n".join(lines)


def _describe_duplicates(duplicates: Sequence[Sequence[Location]]) -> str:
    if not duplicates:
        return "No two images are equal in every pixel; images that are nearly equal were not looked for."
    across = sum(len({image.split for image in group}) > 1 for group in duplicates)
    contradicting = sum(len({image.label for image in group}) > 1 for group in duplicates)
    lines = [
        f"Images that are there more than once, equal in every pixel: {len(duplicates)}; in more than one split: "
        f"{across}; under more than one species: {contradicting}. Nothing was taken out. Images that are nearly "
        "equal were not looked for.",
        "",
        "| files | splits |",
        "|:--|:--|",
    ]
    for group in duplicates[:MOST_LISTED]:
        files = ", ".join(escape_cell(image.file) for image in group)
        lines.append(f"| {files} | {', '.join(image.split for image in group)} |")
    if len(duplicates) > MOST_LISTED:
        lines += ["", f"… and {len(duplicates) - MOST_LISTED} more."]
    return "\n".join(lines)
