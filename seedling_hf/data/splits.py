"""Which images are used for training and which for validation: drawn from a seed, written to split.csv, or read."""

import csv
import hashlib
import logging
import math
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from datasets import DatasetDict

from seedling_hf.data.duplicates import list_members
from seedling_hf.data.images import a_few
from seedling_hf.data.pool import Row
from seedling_hf.errors import InputError
from seedling_hf.escaping import format_count, unescape_cell
from seedling_hf.files import write_csv
from seedling_hf.train_arguments import SplitArguments

SPLITS = ("train", "validation", "test")
HEADER = ["file", "label", "split"]

Line = tuple[str, str, str]  # file, class name and split

logger = logging.getLogger(__name__)


def draw_validation(
    rows: Iterable[Row], arguments: SplitArguments, clusters: Mapping[Row, int] | None = None
) -> set[Row]:
    """The rows used for validation; depends only on the set of rows, their clusters, and the flags of the split.

    The strategy `grouped` needs `clusters`, the number of each image's cluster of duplicates.

    Raises:
        InputError: for a fold that the classes are too small for, or a fraction that leaves no image to train on.
    """
    rows, share, seed = sorted(rows), arguments.train_val_split, arguments.split_seed
    if arguments.fold is not None:
        return _draw_fold(rows, arguments, clusters)
    if arguments.split_strategy in ("random", "mle_bench"):
        from sklearn.model_selection import train_test_split

        if arguments.split_strategy == "mle_bench":
            # openai/mle-bench, mlebench/competitions/plant-seedlings-classification/prepare.py: classes sorted, the
            # files of each sorted, 0.14 of the rows for its test set, random state 0.
            by_class = sorted(rows, key=lambda row: (row[1], row[0]))
            return set(train_test_split(by_class, test_size=0.14, random_state=0)[1])
        if math.floor((1 - share) * len(rows)) == 0:  # validation gets at least one
            raise InputError(
                f"expected --train_val_split to leave images to train on, found {share} of {len(rows)} images; "
                "choose a smaller fraction"
            )
        return set(train_test_split(rows, test_size=share, random_state=seed)[1])
    chosen, decided = set(), set()
    if arguments.split_strategy == "grouped":
        sizes = Counter(clusters.values())
        chosen = _draw_clusters(rows, share, seed, clusters)
        decided = {row for row in rows if sizes[clusters[row]] > 1}
    members_of: dict[str, list[Row]] = {}
    for row in rows:
        members_of.setdefault(row[1], []).append(row)
    for label, members in sorted(members_of.items()):
        count = _count_validation(len(members), share)
        if count == 0:
            logger.warning("the class %s has one image, which is used for training and never for validation", label)
        count -= sum(row in chosen for row in members)
        free = [row for row in members if row not in decided]
        # One generator for each class: adding or removing another class moves no image of this one.
        chosen |= set(random.Random(f"{seed} {label}").sample(free, min(count, len(free))))
        if len(members) > 1 and chosen.isdisjoint(members):  # all of them have near-duplicates
            chosen |= _draw_smallest(members, clusters)
    return chosen


def write_split_csv(splits: DatasetDict, path: str | os.PathLike, hashes: Mapping[Line, str] | None = None) -> None:
    """Writes which image is in which split: columns `file`, `label` (the class name), `split` and perhaps `hash`.

    By `hashes`, as `recognition` makes them, copies of the images are recognised.
    """
    lines = list_lines(splits, *splits)
    if hashes:
        write_csv(path, [*HEADER, "hash"], [(*line, hashes.get(line, "")) for line in lines])
    else:
        write_csv(path, HEADER, lines)


def list_lines(splits: DatasetDict, *names: str) -> list[Line]:
    """The lines of a split.csv for some of the splits, in their order."""
    return [
        (file, splits[name].features["label"].int2str(label), name)
        for name in names
        for file, label in zip(splits[name]["file"], splits[name]["label"], strict=True)
    ]


def read_hashes(path: str | os.PathLike) -> dict[Line, str]:
    """The hash of each (file, class name, split) in a split.csv, empty where it has none.

    Raises:
        InputError: if it is not a split.csv.
    """
    return {(file, label, split): (*rest, "")[0] for file, label, split, *rest in _read_lines(path)}


def read_split_csv(path: str | os.PathLike) -> dict[Row, str]:
    """The split of each (file, class name) in a split.csv.

    Raises:
        InputError: if it is not a split.csv, or puts one file into two splits.
    """
    split_of = {}
    for file, label, split, *_ in _read_lines(path):
        if split_of.setdefault((file, label), split) != split:
            raise InputError(
                f"expected each file in one split in {path}, found {a_few([file])} in {split_of[file, label]} and "
                f"{split}; use the split.csv of a run on one tree of class folders"
            )
    return split_of


def hash_split(path: str | os.PathLike) -> str:
    """SHA-256 of a split.csv, regardless of the order of its lines: runs with equal hashes have equal splits.

    The column `hash` does not count.
    """
    lines = sorted("\t".join(line[:3]) for line in _read_lines(path))
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def split_as_written(
    rows: list[Row], split_file: str | os.PathLike, corrections: Mapping[str, str], *, ignore_test: bool
) -> dict[Row, str]:
    """The split that a split.csv gives each of `rows`; rows that it does not list are skipped, with a warning.

    Args:
        corrections: Labels of files that may stand in split.csv instead of those in `rows`; empty for no image.

    Raises:
        InputError: if one of its images is missing, or has another class.
    """
    given = {(file, corrections[file]): (file, label) for file, label in rows if corrections.get(file)}
    split_of = {
        given.get(row, row): split
        for row, split in read_split_csv(split_file).items()
        if not (ignore_test and split == "test")
    }
    label_of = dict(rows)
    missing = sorted(split_of.keys() - set(rows))
    if missing:
        relabelled = [f"{file} ({label}, now {label_of[file]})" for file, label in missing if file in label_of]
        what, found, advice = "missing", [file for file, _ in missing], "restore them"
        if relabelled:
            what, found = "with another class", relabelled
            advice = "restore them, give the --label_file or --label_map of its run,"
        raise InputError(
            f"expected every image of {split_file}, found {len(found)} {what}: {a_few(found)}; {advice} or draw a new "
            "split"
        )
    new = sorted(file for file, label in set(rows) - split_of.keys())
    if new:
        logger.warning("skipped %s not in %s: %s", format_count(len(new), "image"), split_file, a_few(new))
    return split_of


def choose_of_each_class(rows: Sequence[Row], members: list[int], count: int | None, seed: int) -> list[int]:
    """At most `count` of `members`, positions in `rows`, with the classes as balanced as possible; None for all."""
    if count is None:
        return members
    order = list(members)
    random.Random(seed).shuffle(order)
    seen: Counter[str] = Counter()
    turns = []
    for i in order:
        label = rows[i][1]
        turns.append((seen[label], i))
        seen[label] += 1
    return sorted(i for _, i in sorted(turns, key=lambda turn: turn[0])[:count])


def _draw_fold(rows: Sequence[Row], arguments: SplitArguments, clusters: Mapping[Row, int] | None) -> set[Row]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    i, n = map(int, arguments.fold.split("/"))
    labels = [label for _, label in rows]
    label, smallest = min(Counter(labels).items(), key=lambda item: item[1])
    if smallest < n:
        raise InputError(
            f"expected at least {n} images of each class for {n} folds, found {smallest} of {label}; use fewer "
            "folds in --fold, or add images"
        )
    kind, groups = StratifiedKFold, None
    if arguments.split_strategy == "grouped":
        # Clusters are numbered in the order of the rows, so that their own numbers do not matter.
        numbers: dict[int, int] = {}
        kind, groups = StratifiedGroupKFold, [numbers.setdefault(clusters[row], len(numbers)) for row in rows]
    folds = kind(n_splits=n, shuffle=True, random_state=arguments.split_seed).split(rows, labels, groups)
    return {rows[at] for at in next(islice(folds, i - 1, None))[1]}


def _draw_clusters(rows: Sequence[Row], share: float, seed: int, clusters: Mapping[Row, int]) -> set[Row]:
    """About `share` of the clusters of several images, none of which takes a class above its number."""
    members = list_members(clusters[row] for row in rows)
    room = {label: _count_validation(count, share) for label, count in Counter(label for _, label in rows).items()}
    several = [[rows[i] for i in cluster] for cluster in members if len(cluster) > 1]
    generator = random.Random(seed)
    generator.shuffle(several)
    chosen = set()
    for cluster in several:
        needed = Counter(label for _, label in cluster)
        # One draw for each: if all that fit were taken, validation would be mostly duplicates.
        if generator.random() < share and all(needed[label] <= room[label] for label in needed):
            chosen |= set(cluster)
            room = {label: count - needed[label] for label, count in room.items()}
    return chosen


def _draw_smallest(members: Sequence[Row], clusters: Mapping[Row, int]) -> set[Row]:
    """The smallest cluster of a class that would otherwise validate nothing, if it leaves half of it for training."""
    sizes, own = Counter(clusters.values()), Counter(clusters[row] for row in members)
    whole = [cluster for cluster, size in own.items() if size == sizes[cluster] and 2 * size <= len(members)]
    if not whole:
        logger.warning(
            "the images of the class %s are near-duplicates of one another: all are used for training, none for "
            "validation",
            members[0][1],
        )
        return set()
    smallest = min(whole, key=lambda cluster: (sizes[cluster], [row for row in members if clusters[row] == cluster]))
    return {row for row in members if clusters[row] == smallest}


def _count_validation(count: int, share: float) -> int:
    return min(count - 1, max(1, round(share * count)))


def _read_lines(path: str | os.PathLike) -> list[list[str]]:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            reader = csv.reader(stream)
            # The header first, so that a huge file of another kind is not read completely.
            header = next(reader, None)
            lines = list(reader) if header in (HEADER, [*HEADER, "hash"]) else [[]]
            lines = [[unescape_cell(cell) for cell in line] for line in lines]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"expected a split.csv at {path}, found: {error}") from error
    if any(len(line) != len(header or HEADER) or line[2] not in SPLITS for line in lines):
        raise InputError(
            f"expected columns file,label,split with train, validation or test in {path}, found other lines; "
            "use the split.csv of a run"
        )
    return lines
