"""Green plants in a photograph of a whole tray: where each one is, and the photograph with boxes drawn.

Excess green (Woebbecke et al., Color indices for weed identification, Transactions of the ASAE 38(1), 1995) is parted
by Otsu's threshold (IEEE Transactions on Systems, Man and Cybernetics 9(1), 1979) into plants and ground; green regions
that lie close together are one plant.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seedling_hf.errors import InputError

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, as PIL's crop takes it
# Below it nothing is green: grey ground lies within ±0.05, leaves of the twelve species above 0.1.
LEAST_EXCESS_GREEN = 0.08


def excess_green(pixels: np.ndarray) -> np.ndarray:
    """(2 G - R - B) / (R + G + B), from -1 to 2; it does not change with brightness.

    Args:
        pixels: RGB, (H, W, 3), uint8.

    Returns:
        (H, W), float32; 0 where a pixel is black.
    """
    pixels = pixels.astype(np.float32)
    total = pixels.sum(-1)
    return (3 * pixels[..., 1] - total) / np.maximum(total, 1)


def find_plants(image: Image.Image, *, min_side: float = 0.02, max_gap: float = 0.01, margin: float = 0.1) -> list[Box]:
    """Square boxes around green plants, from top to bottom and from left to right.

    Args:
        image: An RGB photograph.
        min_side: Smallest longer side of a plant, as a share of the photograph's shorter side.
        max_gap: Largest gap between leaves of one plant, as a share of the same.
        margin: Ground around a plant, as a share of its longer side, on each side of the box.

    Returns:
        Boxes inside of the photograph: at its edge they are moved in, and stay square where it is large enough.

    Raises:
        InputError: where scikit-image is not installed.
    """
    try:
        from skimage.filters import gaussian, threshold_otsu
        from skimage.measure import label, regionprops
        from skimage.morphology import closing, footprint_rectangle
    except ImportError as error:
        raise InputError(
            "expected scikit-image, which finds plants, found none; pip install 'seedling-hf[tiles]'"
        ) from error
    shorter = min(image.size)
    # Grains of sand and the sensor's noise are green here and there, for a pixel or two.
    greenness = gaussian(excess_green(np.asarray(image.convert("RGB"))), sigma=max(1, shorter / 800))
    if greenness.max() < LEAST_EXCESS_GREEN:
        return []
    # Otsu parts whatever it is given, and of a tray without plants that would be one ground from another.
    green = greenness > max(LEAST_EXCESS_GREEN, threshold_otsu(greenness))
    gap = round(max_gap * shorter)
    joined = closing(green, footprint_rectangle((gap + 1, gap + 1)))
    boxes = []
    for region in regionprops(label(joined)):
        top, left, bottom, right = region.bbox
        if max(bottom - top, right - left) >= min_side * shorter:
            boxes.append(_square((left, top, right, bottom), image.size, margin))
    return sorted(boxes, key=lambda box: (box[1], box[0]))


def draw_boxes(image: Image.Image, boxes: Sequence[Box], names: Sequence[str]) -> Image.Image:
    """A copy of the photograph with a box around each plant and its name above it, or inside at the upper edge."""
    image = image.convert("RGB")
    draw = ImageDraw.Draw(image)
    width = max(2, min(image.size) // 300)
    font = ImageFont.load_default(max(11, min(image.size) // 45))
    for box, name in zip(boxes, names, strict=True):
        left, top, right, bottom = box
        draw.rectangle((left, top, right - 1, bottom - 1), outline="#ffd400", width=width)
        _, _, text_width, text_height = draw.textbbox((0, 0), name, font=font)
        x = max(0, min(left, image.width - text_width - 4))
        y = top - text_height - 4 if top >= text_height + 4 else top + width
        draw.rectangle((x, y, x + text_width + 4, y + text_height + 4), fill="#ffd400")
        draw.text((x + 2, y + 1), name, fill="black", font=font)
    return image


def _square(box: Box, size: tuple[int, int], margin: float) -> Box:
    """The smallest square around a box with its margin, moved into a picture of `size` (width, height)."""
    left, top, right, bottom = box
    side = round((1 + 2 * margin) * max(right - left, bottom - top))
    found = []
    for start, end, limit in ((left, right, size[0]), (top, bottom, size[1])):
        length = min(side, limit)
        low = min(max(0, (start + end - length) // 2), limit - length)
        found.append((low, low + length))
    (left, right), (top, bottom) = found
    return left, top, right, bottom
