"""Folds that several files of tests look at."""

from pathlib import Path

import pytest
from faults import assert_well, command
from fold_runs import FLAGS


@pytest.fixture(scope="session")
def finished_folds(tmp_path_factory, images) -> Path:
    """The folder in which two folds were trained, into `run`, and what was printed, `stdout`; to read only."""
    folder = tmp_path_factory.mktemp("folds")
    (folder / "images").symlink_to(images)
    outcome = command(FLAGS, folder)
    assert_well(outcome)
    (folder / "stdout").write_text(outcome.stdout)
    return folder
