"""Which images train and which validate: drawn by a seed, written to split.csv, and read from it."""

import csv
import hashlib
import logging
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from datasets import DatasetDict

from seedling_hf.data.images import a_few
from seedling_hf.data.pool import Row
from seedling_hf.errors import InputError
from seedling_hf.files import write_csv
from seedling_hf.train_arguments import SplitArguments

SPLITS = ("train", "validation", "test")

logger = logging.getLogger(__name__)


def draw_split(rows: Iterable[Row], arguments: SplitArguments, clusters: Mapping[Row, int] | None) -> dict[Row, str]:
    """The split of each row, as `draw_validation` draws it."""
    chosen = draw_validation(
        rows, arguments.split_strategy, arguments.train_val_split, arguments.split_seed,
        fold=arguments.fold, clusters=clusters,
    )  # fmt: skip
    return dict.fromkeys(rows, "train") | dict.fromkeys(chosen, "validation")


def draw_validation(
    rows: Iterable[Row],
    strategy: str,
    share: float,
    seed: int,
    *,
    fold: str | None = None,
    clusters: Mapping[Row, int] | None = None,
) -> set[Row]:
    """The rows that validate; a pure function of the sorted rows, their clusters and the seed.

    Args:
        rows: File and class name of every image.
        strategy: As `load_splits` takes it.
        share: Of the images that validates; no matter for a fold or for `mle_bench`.
        seed: No matter for `mle_bench`.
        fold: `i/n`, fold i of n instead of a share.
        clusters: For `grouped`, the number of each image's cluster.

    Raises:
        InputError: for a fold that is none, or that the strategy cannot give.
    """
    rows = sorted(rows)
    if fold is not None:
        return _draw_fold(rows, strategy, *map(int, fold.split("/")), seed, clusters)
    if strategy in ("random", "mle_bench"):
        from sklearn.model_selection import train_test_split

        if strategy == "mle_bench":
            # openai/mle-bench, mlebench/competitions/plant-seedlings-classification/prepare.py: classes sorted, the
            # files of each sorted, 0.14 of the rows for its test set, random state 0.
            by_class = sorted(rows, key=lambda row: (row[1], row[0]))
            return set(train_test_split(by_class, test_size=0.14, random_state=0)[1])
        return set(train_test_split(rows, test_size=share, random_state=seed)[1])
    chosen = _draw_clusters(rows, share, seed, clusters) if strategy == "grouped" else set()
    decided = set() if strategy == "stratified" else _in_larger_clusters(rows, clusters)
    for label in sorted({label for _, label in rows}):
        members = [row for row in rows if row[1] == label]
        count = _count_validation(len(members), share)
        if count == 0:
            logger.warning("the class %s has one image: it is trained on and never validated", label)
        count -= sum(row in chosen for row in members)
        free = [row for row in members if row not in decided]
        # Of its own for each class: another class more or less moves no image of this one.
        chosen |= set(random.Random(f"{seed} {label}").sample(free, min(count, len(free))))
    return chosen


def write_split_csv(splits: DatasetDict, path: str | os.PathLike) -> None:
    """Writes which image is in which split: columns `file`, `label` (the class name) and `split`."""
    rows = (
        (file, split.features["label"].int2str(label), name)
        for name, split in splits.items()
        for file, label in zip(split["file"], split["label"], strict=True)
    )
    write_csv(path, ["file", "label", "split"], rows)


def read_split_csv(path: str | os.PathLike) -> dict[Row, str]:
    """The split of each (file, class name) in a split.csv.

    Raises:
        InputError: if it is none, or puts one file into two splits.
    """
    split_of = {}
    for file, label, split in _read_lines(path):
        if split_of.setdefault((file, label), split) != split:
            raise InputError(
                f"expected each file in one split in {path}, found {a_few([file])} in {split_of[file, label]} and "
                f"{split}; use the split.csv of a run on one tree of class folders"
            )
    return split_of


def hash_split(path: str | os.PathLike) -> str:
    """SHA-256 of a split.csv, whatever the order of its lines: two runs with the same hash have the same split."""
    lines = sorted("\t".join(line) for line in _read_lines(path))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def split_as_written(rows: list[Row], split_file: str | os.PathLike, *, ignore_test: bool) -> dict[Row, str]:
    """The split that a split.csv gives to each of `rows`; rows that it does not name are left out, with a warning.

    Raises:
        InputError: if one of its images is gone, or has another class.
    """
    split_of = {row: s for row, s in read_split_csv(split_file).items() if not (ignore_test and s == "test")}
    label_of = dict(rows)
    missing = sorted(split_of.keys() - set(rows))
    if missing:
        relabelled = [f"{file} ({label}, now {label_of[file]})" for file, label in missing if file in label_of]
        what, found = ("with another class", relabelled) if relabelled else ("gone", [file for file, _ in missing])
        raise InputError(
            f"expected every image of {split_file}, found {len(found)} {what}: {a_few(found)}; restore them or draw "
            "a new split"
        )
    new = sorted(file for file, label in set(rows) - split_of.keys())
    if new:
        logger.warning("left out %d images that are not in %s: %s", len(new), split_file, a_few(new))
    return split_of


def choose_of_each_class(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Positions of `count` rows, as many of each class as can be."""
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    seen: Counter[int] = Counter()
    turns = []
    for i in order:
        turns.append((seen[labels[i]], i))
        seen[labels[i]] += 1
    return sorted(i for _, i in sorted(turns, key=lambda turn: turn[0])[:count])


def _draw_fold(
    rows: Sequence[Row], strategy: str, i: int, n: int, seed: int, clusters: Mapping[Row, int] | None
) -> set[Row]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labels = [label for _, label in rows]
    smallest = min(Counter(labels).items(), key=lambda item: item[1])
    if smallest[1] < n:
        raise InputError(
            f"expected at least {n} images of each class for {n} folds, found {smallest[1]} of {smallest[0]}; "
            "use fewer folds or add images"
        )
    kind, groups = StratifiedKFold, None
    if strategy == "grouped":
        kind, groups = StratifiedGroupKFold, _renumber([clusters[row] for row in rows])
    folds = kind(n_splits=n, shuffle=True, random_state=seed).split(rows, labels, groups)
    return {rows[at] for at in next(islice(folds, i - 1, None))[1]}


def _renumber(clusters: Sequence[int]) -> list[int]:
    """Clusters numbered in the order in which they come, so that a split depends on which they are only."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]


def _in_larger_clusters(rows: Sequence[Row], clusters: Mapping[Row, int]) -> set[Row]:
    sizes = Counter(clusters[row] for row in rows)
    return {row for row in rows if sizes[clusters[row]] > 1}


def _draw_clusters(rows: Sequence[Row], share: float, seed: int, clusters: Mapping[Row, int]) -> set[Row]:
    """Of the clusters of several images about `share`, none of which takes a class above its number."""
    members: dict[int, list[Row]] = {}
    for row in rows:
        members.setdefault(clusters[row], []).append(row)
    room = {label: _count_validation(count, share) for label, count in Counter(label for _, label in rows).items()}
    several = [cluster for cluster in members.values() if len(cluster) > 1]
    generator = random.Random(seed)
    generator.shuffle(several)
    chosen = set()
    for cluster in several:
        needed = Counter(label for _, label in cluster)
        # A coin for each: if all that fit were taken, duplicates would crowd the validation images.
        if generator.random() < share and all(needed[label] <= room[label] for label in needed):
            chosen |= set(cluster)
            room = {label: count - needed[label] for label, count in room.items()}
    return chosen


def _count_validation(count: int, share: float) -> int:
    return min(count - 1, max(1, round(share * count)))


def _read_lines(path: str | os.PathLike) -> list[list[str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            # The heading first, so that a huge file of another kind is not read whole.
            lines = list(reader) if next(reader, None) == ["file", "label", "split"] else [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"expected a split.csv at {path}, found: {error}") from error
    if any(len(line) != 3 or line[2] not in SPLITS for line in lines):
        raise InputError(
            f"expected columns file,label,split with train, validation or test in {path}, found other lines; "
            "use the split.csv of a run"
        )
    return lines
