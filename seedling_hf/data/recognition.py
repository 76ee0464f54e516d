"""Images that a model was trained on, recognised among others by the split.csv of its run: by content, or by name.

Where split.csv has hashes, content decides: copies under other names, in other formats, sizes and colours and in other
orientations are recognised, and another image of the same name is not mistaken for one. Crops are not recognised. On
4,027 seedlings, copies as JPEG or of 224 pixels differ from their originals in at most 4 bits of 64, and the 34 pairs
of different files that come as close under one of the eight symmetries show the same plant or spot of a tray.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from seedling_hf.data.duplicates import Fingerprints, hash_images
from seedling_hf.data.pool import image_sources
from seedling_hf.data.splits import Line, read_hashes

MOST_BITS = 4  # of 64 in which copies of an image differ
# With a letter in front, a spreadsheet does not take it for a number.
HASH = re.compile("p([0-9a-f]{16})")

Hashes = tuple[np.ndarray, np.ndarray]  # as `hash_images` gives them


@dataclass(frozen=True)
class TrainingImages:
    """The images among some that a model was trained on, in their order; `same_name` of them have their old name."""

    files: list[str]
    same_name: int
    by_content: bool  # whether contents were compared, or only names


class KnownImages:
    """The images of a run, by the hash that its split.csv gives each line."""

    def __init__(self, lines: Mapping[Line, str]) -> None:
        self.is_training = np.array([split == "train" for _, _, split in lines], bool)
        found = [HASH.fullmatch(text) for text in lines.values()]
        self.has_hash = np.array([match is not None for match in found], bool)
        self.hashes = np.array([int(match[1], 16) if match else 0 for match in found], np.uint64)
        self.lines_of: dict[str, list[int]] = {}
        for number, (file, _, _) in enumerate(lines):
            self.lines_of.setdefault(_without_suffix(file), []).append(number)

    @property
    def by_content(self) -> bool:
        """Whether images can be recognised by more than their names."""
        return bool(self.has_hash.any())

    def find(self, files: Sequence[str], hashes: Hashes | None = None) -> TrainingImages:
        """Those of some images that were trained on.

        Args:
            files: Their names, the class folder first.
            hashes: Of the same images, where contents are compared.
        """
        by_content = hashes is not None and self.by_content
        found, same_name = [], 0
        for i, file in enumerate(files):
            named = self.lines_of.get(_without_suffix(file), [])
            if by_content and hashes[1][i]:
                known_by_name = self._has_copy(hashes[0][i], named)
                is_known = self._has_copy(hashes[0][i]) if known_by_name is None else known_by_name
            else:
                is_known = known_by_name = self._decide(named)
            if is_known:
                found.append(file)
                same_name += bool(known_by_name)
        return TrainingImages(found, same_name, by_content)

    def _has_copy(self, hashes: np.ndarray, lines: Sequence[int] | slice = slice(None)) -> bool | None:
        """Whether the nearest of some lines is a training image; None if none is near.

        `hashes` are those of an image under the eight symmetries, (8,).
        """
        distances = np.bitwise_count(hashes[:, None] ^ self.hashes[lines]).min(0, initial=64)
        distances = np.where(self.has_hash[lines], distances, 64)
        least = distances.min(initial=64)
        return bool(self.is_training[lines][distances == least].any()) if least <= MOST_BITS else None

    def _decide(self, lines: Sequence[int]) -> bool:
        """Whether all these lines are of training images, none of which has another content for all that is known."""
        return bool(lines) and not self.has_hash[lines].any() and bool(self.is_training[lines].all())


def read_known_images(path: str | os.PathLike) -> KnownImages:
    """The images that a split.csv lists.

    Raises:
        InputError: if it is not one.
    """
    return KnownImages(read_hashes(path))


def find_training_images(dataset: Dataset, known: Sequence[KnownImages | None]) -> list[TrainingImages | None]:
    """For each of some runs, which images of a dataset it was trained on; None where it is unknown.

    The images are decoded once, and only if some run knows theirs by content.
    """
    compare = any(images is not None and images.by_content for images in known)
    hashes = hash_images(image_sources(dataset), len(dataset)) if compare else None
    return [images and images.find(dataset["file"], hashes) for images in known]


def write_hashes(lines: Sequence[Line], fingerprints: Fingerprints) -> dict[Line, str]:
    """The hash of each line for its split.csv; none for images without detail, which cannot be told apart."""
    rows = zip(lines, fingerprints.hashes[:, 0], fingerprints.have_detail, strict=True)
    return {line: f"p{value:016x}" for line, value, has_detail in rows if has_detail}


def _without_suffix(file: str) -> str:
    return re.sub(r"\.[^./]+$", "", file)
