"""Class folders become pools of images, one for each split that has folders of its own.

The files are listed here, not by the `imagefolder` builder, because it takes folders called val or "test weed" for
splits, drops all labels for one stray image, reads [ ] and * in names as patterns, and numbers the classes of each
folder separately.
"""

import logging
import os
from pathlib import Path

from datasets import Dataset, Features, Image

from seedling_hf.data.images import a_few, is_image, list_folder
from seedling_hf.data.pool import ImagePool, Row
from seedling_hf.errors import InputError

SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}

logger = logging.getLogger(__name__)


def list_folders(train_dir: str | os.PathLike, validation_dir: str | os.PathLike | None = None) -> dict[str, ImagePool]:
    """The images of a tree, decodable or not: `train`, and `validation` and `test` if they have folders of their own.

    Args:
        train_dir: Class folders, or a folder with `train/`, `val/` (or `validation/`) and perhaps `test/` inside.
        validation_dir: Class folders to validate on, instead of `val/`.

    Raises:
        InputError: for a missing folder, or a class folder without images.
    """
    roots = _find_roots(Path(train_dir))
    if validation_dir is not None:
        roots["validation"] = Path(validation_dir)
    return {split: list_class_folders(root) for split, root in roots.items()}


def list_class_folders(root: Path) -> ImagePool:
    """The images of one tree of class folders in byte order; other files are ignored, with one notice.

    Raises:
        InputError: for a missing folder, or a class folder without images.
    """
    rows, ignored = [], []
    for label in list_folder(root):
        if label.startswith((".", "__MACOSX")) or not (root / label).is_dir():
            ignored.append(label)
        else:
            found, others = _list_class(root, label)
            rows += found
            ignored += others
    if ignored:
        logger.info("ignored in %s, neither class folders nor images: %s", root, a_few(ignored))
    images = Dataset.from_dict({"image": [str(root / file) for file, _ in rows]}, features=Features({"image": Image()}))
    return ImagePool(str(root), images, rows)


def _list_class(root: Path, label: str) -> tuple[list[Row], list[str]]:
    """The rows of a class folder, and the other files in it."""
    rows, ignored = [], []
    for name in list_folder(root / label):
        if not name.startswith((".", "__MACOSX")) and (root / label / name).is_dir():
            raise InputError(
                f"expected images in the class folder {a_few([root / label])}, found the folder {a_few([name])} in "
                "it; name the folder that holds the class folders"
            )
        if is_image(name) and not name.startswith((".", "__MACOSX")):
            rows.append((f"{label}/{name}", label))
        else:
            ignored.append(f"{label}/{name}")
    if not rows:
        raise InputError(
            f"expected images in the class folder {a_few([label])} of {root}, found none; add some or remove it"
        )
    return rows, ignored


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
        logger.info("ignored %s, whose images are not in class folders", roots.pop("test"))
    ignored = [name for name in names if root / name not in roots.values() and name not in ("test", "split.csv")]
    if ignored:
        logger.info("ignored in %s, not a split: %s", root, a_few(ignored))
    return roots


def _has_class_folders(folder: Path) -> bool:
    return folder.is_dir() and any(not n.startswith(".") and (folder / n).is_dir() for n in list_folder(folder))
