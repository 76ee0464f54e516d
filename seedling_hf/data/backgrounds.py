"""What plants stand on: the ground of other training images, drawn soils and textures, gradients and flat colours.

Grounds are kept as a small bank in memory: training images at equal distances, with their plants covered by their own
ground. It depends on the training images only, so every process, worker and resumed run makes the same one, within a
second or two.
"""

import colorsys
from collections.abc import Iterable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from seedling_hf.data.greenness import plant_mask, soft_plant_mask
from seedling_hf.data.images import choose_evenly, map_in_threads, read_image, to_rgb
from seedling_hf.data.light import uniform
from seedling_hf.data.pool import image_sources
from seedling_hf.progress import follow

MARGIN = 0.03  # of the side: leaves have pale edges below any threshold
GREY = 128
BANK_SIZE, BANK_SIDE, NUM_TEXTURES = 96, 160, 48
LEAST_GROUND = 0.3  # of an image: with less, the same piece would be seen again and again
LEAST_PLANT, MOST_PLANT = 0.002, 0.9  # of an image whose background is replaced
MEASURED_SIDE = 96  # pixels whose mean is taken: of more, threads would add up parts, and their number would matter
CONTRASTS = 0.4, 1.3  # of one ground to another that takes its place
GREEN_HUES = 0.1, 0.57  # from yellow to azure, which have excess green: a plant could not be told from them


class Backgrounds:
    """Backgrounds drawn at random.

    Args:
        grounds: (N, 3, H, W) bytes; None for drawn ones only.
    """

    def __init__(self, grounds: Tensor | None = None) -> None:
        self.grounds = grounds
        self.textures = make_textures(NUM_TEXTURES, BANK_SIDE)

    def draw(self, size: int) -> Tensor:
        """A background (3, size, size) of values from 0 to 1.

        Half of them, where there are any, are grounds of training images.
        """
        if self.grounds is not None and torch.rand(()) < 0.5:
            return self._ground(size)
        kind = torch.rand(()).item()
        if kind < 0.2:
            return _color()[:, None, None].expand(3, size, size)
        first, second = (_color()[:, None, None] for _ in range(2))
        if kind < 0.35:
            return torch.lerp(first, second, _gradient(size))
        if kind < 0.6:
            second = (first * uniform(0.3, 1.7)).clamp(0, 1)  # soil: one colour, bright and dark
        return torch.lerp(first, second, self._texture(size))

    def like(self, image: Tensor) -> Tensor:
        """A ground (3, h, w) with the mean and about the spread of the ground of a square float `image` (3, h, w)."""
        size = image.shape[-1]
        step = -(-size // MEASURED_SIDE)
        sparse = image[:, ::step, ::step]
        pixels = sparse[:, soft_plant_mask(sparse) < 0.1]
        if pixels.shape[1] < 2:
            pixels = sparse.flatten(1)
        ground = self._ground(size) if self.grounds is not None else self._texture(size).expand(3, size, size)
        deviation, mean = torch.std_mean(ground[:, ::step, ::step], (1, 2), keepdim=True)
        wanted_deviation, wanted_mean = torch.std_mean(pixels, 1)
        scale = (wanted_deviation[:, None, None] / deviation.clamp(min=0.02)).clamp_(*CONTRASTS)
        return ((ground - mean) * scale + wanted_mean[:, None, None]).clamp_(0, 1)

    def _ground(self, size: int) -> Tensor:
        ground = self.grounds[int(torch.randint(len(self.grounds), ()))]
        return _cut(ground, size).div_(255)

    def _texture(self, size: int) -> Tensor:
        """(1, size, size) from 0 to 1."""
        texture = self.textures[int(torch.randint(len(self.textures), ()))][None]
        return _cut(texture, size).div_(255)


class RandomBackground(nn.Module):
    """With this probability puts another background behind the green of an image."""

    def __init__(self, probability: float, backgrounds: Backgrounds) -> None:
        super().__init__()
        self.probability, self.backgrounds = probability, backgrounds

    def forward(self, image: Tensor) -> Tensor:
        """Replaces what is not green of a square float `image` (3, size, size) of values from 0 to 1.

        An image without green, or of nothing else, stays as it is.
        """
        if torch.rand(()) >= self.probability:
            return image
        mask = soft_plant_mask(image)
        if not LEAST_PLANT < mask.mean() < MOST_PLANT:
            return image
        return torch.lerp(self.backgrounds.draw(image.shape[-1]), image, mask)


def find_grounds(images: Dataset, count: int = BANK_SIZE, side: int = BANK_SIDE) -> Tensor | None:
    """The ground of `count` of the images, whose plants are covered: (N, 3, side, side) bytes.

    Args:
        images: With a column `image`; at equal distances, so that all classes are among them.

    Returns:
        None if all are full of plants.
    """
    rows = images.select(choose_evenly(range(len(images)), count))
    found = map_in_threads(lambda source: _shrink(to_rgb(read_image(source)), side), image_sources(rows))
    return bank(follow(found, "finding the ground of images", len(rows)))


def bank(images: Iterable[Image.Image]) -> Tensor | None:
    """Images of one size whose plants are covered, as (N, 3, H, W) bytes; those full of plants are left out."""
    grounds = []
    for number, image in enumerate(images):
        mask = plant_mask(image)
        if _widen(mask).mean() < 1 - LEAST_GROUND:
            grounds.append(cover_plant(np.array(image), mask, np.random.default_rng(number)))
    return torch.from_numpy(np.stack(grounds)).permute(0, 3, 1, 2).contiguous() if grounds else None


def cover_plant(pixels: np.ndarray, mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Covers the plant and its margin by the image, shifted at random again and again until no plant is seen.

    `pixels` are (H, W, 3) of 8 bits and are changed; `mask` is (H, W) of bool.
    """
    hidden = _widen(mask)
    original, open_ground = pixels.copy(), ~hidden
    mean = original[open_ground].mean(0) if open_ground.any() else np.full(3, GREY)
    for _ in range(100):
        if not hidden.any():
            break
        shift = tuple(int(generator.integers(side)) for side in hidden.shape)
        covered = hidden & np.roll(open_ground, shift, (0, 1))
        pixels[covered] = np.roll(original, shift, (0, 1))[covered]
        hidden &= ~covered
    pixels[hidden] = mean
    return pixels


@cache
def make_textures(count: int, side: int) -> Tensor:
    """Noise of several sizes of grain, from clouds to gravel: (count, side, side) bytes, always the same."""
    generator, textures = torch.Generator().manual_seed(0), []
    for number in range(count):
        # The share of an octave in the next finer one: from smooth to rough.
        share, texture = 0.5 + 0.7 * number / count, torch.zeros(1, 1, side, side)
        for octave in range(2, 8):
            grains = torch.randn(1, 1, 2**octave, 2**octave, generator=generator)
            texture += share**octave * F.interpolate(grains, (side, side), mode="bicubic", align_corners=False)
        texture = (texture - texture.mean()) / texture.std()
        if number % 3 == 0:
            texture = texture.abs() - 1  # ridges, as between stones
        textures.append((texture[0, 0] * 0.25 + 0.5).clamp(0, 1).mul(255).byte())
    return torch.stack(textures)


def _widen(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import maximum_filter

    return maximum_filter(mask, 2 * max(1, round(MARGIN * min(mask.shape))) + 1)


def _shrink(image: Image.Image, side: int) -> Image.Image:
    return image.resize((side, side), Image.Resampling.BICUBIC)


def _cut(texture: Tensor, size: int) -> Tensor:
    """A random square of the bytes of a `texture` (C, H, W), of any direction, as floats (C, size, size)."""
    side = round(texture.shape[-1] * uniform(0.5, 1))
    top, left = (int(torch.randint(texture.shape[-1] - side + 1, ())) for _ in range(2))
    cut = texture[:, top : top + side, left : left + side]
    turns, mirrored = int(torch.randint(4, ())), bool(torch.rand(()) < 0.5)
    # Of bytes, resized images do not depend on the number of threads.
    cut = torch.rot90(v2.functional.resize(cut, [size, size], antialias=True), turns, (1, 2))
    return (cut.flip(2) if mirrored else cut).float()


def _color() -> Tensor:
    """(3,): that of a soil or a grey, or in one of four any colour but green."""
    value = uniform(0.03, 0.95)
    if torch.rand(()) < 0.75:
        return torch.tensor(colorsys.hsv_to_rgb(uniform(0.03, 0.12), uniform(0, 0.55), value))
    low, high = GREEN_HUES
    return torch.tensor(colorsys.hsv_to_rgb((high + uniform(0, 1 - high + low)) % 1, uniform(0, 0.8), value))


def _gradient(size: int) -> Tensor:
    """(size, size) from 0 to 1 in a random direction."""
    y, x = torch.linspace(-1, 1, size)[:, None], torch.linspace(-1, 1, size)
    ramp = x * uniform(-1, 1) + y * uniform(-1, 1)
    low, high = ramp.aminmax()
    return (ramp - low) / (high - low).clamp(min=1e-6)
