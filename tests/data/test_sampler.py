from collections import Counter

import pytest

from seedling_hf.data.sampler import BalancedSampler, EpochSampler
from seedling_hf.errors import InputError


def epoch_of(sampler: EpochSampler, epoch: int, first_step: int = 0) -> list[list[int]]:
    sampler.set_position(epoch, first_step)
    return list(sampler)


def test_an_epoch_depends_on_seed_and_epoch_alone():
    one = EpochSampler(100, batch_size=8, seed=3)
    epoch_of(one, 0)
    assert epoch_of(one, 5) == epoch_of(EpochSampler(100, batch_size=8, seed=3), 5)
    assert epoch_of(one, 5) != epoch_of(one, 6)
    assert epoch_of(one, 5) != epoch_of(EpochSampler(100, batch_size=8, seed=4), 5)


def test_no_image_comes_twice_in_an_epoch():
    drawn = [i for batch in epoch_of(EpochSampler(100, batch_size=8), 0) for i in batch]
    assert len(drawn) == len(set(drawn)) == 96


def test_starting_inside_an_epoch_gives_its_very_tail():
    sampler = EpochSampler(100, batch_size=4, accumulation=2)
    assert epoch_of(sampler, 1, first_step=5) == epoch_of(sampler, 1)[10:]
    assert len(sampler) == 24


@pytest.mark.parametrize("processes, accumulation", [(1, 1), (2, 1), (1, 2), (4, 2), (2, 4)])
def test_a_global_batch_holds_the_same_images_however_it_is_divided(processes, accumulation):
    size = 16 // processes // accumulation
    shares = [
        epoch_of(
            EpochSampler(
                100, batch_size=size, accumulation=accumulation, num_processes=processes, process_index=rank, seed=7
            ),
            2,
        )
        for rank in range(processes)
    ]
    whole = epoch_of(EpochSampler(100, batch_size=16, seed=7), 2)
    for step, expected in enumerate(whole):
        found = [i for share in shares for part in share[step * accumulation : (step + 1) * accumulation] for i in part]
        assert sorted(found) == sorted(expected)


def test_too_few_images_for_one_step_are_refused_with_both_figures():
    with pytest.raises(InputError, match=r"batch of 64 .* found 63 images"):
        EpochSampler(63, batch_size=16, num_processes=4)


LABELS = [0] * 80 + [2] * 15 + [5] * 5  # of 100 images


def balanced(**options) -> BalancedSampler:
    return BalancedSampler(LABELS, **{"batch_size": 10, "seed": 3, **options})


def test_balanced_each_class_and_each_of_its_images_comes_as_often():
    sampler = balanced()
    drawn = Counter(i for epoch in range(200) for batch in epoch_of(sampler, epoch) for i in batch)
    assert drawn.total() == 200 * 100
    for label, count in Counter(LABELS).items():
        found = [drawn[i] for i, other in enumerate(LABELS) if other == label]
        # Five standard deviations of 20,000 draws, and of those of one image.
        assert abs(sum(found) - 20_000 / 3) < 5 * (20_000 * 2 / 9) ** 0.5
        expected = 20_000 / 3 / count
        assert max(abs(number - expected) for number in found) < 5 * expected**0.5


def test_balanced_an_epoch_is_as_long_as_without_and_depends_on_seed_and_epoch_alone():
    assert len(balanced()) == len(EpochSampler(100, batch_size=10))
    one = balanced()
    epoch_of(one, 0)
    assert epoch_of(one, 5) == epoch_of(balanced(), 5)
    assert epoch_of(one, 5) != epoch_of(one, 6)
    assert epoch_of(one, 5) != epoch_of(balanced(seed=4), 5)


def test_balanced_a_start_inside_an_epoch_gives_its_very_tail():
    sampler = balanced(batch_size=4, accumulation=2)
    assert epoch_of(sampler, 1, first_step=5) == epoch_of(sampler, 1)[10:]


@pytest.mark.parametrize("processes, accumulation", [(2, 1), (1, 2), (4, 2)])
def test_balanced_a_draw_has_the_same_place_however_the_global_batch_is_divided(processes, accumulation):
    found = {}
    for rank in range(processes):
        share = balanced(
            batch_size=16 // processes // accumulation, accumulation=accumulation,
            num_processes=processes, process_index=rank,
        )  # fmt: skip
        for batch, start in zip(epoch_of(share, 2), share.starts(), strict=True):
            found |= {start + i: image for i, image in enumerate(batch)}
    whole = [image for batch in epoch_of(balanced(batch_size=16), 2) for image in batch]
    assert found == dict(enumerate(whole))
