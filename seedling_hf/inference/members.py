"""A folder of folders: the model folders of a cross-validation, as `train --fold all/n` writes them."""

import os
import re
from pathlib import Path

from seedling_hf.inference.model_files import CONFIG


def fold_folder(folder: str | os.PathLike, number: int) -> Path:
    """The folder of one fold, from 1, within that of all."""
    return Path(folder, f"fold_{number}")


def list_folds(folder: str | os.PathLike) -> list[Path]:
    """The folders of the folds in a folder, by their numbers, whether they hold a model or not; none elsewhere."""
    try:
        found = [path for path in Path(folder).iterdir() if re.fullmatch(r"fold_[1-9]\d*", path.name, re.ASCII)]
    except OSError:
        return []
    return sorted((path for path in found if path.is_dir()), key=lambda path: int(path.name.removeprefix("fold_")))


def list_members(folder: str | os.PathLike) -> list[Path]:
    """The models in a folder of folds, by their numbers; none for the folder of a single model."""
    if os.path.lexists(Path(folder, CONFIG)):
        return []
    return [path for path in list_folds(folder) if os.path.lexists(path / CONFIG)]
