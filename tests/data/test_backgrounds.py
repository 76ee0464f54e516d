import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from torchvision.transforms import v2

from seedling_hf.data.backgrounds import Backgrounds, RandomBackground, bank, find_grounds, make_textures
from seedling_hf.data.greenness import excess_green, soft_plant_mask
from seedling_hf.data.images import to_rgb


@pytest.fixture(scope="module")
def files(sample_dir) -> list[str]:
    return [str(sorted(folder.iterdir())[0]) for folder in sorted(sample_dir.iterdir())]


@pytest.fixture(scope="module")
def dataset(files) -> Dataset:
    return Dataset.from_dict({"image": files}).cast_column("image", ImageFeature())


@pytest.fixture(scope="module")
def grounds(dataset) -> torch.Tensor:
    return find_grounds(dataset, count=6, side=96)


def as_float(file: str) -> torch.Tensor:
    return v2.functional.pil_to_tensor(to_rgb(Image.open(file)).resize((96, 96))).float() / 255


def test_grounds_are_of_the_images_and_show_no_plants(grounds):
    assert grounds.dtype == torch.uint8 and grounds.shape[1:] == (3, 96, 96) and 3 <= len(grounds) <= 6
    for ground in grounds:
        # Leaves are above 0.1; pale edges and yellow stones between.
        assert (excess_green(ground.permute(1, 2, 0).numpy()) > 0.2).mean() < 0.03


def test_grounds_are_the_same_each_time(dataset, grounds):
    assert torch.equal(find_grounds(dataset, count=6, side=96), grounds)


def test_an_image_full_of_plants_is_no_ground():
    green = Image.new("RGB", (40, 40), (40, 160, 40))
    green.paste((110, 90, 70), (0, 0, 40, 4))
    assert bank([green]) is None
    soil = Image.new("RGB", (40, 40), (110, 90, 70))
    soil.paste((40, 160, 40), (10, 10, 20, 20))
    found = bank([green, soil])
    assert found.shape == (1, 3, 40, 40)
    assert (found == torch.tensor([110, 90, 70])[None, :, None, None]).all()


def test_a_background_leaves_the_plant_and_changes_the_ground(files, grounds):
    step = RandomBackground(1.0, Backgrounds(grounds))
    torch.manual_seed(0)
    for file in files:
        image = as_float(file)
        mask, found = soft_plant_mask(image), step(image)
        assert torch.equal(found[:, mask == 1], image[:, mask == 1])
        changed = (found - image)[:, mask == 0].abs().amax(0) > 0.02
        assert changed.float().mean() > 0.8, file


def test_what_is_all_plant_or_all_ground_stays_as_it_is():
    step = RandomBackground(1.0, Backgrounds())
    for color in ((0.15, 0.6, 0.15), (0.5, 0.4, 0.3)):
        image = torch.tensor(color)[:, None, None].expand(3, 32, 32)
        assert step(image) is image


def test_backgrounds_are_of_many_kinds_and_none_is_green(grounds):
    torch.manual_seed(0)
    backgrounds = Backgrounds(grounds)
    drawn = [backgrounds.draw(48) for _ in range(80)]
    flat = sum(bool((each.flatten(1).std(1) < 1e-6).all()) for each in drawn)
    assert 2 < flat < 20
    brightness = [float(each.mean()) for each in drawn]
    assert min(brightness) < 0.2 and max(brightness) > 0.65
    for each in drawn:
        assert each.shape == (3, 48, 48) and each.min() >= 0 and each.max() <= 1
        assert (excess_green(255 * each.permute(1, 2, 0).numpy()) > 0.2).mean() < 0.25


def test_without_training_images_soils_are_drawn():
    torch.manual_seed(0)
    assert {tuple(Backgrounds().draw(32).shape) for _ in range(9)} == {(3, 32, 32)}


def test_a_ground_like_another_has_its_mean(files, grounds):
    torch.manual_seed(0)
    for backgrounds in (Backgrounds(grounds), Backgrounds()):
        for file in files:
            image = as_float(file)
            ground = image[:, soft_plant_mask(image) < 0.1].mean(1)
            found = backgrounds.like(image)
            # A tenth: what is below 0 or above 1 is cut.
            torch.testing.assert_close(found.mean((1, 2)), ground, rtol=0, atol=0.1)


def test_textures_differ_and_are_the_same_each_time():
    textures = make_textures(6, 32)
    make_textures.cache_clear()
    assert torch.equal(make_textures(6, 32), textures)
    assert len(np.unique(textures.flatten(1).numpy(), axis=0)) == 6
    rough = [float(each.float().diff(dim=-1).abs().mean() / each.float().std()) for each in textures]
    assert rough[1] < rough[-1]
