import numpy as np
import pytest
import torch
from PIL import Image

from seedling_hf.data.greenness import excess_green, otsu_bin, otsu_threshold, plant_mask, soft_plant_mask


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


def test_the_soft_mask_is_the_hard_one_with_soft_edges(sample_dir):
    agreements = []
    for file in sorted(sample_dir.glob("*/*.jpg"))[::40]:
        image = Image.open(file).convert("RGB")
        soft = soft_plant_mask(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
        agreements.append(((soft > 0.5).numpy() == plant_mask(image)).mean())
        assert 0 < ((soft > 0) & (soft < 1)).float().mean() < 0.4
    # The hard one is of a smoother image, and has no bound where there is little plant.
    assert np.median(agreements) > 0.95


def test_the_soft_mask_of_ground_is_empty_and_that_of_a_leaf_full():
    for color, expected in (((110, 90, 70), 0), ((90, 90, 90), 0), ((50, 160, 40), 1)):
        image = torch.tensor(color)[:, None, None].expand(3, 20, 20) / 255
        assert (soft_plant_mask(image) == expected).all()
