"""Random draws that depend only on (seed, epoch, images), never on the state of a generator.

So they do not change with the number of processes or loading workers, and a resumed run repeats them. Each kind of draw
has its own numbers; changing one would change every seeded run.
"""

from collections.abc import Sequence

import numpy as np
import torch


def mix(*numbers: int) -> np.ndarray:
    """Four words of a seed; neighbouring `numbers` have unrelated seeds."""
    return np.random.SeedSequence(numbers).generate_state(4)


def permutation(count: int, seed: int) -> list[int]:
    """The numbers below `count` in random order, from a generator of its own: stochastic depth must not notice."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def weighted_draw(weights: Sequence[float], count: int, seed: int) -> list[int]:
    """`count` places in `weights`, with replacement, each with a probability in proportion to its weight."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.tensor(weights, dtype=torch.float64)
    return torch.multinomial(probabilities, count, replacement=True, generator=generator).tolist()


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of the order of an epoch."""
    return seed * 1_000_003 + epoch
