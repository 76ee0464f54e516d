"""Probabilities and labels of 200 images."""

import numpy as np
import pytest


@pytest.fixture
def probabilities() -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.full(4, 0.4), size=200)


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 4, size=200)
