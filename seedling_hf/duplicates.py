"""Which pictures show the same: fingerprints of pictures, exact and near-duplicates among them, clusters of these.

Exact duplicates have the same decoded pixels. Near-duplicates are found in two steps. Candidates have perceptual hashes
(imagehash's pHash: the signs of the low frequencies) that differ in few bits, under one of the eight symmetries of the
square. A candidate is confirmed by how well the fine detail of the two small grey pictures agrees, the better of shifts
of up to an eighth of the side: grains of sand and gravel are a fingerprint of the place, which the coarse hash is not.

The thresholds were chosen by eye on 4,027 seedlings: of the 80 best candidates, all 53 pairs above 0.62 show the same
plant or the same ground, shifted or cropped at most, and all below 0.6 are strangers that lie alike.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageStat

MAX_DISTANCE = 12  # bits of 64; unrelated pictures differ in 32 on average
MIN_CORRELATION = 0.62
SIDE = 32  # of the small grey pictures, which is what pHash makes of a picture too
MAX_SHIFT = 4  # pixels of the small picture
# Turns by 0°, 90°, 180° and 270°, and the same of the mirrored picture; on arrays (..., H, W).
SYMMETRIES = tuple(
    lambda x, turns=turns, mirrored=mirrored: np.rot90(x[..., ::-1] if mirrored else x, turns, axes=(-2, -1))
    for mirrored in (False, True)
    for turns in range(4)
)


@dataclass(frozen=True)
class Fingerprints:
    """What is kept of N pictures.

    Attributes:
        digests: SHA-256 of size and decoded RGB pixels.
        sizes: Width and height in pixels, (N, 2).
        colors: Mean of red, green and blue on the scale of 0 to 1, (N, 3).
        thumbnails: Grey pictures of `SIDE` pixels, (N, SIDE, SIDE), uint8.
        hashes: pHash of each of the eight symmetries of the thumbnails, (N, 8), uint64.
    """

    digests: list[str]
    sizes: np.ndarray
    colors: np.ndarray
    thumbnails: np.ndarray
    hashes: np.ndarray

    def __len__(self) -> int:
        return len(self.digests)


@dataclass(frozen=True)
class NearDuplicate:
    """Two pictures, by position with `first` < `second`, that are nearly the same.

    Attributes:
        first: Position of one.
        second: Position of the other.
        distance: Bits in which their hashes differ.
        correlation: Pearson correlation of their fine detail where they overlap, 1 at best.
    """

    first: int
    second: int
    distance: int
    correlation: float


def fingerprint_pictures(sources: Iterable[str | os.PathLike | bytes], num_threads: int | None = None) -> Fingerprints:
    """Decodes every picture once.

    Args:
        sources: Files, or encoded pictures as bytes, that can be decoded.
        num_threads: Threads that decode (default: as many as cores may be used).
    """
    if num_threads is None:
        num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = []
    with ThreadPoolExecutor(num_threads) as pool:
        # In portions, because `map` hands out all its work at once and keeps what waits in memory.
        for portion in _portions(sources, 256):
            found += pool.map(_fingerprint, portion)
    digests, sizes, colors, thumbnails, hashes = zip(*found, strict=True) if found else ([], [], [], [], [])
    return Fingerprints(
        list(digests),
        np.array(sizes, np.int64).reshape(-1, 2),
        np.array(colors).reshape(-1, 3),
        np.array(thumbnails, np.uint8).reshape(-1, SIDE, SIDE),
        np.array(hashes, np.uint64).reshape(-1, len(SYMMETRIES)),
    )


def find_exact_duplicates(fingerprints: Fingerprints) -> list[list[int]]:
    """Groups, of two positions or more each, of pictures with the same pixels."""
    groups: dict[str, list[int]] = {}
    for i, digest in enumerate(fingerprints.digests):
        groups.setdefault(digest, []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def find_near_duplicates(
    fingerprints: Fingerprints, *, max_distance: int = MAX_DISTANCE, min_correlation: float = MIN_CORRELATION
) -> list[NearDuplicate]:
    """Pairs of pictures that are nearly the same but not exactly; of exact duplicates the first stands for all.

    The comparison of hashes is quadratic, in NumPy: 50,000 pictures take about a minute, a million would take hours.

    Args:
        fingerprints: Of all pictures.
        max_distance: Largest number of bits, of 64, in which hashes of candidates differ.
        min_correlation: Smallest correlation of the fine detail.

    Returns:
        The pairs, the most alike first.
    """
    digests = fingerprints.digests
    # A picture without any detail, such as a white one, has a hash that says nothing.
    originals = np.array(
        [i for i in sorted({d: i for i, d in reversed([*enumerate(digests)])}.values())
         if np.ptp(fingerprints.thumbnails[i]) > 0], dtype=np.int64,
    )  # fmt: skip
    best: dict[tuple[int, int], NearDuplicate] = {}
    for first, second, symmetry, distance in _candidates(fingerprints.hashes[originals], max_distance):
        first, second = originals[first], originals[second]
        correlations = _correlate(fingerprints.thumbnails[first], fingerprints.thumbnails[second], symmetry)
        for i, j, bits, correlation in zip(first, second, distance, correlations, strict=True):
            pair = NearDuplicate(int(i), int(j), int(bits), float(correlation))
            known = best.get((pair.first, pair.second))
            if correlation >= min_correlation and (known is None or correlation > known.correlation):
                best[pair.first, pair.second] = pair
    return sorted(best.values(), key=lambda pair: (-pair.correlation, pair.first, pair.second))


def cluster_duplicates(sources: Iterable[str | os.PathLike | bytes]) -> list[int]:
    """The number of each picture's cluster: pictures that exact or near-duplicates lead to from one another."""
    fingerprints = fingerprint_pictures(sources)
    return connect(len(fingerprints), find_exact_duplicates(fingerprints), find_near_duplicates(fingerprints))


def connect(count: int, exact: Sequence[Sequence[int]], near: Sequence[NearDuplicate]) -> list[int]:
    """The number of each of `count` pictures' cluster, from the duplicates that were found among them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = [(group[0], other) for group in exact for other in group[1:]]
    edges += [(pair.first, pair.second) for pair in near]
    rows, columns = np.array(edges, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges), bool), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1].tolist()


def _fingerprint(source: str | os.PathLike | bytes) -> tuple[str, tuple[int, int], list[float], np.ndarray, list[int]]:
    with Image.open(BytesIO(source) if isinstance(source, bytes) else Path(source)) as image:
        image = _to_rgb(ImageOps.exif_transpose(image))
    digest = hashlib.sha256(f"{image.width}×{image.height}".encode() + image.tobytes()).hexdigest()
    thumbnail = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    color = [mean / 255 for mean in ImageStat.Stat(image).mean]
    return digest, image.size, color, thumbnail, [_hash(symmetry(thumbnail)) for symmetry in SYMMETRIES]


def _hash(thumbnail: np.ndarray) -> int:
    import imagehash

    bits = imagehash.phash(Image.fromarray(np.ascontiguousarray(thumbnail))).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # of 16 bits, which PIL would clip
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # PIL warns of a palette with transparency that goes to RGB at once
    return image.convert("RGB")


def _candidates(hashes: np.ndarray, most: int, rows: int = 256) -> Iterator[tuple[np.ndarray, ...]]:
    """Portions of pairs whose hashes differ in `most` bits at most: first, second, symmetry of the first, bits."""
    for start in range(0, len(hashes), rows):
        block, others = hashes[start : start + rows], hashes[start:, 0]
        found = []
        for symmetry in range(len(SYMMETRIES)):
            distance = np.bitwise_count(block[:, symmetry, None] ^ others)
            first, second = np.nonzero(distance <= most)
            later = second > first  # each pair once; of a picture and itself nothing is to be learnt
            first, second = first[later], second[later]
            found.append((first + start, second + start, np.full(len(first), symmetry), distance[first, second]))
        pairs = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        for at in range(0, len(pairs[0]), 4096):
            yield tuple(part[at : at + 4096] for part in pairs)


def _correlate(first: np.ndarray, second: np.ndarray, symmetry: np.ndarray) -> np.ndarray:
    """Of thumbnails (N, SIDE, SIDE), the first turned by its symmetry: correlation (N,) of detail at the best shift."""
    turned = np.empty_like(first)
    for number, transform in enumerate(SYMMETRIES):
        turned[symmetry == number] = transform(first[symmetry == number])
    a, b = _detail(turned), _detail(second)
    best = np.full(len(a), -1.0, np.float32)
    shifts = range(-MAX_SHIFT, MAX_SHIFT + 1)
    for dy in shifts:
        for dx in shifts:
            ours, theirs = a[:, _overlap(dy), _overlap(dx)], b[:, _overlap(-dy), _overlap(-dx)]
            np.maximum(best, (_standardise(ours) * _standardise(theirs)).sum((1, 2)), out=best)
    return best


def _overlap(shift: int) -> slice:
    return slice(max(0, shift), SIDE + min(0, shift))


def _detail(thumbnails: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    thumbnails = thumbnails.astype(np.float32)
    return thumbnails - gaussian_filter(thumbnails, sigma=(0, 2, 2))


def _standardise(pictures: np.ndarray) -> np.ndarray:
    """Mean 0 and norm 1 each; zeros where there is nothing to be seen."""
    pictures = pictures - pictures.mean((1, 2), keepdims=True)
    return pictures / np.maximum(np.linalg.norm(pictures, axis=(1, 2), keepdims=True), 1e-6)


def _portions(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while portion := list(islice(items, size)):
        yield portion
