import numpy as np
import pytest
from PIL import Image, ImageFilter

from seedling_hf.data.greenness import excess_green, plant_mask
from seedling_hf.data.images import to_rgb
from seedling_hf.evaluation.surfaces import SOIL, has_photographs, other_ground, photograph, plain, stand_on, stones

PHOTOGRAPHS = pytest.mark.skipif(not has_photographs(), reason="scikit-image is not installed")
SURFACES = [
    plain(235, 235, 235),
    stones(150),
    stones(4000),
    *(pytest.param(photograph(name, SOIL), marks=PHOTOGRAPHS) for name in ("gravel", "grass", "brick")),
]


@pytest.fixture(scope="module")
def charlock(sample_dir) -> Image.Image:
    return to_rgb(Image.open(sample_dir / "Charlock" / "022179d65.jpg"))


def draw(surface, image: Image.Image, seed: int = 0) -> np.ndarray:
    return np.asarray(surface(image, np.random.default_rng(seed), ()))


@pytest.mark.parametrize("surface", SURFACES)
def test_the_plant_stays_and_all_around_it_is_the_surface(charlock, surface):
    found = np.asarray(stand_on(surface)(charlock, np.random.default_rng(0))).astype(int)
    expected = np.asarray(Image.fromarray(draw(surface, charlock)).resize(charlock.size, Image.Resampling.BICUBIC))
    mask = Image.fromarray(plant_mask(charlock)).convert("L")
    inside = np.asarray(mask.filter(ImageFilter.MinFilter(7)), bool)
    outside = ~np.asarray(mask.filter(ImageFilter.MaxFilter(7)), bool)
    assert inside.mean() > 0.05 and outside.mean() > 0.3
    assert np.array_equal(found[inside], np.asarray(charlock)[inside])
    assert np.array_equal(found[outside], expected[outside])


@pytest.mark.parametrize("surface", SURFACES)
def test_no_surface_is_taken_for_a_plant(charlock, surface):
    assert (excess_green(draw(surface, charlock)) > 0.2).mean() < 0.01


@pytest.mark.parametrize("surface", SURFACES[1:])
def test_another_draw_is_another_surface_of_the_same_kind(charlock, surface):
    first, again, other = (draw(surface, charlock, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert 20 < first.mean() < 200 and first.std() > 8
    assert first.mean() == pytest.approx(other.mean(), rel=0.25)


def test_ground_is_one_of_those_given_or_the_images_own(charlock):
    white = Image.new("RGB", (30, 30), (255, 255, 255))
    assert other_ground(charlock, np.random.default_rng(0), [white]) is white
    own = np.asarray(other_ground(charlock, np.random.default_rng(0), []))
    assert (excess_green(own) > 0.2).mean() < 0.02 < plant_mask(charlock).mean()
