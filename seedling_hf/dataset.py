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
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage
from PIL import ImageFile

from seedling_hf.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
Row = tuple[str, str]  # file relative to its root folder, class name

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
        split_strategy: `stratified`: the share of each class; `random`: as the tutorial draws it, scikit-learn's
            `train_test_split` of the sorted files.
        train_val_split: Share of the pictures that validates.
        split_seed: Seed of the split; not the run's, so that runs of several seeds are judged on the same pictures.
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
    if dataset_name is not None:
        splits = _load_hub_splits(
            dataset_name, dataset_config_name, dataset_revision, image_column_name, label_column_name
        )
        if "validation" not in splits:
            rows = list(zip(splits["train"]["file"], splits["train"]["label"], strict=True))
            chosen = _draw_validation(rows, split_strategy, train_val_split, split_seed)
            train = splits.pop("train")
            splits["train"] = train.select([i for i, row in enumerate(rows) if row not in chosen])
            splits["validation"] = train.select([i for i, row in enumerate(rows) if row in chosen])
    else:
        splits = _load_folder_splits(
            Path(train_dir), validation_dir, split_strategy, train_val_split, split_seed, split_file, skip_bad_pictures
        )
    for name, limit in (("train", max_train_samples), ("validation", max_eval_samples)):
        if limit is not None and limit < len(splits[name]):
            splits[name] = splits[name].select(_take_evenly(splits[name]["label"], limit, split_seed))
    for name in ("train", "validation"):
        if not len(splits[name]):
            raise InputError(f"expected pictures for {name}, found none; change --train_val_split or add pictures")
    order = [name for name in ("train", "validation", "test") if name in splits]
    return DatasetDict({name: _number(splits[name]) for name in order})


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
    unknown = sorted(set(found) - set(class_names))
    if unknown:
        raise InputError(
            f"expected folders named as the model's classes in {folder}, found {_names(unknown)}; the classes are "
            f"{', '.join(class_names)}"
        )
    return _number(_build(folder, _drop_bad(folder, rows, skip_bad_pictures), class_names))


def list_images(paths: Iterable[str | os.PathLike]) -> Iterator[Path]:
    """The pictures among `paths`: files as they are, folders searched through in byte order; never all in memory.

    Raises:
        InputError: for a path that does not exist.
    """
    for path in map(Path, paths):
        if path.is_dir():
            for name in sorted(os.listdir(path)):
                if not name.startswith(".") and ((path / name).is_dir() or _is_image(name)):
                    yield from list_images([path / name])
        elif path.exists() or path.is_symlink():
            yield path
        else:
            raise InputError(f"expected a picture or a folder at {path}, found nothing there")


def find_bad_pictures(paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Decodes every picture and yields those that cannot be, with the reason."""
    # Threads, because decoding runs outside of Python's lock.
    with ThreadPoolExecutor(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ) as pool:
        paths = list(paths)
        for path, reason in zip(paths, pool.map(_reason_it_is_bad, paths), strict=True):
            if reason is not None:
                yield path, reason


def write_split_csv(splits: DatasetDict, path: str | os.PathLike) -> None:
    """Writes which picture is in which split: columns `file`, `label` (the class name) and `split`."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["file", "label", "split"])
        for name, split in splits.items():
            labels = split.features["label"]
            writer.writerows([f, labels.int2str(i), name] for f, i in zip(split["file"], split["label"], strict=True))
    os.replace(temporary, path)


def read_split_csv(path: str | os.PathLike) -> dict[Row, str]:
    """The split of each (file, class name) in a split.csv.

    Raises:
        InputError: if it is none.
    """
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"expected a split.csv at {path}, found: {error}") from error
    if rows[:1] != [["file", "label", "split"]] or any(len(r) != 3 or r[2] not in SPLIT_FOLDERS for r in rows[1:]):
        raise InputError(
            f"expected columns file,label,split with train, validation or test in {path}, found other lines; "
            "use the split.csv of a run"
        )
    return {(file, label): split for file, label, split in rows[1:]}


def hash_split(path: str | os.PathLike) -> str:
    """SHA-256 of a split.csv, whatever the order of its lines: two runs with the same hash have the same split."""
    lines = sorted(f"{file}\t{label}\t{split}" for (file, label), split in read_split_csv(path).items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def describe_splits(splits: DatasetDict) -> str:
    """A table of pictures a class and split."""
    names = splits["train"].features["label"].names
    counts = {split: Counter(rows["label"]) for split, rows in splits.items()}
    width = max(len("total"), *map(len, names))
    lines = [f"{'':{width}}" + "".join(f"{split:>12}" for split in splits)]
    lines += [f"{name:{width}}" + "".join(f"{counts[s][i]:12,}" for s in splits) for i, name in enumerate(names)]
    lines.append(f"{'total':{width}}" + "".join(f"{len(splits[s]):12,}" for s in splits))
    return "\n".join(lines)


def _load_folder_splits(
    root: Path,
    validation_dir: str | os.PathLike | None,
    strategy: str,
    share: float,
    seed: int,
    split_file: str | os.PathLike | None,
    skip_bad: bool,
) -> dict[str, Dataset]:
    if not root.is_dir():
        raise InputError(f"expected a folder at {root}, found {'a file' if root.exists() else 'nothing'} there")
    roots = {"train": root}
    if _has_class_folders(root / "train"):
        named = [(split, root / name) for split, names in SPLIT_FOLDERS.items() for name in names]
        roots = {split: folder for split, folder in named if folder.is_dir()}
    if validation_dir is not None:
        roots["validation"] = Path(validation_dir)
    if "test" in roots and not _has_class_folders(roots["test"]):
        logger.info("left out: %s, whose pictures are in no class folders", roots.pop("test"))

    rows = {split: _find_rows(folder) for split, folder in roots.items()}
    class_names = _check_classes(rows["train"], roots["train"])
    for split in roots.keys() - {"train"}:
        unknown = sorted({label for _, label in rows[split]} - set(class_names))
        if unknown:
            raise InputError(
                f"expected the classes of {roots['train']} in {roots[split]}, found {_names(unknown)} besides; "
                "rename or remove the folder"
            )
    rows = {split: _drop_bad(roots[split], found, skip_bad) for split, found in rows.items()}
    if "validation" not in rows:
        everything, roots["validation"] = rows["train"], roots["train"]
        if split_file is not None:
            rows |= _split_as_written(everything, split_file)
        else:
            chosen = _draw_validation(everything, strategy, share, seed)
            rows["train"] = [row for row in everything if row not in chosen]
            rows["validation"] = [row for row in everything if row in chosen]
    elif split_file is not None:
        raise InputError("expected --split_file for one tree of class folders, found a validation folder besides it")
    return {split: _build(roots.get(split, roots["train"]), found, class_names) for split, found in rows.items()}


def _find_rows(root: Path) -> list[Row]:
    """The pictures of a tree of class folders, in byte order; what else lies there is named once and left out."""
    if not root.is_dir():
        raise InputError(f"expected a folder at {root}, found {'a file' if root.exists() else 'nothing'} there")
    rows, strangers = [], []
    for folder in sorted(root.iterdir()):
        if folder.name.startswith((".", "__MACOSX")) or not folder.is_dir():
            strangers.append(folder.name)
            continue
        files = []
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                strangers.append(f"{folder.name}/{path.name}")
            elif path.is_dir():
                raise InputError(
                    f"expected pictures in the class folder {folder}, found the folder {path.name} in it; "
                    "name the folder that holds the class folders"
                )
            elif _is_image(path.name):
                files.append(path.name)
            else:
                strangers.append(f"{folder.name}/{path.name}")
        if not files:
            raise InputError(
                f"expected pictures in the class folder {folder.name!r} of {root}, found none; add some or remove it"
            )
        rows += [(f"{folder.name}/{name}", folder.name) for name in files]
    if strangers:
        logger.info("left out in %s, being no class folder or no picture: %s", root, _names(strangers))
    return rows


def _has_class_folders(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())


def _check_classes(rows: list[Row], root: Path) -> list[str]:
    """The class names in byte order, which for UTF-8 is Python's order of strings."""
    names = sorted({label for _, label in rows})
    if len(names) < 2:
        raise InputError(
            f"expected at least two class folders in {root}, found {_names(names) if names else 'none'}; "
            "each class is a folder of pictures"
        )
    twins = [name for name, count in Counter(name.casefold() for name in names).items() if count > 1]
    if twins:
        logger.warning("classes whose names differ in capitals only are kept apart: %s", _names(twins))
    return names


def _draw_validation(rows: Sequence[Row], strategy: str, share: float, seed: int) -> set[Row]:
    """The rows that validate; a pure function of the sorted rows and the seed."""
    rows = sorted(rows)
    if strategy == "random":
        from sklearn.model_selection import train_test_split

        return set(train_test_split(rows, test_size=share, random_state=seed)[1])
    chosen = set()
    for label in sorted({label for _, label in rows}):
        members = [row for row in rows if row[1] == label]
        count = min(len(members) - 1, max(1, round(share * len(members))))
        if count == 0:
            logger.warning("the class %s has one picture: it is trained on and never validated", label)
        # Of its own for each class: another class more or less moves no picture of this one.
        chosen |= set(random.Random(f"{seed} {label}").sample(members, count))
    return chosen


def _split_as_written(rows: list[Row], split_file: str | os.PathLike) -> dict[str, list[Row]]:
    written = read_split_csv(split_file)
    missing, new = sorted(written.keys() - set(rows)), sorted(set(rows) - written.keys())
    if missing or new:
        what, found = ("not in the folder", missing) if missing else ("in the folder and not in the split", new)
        raise InputError(
            f"expected the very pictures of {split_file}, found {len(found)} {what}: "
            f"{_names([file for file, _ in found])}; restore them or draw a new split"
        )
    names = [name for name in SPLIT_FOLDERS if name in set(written.values()) | {"train", "validation"}]
    return {name: [row for row in rows if written[row] == name] for name in names}


def _drop_bad(root: Path, rows: list[Row], skip: bool) -> list[Row]:
    bad = dict(find_bad_pictures(root / file for file, _ in rows))
    if not bad:
        return rows
    listed = _names([f"{path} ({reason})" for path, reason in bad.items()])
    if not skip:
        raise InputError(
            f"expected pictures that can be decoded, found {len(bad)} of {len(rows)} that cannot: {listed}; "
            "repair or remove them, or leave them out by --skip_bad_pictures"
        )
    logger.warning("left out %d of %d pictures that cannot be decoded: %s", len(bad), len(rows), listed)
    return [row for row in rows if root / row[0] not in bad]


def _reason_it_is_bad(path: Path) -> str | None:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("expected PIL to refuse truncated pictures, found LOAD_TRUNCATED_IMAGES set")
    try:
        with PILImage.open(path) as image:
            if image.width * image.height > PILImage.MAX_IMAGE_PIXELS:
                return f"{image.width}×{image.height} pixels are too many"
            image.load()
    except PILImage.DecompressionBombError:
        return "too many pixels"
    except (OSError, SyntaxError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error).split(" '")[0].split(" <")[0]
    return None


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


def _number(dataset: Dataset) -> Dataset:
    return dataset.add_column("index", list(range(len(dataset))))


def _load_hub_splits(
    name: str, config: str | None, revision: str | None, image_column: str, label_column: str
) -> dict[str, Dataset]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        loaded = load_dataset(name, config, revision=revision)
    except (DatasetNotFoundError, OSError, ValueError) as error:
        raise InputError(f"expected a data set at {name}, found none: {str(error).splitlines()[0]}") from error
    splits = {}
    for split, dataset in loaded.items():
        for flag, column in (("image_column_name", image_column), ("label_column_name", label_column)):
            if column not in dataset.column_names:
                found = _names(dataset.column_names)
                raise InputError(f"expected the column {column!r} in {name}, found {found}; name it by --{flag}")
        if not isinstance(dataset.features[label_column], ClassLabel):
            dataset = dataset.class_encode_column(label_column)
        keep = dataset.select_columns(list({image_column, label_column, "file"} & set(dataset.column_names)))
        keep = keep.rename_columns({image_column: "image", label_column: "label"})
        if "file" not in keep.column_names:
            keep = keep.add_column("file", [f"{split}/{i:08d}" for i in range(len(keep))])
        splits["validation" if split in ("val", "valid", "dev") else split] = keep
    if "train" not in splits:
        raise InputError(f"expected a split called train in {name}, found {_names(list(splits))}")
    names = splits["train"].features["label"].names
    for split, dataset in splits.items():
        if dataset.features["label"].names != names:
            raise InputError(f"expected the same classes in all splits of {name}, found others in {split}")
    return splits


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
