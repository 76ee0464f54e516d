"""Sizes, modes, and mean and standard deviation of the channels of a set of pictures."""

import math
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


@dataclass(frozen=True)
class PictureStatistics:
    """Figures of a set of pictures; those of the channels are in the order R, G, B, on the scale of 0 to 1.

    Attributes:
        num_pictures: Number of pictures.
        sizes: Number of pictures of each (width, height).
        modes: Number of pictures of each of PIL's modes, as stored.
        mean: Of all pixels of all pictures.
        std: Of all pixels of all pictures.
        mean_of_means: Mean over the pictures of each picture's mean, as the tutorial's `mean_std.py` has it.
        mean_of_stds: Mean over the pictures of each picture's standard deviation (with n - 1), likewise.
    """

    num_pictures: int
    sizes: dict[tuple[int, int], int]
    modes: dict[str, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mean_of_means: tuple[float, float, float]
    mean_of_stds: tuple[float, float, float]


def measure_pictures(paths: Iterable[Path], num_threads: int = 2) -> PictureStatistics:
    """Reads every picture once; sums are of integers, so that they are exact whatever the order.

    Args:
        paths: Pictures that can be decoded, at least one.
        num_threads: Threads that decode.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    pixels, sums, squares = 0, np.zeros(3, np.int64), np.zeros(3, object)
    means, stds = [[], [], []], [[], [], []]
    with ThreadPoolExecutor(num_threads) as pool:
        # In portions, because `map` hands out all its work at once and keeps what is done.
        paths = iter(paths)
        while portion := list(islice(paths, 256)):
            for size, mode, total, square in pool.map(_measure, portion):
                count = size[0] * size[1]
                sizes[size] += 1
                modes[mode] += 1
                pixels, sums, squares = pixels + count, sums + total, squares + square
                for channel in range(3):
                    mean = int(total[channel]) / count
                    spread = int(square[channel]) * count - int(total[channel]) ** 2
                    means[channel].append(mean / 255)
                    stds[channel].append(math.sqrt(spread / (count * max(1, count - 1))) / 255)
    num_pictures = sum(sizes.values())
    return PictureStatistics(
        num_pictures=num_pictures,
        sizes=dict(sizes.most_common()),
        modes=dict(modes.most_common()),
        mean=tuple(int(s) / pixels / 255 for s in sums),
        std=tuple(math.sqrt(int(q) * pixels - int(s) ** 2) / pixels / 255 for s, q in zip(sums, squares, strict=True)),
        mean_of_means=tuple(math.fsum(values) / num_pictures for values in means),
        mean_of_stds=tuple(math.fsum(values) / num_pictures for values in stds),
    )


def _measure(path: Path) -> tuple[tuple[int, int], str, np.ndarray, np.ndarray]:
    with Image.open(path) as image:
        mode = image.mode
        values = np.asarray(ImageOps.exif_transpose(image).convert("RGB"), dtype=np.int64)
    return (values.shape[1], values.shape[0]), mode, values.sum((0, 1)), np.square(values).sum((0, 1))
