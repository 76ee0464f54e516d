"""Class folders, or images beside a list of labels, become pools, one for each split that has folders of its own.

The files are listed here, not by the `imagefolder` builder, because it takes folders called val or "test weed" for
splits, drops all labels for one stray image, reads [ ] and * in names as patterns, and numbers the classes of each
folder separately.
"""

import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, Features

from seedling_hf.data.formats import is_image
from seedling_hf.data.images import a_few
from seedling_hf.data.label_lists import COLUMNS as LIST_COLUMNS
from seedling_hf.data.label_lists import NAMES as LIST_NAMES
from seedling_hf.data.label_lists import find_list, has_labels, read_list
from seedling_hf.data.listing import FURTHER, MISNAMED, LeftOut, is_utf8, list_folder, walk_folder
from seedling_hf.data.pool import ImageFeature, ImagePool, Row
from seedling_hf.errors import InputError

SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}

UNREAD = (".", "__MACOSX")  # beginnings of names that are not read

logger = logging.getLogger(__name__)


def list_folders(train_dir: str | os.PathLike, validation_dir: str | os.PathLike | None = None) -> dict[str, ImagePool]:
    """The images of a tree, decodable or not: `train`, and `validation` and `test` if they have folders of their own.

    Args:
        train_dir: A tree of labelled images, or a folder with `train/`, `val/` (or `validation/`) and perhaps `test/`.
        validation_dir: A tree to validate on, instead of `val/`.

    Raises:
        InputError: as `list_labelled_images` does.
    """
    roots = _find_roots(Path(train_dir))
    if validation_dir is not None:
        roots["validation"] = Path(validation_dir)
    _check_apart(roots)
    return {split: list_labelled_images(root) for split, root in roots.items()}


def list_labelled_images(root: Path) -> ImagePool:
    """The images of one tree in byte order, class by class; other files are left out, with one notice.

    A list beside them, as `label_lists` reads it, names their classes, or else the folders do.

    Raises:
        InputError: for a missing folder, a class folder without images, a name of a folder that is not UTF-8, or a list
            that does not fit the images.
    """
    _check_utf8(root)
    path = find_list(root)
    return _list_class_folders(root) if path is None else _list_by_list(root, path)


def _list_by_list(root: Path, path: Path) -> ImagePool:
    left_out = LeftOut(root, {path.name: "", FURTHER: f"not in {path.name}"})
    images = walk_folder(root, left_out)
    rows = read_list(path, images)
    del left_out.counts[path.name]
    left_out.leave_out_images(len(set(images) - {file for file, _ in rows}))
    left_out.say()
    return ImagePool(str(root), _build_column(root, rows), rows, list_file=str(path))


def _list_class_folders(root: Path) -> ImagePool:
    rows, unreadable = [], []
    left_out = LeftOut(root, dict.fromkeys(LIST_NAMES, f"without the columns {' and '.join(LIST_COLUMNS)}"))
    for label in list_folder(root):
        if label.startswith(UNREAD):
            continue
        if not (root / label).is_dir():
            left_out.add(label)
            continue
        _check_utf8(root / label)
        names = _list_class(root, label, left_out)
        if not any(map(is_utf8, names)):
            raise InputError(f"expected images in {root / label}, found only {os.fsencode(names[0])!r} ({MISNAMED})")
        rows += [(f"{label}/{name}", label) for name in names if is_utf8(name)]
        unreadable += [f"{label}/{name}" for name in names if not is_utf8(name)]
    left_out.say()
    return ImagePool(str(root), _build_column(root, rows), rows, misnamed=unreadable)


def _build_column(root: Path, rows: Sequence[Row]) -> Dataset:
    return Dataset.from_dict(
        {"image": [str(root / file) for file, _ in rows]}, features=Features({"image": ImageFeature()})
    )


def _list_class(root: Path, label: str, left_out: LeftOut) -> list[str]:
    """The images in a class folder; other files are added to `left_out`."""
    found, others = [], LeftOut(root / label)
    for name in list_folder(root / label):
        if name.startswith(UNREAD):
            continue
        if (root / label / name).is_dir():
            raise InputError(
                f"expected images in the class folder {a_few([root / label])}, found the folder {a_few([name])} in "
                "it; name the folder that holds the class folders"
            )
        if is_image(name):
            found.append(name)
        else:
            left_out.add(name)
            others.add(name)
    if not found:
        other = f"found only {others.describe()}" if others.counts else "found none"
        raise InputError(
            f"expected images in the class folder {a_few([label])} of {root}, {other}; add some or remove it"
        )
    return found


def _check_apart(roots: dict[str, Path]) -> None:
    """Refuses two splits that share images, because one folder is the other or lies in it."""
    for (split, root), (other, folder) in itertools.permutations(roots.items(), 2):
        if folder.resolve().is_relative_to(root.resolve()):
            raise InputError(
                f"expected {split} and {other} in folders of their own, found {folder} in {root}; give another folder, "
                "or leave --validation_dir out to split the images of --train_dir"
            )


def _check_utf8(folder: Path) -> None:
    if not is_utf8(folder):
        raise InputError(f"expected a folder whose name is UTF-8, found {os.fsencode(folder)!r}; rename it")


def _find_roots(root: Path) -> dict[str, Path]:
    """The folder of each split's images: `root` itself, or those inside."""
    names = list_folder(root)
    if not _is_labelled(root / "train"):
        return {"train": root}
    roots = {}
    for split, aliases in SPLIT_FOLDERS.items():
        found = [name for name in aliases if (root / name).is_dir()]
        if len(found) > 1:
            raise InputError(f"expected one folder for {split} in {root}, found {' and '.join(found)}; remove one")
        if found:
            roots[split] = root / found[0]
    if "test" in roots and not _is_labelled(roots["test"], in_full=True):
        logger.info("ignored %s, whose images are not in class folders", roots.pop("test"))
    ignored = [name for name in names if root / name not in roots.values() and name not in ("test", "split.csv")]
    if ignored:
        logger.info("ignored in %s, not a split: %s", root, a_few(ignored))
    return roots


def _is_labelled(folder: Path, *, in_full: bool = False) -> bool:
    """Whether a folder has class folders or a list, `in_full` one that has labels."""
    if not folder.is_dir():
        return False
    path = find_list(folder)
    if path is not None and (not in_full or has_labels(path)):
        return True
    return any(not name.startswith(".") and (folder / name).is_dir() for name in list_folder(folder))
