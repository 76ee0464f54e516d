"""How green a pixel is, and the threshold that separates plants from ground.

Excess green is that of Woebbecke et al., 1995, Transactions of the ASAE 38(1), p. 259; the threshold that of Otsu,
1979, IEEE Transactions on Systems, Man, and Cybernetics 9(1), p. 62.
"""

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

DARKEST = 96  # sum of red, green and blue below which a colour means little
# Below the first nothing is green (grey ground lies within ±0.05, leaves above 0.1), above the second everything.
LEAST_EXCESS_GREEN, MOST_EXCESS_GREEN = 0.08, 0.2
SOFTNESS = 0.06  # from no plant to all plant
BINS = 256


def excess_green(pixels: np.ndarray) -> np.ndarray:
    """2g - r - b of the chromatic coordinates: (H, W, 3) of 8 bits -> (H, W), from -1 to 2.

    Near black, where the colour is noise, it is damped towards 0.
    """
    pixels = pixels.astype(np.float64)
    total = pixels.sum(-1)
    return (3 * pixels[..., 1] - total) / np.maximum(total, DARKEST)


def otsu_threshold(values: np.ndarray) -> float:
    """The threshold that separates values into two classes with the largest variance between them."""
    return otsu_bin(values)[1]


def otsu_bin(values: np.ndarray) -> tuple[float, float]:
    """The edges of the last bin of the lower class; scikit-image's threshold is its centre."""
    return otsu_of(*np.histogram(values, BINS))


def otsu_of(counts: np.ndarray, edges: np.ndarray) -> tuple[float, float]:
    """`otsu_bin` of a histogram."""
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), counts.sum() - np.cumsum(counts)
    sums = np.cumsum(counts * centres)
    means_below, means_above = sums / np.maximum(below, 1), (sums[-1] - sums) / np.maximum(above, 1)
    best = np.argmax(below * above * (means_below - means_above) ** 2)
    return float(edges[best]), float(edges[best + 1])


def within_bounds(threshold: float) -> float:
    """A threshold of excess green, not below what ground has and not above what leaves have."""
    return min(max(threshold, LEAST_EXCESS_GREEN), MOST_EXCESS_GREEN)


def plant_mask(image: Image.Image) -> np.ndarray:
    """Where the plant is: (H, W) of bool.

    Otsu's threshold lies within bounds: where an image has hardly any plant, or nothing else, it means nothing.
    """
    green = excess_green(np.asarray(image.convert("RGB").filter(ImageFilter.GaussianBlur(1))))
    return green > within_bounds(otsu_threshold(green))


def soft_plant_mask(image: Tensor) -> Tensor:
    """How much of each pixel is plant, as `plant_mask` finds it: (3, H, W) from 0 to 1 -> (H, W) from 0 to 1."""
    total = image.sum(0)
    green = (3 * image[1] - total).div_(total.clamp(min=DARKEST / 255))
    low, high = green[::2, ::2].aminmax()
    counts = torch.histc(green[::2, ::2], BINS, low.item(), high.item())
    threshold = within_bounds(otsu_of(counts.numpy(), np.linspace(low.item(), high.item(), BINS + 1))[1])
    return ((green - threshold) / SOFTNESS + 0.5).clamp_(0, 1)
