"""Whether a saliency map is right: what becomes of an answer as its pixels are removed, and how much lies on the plant.

Deletion and insertion are those of RISE (Petsiuk et al., arXiv 1806.07421, section 3.2). A removed pixel takes the
colour of the strongly blurred image, also for deletion: flat grey would be a new pattern with edges of its own.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seedling_hf.errors import InputError
from seedling_hf.interpretation.feature_maps import evaluating

BLUR = 0.25  # standard deviation, of the shorter side
SAMPLES_AT_ONCE = 32


class Curves(NamedTuple):
    """Probability of a class as pixels are removed or inserted in the order of a map, the most salient ones first.

    Each is (N, steps + 1) in float64, of equal parts of the pixels from none to all.
    """

    deletion: Tensor
    insertion: Tensor

    def areas(self) -> tuple[Tensor, Tensor]:
        """Areas (N,) under both curves, from 0 to 1: a map is right where deletion is low and insertion high."""
        width = 1 / (self.deletion.shape[1] - 1)
        return torch.trapezoid(self.deletion, dx=width), torch.trapezoid(self.insertion, dx=width)

    def evidence(self) -> Tensor:
        """How much better a map orders the pixels than chance, (N,) from -1 to 1, about 0 for a random map.

        The area of insertion minus that of deletion, over the largest probability of both curves.
        """
        deletion, insertion = self.areas()
        largest = torch.maximum(self.deletion, self.insertion).amax(1)
        return (insertion - deletion) / largest.clamp(min=torch.finfo(largest.dtype).tiny)


@torch.no_grad()
def trace_curves(
    model: PreTrainedModel,
    pixel_values: Tensor,
    targets: Tensor,
    maps: Tensor,
    *,
    steps: int,
    removed: Tensor | None = None,
) -> Curves:
    """Removes and inserts the pixels of images in the order of their maps.

    Args:
        model: A classifier; it keeps its mode.
        pixel_values: (N, C, H, W) images as the model's image processor gives them, on the model's device.
        targets: (N,) the class of each.
        maps: (N, H, W); of equal values the upper left one comes first.
        steps: Parts into which the pixels are divided.
        removed: (N, C, H, W) what removed pixels are replaced by; the blurred images if None.

    Raises:
        InputError: for maps of another size.
    """
    if maps.shape != (len(pixel_values), *pixel_values.shape[-2:]):
        raise InputError(
            f"expected maps of shape {(len(pixel_values), *pixel_values.shape[-2:])}, found {tuple(maps.shape)}"
        )
    removed = blur(pixel_values, BLUR) if removed is None else removed
    places = maps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1).view(maps.shape)[:, None]
    places, targets = places.to(pixel_values.device), targets.to(pixel_values.device)
    rows = []
    with evaluating(model):
        for image, target, rest, place in zip(pixel_values, targets, removed, places, strict=True):
            counts = [round(place.numel() * step / steps) for step in range(steps + 1)]
            first = torch.stack([place < count for count in counts])  # (steps + 1, 1, H, W)
            altered = torch.cat([torch.where(first, rest, image), torch.where(first, image, rest)])
            logits = [model(pixel_values=part).logits for part in altered.split(SAMPLES_AT_ONCE)]
            rows.append(torch.cat(logits).double().softmax(-1)[:, target].view(2, -1).cpu())
    return Curves(*torch.stack(rows, dim=1))


def plant_share(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of each map (N, H, W), not negative, inside the mask (N, H, W) of bool: (N,), NaN for a map of zeros.

    To be compared with the mask's share of the image, which a map without meaning has.
    """
    return (maps * masks).sum((1, 2)) / maps.sum((1, 2))


def blur(images: Tensor, share: float) -> Tensor:
    """A Gaussian blur of images (N, C, H, W), with a standard deviation of a share of the shorter side.

    At the borders the weights of what lies inside are scaled to a sum of 1.
    """
    height, width = images.shape[-2:]
    down, across = (_weights(side, share * min(height, width)).to(images) for side in (height, width))
    return down @ images @ across.T


def _weights(side: int, deviation: float) -> Tensor:
    """(side, side) of how much each place takes from each: a large blur by torchvision's kernels takes a second."""
    places = torch.arange(side, dtype=torch.float64)
    weights = (-((places[:, None] - places) / deviation).square() / 2).exp()
    return weights / weights.sum(1, keepdim=True)
