"""What probes put plants on. None of it is among the backgrounds of training, except the ground of other trays."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
from PIL import Image, ImageFilter

from seedling_hf.data.backgrounds import cover_plant
from seedling_hf.data.greenness import plant_mask

Grounds = Sequence[Image.Image]  # of other images, their plants covered
Surface = Callable[[Image.Image, np.random.Generator, Grounds], Image.Image]  # for an image, of any size

SIDE = 128  # pixels in which surfaces are drawn; larger images get them enlarged
SOIL, STRAW, BRICK = (0.62, 0.50, 0.38), (0.85, 0.75, 0.50), (0.80, 0.45, 0.35)
EDGE = 0.7  # pixels: standard deviation of the edge of a plant that was cut out


def stand_on(surface: Surface) -> Callable[..., Image.Image]:
    """The plant of an image on a surface."""

    def alter(image: Image.Image, generator: np.random.Generator, grounds: Grounds = ()) -> Image.Image:
        mask = Image.fromarray(plant_mask(image)).convert("L").filter(ImageFilter.GaussianBlur(EDGE))
        ground = surface(image, generator, grounds).resize(image.size, Image.Resampling.BICUBIC)
        return Image.composite(image, ground, mask)

    return alter


def plain(*values: int) -> Surface:
    """One colour."""
    return lambda image, generator, grounds: Image.new("RGB", image.size, values)


def stones(count: int) -> Surface:
    """So many stones in an image, each of its own grey or brown, with dark gaps: the cells around random points."""

    def draw(image: Image.Image, generator: np.random.Generator, grounds: Grounds) -> Image.Image:
        from scipy.spatial import cKDTree

        places = np.stack(np.meshgrid(*[(np.arange(SIDE) + 0.5) / SIDE] * 2, indexing="ij"), axis=-1)
        distances, cells = cKDTree(generator.random((count, 2))).query(places, k=2)
        gap = np.clip((distances[..., 1] - distances[..., 0]) * 3 * count**0.5, 0.35, 1)  # dark at a stone's edge
        shades = generator.uniform(0.25, 1, (count, 1)) * (1 + generator.uniform(-0.12, 0.12, (count, 3))) * SOIL
        return _to_image(shades[cells[..., 0]] * gap[..., None])

    return draw


def photograph(name: str, tone: tuple[float, float, float]) -> Surface:
    """A random part of one of scikit-image's grey photographs, in a tone: `gravel`, `grass` or `brick`."""

    def draw(image: Image.Image, generator: np.random.Generator, grounds: Grounds) -> Image.Image:
        import skimage.data

        grey = getattr(skimage.data, name)()
        top, left = (int(generator.integers(side - 2 * SIDE + 1)) for side in grey.shape)
        part = grey[top : top + 2 * SIDE, left : left + 2 * SIDE, None] / 255
        return _to_image(part * tone)

    return draw


def has_photographs() -> bool:
    """Whether scikit-image is installed."""
    return find_spec("skimage") is not None


def other_ground(image: Image.Image, generator: np.random.Generator, grounds: Grounds) -> Image.Image:
    """The ground of another image, or where there is none, the image's own, moved."""
    if not grounds:
        return Image.fromarray(cover_plant(np.array(image), plant_mask(image), generator))
    return grounds[int(generator.integers(len(grounds)))]


def _to_image(values: np.ndarray) -> Image.Image:
    return Image.fromarray((255 * values).clip(0, 255).round().astype(np.uint8))
