import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from transformers.modeling_outputs import ImageClassifierOutput

from seedling_hf.errors import InputError
from seedling_hf.interpretation.faithfulness import BLUR, Curves, blur, plant_share, trace_curves


class Counter(torch.nn.Module):
    """Its second class becomes the more probable, the more pixels of the first channel are above 1/2."""

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        share = (pixel_values[:, 0] > 0.5).double().mean((1, 2))
        return ImageClassifierOutput(logits=torch.stack([torch.zeros_like(share), 4 * share], 1))


def chance(share: float) -> float:
    return 1 / (1 + np.exp(-4 * share))


@pytest.fixture
def half() -> torch.Tensor:
    """An image (1, 3, 8, 8) whose left half is 1 and whose right half is 0."""
    image = torch.zeros(1, 3, 8, 8)
    image[..., :4] = 1
    return image


def test_the_curves_follow_the_order_of_the_map(half):
    black = torch.zeros_like(half)
    curves = trace_curves(Counter(), half, torch.tensor([1]), half[:, 0], steps=4, removed=black)
    shares = [0.5, 0.25, 0, 0, 0], [0, 0.25, 0.5, 0.5, 0.5]
    for curve, expected in zip(curves, shares, strict=True):
        assert curve[0].tolist() == pytest.approx([chance(share) for share in expected])
    worst = trace_curves(Counter(), half, torch.tensor([1]), 1 - half[:, 0], steps=4, removed=black)
    assert worst.deletion[0].tolist() == pytest.approx(curves.insertion[0].flip(0).tolist())
    assert worst.evidence().item() == pytest.approx(-curves.evidence().item())
    assert curves.evidence() > 0.1


def test_the_curves_begin_and_end_with_the_image_and_the_blurred_image():
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([1, 0])
    curves = trace_curves(Counter(), images, targets, images[:, 0], steps=3)
    for ends, pixel_values in (([0, -1], images), ([-1, 0], blur(images, BLUR))):
        expected = Counter()(pixel_values).logits.softmax(-1)[torch.arange(2), targets]
        assert torch.allclose(curves.deletion[:, ends[0]], expected)
        assert torch.allclose(curves.insertion[:, ends[1]], expected)


def test_areas_are_those_under_the_curves():
    falling, rising = torch.linspace(1, 0, 5)[None].double(), torch.tensor([[0, 0, 1, 1, 1.0]]).double()
    deletion, insertion = Curves(falling, rising).areas()
    assert (deletion.item(), insertion.item()) == pytest.approx((0.5, 0.625))
    assert Curves(falling, rising).evidence().item() == pytest.approx(0.125)
    # A class that is improbable throughout is measured by its own probability.
    assert Curves(falling / 100, rising / 100).evidence().item() == pytest.approx(0.125)


def test_random_maps_have_no_evidence_on_average(half):
    images, targets = half.expand(200, -1, -1, -1), torch.ones(200, dtype=torch.long)
    maps = torch.rand(200, 8, 8, generator=torch.Generator().manual_seed(0))
    evidence = trace_curves(Counter(), images, targets, maps, steps=8, removed=torch.zeros_like(images)).evidence()
    # Four standard errors.
    assert abs(evidence.mean()) < 4 * evidence.std() / 200**0.5


def test_maps_of_another_size_are_refused(half):
    with pytest.raises(InputError, match=r"expected maps of shape \(1, 8, 8\), found \(1, 4, 4\)"):
        trace_curves(Counter(), half, torch.tensor([1]), torch.zeros(1, 4, 4), steps=4)


def test_the_share_on_the_plant_is_that_of_the_sum():
    maps = torch.tensor([[[1.0, 3], [4, 0]], [[0, 0], [0, 0]]])
    shares = plant_share(maps, torch.tensor([[True, False], [True, True]]).expand(2, 2, 2))
    assert shares[0] == pytest.approx(5 / 8)
    assert shares[1].isnan()


def test_a_blur_is_gaussian_and_keeps_what_is_flat():
    image = torch.rand(1, 1, 64, 96, generator=torch.Generator().manual_seed(0)).double()
    blurred = blur(image, 0.05)[0, 0].numpy()
    expected = gaussian_filter(image[0, 0].numpy(), 0.05 * 64, truncate=8)
    inside = slice(26, -26)  # eight standard deviations from the borders, which scipy mirrors
    # 1e-3: scipy cuts the kernel, the borders of this one have a tail within the image.
    assert np.abs(blurred - expected)[inside, inside].max() < 1e-3
    assert torch.allclose(blur(torch.full((1, 3, 5, 7), 0.3), 0.9), torch.tensor(0.3))
