"""Ways to alter an image, each of which takes one thing away that a classifier may rely on.

- Shape against texture. Patch shuffling (as in arXiv 1905.09797, section 4, and arXiv 2105.10497, section 3.2): the
  image, as the image processor gives it, is cut into g×g equal patches, which change places at random so that none
  stays where it was; g = 1 is the plain image. Colours and texture within a patch stay, but the shape of the plant is
  lost, the more so the larger g is. A model that relies on texture (a bag of local features, arXiv 1904.00760) keeps
  its accuracy; one that relies on shape falls to chance. The opposite probe is the silhouette: the plant in its mean
  colour on the background's mean colour, so that only the shape is left.
- Plant against background. The plant is where the excess green 2g - r - b of the chromatic coordinates (Woebbecke et
  al., 1995, Transactions of the ASAE 38(1), p. 259) is above Otsu's threshold (1979, IEEE Transactions on Systems, Man,
  and Cybernetics 9(1), p. 62), within bounds. For `plant only` the rest becomes grey; for `background only` the plant,
  with a margin, is covered by background of the same image, shifted over it, so that no outline of one colour reveals
  the shape. On `surfaces`, the plant stands on what it was not trained on.
- Light, camera and distance: colour temperature, tint, exposure, shadow, blur, noise, JPEG, scale and rotation, of the
  image as it was taken. They are the plain operations, with other parameters than the random ones of training.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter
from torch import Tensor

from seedling_hf.data.backgrounds import cover_plant
from seedling_hf.data.greenness import plant_mask
from seedling_hf.errors import InputError
from seedling_hf.evaluation.surfaces import (
    BRICK,
    SOIL,
    STRAW,
    has_photographs,
    other_ground,
    photograph,
    plain,
    stand_on,
    stones,
)

GREY = 128
GRAINS = 150  # of noise along the shorter side, so that it is no weaker in a larger image

Alteration = Callable[..., Image.Image]  # of an image and a random generator, perhaps the grounds of others


@dataclass(frozen=True)
class Probe:
    """One way to alter an image: `alter`, in RGB, before the image processor, or shuffled `patches` a side after it.

    `name` is the key in reports, and probes of a `group` have one colour in the figure. With `grounds`, `alter` takes
    the ground of other images too.
    """

    name: str
    title: str
    group: str
    alter: Alteration | None = None
    patches: int = 1
    grounds: bool = False


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


def bend(gamma: float) -> Alteration:
    """Every value, as a share of white, to the power of `gamma`."""
    table = [round(255 * (value / 255) ** gamma) for value in range(256)]
    return lambda image, generator: image.point(3 * table)


def contrast(factor: float) -> Alteration:
    """The distance of every value from the mean grey times a factor."""
    return lambda image, generator: ImageEnhance.Contrast(image).enhance(factor)


def level(black: int, white: int) -> Alteration:
    """The smallest value of all channels together moved to `black`, the largest to `white`."""

    def alter(image: Image.Image, generator: np.random.Generator) -> Image.Image:
        low, high = np.min(image), np.max(image)
        scale = (white - black) / max(1, int(high) - int(low))
        return image.point([round(black + scale * (value - int(low))) for value in range(256)] * 3)

    return alter


def cast_shadow(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Darkens what lies on one side of a line through the middle to 40%."""
    reach, angle = sum(image.size), generator.uniform(0, 2 * np.pi)
    along = reach * np.array([np.cos(angle), np.sin(angle)])
    across, middle = along[::-1] * [-1, 1], np.array(image.size) / 2
    corners = [middle - along, middle + along, middle + along + across, middle - along + across]
    light = Image.new("L", image.size, 255)
    ImageDraw.Draw(light).polygon([tuple(corner) for corner in corners], fill=102)
    light = light.filter(ImageFilter.GaussianBlur(0.015 * min(image.size)))
    return ImageChops.multiply(image, light.convert("RGB"))


def move(share: float) -> Alteration:
    """What a camera sees that moves sideways by a share of the shorter side."""

    def alter(image: Image.Image, generator: np.random.Generator) -> Image.Image:
        from scipy.ndimage import uniform_filter1d

        pixels = np.asarray(image).astype(np.float32)
        moved = uniform_filter1d(pixels, max(2, round(share * min(image.size))), axis=1, mode="nearest")
        return Image.fromarray(moved.round().astype(np.uint8))

    return alter


def add_noise(share: float) -> Alteration:
    """Gaussian noise with a standard deviation of a share of white, in grains of 1/150 of the side or a pixel."""

    def alter(image: Image.Image, generator: np.random.Generator) -> Image.Image:
        factor = min(1, GRAINS / min(image.size))
        columns, rows = (max(1, round(factor * side)) for side in image.size)
        noise = generator.normal(0, 255 * share, (3, rows, columns)).astype(np.float32)
        grains = [np.asarray(Image.fromarray(each).resize(image.size, Image.Resampling.NEAREST)) for each in noise]
        noisy = np.asarray(image) + np.stack(grains, axis=-1)
        return Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8))

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
    Probe("on_white", "plant on white", "background", stand_on(plain(235, 235, 235))),
    Probe("on_black", "plant on black", "background", stand_on(plain(20, 20, 20))),
    Probe("on_stones", "plant on drawn stones", "background", stand_on(stones(150))),
    Probe("on_sand", "plant on drawn sand", "background", stand_on(stones(4000))),
    Probe("on_other_ground", "plant on ground of other images", "background", stand_on(other_ground), grounds=True),
    Probe("grey", "no colour", "color", remove_color),
    Probe("warm_10", "warm light (red +10%, blue −10%)", "color", tint(1.1, 1.0, 0.9)),
    Probe("warm", "warm light (red +20%, blue −20%)", "color", tint(1.2, 1.0, 0.8)),
    Probe("warm_40", "warm light (red +40%, blue −40%)", "color", tint(1.4, 1.0, 0.6)),
    Probe("cool_10", "cool light (red −10%, blue +10%)", "color", tint(0.9, 1.0, 1.1)),
    Probe("cool", "cool light (red −20%, blue +20%)", "color", tint(0.8, 1.0, 1.2)),
    Probe("cool_40", "cool light (red −40%, blue +40%)", "color", tint(0.6, 1.0, 1.4)),
    Probe("green", "green tint (green +20%)", "color", tint(1.0, 1.2, 1.0)),
    Probe("magenta", "magenta tint (green −20%)", "color", tint(1.0, 0.8, 1.0)),
    Probe("dark", "brightness × 0.6", "brightness", brighten(0.6)),
    Probe("bright", "brightness × 1.5", "brightness", brighten(1.5)),
    Probe("gamma_0.6", "gamma 0.6 (brighter)", "brightness", bend(0.6)),
    Probe("gamma_1.6", "gamma 1.6 (darker)", "brightness", bend(1.6)),
    Probe("contrast_0.5", "contrast × 0.5", "brightness", contrast(0.5)),
    Probe("contrast_1.6", "contrast × 1.6", "brightness", contrast(1.6)),
    Probe("stretched", "stretched to black and white", "brightness", level(0, 255)),
    Probe("white_65", "unstretched, white at 65%", "brightness", level(0, 166)),
    Probe("white_40", "unstretched, white at 40%", "brightness", level(0, 102)),
    Probe("haze", "haze, black at 25%", "brightness", level(64, 255)),
    Probe("shadow", "shadow over half", "brightness", cast_shadow),
    Probe("blur_1", "blur, σ = 1% of the side", "sharpness", blur(0.01)),
    Probe("blur_3", "blur, σ = 3% of the side", "sharpness", blur(0.03)),
    Probe("moved_4", "moved by 4% of the side", "sharpness", move(0.04)),
    Probe("noise_4", "noise, σ = 4% of white", "sharpness", add_noise(0.04)),
    Probe("noise_8", "noise, σ = 8% of white", "sharpness", add_noise(0.08)),
    Probe("jpeg_30", "JPEG of quality 30", "sharpness", compress(30)),
    Probe("jpeg_10", "JPEG of quality 10", "sharpness", compress(10)),
    Probe("scale_0.3", "scale × 0.3", "geometry", zoom(0.3)),
    Probe("scale_0.6", "scale × 0.6", "geometry", zoom(0.6)),
    Probe("scale_1.4", "scale × 1.4", "geometry", zoom(1.4)),
    Probe("scale_2", "scale × 2, the middle quarter", "geometry", zoom(2.0)),
    Probe("rotation_45", "rotation by 45°", "geometry", turn(45)),
    Probe("rotation_90", "rotation by 90°", "geometry", turn(90)),
    Probe("rotation_180", "rotation by 180°", "geometry", turn(180)),
)
PHOTOGRAPHED = (
    Probe("on_gravel", "plant on a photograph of gravel", "background", stand_on(photograph("gravel", SOIL))),
    Probe("on_grass", "plant on a photograph of dry grass", "background", stand_on(photograph("grass", STRAW))),
    Probe("on_brick", "plant on a photograph of bricks", "background", stand_on(photograph("brick", BRICK))),
)


def list_probes() -> tuple[Probe, ...]:
    """`PROBES`, and where scikit-image is installed those on its photographs, beside others of their group."""
    if not has_photographs():
        return PROBES
    place = 1 + max(i for i, each in enumerate(PROBES) if each.group == "background")
    return PROBES[:place] + PHOTOGRAPHED + PROBES[place:]


def _border_color(image: Image.Image) -> tuple[int, ...]:
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(round(float(value)) for value in border.mean(0))
