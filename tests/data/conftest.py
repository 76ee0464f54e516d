"""Small trees of real images, for the tests of this folder."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def plant(sample_dir):
    """Fills a folder with class folders of so many real images each."""

    def fill(folder: Path, **counts: int) -> Path:
        for name, count in (counts or {"Maize": 4, "Charlock": 5}).items():
            (folder / name).mkdir(parents=True)
            source = sample_dir / (name if (sample_dir / name).exists() else "Cleavers")
            for file in sorted(source.iterdir())[:count]:
                shutil.copyfile(file, folder / name / file.name)
        return folder

    return fill


@pytest.fixture
def tree(tmp_path, plant) -> Path:
    """Four images of Maize, five of Charlock."""
    return plant(tmp_path / "tree")
