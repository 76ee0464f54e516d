"""What every test relies on: no network, and the sample of real pictures."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def sample_dir() -> Path:
    """The class folders of the sample of real seedlings (40 pictures a class)."""
    return ROOT / "scripts" / "sample" / "seedlings"
