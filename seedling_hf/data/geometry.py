"""Where the plant is in the frame, which way it is turned, and how large it is, at random."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from seedling_hf.data.backgrounds import Backgrounds
from seedling_hf.data.greenness import soft_plant_mask
from seedling_hf.data.light import RandomStep, uniform

SMALLEST_CROP, LARGEST_CROP = 0.06, 0.4  # fractions of the area
SMALLEST_INSET, LARGEST_INSET = 0.25, 0.85  # fractions of the side
FEATHER = 0.12  # of the inset's side, in which it fades into the background
SEARCH_SIDE = 48  # pixels among which a plant is looked for


class RandomQuarterTurn(RandomStep):
    """With this probability rotates a square image by 0, 90, 180 or 270 degrees, without interpolation."""

    def change(self, image: Tensor) -> Tensor:
        """Rotates an `image` (C, size, size)."""
        return torch.rot90(image, int(torch.randint(4, ())), (-2, -1))


class RandomRotation(nn.Module):
    """Rotates a square image about its centre with bicubic interpolation, faster than torchvision's `RandomRotation`.

    One grid is kept and rotated, by up to `degrees` in either direction. Pixels outside count as `fill`, one value per
    channel, in the interpolation at the edge too, where torchvision leaves a dark seam; with None as its mirror image.
    """

    def __init__(self, degrees: float, size: int, fill: Sequence[float] | None) -> None:
        super().__init__()
        self.degrees = degrees
        self.padding = "reflection" if fill is None else "zeros"
        self.fill = torch.tensor(fill or [0.0])[:, None, None]
        # (1, size, size, 2): x and y of each pixel from -1 to 1, and the same rotated by a quarter turn.
        self.grid = F.affine_grid(torch.eye(2, 3)[None], [1, 1, size, size], align_corners=False)
        self.quarter = torch.stack((-self.grid[..., 1], self.grid[..., 0]), dim=-1)

    def forward(self, image: Tensor) -> Tensor:
        """Rotates a float `image` (C, size, size) of values from 0 to 1."""
        angle = math.radians(torch.empty(1).uniform_(-self.degrees, self.degrees).item())
        grid = torch.add(self.grid * math.cos(angle), self.quarter, alpha=math.sin(angle))
        # Outside the image, `padding` "zeros" takes zeros.
        turned = F.grid_sample(
            (image - self.fill)[None], grid, mode="bicubic", padding_mode=self.padding, align_corners=False
        )[0]
        return (turned + self.fill).clamp_(0, 1)  # bicubic interpolation overshoots


class RandomZoom(nn.Module):
    """A plant larger than the frame, a plant small in it, or else what `crop` makes.

    Closer: a square of 6 to 40% of the area around a green pixel. From afar: the image at 25 to 85% of its side, at a
    random place, and around it either its mirror images, so that there are several plants, or one of `backgrounds` in
    the colours of its ground.

    Args:
        closer, farther: Probabilities.
        crop: Makes a square of `size` pixels of the bytes of an image otherwise.
        how: Arguments of torchvision's `resize`.
    """

    def __init__(
        self, closer: float, farther: float, size: int, crop: nn.Module, backgrounds: Backgrounds | None, **how: Any
    ) -> None:
        super().__init__()
        self.closer, self.farther, self.size = closer, farther, size
        self.crop, self.backgrounds, self.how = crop, backgrounds, how

    def forward(self, image: Tensor) -> Tensor:
        """The bytes of an `image` (3, H, W) -> (3, size, size)."""
        choice = torch.rand(()).item()
        if choice < self.closer:
            return self._closer(image)
        if choice < self.closer + self.farther:
            return self._farther(image)
        return self.crop(image)

    def _closer(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        side = max(1, round(min(height, width) * math.sqrt(uniform(SMALLEST_CROP, LARGEST_CROP))))
        step = max(1, min(height, width) // SEARCH_SIDE)
        green = soft_plant_mask(image[:, ::step, ::step].float() / 255)
        places = torch.nonzero(green > 0.5)
        centre = torch.tensor([height / 2, width / 2])
        if len(places):
            centre = step * places[int(torch.randint(len(places), ()))].float()
        corner = centre + side * (torch.rand(2) * 0.6 - 0.8)  # the pixel is in the middle three fifths
        top, left = (int(min(max(0, at), most - side)) for at, most in zip(corner, (height, width), strict=True))
        return v2.functional.resized_crop(image, top, left, side, side, [self.size, self.size], **self.how)

    def _farther(self, image: Tensor) -> Tensor:
        inner = max(1, round(self.size * uniform(SMALLEST_INSET, LARGEST_INSET)))
        small = v2.functional.resize(image, [inner, inner], **self.how)
        top, left = (int(torch.randint(self.size - inner + 1, ())) for _ in range(2))
        rows, columns = (_mirrored(self.size, start, inner) for start in (top, left))
        canvas = small[:, rows][:, :, columns]
        if torch.rand(()) < 0.5:
            return canvas
        ground = self.backgrounds.like(small.float() / 255)
        rows, columns = (_mirrored(self.size, int(torch.randint(inner, ())), inner) for _ in range(2))
        ground = ground[:, rows][:, :, columns]
        weight = (_fading(self.size, top, inner)[:, None] * _fading(self.size, left, inner)).clamp_(0, 1)
        return torch.lerp(ground, canvas.float() / 255, weight).mul_(255).round_().clamp_(0, 255).byte()


def _mirrored(size: int, start: int, inner: int) -> Tensor:
    """For `size` places, those of an image of `inner` pixels that begins at `start` and is mirrored at its edges."""
    places = (torch.arange(size) - start) % (2 * inner)
    return torch.minimum(places, 2 * inner - 1 - places)


def _fading(size: int, start: int, inner: int) -> Tensor:
    """1 within `inner` places from `start`, 0 outside, and between them near the ends."""
    places = torch.arange(size) - start + 0.5
    return (torch.minimum(places, inner - places) / (FEATHER * inner)).clamp(0, 1)
