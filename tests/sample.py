"""Class folders of real images, copied from the sample."""

import shutil
from collections.abc import Sequence
from pathlib import Path

SAMPLE = Path(__file__).resolve().parents[1] / "scripts" / "sample" / "seedlings"


def copy_sample(folder: Path, names: Sequence[str], images: slice) -> Path:
    """Copies `images` of each class, in the order of their names, into class folders in `folder`."""
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in sorted((SAMPLE / name).iterdir())[images]:
            shutil.copyfile(file, folder / name / file.name)
    return folder
