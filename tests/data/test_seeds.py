import numpy as np
import torch

from seedling_hf.data.seeds import epoch_seed, mix, permutation


def test_seeds_are_mixed_by_numpys_seed_sequence():
    # Literal, because every seeded run depends on these words.
    assert mix(42, 0, 7).tolist() == np.random.SeedSequence([42, 0, 7]).generate_state(4).tolist()
    assert mix(42, 0, 7).tolist() == [346678866, 498856915, 1971229213, 109379339]


def test_neighbouring_numbers_have_different_seeds():
    words = {int(mix(*numbers)[0]) for numbers in np.ndindex(10, 10, 10)}
    assert len(words) == 1000


def test_a_permutation_depends_on_its_seed_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = permutation(50, epoch_seed(3, 1))
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(1)
    assert permutation(50, epoch_seed(3, 1)) == first
    assert sorted(first) == list(range(50))
    assert permutation(50, epoch_seed(3, 2)) != first != permutation(50, epoch_seed(4, 1))
