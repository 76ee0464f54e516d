"""Green plants in a photograph of a whole tray: where each one is, and the photograph with boxes drawn.

Otsu's threshold of the greenness separates plants from ground, and paler pixels belong to a plant that they touch.
Stalks are often too thin or too brown to be seen, so pieces that lie close together are one plant: the reach of a
single leaf, which is convex, is larger than that of a whole plant, which is not.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from seedling_hf.data.greenness import LEAST_EXCESS_GREEN, MOST_EXCESS_GREEN, excess_green, otsu_bin
from seedling_hf.errors import require_package
from seedling_hf.plots.fonts import split_by_font

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, as PIL's crop takes it
MIN_SIDE = 0.02
MARGIN = 0.1  # ground on each side of a plant, as a fraction of its longer side
# Turquoise pots have excess green too; the dullest leaves of wheat have a third more green than blue.
LEAST_GREEN_TO_BLUE = 1.25
# Plants are found in a copy of at most this size: within a second and 100 MB, whatever the camera.
MOST_PIXELS = 2_000_000
# The area of a leaf as a fraction of its convex hull's, and how far pieces reach, in roots of their area: the best of
# twelve choices on trays composed of real plants.
LEAF_SOLIDITY, LEAF_REACH, PLANT_REACH = 0.85, 0.5, 0.2


def check_scikit_image() -> None:
    require_package("scikit-image", "finding plants", "skimage.measure")


def find_plants(image: Image.Image, *, min_side: float = MIN_SIDE) -> list[Box]:
    """Square boxes around green plants, row by row from top to bottom, and in a row from left to right.

    Args:
        image: An RGB photograph of any size.
        min_side: Smallest longer side of a plant, as a fraction of the photograph's shorter side.

    Returns:
        Boxes inside the photograph: at its edge they are moved in, and stay square where it is large enough.

    Raises:
        InputError: where scikit-image is not installed.
    """
    check_scikit_image()
    factor = math.ceil(math.sqrt(image.width * image.height / MOST_PIXELS))
    least = min_side * min(image.size) / factor
    boxes = []
    for rows, columns in _find_regions(_find_green(image.reduce(factor).convert("RGB")), least):
        box = [factor * edge for edge in (columns.start, rows.start, columns.stop, rows.stop)]
        boxes.append(_square(box, image.size))
    return in_reading_order(boxes)


def in_reading_order(boxes: Sequence[Box]) -> list[Box]:
    """Boxes row by row, and from left to right in each, although no row of plants is quite straight.

    The middles of a row lie within half the usual distance from a plant to its nearest neighbour of their mean height.
    """
    if len(boxes) < 2:
        return list(boxes)
    from scipy.spatial import KDTree

    corners = np.array(boxes)
    middles = (corners[:, :2] + corners[:, 2:]) / 2
    distances, _ = KDTree(middles).query(middles, k=2)
    reach = np.median(distances[:, 1]) / 2
    rows: list[list[int]] = []
    for number in np.argsort(middles[:, 1], kind="stable"):
        if rows and middles[number, 1] - middles[rows[-1], 1].mean() < reach:
            rows[-1].append(number)
        else:
            rows.append([number])
    return [boxes[number] for row in rows for number in sorted(row, key=lambda number: middles[number, 0])]


def draw_boxes(
    image: Image.Image, boxes: Sequence[Box], names: Sequence[str], text_size: int | None = None
) -> Image.Image:
    """A copy of the photograph with a box around each plant and its name above it, or inside at the upper edge.

    `text_size` is in pixels, by default a sixtieth of the shorter side.
    """
    image = image.convert("RGB")
    text_size = text_size or max(11, min(image.size) // 60)
    draw = ImageDraw.Draw(image)
    width = max(2, min(image.size) // 300)
    for box, name in zip(boxes, names, strict=True):
        left, top, right, bottom = box
        parts = _letter(name, text_size)
        draw.rectangle((left, top, right - 1, bottom - 1), outline="#ffd400", width=width)
        text_width = sum(font.getlength(text) for text, font in parts)
        edges = [font.getbbox(text, anchor="ls") for text, font in parts]
        rise = -min(top for _, top, _, _ in edges)
        text_height = rise + max(bottom for _, _, _, bottom in edges)
        x = max(0, min(left, image.width - text_width - 4))
        y = top - text_height - 4 if top >= text_height + 4 else top + width
        draw.rectangle((x, y, x + text_width + 4, y + text_height + 4), fill="#ffd400")
        for text, font in parts:
            draw.text((x + 2, y + 2 + rise), text, fill="black", font=font, anchor="ls")
            x += font.getlength(text)
    return image


def _letter(name: str, size: int) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """The parts of a name, each with a font that holds it."""
    if name.isascii():
        return [(name, ImageFont.load_default(size))]
    return [(text, ImageFont.truetype(path, size)) for text, path in split_by_font(name)]


def _find_green(image: Image.Image) -> np.ndarray:
    """Where plants are: (H, W) of bool."""
    from skimage.filters import apply_hysteresis_threshold

    # Single pixels of sand and of the sensor's noise are green.
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(0.7)))
    greenness, (red, green, blue) = excess_green(pixels), np.moveaxis(pixels, -1, 0)
    greenness[(green < red) | (green < LEAST_GREEN_TO_BLUE * blue)] = 0
    # Otsu's threshold always separates two classes: in a tray without plants those are two kinds of ground.
    threshold = np.clip(np.mean(otsu_bin(greenness)), LEAST_EXCESS_GREEN, MOST_EXCESS_GREEN)
    return apply_hysteresis_threshold(greenness, LEAST_EXCESS_GREEN, threshold)


def _find_regions(green: np.ndarray, least: float) -> list[tuple[slice, slice]]:
    """Rows and columns of what is one plant in `green` (H, W) and has a side of `least` pixels."""
    from scipy.ndimage import distance_transform_edt, find_objects
    from skimage.measure import label, regionprops

    pieces = label(green)
    reach = np.zeros(pieces.max() + 1)
    for piece in regionprops(pieces):
        # Smaller than a quarter of a plant are specks of moss, over which two plants would be joined.
        if _longer_side(piece.slice) >= least / 4:
            is_leaf = piece.area >= LEAF_SOLIDITY * piece.area_convex
            reach[piece.label] = (LEAF_REACH if is_leaf else PLANT_REACH) * math.sqrt(piece.area)
    kept = reach[pieces] > 0
    if not kept.any():
        return []
    distance, nearest = distance_transform_edt(~kept, return_indices=True)
    plants = np.where(kept, label(distance <= reach[pieces[*nearest]]), 0)
    return [region for region in find_objects(plants) if region is not None and _longer_side(region) >= least]


def _longer_side(region: tuple[slice, slice]) -> int:
    return max(edges.stop - edges.start for edges in region)


def _square(box: Sequence[int], size: tuple[int, int]) -> Box:
    """The smallest square around a box with its margin, moved into an image of `size` (width, height)."""
    left, top, right, bottom = box
    side = round((1 + 2 * MARGIN) * max(right - left, bottom - top))
    found = []
    for start, end, limit in ((left, right, size[0]), (top, bottom, size[1])):
        length = min(side, limit)
        low = min(max(0, (start + end - length) // 2), limit - length)
        found.append((low, low + length))
    (left, right), (top, bottom) = found
    return left, top, right, bottom
