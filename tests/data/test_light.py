import pytest
import torch

from seedling_hf.data.light import (
    RandomGamma,
    RandomLevels,
    RandomShadow,
    RandomWhiteBalance,
    stretch,
    temperature_gains,
)

LUMA = torch.tensor([0.299, 0.587, 0.114])


def noise(seed: int = 0, side: int = 24) -> torch.Tensor:
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))


def test_warm_light_raises_red_over_green_over_blue_and_cool_light_the_reverse():
    warm, cool = temperature_gains(100), temperature_gains(-100)
    assert warm[0] > warm[1] > warm[2] and cool[0] < cool[1] < cool[2]
    torch.testing.assert_close(warm * cool, torch.ones(3))  # there and back


def test_temperature_is_that_of_a_black_body():
    """Planck's law at both temperatures, in sRGB; Wien's neglects 1 in a hundred here."""

    def planck(length: float, kelvin: float) -> float:
        return 1 / (torch.exp(torch.tensor(1.4388e7 / (length * kelvin), dtype=torch.float64)).item() - 1)

    ratios = [(planck(length, 4000) / planck(length, 6500)) ** (1 / 2.2) for length in (600, 540, 450)]
    found = temperature_gains(1e6 / 4000 - 1e6 / 6500)
    for gain, ratio in zip(found.tolist(), ratios, strict=True):
        assert gain == pytest.approx(ratio / ratios[1], rel=0.01)


def test_white_balance_keeps_the_luma_of_grey_and_colours_it_both_ways():
    grey, step = torch.full((3, 4, 4), 0.4), RandomWhiteBalance(1.0)
    torch.manual_seed(0)
    seen = torch.stack([step(grey)[:, 0, 0] for _ in range(60)])
    torch.testing.assert_close(seen @ LUMA, torch.full((60,), 0.4))
    ratio = seen[:, 0] / seen[:, 2]
    assert ratio.min() < 0.6 and ratio.max() > 1.7
    torch.manual_seed(0)
    weak = torch.stack([RandomWhiteBalance(0.2)(grey)[:, 0, 0] for _ in range(60)])
    assert (weak.log() - 0.4).std() < (seen.log() - 0.4).std() / 3


def test_gamma_keeps_black_and_white_and_order():
    ramp = torch.linspace(0, 1, 11).expand(3, 1, 11)
    torch.manual_seed(0)
    powers = []
    for _ in range(40):
        found = RandomGamma(1.0)(ramp)
        assert found[0, 0, 0] == 0 and found[0, 0, -1] == 1 and (found.diff(dim=-1) > 0).all()
        powers.append(float(found[0, 0, 5].log() / torch.tensor(0.5).log()))
    assert 0.5 <= min(powers) < 0.6 and 1.7 < max(powers) <= 2.0


def test_other_levels_and_back_is_the_same_image():
    image = stretch(noise())
    assert image.min() == 0 and image.max() == pytest.approx(1)
    darker = stretch(image, 0.1, 0.6)
    assert darker.min() == pytest.approx(0.1) and darker.max() == pytest.approx(0.6)
    torch.testing.assert_close(stretch(darker), image)
    flat = torch.full((3, 4, 4), 0.3)
    assert stretch(flat).isfinite().all()


def test_levels_are_those_of_all_channels_together():
    image = torch.stack([0.1 + 0.2 * noise()[0], 0.3 + 0.2 * noise(1)[0], 0.2 + 0.1 * noise(2)[0]])
    found = stretch(image)
    assert found[0].min() == 0 and found[1].max() == pytest.approx(1)
    assert found[1].min() > 0.3 and found[0].max() < 0.7


def test_half_of_the_levels_are_stretched_and_the_others_darker():
    image = 0.2 + 0.5 * noise()
    torch.manual_seed(0)
    seen = [RandomLevels(1.0)(image) for _ in range(100)]
    stretched = [each for each in seen if each.min() == 0 and each.max() > 1 - 1e-6]
    assert 35 < len(stretched) < 65
    whites = sorted(float(each.max()) for each in seen)
    assert 0.4 <= whites[0] < 0.5
    assert all(0 <= each.min() <= 0.16 for each in seen)


def test_a_shadow_darkens_a_part_softly_and_leaves_the_rest():
    white = torch.ones(3, 64, 64)
    torch.manual_seed(0)
    dark, untouched = [], []
    for _ in range(40):
        found = RandomShadow(1.0)(white)
        assert found.max() <= 1.0 and found.min() > 0.25
        dark.append(float(found[1].min()))
        untouched.append(float((found[1] > 0.98).float().mean()))
        assert found.diff(dim=-1).abs().max() < 0.5  # no hard edge
    assert min(dark) < 0.4 and sum(untouched) / len(untouched) > 0.2
