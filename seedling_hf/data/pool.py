"""Pools of images: what one place holds, before classes are numbered and images are split.

`folders` and `hub_dataset` list pools; the steps of `dataset` check them, choose rows, and build the splits.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Image

from seedling_hf.data.images import a_few, check_images, read_image
from seedling_hf.data.label_lists import is_number
from seedling_hf.data.listing import MISNAMED
from seedling_hf.errors import InputError
from seedling_hf.spelling import find_near, spelling_key

MOST_PROPOSED = 3  # names that a better spelling is searched for

Row = tuple[str, str]  # file relative to its root folder, class name

logger = logging.getLogger(__name__)


class ImageFeature(Image):
    """A column of images that are decoded by `read_image`: one that cannot be used is named, wherever it is read."""

    def decode_example(self, value: Any, token_per_repo_id: dict[str, Any] | None = None) -> Any:
        if not isinstance(value, dict):  # decoded already
            return value
        return read_image(value["path"] if value["bytes"] is None else value["bytes"], value["path"])


@dataclass(frozen=True)
class ImagePool:
    """The images of a tree, or of a split of a Hub dataset."""

    where: str  # for messages
    images: Dataset  # the column `image`
    rows: list[Row]
    class_names: list[str] | None = None  # all classes in their order, if the place declares them
    misnamed: Sequence[str] = ()  # further files, whose names are not UTF-8: they are in no column
    list_file: str | None = None  # the list that names the classes, if folders do not

    @property
    def labels(self) -> list[str]:
        return [label for _, label in self.rows]

    def check_known_classes(self, class_names: Sequence[str], expected: str) -> None:
        """Refuses images of classes that are not among `class_names`.

        Raises:
            InputError: that `expected` was expected, with a better spelling if there is one.
        """
        unknown = sorted(set(self.labels) - set(class_names))
        if unknown:
            near = {name: find_near(name, class_names) for name in unknown[:5]}
            renamed = [(name, same) for name, same in near.items() if same]
            advice = "rename or remove it, or let --label_map give its class: a CSV with the header from,to"
            if renamed:
                advice = (
                    f"rename {a_few([f'{name} to {same}' for name, same in renamed])}, or let --label_map do so: a CSV "
                    f"with the header from,to and lines such as {','.join(renamed[0])}"
                )
            raise InputError(
                f"expected only {expected} in {self.where}, found also {a_few(unknown)}; {advice}; the classes are "
                f"{a_few(class_names, 12)}"
            )

    def rename(self, names: Mapping[str, str]) -> "ImagePool":
        """The same images with classes of other names; classes that get the same name become one."""
        declared = self.class_names and list(dict.fromkeys(names.get(name, name) for name in self.class_names))
        rows = [(file, names.get(label, label)) for file, label in self.rows]
        return replace(self, rows=rows, class_names=declared)

    def find_good(self, *, skip_bad_images: bool) -> list[int]:
        """Decodes all images; positions of those that can be decoded.

        Raises:
            InputError: if some cannot, unless they are to be skipped.
        """
        reasons, count = check_images(image_sources(self.images), len(self.images)), len(self.rows) + len(self.misnamed)
        bad = [f"{os.fsencode(file)!r} ({MISNAMED})" for file in self.misnamed]
        bad += [f"{file} ({reason})" for (file, _), reason in zip(self.rows, reasons, strict=True) if reason]
        if bad and not skip_bad_images:
            raise InputError(
                f"expected images that can be decoded in {self.where}, found {len(bad)} of {count} that cannot: "
                f"{a_few(bad)}; repair or remove them, or skip them with --skip_bad_images"
            )
        if bad:
            logger.warning("skipped %d of %d images that cannot be decoded: %s", len(bad), count, a_few(bad))
        return [i for i, reason in enumerate(reasons) if reason is None]

    def build(self, class_names: Sequence[str], members: Sequence[int]) -> Dataset:
        """The images at `members`: columns `image`, `label`, `file` and `index`, their number in this order."""
        numbers = {name: number for number, name in enumerate(class_names)}
        index = [-1] * len(self.rows)
        for number, i in enumerate(members):
            index[i] = number
        # Columns are added before rows are selected, because that would copy the selected images.
        table = self.images.add_column(
            "label", [numbers[label] for label in self.labels], feature=ClassLabel(names=list(class_names))
        )
        return table.add_column("file", [file for file, _ in self.rows]).add_column("index", index).select(members)


def name_classes(pools: Mapping[str, ImagePool]) -> list[str]:
    """The classes of the training images, in the order that they declare or else in byte order.

    Raises:
        InputError: for fewer than two, for numbers in a list of labels, or for images of other classes in another pool.
    """
    train = pools["train"]
    found = sorted(set(train.labels))
    if len(found) < 2:
        advice = f"it takes the classes from {train.list_file}" if train.list_file else (
            "in a folder, each class is a folder of images, or metadata.csv lists the images with their classes"
        )  # fmt: skip
        raise InputError(
            f"expected at least two classes in {train.where}, found {a_few(found) if found else 'none'}; {advice}"
        )
    if train.list_file and (numbers := [name for name in found if is_number(name)]):
        raise InputError(
            f"expected names of classes in the column label of {train.list_file}, found the numbers {a_few(numbers)}; "
            "write names there, or let --label_map give them: a CSV with the header from,to and a line for each number"
        )
    spellings = Counter(map(spelling_key, found))
    similar = [name for name in found if spellings[spelling_key(name)] > 1]
    if similar:
        logger.warning("class names that differ only in spelling are separate classes: %s", a_few(similar))
    class_names = train.class_names or found
    for split, pool in pools.items():
        if split != "train":
            pool.check_known_classes(class_names, f"the classes of {train.where}")
    return class_names


def propose_names(names: Sequence[str], known: Sequence[str]) -> str:
    """The first of some unknown names, each with a known one that it nearly is."""
    near = {name: find_near(name, known) for name in names[:MOST_PROPOSED]}
    return a_few([f"{name} (did you mean {near[name]}?)" if near.get(name) else name for name in names], MOST_PROPOSED)


def image_sources(dataset: Dataset) -> Iterator[Path | bytes]:
    """The images of a dataset as they are stored, in its order: paths, or bytes where the dataset holds them."""
    for batch in dataset.select_columns("image").cast_column("image", Image(decode=False)).iter(256):
        for image in batch["image"]:
            yield Path(image["path"]) if image["bytes"] is None else image["bytes"]
