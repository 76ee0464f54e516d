import math

import pytest
import torch

from seedling_hf.data.camera import RandomBlur, RandomNoise, disk_kernel, gaussian_kernel, line_kernel


def noise(side: int = 64) -> torch.Tensor:
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "kernel",
    [gaussian_kernel(0.4), gaussian_kernel(2.0), disk_kernel(0.3), disk_kernel(3.2), line_kernel(4.5, 0.7)],
)
def test_a_kernel_is_symmetric_and_of_sum_1(kernel):
    assert kernel.sum() == pytest.approx(1)
    assert all(side % 2 for side in kernel.shape)
    torch.testing.assert_close(kernel, kernel.flip(tuple(range(kernel.ndim))))


def test_a_gaussian_has_its_deviation_and_a_line_its_direction():
    weights = gaussian_kernel(2.0)
    places = torch.arange(len(weights)) - len(weights) // 2
    # 5%: the tails are cut at 2.5 deviations.
    assert float((weights * places**2).sum()) ** 0.5 == pytest.approx(2.0, rel=0.05)
    line = line_kernel(4.0, math.pi / 2)  # upwards
    assert line.sum(0).argmax() == line.shape[1] // 2 and line.sum(0).max() > 0.99
    assert (line.sum(1) > 0).sum() == 9


def test_blur_smooths_and_keeps_brightness_also_at_the_edge():
    image, step, deviations = noise(), RandomBlur(1.0), []
    torch.manual_seed(0)
    for _ in range(30):
        found = step(image)
        deviations.append(float(found.std() / image.std()))
        assert found.mean() == pytest.approx(float(image.mean()), abs=0.01)
        assert found.min() >= 0 and found.max() <= 1
        torch.testing.assert_close(step(torch.ones(3, 40, 40)), torch.ones(3, 40, 40))
    assert max(deviations) <= 1 and min(deviations) < 0.5


def test_noise_is_stronger_where_it_is_bright_and_has_no_mean():
    half = torch.cat([torch.full((3, 64, 64), 0.1), torch.full((3, 64, 64), 0.7)], dim=-1)
    torch.manual_seed(0)
    ratios, deviations = [], []
    for _ in range(40):
        added = RandomNoise(1.0)(half) - half
        dark, bright = added[..., :60], added[..., 68:]
        ratios.append(float(bright.std() / dark.std()))
        deviations.append(float(bright.std()))
        assert abs(float(bright.mean())) < 0.01
    assert min(ratios) > 1 and sorted(ratios)[20] > 1.5
    assert min(deviations) < 0.01 < 0.05 < max(deviations)
