"""Ways to alter an image, each of which takes one thing away that a classifier may rely on.

- Shape against texture. Patch shuffling (as in arXiv 1905.09797, section 4, and arXiv 2105.10497, section 3.2): the
  image, as the image processor gives it, is cut into g×g equal patches, which change places at random so that none
  stays where it was; g = 1 is the plain image. Colours and texture within a patch stay, but the shape of the plant is
  lost, the more so the larger g is. A model that relies on texture (a bag of local features, arXiv 1904.00760) keeps
  its accuracy; one that relies on shape falls to chance. The opposite probe is the silhouette: the plant in its mean
  colour on the background's mean colour, so that only the shape is left.
- Plant against background. The plant is where the excess green 2g - r - b of the chromatic coordinates (Woebbecke et
  al., 1995, Transactions of the ASAE 38(1), p. 259) is above Otsu's threshold (1979, IEEE Transactions on Systems, Man,
  and Cybernetics 9(1), p. 62). For `plant only` the rest becomes grey; for `background only` the plant, with a margin,
  is covered by background of the same image, shifted over it, so that no outline of one colour reveals the shape.
- Robustness: blur, JPEG, brightness, colour cast, scale and rotation, of the image as it was taken.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from seedling_hf.data.backgrounds import cover_plant
from seedling_hf.data.greenness import plant_mask
from seedling_hf.errors import InputError

GREY = 128

Alteration = Callable[[Image.Image, np.random.Generator], Image.Image]


@dataclass(frozen=True)
class Probe:
    """One way to alter an image: `alter`, in RGB, before the image processor, or shuffled `patches` a side after it.

    `name` is the key in reports, and probes of a `group` have one colour in the figure.
    """

    name: str
    title: str
    group: str
    alter: Alteration | None = None
    patches: int = 1


def keep_plant(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    pixels = np.array(image)
    pixels[~plant_mask(image)] = GREY
    return Image.fromarray(pixels)


def keep_background(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    return Image.fromarray(cover_plant(np.array(image), plant_mask(image), generator))


def keep_silhouette(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    pixels, mask = np.array(image), plant_mask(image)
    for part in (mask, ~mask):
        if part.any():
            pixels[part] = pixels[part].mean(0)
    return Image.fromarray(pixels)


def remove_color(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    return image.convert("L").convert("RGB")


def blur(share: float) -> Alteration:
    """A Gaussian blur with a standard deviation of a share of the shorter side."""
    return lambda image, generator: image.filter(ImageFilter.GaussianBlur(share * min(image.size)))


def compress(quality: int) -> Alteration:
    """What JPEG of a quality leaves."""

    def alter(image: Image.Image, generator: np.random.Generator) -> Image.Image:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        return Image.open(stream, formats=["JPEG"]).convert("RGB")

    return alter


def brighten(factor: float) -> Alteration:
    """Every value times a factor."""
    return lambda image, generator: ImageEnhance.Brightness(image).enhance(factor)


def tint(red: float, green: float, blue: float) -> Alteration:
    """Every channel times a factor of its own: another light."""

    def alter(image: Image.Image, generator: np.random.Generator) -> Image.Image:
        return Image.fromarray((np.asarray(image) * [red, green, blue]).clip(0, 255).round().astype(np.uint8))

    return alter


def zoom(factor: float) -> Alteration:
    """The middle enlarged, or for a factor below 1 the whole made smaller, in a frame of the border's mean colour."""

    def alter(image: Image.Image, generator: np.random.Generator) -> Image.Image:
        width, height = image.size
        size = max(1, round(width * factor)), max(1, round(height * factor))
        canvas = Image.new("RGB", image.size, _border_color(image))
        resized = image.resize(size, Image.Resampling.BICUBIC)
        canvas.paste(resized, ((width - size[0]) // 2, (height - size[1]) // 2))
        return canvas

    return alter


def turn(degrees: float) -> Alteration:
    """Rotates about the middle; corners take the border's mean colour."""
    return lambda image, generator: image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=_border_color(image))


def shuffle_patches(pixel_values: Tensor, patches: int, generator: np.random.Generator) -> Tensor:
    """Cuts an image into patches × patches equal squares that change places, so that none stays where it was.

    `pixel_values` are (C, H, W), as the image processor gives them. What H or W leave over by division stays, at the
    lower and right border.

    Raises:
        InputError: for more patches than pixels.
    """
    channels, height, width = pixel_values.shape
    if not 2 <= patches <= min(height, width):
        raise InputError(
            f"expected 2 patches a side or more, each of a pixel or more, found {patches} in {height}×{width} pixels"
        )
    high, wide = height // patches, width // patches
    places = np.arange(patches**2)
    order = generator.permutation(places)
    while (order == places).any():
        order = generator.permutation(places)
    inner = pixel_values[:, : high * patches, : wide * patches]
    cut = inner.reshape(channels, patches, high, patches, wide).transpose(2, 3).reshape(channels, -1, high, wide)
    moved = cut[:, order].reshape(channels, patches, patches, high, wide).transpose(2, 3)
    output = pixel_values.clone()
    output[:, : high * patches, : wide * patches] = moved.reshape(inner.shape)
    return output


PROBES = (
    Probe("plain", "plain", "plain"),
    Probe("patches_2", "2×2 patches shuffled", "shape", patches=2),
    Probe("patches_4", "4×4 patches shuffled", "shape", patches=4),
    Probe("patches_8", "8×8 patches shuffled", "shape", patches=8),
    Probe("silhouette", "silhouette of the plant", "shape", keep_silhouette),
    Probe("plant_only", "plant only", "background", keep_plant),
    Probe("background_only", "background only", "background", keep_background),
    Probe("grey", "no colour", "color", remove_color),
    Probe("warm", "warm light (red +20%, blue −20%)", "color", tint(1.2, 1.0, 0.8)),
    Probe("cool", "cool light (red −20%, blue +20%)", "color", tint(0.8, 1.0, 1.2)),
    Probe("dark", "brightness × 0.6", "brightness", brighten(0.6)),
    Probe("bright", "brightness × 1.5", "brightness", brighten(1.5)),
    Probe("blur_1", "blur, σ = 1% of the side", "sharpness", blur(0.01)),
    Probe("blur_3", "blur, σ = 3% of the side", "sharpness", blur(0.03)),
    Probe("jpeg_30", "JPEG of quality 30", "sharpness", compress(30)),
    Probe("jpeg_10", "JPEG of quality 10", "sharpness", compress(10)),
    Probe("scale_0.6", "scale × 0.6", "geometry", zoom(0.6)),
    Probe("scale_1.4", "scale × 1.4", "geometry", zoom(1.4)),
    Probe("rotation_45", "rotation by 45°", "geometry", turn(45)),
    Probe("rotation_90", "rotation by 90°", "geometry", turn(90)),
    Probe("rotation_180", "rotation by 180°", "geometry", turn(180)),
)


def _border_color(image: Image.Image) -> tuple[int, ...]:
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(round(float(value)) for value in border.mean(0))
