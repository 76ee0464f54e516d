"""Duplicates: fingerprints of images, exact and near-duplicates among them, and clusters of these.

Exact duplicates have the same decoded pixels. Near-duplicates are found in two steps. Candidates have perceptual hashes
(imagehash's pHash: the signs of the low frequencies) that differ in few bits, under one of the eight symmetries of the
square; whole images are compared with whole images and with the inner parts of others. A candidate is confirmed if the
fine detail of the two small grey images correlates at the best shift of up to an eighth of the side: grains of sand and
gravel identify a place, which the coarse hash does not.

The thresholds were chosen by eye on 4,027 seedlings. Among whole images, the 53 pairs above 0.62 show one plant or one
spot of a tray; those below 0.6 are different places that look similar. Comparison with inner parts finds such false
pairs at 12 bits, but none at 10.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageStat

from seedling_hf.data.images import Source, map_in_threads, read_image, to_rgb
from seedling_hf.progress import follow

MAX_DISTANCE = 12  # bits of 64; unrelated images differ in 32 on average
MAX_INNER_DISTANCE = 10
MIN_CORRELATION = 0.62
SIDE = 32  # of the small grey images; pHash uses the same
MAX_SHIFT = 4  # pixels of the small image
INNER_MARGIN = 0.04  # cut off on each side for the inner part; with it, crops of up to 6% of each side are found
# Rotations by 0°, 90°, 180° and 270°, with and without mirroring; on arrays (..., H, W).
SYMMETRIES = tuple(
    lambda x, turns=turns, mirrored=mirrored: np.rot90(x[..., ::-1] if mirrored else x, turns, axes=(-2, -1))
    for mirrored in (False, True)
    for turns in range(4)
)


@dataclass(frozen=True)
class Fingerprints:
    """What is needed to compare N images."""

    digests: list[str]  # as `pixel_digest` gives them
    sizes: np.ndarray  # width and height in pixels, (N, 2)
    colors: np.ndarray  # mean of red, green and blue from 0 to 1, (N, 3)
    thumbnails: np.ndarray  # grey images, (N, SIDE, SIDE), uint8
    inner_thumbnails: np.ndarray  # the same of the inner parts
    hashes: np.ndarray  # pHash of the eight symmetries of the thumbnails, (N, 8), uint64
    inner_hashes: np.ndarray  # pHash of the inner thumbnails, (N,), uint64

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def have_detail(self) -> np.ndarray:
        """(N,) whether the hash of an image means something."""
        return np.ptp(self.thumbnails, axis=(1, 2)) > 0


@dataclass(frozen=True)
class NearDuplicate:
    """Two images that are nearly the same."""

    first: int  # position of one image
    second: int  # position of the other, after the first
    distance: int  # bits in which their hashes differ
    correlation: float  # Pearson correlation of their fine detail where they overlap


def fingerprint_images(
    sources: Iterable[Source], num_threads: int | None = None, total: int | None = None
) -> Fingerprints:
    """Decodes every image, `total` in number, once, in `num_threads` threads (default: one for each available core)."""
    found = list(follow(map_in_threads(_fingerprint, sources, num_threads), "fingerprinting images", total))
    digests, sizes, colors, thumbnails, hashes = zip(*found, strict=True) if found else ([], [], [], [], [])
    thumbnails = np.array(thumbnails, np.uint8).reshape(-1, 2, SIDE, SIDE)
    hashes = np.array(hashes, np.uint64).reshape(-1, len(SYMMETRIES) + 1)
    return Fingerprints(
        list(digests),
        sizes=np.array(sizes, np.int64).reshape(-1, 2),
        colors=np.array(colors).reshape(-1, 3),
        thumbnails=thumbnails[:, 0],
        inner_thumbnails=thumbnails[:, 1],
        hashes=hashes[:, :-1],
        inner_hashes=hashes[:, -1],
    )


def hash_images(sources: Iterable[Source], total: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """pHash of the eight symmetries of each image, (N, 8), uint64, and whether it has detail to tell it by, (N,)."""
    found = list(follow(map_in_threads(_hash_whole, sources), "fingerprinting images", total))
    hashes = np.array([hashes for hashes, _ in found], np.uint64).reshape(-1, len(SYMMETRIES))
    return hashes, np.array([has_detail for _, has_detail in found], bool)


def digest_images(sources: Iterable[Source], total: int | None = None) -> list[str]:
    """Decodes every image, `total` in number; equal digests are equal images, as `pixel_digest` defines them."""
    digests = map_in_threads(lambda source: pixel_digest(to_rgb(read_image(source))), sources)
    return list(follow(digests, "comparing images", total))


def pixel_digest(image: Image.Image) -> str:
    """SHA-256 of the size and the pixels of an upright RGB image, however its file is named and encoded."""
    return hashlib.sha256(f"{image.width}×{image.height}".encode() + image.tobytes()).hexdigest()


def find_exact_duplicates(digests: Sequence[str]) -> list[list[int]]:
    """Groups, of two positions or more each, of images with the same pixels."""
    groups: dict[str, list[int]] = {}
    for i, digest in enumerate(digests):
        groups.setdefault(digest, []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def find_near_duplicates(fingerprints: Fingerprints) -> list[NearDuplicate]:
    """Pairs of near-duplicates, the most similar first; of a group of exact duplicates, only the first is compared.

    Comparing hashes is quadratic: on one core 6 s for 12,500 images, about two minutes for 50,000, and half a day for
    a million.
    """
    digests = fingerprints.digests
    # The hash of an image without detail, such as a white one, is meaningless.
    originals = np.array(
        [i for i in sorted({d: i for i, d in reversed([*enumerate(digests)])}.values())
         if fingerprints.have_detail[i]], dtype=np.int64,
    )  # fmt: skip
    hashes = fingerprints.hashes[originals]
    best: dict[tuple[int, int], NearDuplicate] = {}
    for thumbnails, others, most, both_ways in (
        (fingerprints.thumbnails, hashes[:, 0], MAX_DISTANCE, False),
        (fingerprints.inner_thumbnails, fingerprints.inner_hashes[originals], MAX_INNER_DISTANCE, True),
    ):
        for ours, theirs, symmetry, distance in _candidates(hashes, others, most, both_ways=both_ways):
            ours, theirs = originals[ours], originals[theirs]
            correlations = _correlate(fingerprints.thumbnails[ours], thumbnails[theirs], symmetry)
            for i, j, bits, correlation in zip(ours, theirs, distance, correlations, strict=True):
                pair = NearDuplicate(int(min(i, j)), int(max(i, j)), int(bits), float(correlation))
                known = best.get((pair.first, pair.second))
                if correlation >= MIN_CORRELATION and (known is None or correlation > known.correlation):
                    best[pair.first, pair.second] = pair
    return sorted(best.values(), key=lambda pair: (-pair.correlation, pair.first, pair.second))


def cluster_duplicates(sources: Iterable[Source], total: int | None = None) -> list[int]:
    """The number of each image's cluster, the images, `total` in number, connected by exact or near-duplicates."""
    return number_clusters(fingerprint_images(sources, total=total))


def number_clusters(fingerprints: Fingerprints) -> list[int]:
    """The number of each image's cluster, from the fingerprints of all."""
    return connect(len(fingerprints), find_exact_duplicates(fingerprints.digests), find_near_duplicates(fingerprints))


def connect(count: int, exact: Sequence[Sequence[int]], near: Sequence[NearDuplicate]) -> list[int]:
    """The number of each of `count` images' cluster, from the duplicates found among them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = [(group[0], other) for group in exact for other in group[1:]]
    edges += [(pair.first, pair.second) for pair in near]
    rows, columns = np.array(edges, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(edges), bool), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1].tolist()


def list_members(clusters: Iterable[int]) -> list[list[int]]:
    """Where the members of each cluster stand, from the number of each image's cluster."""
    members: dict[int, list[int]] = {}
    for i, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(i)
    return list(members.values())


def _fingerprint(source: Source) -> tuple[str, tuple[int, int], list[float], list, list[int]]:
    """Digest, size, colour, thumbnails (whole, inner part) and hashes (the whole's symmetries, the inner part)."""
    image = to_rgb(read_image(source))
    color = [mean / 255 for mean in ImageStat.Stat(image).mean]
    grey, margin = image.convert("L"), [INNER_MARGIN * side for side in image.size]
    inner = (*margin, image.width - margin[0], image.height - margin[1])
    thumbnails = [np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box)) for box in (None, inner)]
    hashes = [*(_hash(symmetry(thumbnails[0])) for symmetry in SYMMETRIES), _hash(thumbnails[1])]
    return pixel_digest(image), image.size, color, thumbnails, hashes


def _hash_whole(source: Source) -> tuple[list[int], bool]:
    grey = to_rgb(read_image(source)).convert("L")
    thumbnail = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    return [_hash(symmetry(thumbnail)) for symmetry in SYMMETRIES], bool(np.ptp(thumbnail) > 0)


def _hash(thumbnail: np.ndarray) -> int:
    import imagehash

    bits = imagehash.phash(Image.fromarray(np.ascontiguousarray(thumbnail))).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _candidates(
    hashes: np.ndarray, others: np.ndarray, most: int, *, both_ways: bool
) -> Iterator[tuple[np.ndarray, ...]]:
    """Chunks of pairs of images whose hashes, (N, 8) and (N,), differ in `most` bits at most.

    Each pair is its position in `hashes` and in `others`, its symmetry and its number of bits. Unless `both_ways`, only
    the earlier image is compared with the later.
    """
    rows = 256  # compared at once
    for start in follow(range(0, len(hashes), rows), "looking for near-duplicates", unit="chunk"):
        offset, found = 0 if both_ways else start, []
        for symmetry in range(len(SYMMETRIES)):
            distance = np.bitwise_count(hashes[start : start + rows, symmetry, None] ^ others[offset:])
            first, second = np.nonzero(distance <= most)
            bits, first, second = distance[first, second], first + start, second + offset
            wanted = first != second if both_ways else first < second
            found.append((first[wanted], second[wanted], np.full(wanted.sum(), symmetry), bits[wanted]))
        pairs = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        for at in range(0, len(pairs[0]), 4096):
            yield tuple(part[at : at + 4096] for part in pairs)


def _correlate(first: np.ndarray, second: np.ndarray, symmetry: np.ndarray) -> np.ndarray:
    """Correlation (N,) of the detail of thumbnails (N, SIDE, SIDE) at the best shift, the first under its symmetry."""
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


def _standardise(images: np.ndarray) -> np.ndarray:
    """Mean 0 and norm 1 each; zeros for an image without detail."""
    images = images - images.mean((1, 2), keepdims=True)
    return images / np.maximum(np.linalg.norm(images, axis=(1, 2), keepdims=True), 1e-6)
