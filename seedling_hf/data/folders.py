"""Class folders become Datasets, one for each split that has folders of its own.

The rows are those of the `imagefolder` builder (`image`, `label`) with `file` beside them. The file list is made here,
not by the builder, because it takes folders called val or "test weed" for splits, drops all labels for one stray
image, reads [ ] and * in names as patterns, and numbers the classes of each folder apart.
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image, Value

from seedling_hf.data.images import a_few, find_good_images, is_image, list_folder
from seedling_hf.data.splits import Row
from seedling_hf.errors import InputError

SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}

logger = logging.getLogger(__name__)


def load_folders(
    train_dir: str | os.PathLike, validation_dir: str | os.PathLike | None = None, *, skip_bad_images: bool = False
) -> dict[str, Dataset]:
    """Loads images as they lie: `train`, and `validation` and `test` where they have folders of their own.

    Args:
        train_dir: Class folders, or a folder with `train/`, `val/` (or `validation/`) and perhaps `test/` inside.
        validation_dir: Class folders to validate on, instead of `val/`.
        skip_bad_images: Leave out images that cannot be decoded.

    Returns:
        Columns `image`, `label` (ClassLabel, names in byte order) and `file`, relative to the folder of its split.

    Raises:
        InputError: as `load_splits` does.
    """
    roots = _find_roots(Path(train_dir))
    if validation_dir is not None:
        roots["validation"] = Path(validation_dir)
    rows = {split: _find_rows(root) for split, root in roots.items()}
    class_names = check_classes(rows["train"], roots["train"])
    for split in roots.keys() - {"train"}:
        check_known_classes(rows[split], class_names, roots[split], f"the classes of {roots['train']}")
    rows = {split: _drop_bad(roots[split], found, skip_bad_images) for split, found in rows.items()}
    emptied = sorted(set(class_names) - {label for _, label in rows["train"]})
    if emptied:
        raise InputError(
            f"expected images that can be decoded in every class folder of {roots['train']}, found none in "
            f"{a_few(emptied)}; repair them or remove the folder"
        )
    return {split: _build(roots[split], found, class_names) for split, found in rows.items()}


def load_folder(
    folder: str | os.PathLike, class_names: Sequence[str] | None = None, *, skip_bad_images: bool = False
) -> Dataset:
    """Loads one tree of class folders, labelled by the position of their names in `class_names` (default: its own).

    Raises:
        InputError: for a missing folder, a folder whose name is no class, or images that cannot be decoded.
    """
    folder = Path(folder)
    rows = _find_rows(folder)
    found = sorted({label for _, label in rows})
    if not found:
        raise InputError(f"expected class folders with images in {folder}, found none")
    class_names = found if class_names is None else list(class_names)
    check_known_classes(rows, class_names, folder, "folders named as the model's classes")
    rows = _drop_bad(folder, rows, skip_bad_images)
    if not rows:
        raise InputError(f"expected images that can be decoded in {folder}, found none")
    return number_rows(_build(folder, rows, class_names))


def find_images(train_dir: str | os.PathLike) -> dict[str, list[tuple[Path, Row]]]:
    """The files of a tree, decodable or not: for each split (`train` alone, or folders of their own) path and row.

    Raises:
        InputError: for a missing folder, or a class folder without images.
    """
    return {
        split: [(root / file, (file, label)) for file, label in _find_rows(root)]
        for split, root in _find_roots(Path(train_dir)).items()
    }


def check_classes(rows: list[Row], root: Path | str) -> list[str]:
    """The class names in byte order."""
    names = sorted({label for _, label in rows})
    if len(names) < 2:
        raise InputError(
            f"expected at least two classes in {root}, found {a_few(names) if names else 'none'}; in a folder, each "
            "class is a folder of images"
        )
    spellings = Counter(name.casefold() for name in names)
    twins = [name for name in names if spellings[name.casefold()] > 1]
    if twins:
        logger.warning("classes whose names differ in capitals only are kept apart: %s", a_few(twins))
    return names


def check_known_classes(rows: list[Row], class_names: Sequence[str], root: Path | str, expected: str) -> None:
    """Refuses rows of classes that are not among `class_names`.

    Raises:
        InputError: that `expected` was expected in `root`, with a better spelling where there is one.
    """
    unknown = sorted({label for _, label in rows} - set(class_names))
    if unknown:
        same = {name.casefold(): name for name in class_names}.get(unknown[0].casefold())
        advice = f"rename {unknown[0]} to {same}" if same else "rename or remove it"
        raise InputError(
            f"expected {expected} in {root}, found {a_few(unknown)} besides; {advice}; the classes are "
            f"{a_few(class_names, 12)}"
        )


def number_rows(pool: Dataset, members: Sequence[int] | None = None) -> Dataset:
    """The rows `members` of `pool` (default: all), with their new numbers as the column `index`."""
    if members is None:
        members = range(len(pool))
    numbers = [-1] * len(pool)
    for number, i in enumerate(members):
        numbers[i] = number
    # The column goes first, because it would copy the images of rows that were chosen.
    return pool.add_column("index", numbers).select(members)


def _find_roots(root: Path) -> dict[str, Path]:
    """The folder of each split's class folders: `root` itself, or those inside."""
    names = list_folder(root)
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
        logger.info("left out: %s, whose images are in no class folders", roots.pop("test"))
    strangers = [name for name in names if root / name not in roots.values() and name not in ("test", "split.csv")]
    if strangers:
        logger.info("left out in %s, being no split: %s", root, a_few(strangers))
    return roots


def _find_rows(root: Path) -> list[Row]:
    """The images of a tree of class folders, in byte order; what else lies there is named once and left out."""
    rows, strangers = [], []
    for label in list_folder(root):
        folder = root / label
        if label.startswith((".", "__MACOSX")) or not folder.is_dir():
            strangers.append(label)
            continue
        files = []
        for name in list_folder(folder):
            if name.startswith((".", "__MACOSX")):
                strangers.append(f"{label}/{name}")
            elif (folder / name).is_dir():
                raise InputError(
                    f"expected images in the class folder {a_few([folder])}, found the folder {a_few([name])} in "
                    "it; name the folder that holds the class folders"
                )
            elif is_image(name):
                files.append(name)
            else:
                strangers.append(f"{label}/{name}")
        if not files:
            raise InputError(
                f"expected images in the class folder {a_few([label])} of {root}, found none; add some or remove it"
            )
        rows += [(f"{label}/{name}", label) for name in files]
    if strangers:
        logger.info("left out in %s, being no class folder or no image: %s", root, a_few(strangers))
    return rows


def _has_class_folders(folder: Path) -> bool:
    return folder.is_dir() and any(not n.startswith(".") and (folder / n).is_dir() for n in list_folder(folder))


def _drop_bad(root: Path, rows: list[Row], skip: bool) -> list[Row]:
    good = find_good_images([root / file for file, _ in rows], [root / file for file, _ in rows], skip)
    return [rows[i] for i in good]


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
