"""Sizes, modes, and mean and standard deviation of the channels of images."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seedling_hf.data.images import map_in_threads, read_image, to_rgb
from seedling_hf.errors import InputError
from seedling_hf.progress import follow


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of a set of images; those of the channels are in the order R, G, B, from 0 to 1."""

    num_images: int
    sizes: dict[tuple[int, int], int]  # number of images of each (width, height)
    modes: dict[str, int]  # number of images of each of PIL's modes, as stored
    mean: tuple[float, float, float]  # of all pixels of all images
    std: tuple[float, float, float]
    mean_of_means: tuple[float, float, float]  # of the images' means, as in the tutorial's `mean_std.py`
    mean_of_stds: tuple[float, float, float]  # of the images' standard deviations (with n - 1), as in the tutorial


def measure_images(
    paths: Iterable[str | Path], num_threads: int | None = None, total: int | None = None
) -> ImageStatistics:
    """Reads every image, `total` in number, once, in threads; sums are of integers, so they are exact in any order.

    Raises:
        InputError: if there are no images.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    everything = np.zeros((3, 256), np.int64)
    means, stds = [], []

    def read(path: str | Path) -> tuple[tuple[int, int], str, np.ndarray]:
        image = read_image(path)
        return image.size, image.mode, np.array(to_rgb(image).histogram()).reshape(3, 256)

    for size, mode, histogram in follow(map_in_threads(read, paths, num_threads), "measuring images", total):
        sizes[size] += 1
        modes[mode] += 1
        everything += histogram
        means.append(_means(histogram))
        stds.append(_stds(histogram, 1))
    if not means:
        raise InputError("expected images to measure, found none")
    return ImageStatistics(
        num_images=len(means),
        sizes=dict(sizes.most_common()),
        modes=dict(modes.most_common()),
        mean=_means(everything),
        std=_stds(everything, 0),
        mean_of_means=tuple(math.fsum(values) / len(means) for values in zip(*means, strict=True)),
        mean_of_stds=tuple(math.fsum(values) / len(stds) for values in zip(*stds, strict=True)),
    )


def _sums(histogram: np.ndarray) -> list[tuple[int, int, int]]:
    """Number, sum and sum of squares of the values 0 to 255 counted in each row, as Python integers."""
    values = np.arange(256)
    return [(int(counts.sum()), int(counts @ values), int(counts @ values**2)) for counts in histogram]


def _means(histogram: np.ndarray) -> tuple[float, ...]:
    return tuple(total / (255 * count) for count, total, _ in _sums(histogram))


def _stds(histogram: np.ndarray, ddof: int) -> tuple[float, ...]:
    return tuple(
        math.sqrt((squares * count - total**2) / (count * max(1, count - ddof))) / 255
        for count, total, squares in _sums(histogram)
    )
