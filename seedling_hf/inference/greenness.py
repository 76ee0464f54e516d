"""How green a pixel is, and the threshold that separates plants from ground.

Excess green is that of Woebbecke et al., 1995, Transactions of the ASAE 38(1), p. 259; the threshold that of Otsu,
1979, IEEE Transactions on Systems, Man, and Cybernetics 9(1), p. 62.
"""

import numpy as np

DARKEST = 96  # sum of red, green and blue below which a colour means little


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


def otsu_bin(values: np.ndarray, bins: int = 256) -> tuple[float, float]:
    """The edges of the last bin of the lower class; scikit-image's threshold is its centre."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), counts.sum() - np.cumsum(counts)
    sums = np.cumsum(counts * centres)
    means_below, means_above = sums / np.maximum(below, 1), (sums[-1] - sums) / np.maximum(above, 1)
    best = np.argmax(below * above * (means_below - means_above) ** 2)
    return float(edges[best]), float(edges[best + 1])
