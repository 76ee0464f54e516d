import numpy as np
import pytest
from PIL import Image

from seedling_hf.data.greenness import excess_green, otsu_bin, otsu_threshold


def test_excess_green_is_2_for_green_and_0_for_grey_and_black():
    pixels = np.array([[[0, 255, 0], [90, 90, 90], [0, 0, 0], [255, 0, 0]]], np.uint8)
    np.testing.assert_allclose(excess_green(pixels), [[2, 0, 0, -1]])


def test_the_centre_of_otsus_bin_is_the_threshold_of_scikit_image(sample_dir):
    filters = pytest.importorskip("skimage.filters", reason="scikit-image is not installed")
    for file in sorted(sample_dir.glob("*/*.jpg"))[::40]:
        green = excess_green(np.asarray(Image.open(file).convert("RGB")))
        # 1e-12: float64 sums in another order.
        assert np.mean(otsu_bin(green)) == pytest.approx(filters.threshold_otsu(green), abs=1e-12)
        assert otsu_threshold(green) == otsu_bin(green)[1]
