"""Folders of class folders, or a Hub data set, become a DatasetDict; the split is drawn here and kept in split.csv.

The rows are those of the `imagefolder` builder (`image`, `label`) with `file` and `index` beside them. The file list is
made here, not by the builder, because it takes folders called val or "test weed" for splits, drops all labels for one
stray picture, reads [ ] and * in names as patterns, and numbers the classes of each folder apart.
"""

import csv
import hashlib
import logging
import os
import random
import sqlite3
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import BytesIO
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, Value
from PIL import ExifTags, ImageFile, ImageOps
from PIL import Image as PILImage

from seedling_hf.duplicates import cluster_duplicates
from seedling_hf.errors import InputError
from seedling_hf.files import replacing

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
IMAGE_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L"})
MOST_NAMES_IN_MEMORY = 10_000
LARGEST_ASPECT_RATIO = 100  # beyond it, scaling the shorter side up to the model's size takes gigabytes
SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
HUB_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}
Row = tuple[str, str]  # file relative to its root folder, class name
T = TypeVar("T")

logger = logging.getLogger(__name__)


def load_splits(
    *,
    train_dir: str | os.PathLike | None = None,
    validation_dir: str | os.PathLike | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    dataset_revision: str | None = None,
    image_column_name: str = "image",
    label_column_name: str = "label",
    split_strategy: str = "stratified",
    train_val_split: float = 0.3,
    split_seed: int = 42,
    fold: str | None = None,
    split_file: str | os.PathLike | None = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    skip_bad_pictures: bool = False,
) -> DatasetDict:
    """Loads the pictures of a run and splits them, the same way on every process.

    Args:
        train_dir: Class folders, or a folder with `train/`, `val/` (or `validation/`) and perhaps `test/` inside.
        validation_dir: Class folders to validate on; without it, and without `val/`, a part of `train_dir` is.
        dataset_name: A Hub data set instead.
        dataset_config_name: Its configuration.
        dataset_revision: Its branch, tag or commit.
        image_column_name: Its column of pictures.
        label_column_name: Its column of classes.
        split_strategy: `stratified`: the share of each class; `grouped`: the same as far as clusters of near-duplicates
            allow, which stay on one side (every picture is decoded for that); `random`: as the tutorial draws it,
            scikit-learn's `train_test_split` of the sorted files; `mle_bench`: the 14 % of MLE-bench's test set.
        train_val_split: Share of the pictures that validates.
        split_seed: Seed of the split; not the run's, so that runs of several seeds are judged on the same pictures.
        fold: `i/n`: instead of a share, fold i (from 1) of n validates; `stratified` or `grouped`.
        split_file: A split.csv that says for each file where it belongs.
        max_train_samples: Use at most so many training pictures, evenly from the classes.
        max_eval_samples: Use at most so many validation pictures, evenly from the classes.
        skip_bad_pictures: Leave out pictures that cannot be decoded.

    Returns:
        `train`, `validation` and perhaps `test`; columns `image`, `label` (ClassLabel, names in byte order), `file`
        and `index` (row number in its split).

    Raises:
        InputError: for a missing folder, fewer than two classes, an empty class, a class that is in validation only, or
            pictures that cannot be decoded, by name.
    """
    if fold is not None:
        parse_fold(fold, split_strategy)
    if dataset_name is not None:
        pools = _load_hub(
            dataset_name, dataset_config_name, dataset_revision, image_column_name, label_column_name, skip_bad_pictures
        )
    else:
        pools = load_folders(train_dir, validation_dir, skip_bad_pictures=skip_bad_pictures)
    members = {split: list(range(len(pool))) for split, pool in pools.items()}
    if "validation" not in pools:
        pool, rows = pools["train"], _rows(pools["train"])
        if split_file is not None:
            split_of = _split_as_written(rows, split_file, ignore_test="test" in pools)
        else:
            clusters = None
            if split_strategy == "grouped":
                clusters = dict(zip(rows, cluster_duplicates(picture_sources(pool)), strict=True))
            chosen = draw_validation(rows, split_strategy, train_val_split, split_seed, fold=fold, clusters=clusters)
            split_of = dict.fromkeys(rows, "train") | dict.fromkeys(chosen, "validation")
        for split in {"train", "validation"} | set(split_of.values()):
            pools[split] = pool
            members[split] = [i for i, row in enumerate(rows) if split_of.get(row) == split]
    elif split_file is not None or fold is not None:
        flag = "--split_file" if split_file is not None else "--fold"
        raise InputError(f"expected {flag} for pictures in one place, found a validation split beside them")
    for split, limit in (("train", max_train_samples), ("validation", max_eval_samples)):
        if limit is not None:
            labels = pools[split].select(members[split])["label"]
            members[split] = [members[split][i] for i in _take_evenly(list(labels), limit, split_seed)]
        if not members[split]:
            raise InputError(f"expected pictures for {split}, found none; change --train_val_split or add pictures")
    splits = DatasetDict({name: _number(pools[name], members[name]) for name in SPLIT_FOLDERS if name in pools})
    names = splits["train"].features["label"].names
    untrained = sorted(set(names) - {names[i] for i in set(splits["train"]["label"])})
    if untrained:
        logger.warning("no picture is left to train these classes: %s", _names(untrained))
    return splits


def load_folders(
    train_dir: str | os.PathLike, validation_dir: str | os.PathLike | None = None, *, skip_bad_pictures: bool = False
) -> dict[str, Dataset]:
    """Loads pictures as they lie: `train`, and `validation` and `test` where they have folders of their own.

    Args:
        train_dir: Class folders, or a folder with `train/`, `val/` (or `validation/`) and perhaps `test/` inside.
        validation_dir: Class folders to validate on, instead of `val/`.
        skip_bad_pictures: Leave out pictures that cannot be decoded.

    Returns:
        Columns `image`, `label` (ClassLabel, names in byte order) and `file`, relative to the folder of its split.

    Raises:
        InputError: as `load_splits` does.
    """
    roots = _find_roots(Path(train_dir))
    if validation_dir is not None:
        roots["validation"] = Path(validation_dir)
    rows = {split: _find_rows(root) for split, root in roots.items()}
    class_names = _check_classes(rows["train"], roots["train"])
    for split in roots.keys() - {"train"}:
        _check_known(rows[split], class_names, roots[split], f"the classes of {roots['train']}")
    rows = {split: _drop_bad(roots[split], found, skip_bad_pictures) for split, found in rows.items()}
    emptied = sorted(set(class_names) - {label for _, label in rows["train"]})
    if emptied:
        raise InputError(
            f"expected pictures that can be decoded in every class folder of {roots['train']}, found none in "
            f"{_names(emptied)}; repair them or remove the folder"
        )
    return {split: _build(roots[split], found, class_names) for split, found in rows.items()}


def load_folder(
    folder: str | os.PathLike, class_names: Sequence[str] | None = None, *, skip_bad_pictures: bool = False
) -> Dataset:
    """Loads one tree of class folders, labelled by the position of their names in `class_names` (default: its own).

    Raises:
        InputError: for a missing folder, a folder whose name is no class, or pictures that cannot be decoded.
    """
    folder = Path(folder)
    rows = _find_rows(folder)
    found = sorted({label for _, label in rows})
    if not found:
        raise InputError(f"expected class folders with pictures in {folder}, found none")
    class_names = found if class_names is None else list(class_names)
    _check_known(rows, class_names, folder, "folders named as the model's classes")
    rows = _drop_bad(folder, rows, skip_bad_pictures)
    if not rows:
        raise InputError(f"expected pictures that can be decoded in {folder}, found none")
    return _number(_build(folder, rows, class_names))


def list_images(paths: Iterable[str | os.PathLike]) -> Iterator[Path]:
    """The pictures among `paths`: files as they are, folders searched through in byte order; never all in memory.

    What is hidden is left out, and so are links that lead back to a folder above them.

    Raises:
        InputError: for a path that does not exist, or a folder that cannot be read.
    """
    for path in map(Path, paths):
        if path.is_dir():
            yield from _walk(path, frozenset())
        elif path.exists() or path.is_symlink():
            yield path
        else:
            raise InputError(f"expected a picture or a folder at {path}, found nothing there")


def choose_evenly(items: Sequence[T], count: int | None) -> list[T]:
    """At most `count` items at equal distances, so that sorted pictures of all classes are among them; None for all."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def picture_paths(dataset: Dataset) -> list[str]:
    """Where the pictures of a dataset lie, in its order."""
    return [image["path"] for image in dataset.cast_column("image", Image(decode=False))["image"]]


def picture_sources(dataset: Dataset) -> Iterator[str | bytes]:
    """The pictures of a dataset as they are stored, in its order: paths, or bytes where they are in the data set."""
    for batch in dataset.select_columns("image").cast_column("image", Image(decode=False)).iter(256):
        for image in batch["image"]:
            yield image["path"] if image["bytes"] is None else image["bytes"]


def find_pictures(train_dir: str | os.PathLike) -> dict[str, list[tuple[Path, Row]]]:
    """The files of a tree, decodable or not: for each split (`train` alone, or folders of their own) path and row.

    Raises:
        InputError: for a missing folder, or a class folder without pictures.
    """
    return {
        split: [(root / file, (file, label)) for file, label in _find_rows(root)]
        for split, root in _find_roots(Path(train_dir)).items()
    }


def find_bad_pictures(paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Decodes every picture and yields those that cannot be used, with the reason; never all paths in memory."""
    for portion in _portions(paths, 1024):
        for path, reason in zip(portion, _check(portion), strict=True):
            if reason is not None:
                yield path, reason


def read_picture(path: Path) -> PILImage.Image:
    """A picture from the disk, decoded whole and turned upright as its camera says.

    Raises:
        InputError: with the reason why it cannot be used.
    """
    try:
        return _decode(path, in_full=True)
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise InputError(_reason(error)) from error


def write_split_csv(splits: DatasetDict, path: str | os.PathLike) -> None:
    """Writes which picture is in which split: columns `file`, `label` (the class name) and `split`."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["file", "label", "split"])
        for name, split in splits.items():
            labels = split.features["label"]
            writer.writerows([f, labels.int2str(i), name] for f, i in zip(split["file"], split["label"], strict=True))


def read_split_csv(path: str | os.PathLike) -> dict[Row, str]:
    """The split of each (file, class name) in a split.csv.

    Raises:
        InputError: if it is none, or puts one file into two splits.
    """
    split_of = {}
    for file, label, split in _read_lines(path):
        if split_of.setdefault((file, label), split) != split:
            raise InputError(
                f"expected each file in one split in {path}, found {_names([file])} in {split_of[file, label]} and "
                f"{split}; use the split.csv of a run on one tree of class folders"
            )
    return split_of


def hash_split(path: str | os.PathLike) -> str:
    """SHA-256 of a split.csv, whatever the order of its lines: two runs with the same hash have the same split."""
    lines = sorted("\t".join(line) for line in _read_lines(path))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def describe_splits(splits: Mapping[str, Dataset]) -> str:
    """A table of pictures a class and split."""
    names = next(iter(splits.values())).features["label"].names
    counts = {split: Counter(rows["label"]) for split, rows in splits.items()}
    width = max(len("total"), *map(len, names))
    lines = [f"{'':{width}}" + "".join(f"{split:>12}" for split in splits)]
    lines += [f"{name:{width}}" + "".join(f"{counts[s][i]:12,}" for s in splits) for i, name in enumerate(names)]
    lines.append(f"{'total':{width}}" + "".join(f"{len(splits[s]):12,}" for s in splits))
    return "\n".join(lines)


def _find_roots(root: Path) -> dict[str, Path]:
    """The folder of each split's class folders: `root` itself, or those inside."""
    names = _list_folder(root)
    if not _has_class_folders(root / "train"):
        return {"train": root}
    roots = {}
    for split, aliases in SPLIT_FOLDERS.items():
        found = [name for name in aliases if (root / name).is_dir()]
        if len(found) > 1:
            raise InputError(f"expected one folder for {split} in {root}, found {' and '.join(found)}; remove one")
        if found:
            roots[split] = root / found[0]
    if "test" in roots and not _has_class_folders(roots["test"]):
        logger.info("left out: %s, whose pictures are in no class folders", roots.pop("test"))
    strangers = [name for name in names if root / name not in roots.values() and name not in ("test", "split.csv")]
    if strangers:
        logger.info("left out in %s, being no split: %s", root, _names(strangers))
    return roots


def _find_rows(root: Path) -> list[Row]:
    """The pictures of a tree of class folders, in byte order; what else lies there is named once and left out."""
    rows, strangers = [], []
    for label in _list_folder(root):
        folder = root / label
        if label.startswith((".", "__MACOSX")) or not folder.is_dir():
            strangers.append(label)
            continue
        files = []
        for name in _list_folder(folder):
            if name.startswith((".", "__MACOSX")):
                strangers.append(f"{label}/{name}")
            elif (folder / name).is_dir():
                raise InputError(
                    f"expected pictures in the class folder {_names([folder])}, found the folder {_names([name])} in "
                    "it; name the folder that holds the class folders"
                )
            elif _is_image(name):
                files.append(name)
            else:
                strangers.append(f"{label}/{name}")
        if not files:
            raise InputError(
                f"expected pictures in the class folder {_names([label])} of {root}, found none; add some or remove it"
            )
        rows += [(f"{label}/{name}", label) for name in files]
    if strangers:
        logger.info("left out in %s, being no class folder or no picture: %s", root, _names(strangers))
    return rows


def _list_folder(folder: Path) -> list[str]:
    """The names in a folder in byte order, which for UTF-8 is Python's order of strings."""
    return list(_names_in_order(folder))


def _names_in_order(folder: Path) -> Iterator[str]:
    """As `_list_folder`, with the names of a large folder sorted on the disk."""
    try:
        with os.scandir(folder) as entries:
            names = (_check_utf8(entry.name, folder) for entry in entries)
            first = list(islice(names, MOST_NAMES_IN_MEMORY))
            if len(first) < MOST_NAMES_IN_MEMORY:
                yield from sorted(first)
                return
            with closing(sqlite3.connect("")) as database:  # a temporary file, of which a few megabytes are in memory
                database.execute("CREATE TABLE names (name TEXT)")
                database.executemany("INSERT INTO names VALUES (?)", ((name,) for name in chain(first, names)))
                del first
                yield from (name for (name,) in database.execute("SELECT name FROM names ORDER BY name"))
    except OSError as error:
        found = {FileNotFoundError: "nothing there", NotADirectoryError: "a file there"}
        raise InputError(
            f"expected a folder that can be read at {folder}, found {found.get(type(error), error.strerror)}"
        ) from error


def _check_utf8(name: str, folder: Path) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"expected names in UTF-8 in {folder}, found {os.fsencode(name)!r}; rename it") from error
    return name


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    above |= {os.path.realpath(folder)}
    for name in _names_in_order(folder):
        path = folder / name
        if name.startswith("."):
            continue
        if path.is_dir():
            if os.path.realpath(path) not in above:
                yield from _walk(path, above)
        elif _is_image(name):
            yield path


def _has_class_folders(folder: Path) -> bool:
    return folder.is_dir() and any(not n.startswith(".") and (folder / n).is_dir() for n in _list_folder(folder))


def _check_classes(rows: list[Row], root: Path | str) -> list[str]:
    """The class names in byte order."""
    names = sorted({label for _, label in rows})
    if len(names) < 2:
        raise InputError(
            f"expected at least two classes in {root}, found {_names(names) if names else 'none'}; in a folder, each "
            "class is a folder of pictures"
        )
    spellings = Counter(name.casefold() for name in names)
    twins = [name for name in names if spellings[name.casefold()] > 1]
    if twins:
        logger.warning("classes whose names differ in capitals only are kept apart: %s", _names(twins))
    return names


def _check_known(rows: list[Row], class_names: Sequence[str], root: Path | str, expected: str) -> None:
    unknown = sorted({label for _, label in rows} - set(class_names))
    if unknown:
        same = {name.casefold(): name for name in class_names}.get(unknown[0].casefold())
        advice = f"rename {unknown[0]} to {same}" if same else "rename or remove it"
        raise InputError(
            f"expected {expected} in {root}, found {_names(unknown)} besides; {advice}; the classes are "
            f"{_names(class_names, 12)}"
        )


def _rows(pool: Dataset) -> list[Row]:
    names = pool.features["label"].names
    return [(file, names[i]) for file, i in zip(pool["file"], pool["label"], strict=True)]


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
        rows: File and class name of every picture.
        strategy: As `load_splits` takes it.
        share: Of the pictures that validates; no matter for a fold or for `mle_bench`.
        seed: No matter for `mle_bench`.
        fold: `i/n`, fold i of n instead of a share.
        clusters: For `grouped`, the number of each picture's cluster.

    Raises:
        InputError: for a fold that is none, or that the strategy cannot give.
    """
    rows = sorted(rows)
    if fold is not None:
        return _draw_fold(rows, strategy, *parse_fold(fold, strategy), seed, clusters)
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
            logger.warning("the class %s has one picture: it is trained on and never validated", label)
        count -= sum(row in chosen for row in members)
        free = [row for row in members if row not in decided]
        # Of its own for each class: another class more or less moves no picture of this one.
        chosen |= set(random.Random(f"{seed} {label}").sample(free, min(count, len(free))))
    return chosen


def parse_fold(fold: str, strategy: str) -> tuple[int, int]:
    """The numbers i and n of a fold `i/n`.

    Raises:
        InputError: unless 1 ≤ i ≤ n and n ≥ 2, or for a strategy that draws no folds.
    """
    if strategy not in ("stratified", "grouped"):
        raise InputError(f"expected --fold with --split_strategy stratified or grouped, found {strategy}; drop one")
    i, slash, n = fold.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n) >= 2):
        raise InputError(f"expected --fold i/n with i from 1 to n and n at least 2, such as 1/5, found {fold}")
    return int(i), int(n)


def _draw_fold(
    rows: Sequence[Row], strategy: str, i: int, n: int, seed: int, clusters: Mapping[Row, int] | None
) -> set[Row]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labels = [label for _, label in rows]
    smallest = min(Counter(labels).items(), key=lambda item: item[1])
    if smallest[1] < n:
        raise InputError(
            f"expected at least {n} pictures of each class for {n} folds, found {smallest[1]} of {smallest[0]}; "
            "use fewer folds or add pictures"
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
    """Of the clusters of several pictures about `share`, none of which takes a class above its number."""
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
        # A coin for each: if all that fit were taken, duplicates would crowd the validation pictures.
        if generator.random() < share and all(needed[label] <= room[label] for label in needed):
            chosen |= set(cluster)
            room = {label: count - needed[label] for label, count in room.items()}
    return chosen


def _count_validation(count: int, share: float) -> int:
    return min(count - 1, max(1, round(share * count)))


def _split_as_written(rows: list[Row], split_file: str | os.PathLike, *, ignore_test: bool) -> dict[Row, str]:
    split_of = {row: s for row, s in read_split_csv(split_file).items() if not (ignore_test and s == "test")}
    label_of = dict(rows)
    missing = sorted(split_of.keys() - set(rows))
    if missing:
        relabelled = [f"{file} ({label}, now {label_of[file]})" for file, label in missing if file in label_of]
        what, found = ("with another class", relabelled) if relabelled else ("gone", [file for file, _ in missing])
        raise InputError(
            f"expected every picture of {split_file}, found {len(found)} {what}: {_names(found)}; restore them or draw "
            "a new split"
        )
    new = sorted(file for file, label in set(rows) - split_of.keys())
    if new:
        logger.warning("left out %d pictures that are not in %s: %s", len(new), split_file, _names(new))
    return split_of


def _read_lines(path: str | os.PathLike) -> list[list[str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            # The heading first, so that a huge file of another kind is not read whole.
            lines = list(reader) if next(reader, None) == ["file", "label", "split"] else [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"expected a split.csv at {path}, found: {error}") from error
    if any(len(line) != 3 or line[2] not in SPLIT_FOLDERS for line in lines):
        raise InputError(
            f"expected columns file,label,split with train, validation or test in {path}, found other lines; "
            "use the split.csv of a run"
        )
    return lines


def _drop_bad(root: Path, rows: list[Row], skip: bool) -> list[Row]:
    good = _find_good([root / file for file, _ in rows], [root / file for file, _ in rows], skip)
    return [rows[i] for i in good]


def _find_good(names: Sequence[str | Path], sources: Iterable[Path | bytes], skip: bool) -> list[int]:
    """Positions of the pictures that can be decoded; refuses if there are others, unless they are to be skipped."""
    reasons = list(_check(sources))
    bad = [f"{name} ({reason})" for name, reason in zip(names, reasons, strict=True) if reason is not None]
    if bad and not skip:
        raise InputError(
            f"expected pictures that can be decoded, found {len(bad)} of {len(names)} that cannot: {_names(bad)}; "
            "repair or remove them, or leave them out by --skip_bad_pictures"
        )
    if bad:
        logger.warning("left out %d of %d pictures that cannot be decoded: %s", len(bad), len(names), _names(bad))
    return [i for i, reason in enumerate(reasons) if reason is None]


def _check(sources: Iterable[Path | bytes]) -> Iterator[str | None]:
    """For each picture None, or why it cannot be used."""
    num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Threads, because decoding runs outside of Python's lock.
    with ThreadPoolExecutor(num_threads) as pool:
        for portion in _portions(sources, 1024):
            with warnings.catch_warnings():
                warnings.simplefilter("error", PILImage.DecompressionBombWarning)
                reasons = list(pool.map(_reason_it_is_bad, portion))
            yield from reasons


def _portions(items: Iterable[T], size: int) -> Iterator[list[T]]:
    items = iter(items)
    while portion := list(islice(items, size)):
        yield portion


def _reason_it_is_bad(source: Path | bytes) -> str | None:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("expected PIL to refuse truncated pictures, found LOAD_TRUNCATED_IMAGES set")
    try:
        _decode(source, in_full=False)
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        return _reason(error)
    return None


def _decode(source: Path | bytes, *, in_full: bool) -> PILImage.Image:
    if isinstance(source, Path) and source.exists() and not source.is_file():
        raise InputError("no regular file")  # opening a pipe would wait for ever
    with PILImage.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
        width, height = image.size
        if width * height > PILImage.MAX_IMAGE_PIXELS:
            raise PILImage.DecompressionBombError
        if max(width, height) > LARGEST_ASPECT_RATIO * min(width, height):
            raise InputError(f"{width}×{height} pixels are too long and thin")
        if not in_full:
            image.draft("RGB", (1, 1))  # a JPEG is read to its end all the same, several times quicker
        image.load()
        if image.mode not in IMAGE_MODES and not (image.mode == "I" and image.getextrema()[1] < 1 << 16):
            raise InputError(f"its pixels are neither of 8 nor of 16 bits but of PIL's mode {image.mode}")
        turned = image.getexif().get(ExifTags.Base.Orientation) is not None
        return ImageOps.exif_transpose(image) if turned else image


def _reason(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, (PILImage.DecompressionBombError, PILImage.DecompressionBombWarning)):
        return f"more than {PILImage.MAX_IMAGE_PIXELS:,} pixels"
    return getattr(error, "strerror", None) or str(error).split(" '")[0].split(" <")[0] or type(error).__name__


def _build(root: Path, rows: list[Row], class_names: Sequence[str]) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=list(class_names)), "file": Value("string")})
    numbers = {name: i for i, name in enumerate(class_names)}
    return Dataset.from_dict(
        {
            "image": [str(root / file) for file, _ in rows],
            "label": [numbers[label] for _, label in rows],
            "file": [file for file, _ in rows],
        },
        features=features,
    )


def _number(pool: Dataset, members: Sequence[int] | None = None) -> Dataset:
    """The rows `members` of `pool` (default: all), with their new numbers as the column `index`."""
    if members is None:
        members = range(len(pool))
    numbers = [-1] * len(pool)
    for number, i in enumerate(members):
        numbers[i] = number
    # The column goes first, because it would copy the pictures of rows that were chosen.
    return pool.add_column("index", numbers).select(members)


def _load_hub(
    name: str, config: str | None, revision: str | None, image_column: str, label_column: str, skip_bad: bool
) -> dict[str, Dataset]:
    """The splits of a Hub data set with the columns `image`, `label` and `file`; classes in the order of its train."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        loaded = load_dataset(name, config, revision=revision)
    except (DatasetNotFoundError, OSError, ValueError) as error:
        raise InputError(f"expected a data set at {name}, found none: {str(error).splitlines()[0]}") from error
    loaded = {HUB_NAMES.get(split, split): dataset for split, dataset in loaded.items()}
    if "train" not in loaded:
        raise InputError(f"expected a split called train in {name}, found {_names(list(loaded))}")
    unused = sorted(loaded.keys() - SPLIT_FOLDERS.keys())
    if "test" in loaded and not _is_labelled(loaded["test"], label_column):
        unused.append("test")
    if unused:
        logger.info("left out of %s, being no split that is used or without labels: %s", name, _names(unused))
    class_names, pools = None, {}
    for split in [split for split in SPLIT_FOLDERS if split in loaded and split not in unused]:
        where = f"the split {split} of {name}"
        pools[split] = _hub_pool(loaded[split], split, where, image_column, label_column, class_names, skip_bad)
        class_names = class_names or pools[split].features["label"].names
    return pools


def load_streamed(
    name: str,
    config: str | None = None,
    revision: str | None = None,
    *,
    image_column: str = "image",
    label_column: str = "label",
    max_eval_samples: int | None = None,
    split_seed: int = 42,
    skip_bad_pictures: bool = False,
) -> dict[str, IterableDataset | Dataset]:
    """The training pictures of a Hub data set as a stream, and its validation pictures on the disk.

    Args:
        name: Repository of the data set, or a folder of Parquet files.
        config: Its configuration.
        revision: Its branch, tag or commit.
        image_column: Its column of pictures.
        label_column: Its column of classes, a ClassLabel.
        max_eval_samples: Use at most so many validation pictures, evenly from the classes.
        split_seed: Seed of which.
        skip_bad_pictures: Leave out validation pictures that cannot be decoded.

    Returns:
        `train` with columns `image`, undecoded, and `label`; `validation` as `load_splits` gives it.

    Raises:
        InputError: for a data set without these splits or columns, or whose classes are not named by its features.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        streams = load_dataset(name, config, revision=revision, streaming=True)
        names = {HUB_NAMES.get(split, split): split for split in streams}
        missing = sorted({"train", "validation"} - names.keys())
        if missing:
            raise InputError(
                f"expected splits for train and validation in {name}, found {_names(sorted(streams))}; a stream cannot "
                "be split here"
            )
        stream, validation = streams[names["train"]], streams[names["validation"]]
        # By way of its stream, since load_dataset would fetch the other splits with it.
        pictures = Dataset.from_generator(
            _rows_of, features=validation.features, gen_kwargs={"stream": _undecoded(validation)}, split="validation"
        )
    except (DatasetNotFoundError, OSError, ValueError) as error:
        raise InputError(f"expected a data set at {name}, found none: {str(error).splitlines()[0]}") from error
    where = f"the split train of {name}"
    features = stream.features or {}
    for column, flag, kind in (
        (image_column, "image_column_name", Image), (label_column, "label_column_name", ClassLabel),
    ):  # fmt: skip
        if not isinstance(features.get(column), kind):
            found = features[column] if column in features else f"the columns {_names(list(features))}"
            raise InputError(
                f"expected {kind.__name__} in the column {column!r} of {where}, found {found}; name another by --{flag}"
            )
    class_names = features[label_column].names
    pool = _hub_pool(
        pictures, "validation", f"the split validation of {name}", image_column, label_column, class_names,
        skip_bad_pictures,
    )  # fmt: skip
    members = list(range(len(pool)))
    if max_eval_samples is not None:
        members = _take_evenly(list(pool["label"]), max_eval_samples, split_seed)
    stream = _undecoded(stream.select_columns([image_column, label_column]))
    renamed = {image_column: "image", label_column: "label"}
    stream = stream.rename_columns({old: new for old, new in renamed.items() if old != new})
    return {"train": stream, "validation": _number(pool, members)}


def _rows_of(stream: IterableDataset) -> Iterator[dict[str, Any]]:
    yield from stream


def _undecoded(stream: IterableDataset) -> IterableDataset:
    for column, feature in (stream.features or {}).items():
        if isinstance(feature, Image):
            stream = stream.cast_column(column, Image(decode=False))
    return stream


def _hub_pool(
    dataset: Dataset, split: str, where: str, image_column: str, label_column: str, class_names: list[str] | None,
    skip_bad: bool,
) -> Dataset:  # fmt: skip
    """A split with the columns `image`, `label` and `file`, without what cannot be decoded.

    Classes are those of `class_names`, or its own if None.
    """
    labels, names = _hub_labels(dataset, label_column, where)
    class_names = class_names or names
    pictures = _hub_pictures(dataset, image_column, where)
    files = _file_names(dataset, pictures, split)
    rows = list(zip(files, labels, strict=True))
    _check_known(rows, class_names, where, "the classes of its train split")
    if split == "train":
        _check_classes(rows, where)
    numbers = [class_names.index(label) for label in labels]
    pool = pictures.add_column("label", numbers, feature=ClassLabel(names=class_names)).add_column("file", files)
    undecoded = pictures.cast_column("image", Image(decode=False))["image"]
    sources = (Path(image["path"]) if image["bytes"] is None else image["bytes"] for image in undecoded)
    good = _find_good(files, sources, skip_bad)
    return pool if len(good) == len(pool) else pool.select(good)


def _hub_labels(dataset: Dataset, column: str, where: str) -> tuple[list[str], list[str]]:
    """The class name of each row, and all names in their order."""
    _check_column(dataset, column, where, "label_column_name")
    values, feature = list(dataset[column]), dataset.features[column]
    unlabelled = sum(value is None or value == -1 for value in values)
    if unlabelled:
        raise InputError(f"expected a label for each picture in {where}, found {unlabelled} without; remove them")
    if isinstance(feature, ClassLabel):
        return [feature.names[value] for value in values], feature.names
    return [str(value) for value in values], [str(value) for value in sorted(set(values))]


def _hub_pictures(dataset: Dataset, column: str, where: str) -> Dataset:
    _check_column(dataset, column, where, "image_column_name")
    if not isinstance(dataset.features[column], Image):
        raise InputError(
            f"expected pictures in the column {column!r} of {where}, found {dataset.features[column]}; name another by "
            "--image_column_name"
        )
    pictures = dataset.select_columns(column)
    return pictures if column == "image" else pictures.rename_column(column, "image")


def _check_column(dataset: Dataset, column: str, where: str, flag: str) -> None:
    if column not in dataset.column_names:
        found = _names(dataset.column_names)
        raise InputError(f"expected the column {column!r} in {where}, found {found}; name it by --{flag}")


def _is_labelled(dataset: Dataset, column: str) -> bool:
    return column in dataset.column_names and not {None, -1} & set(dataset[column])


def _file_names(dataset: Dataset, pictures: Dataset, split: str) -> list[str]:
    """What the pictures are called in a data set, or numbers where that does not tell them apart."""
    if "file" in dataset.column_names:
        names = list(dataset["file"])
    else:
        undecoded = pictures.cast_column("image", Image(decode=False)).with_format("arrow")
        columns = (batch["image"].combine_chunks() for batch in undecoded.iter(1024))
        names = [path and PurePosixPath(path).name for column in columns for path in column.field("path").to_pylist()]
    if all(names) and len(set(names)) == len(names):
        return names
    return [f"{split}/{i:08d}" for i in range(len(names))]


def _take_evenly(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Positions of `count` rows, as many of each class as can be."""
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    seen: Counter[int] = Counter()
    turns = []
    for i in order:
        turns.append((seen[labels[i]], i))
        seen[labels[i]] += 1
    return sorted(i for _, i in sorted(turns, key=lambda turn: turn[0])[:count])


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _names(names: Sequence[str], most: int = 5) -> str:
    """A few names for a sentence; line breaks in them are made visible."""
    shown = ", ".join(str(name).replace("\n", "\\n") for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
