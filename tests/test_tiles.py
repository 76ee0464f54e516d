from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedling_hf.tiles import draw_boxes, excess_green, find_plants

pytest.importorskip("skimage", reason="scikit-image finds the plants: pip install 'seedling-hf[tiles]'")

GROUND = (110, 105, 100)
PLACES = [(60, 50), (300, 80), (560, 40), (90, 330), (330, 360), (600, 320)]  # of the upper left corner of a picture


@pytest.fixture(scope="module")
def seedlings(sample_dir) -> list[Path]:
    """Real pictures of one plant each that does not touch the edge."""
    files = (f for name in ("Charlock", "Common Chickweed", "Fat Hen") for f in sorted((sample_dir / name).iterdir()))
    chosen = list(islice((file for file in files if is_one_plant(Image.open(file))), 6))
    assert len(chosen) == 6
    return chosen


def is_one_plant(image: Image.Image) -> bool:
    green = excess_green(np.asarray(image.convert("RGB"))) > 0.15
    edge = np.concatenate([green[:3].ravel(), green[-3:].ravel(), green[:, :3].ravel(), green[:, -3:].ravel()])
    return not edge.any() and len(find_plants(image)) == 1


@pytest.fixture
def tray(seedlings) -> Image.Image:
    """Six seedlings on grey ground, 820×560 pixels, with sensor noise."""
    noise = np.random.default_rng(0).normal(0, 6, (560, 820, 3))
    tray = Image.fromarray((np.array(GROUND) + noise).clip(0, 255).astype(np.uint8))
    for file, place in zip(seedlings, PLACES, strict=True):
        tray.paste(Image.open(file).convert("RGB"), place)
    return tray


def test_each_plant_of_a_tray_has_one_square_box_in_its_place(tray, seedlings):
    boxes = find_plants(tray)
    assert len(boxes) == 6
    for file, (x, y) in zip(seedlings, PLACES, strict=True):
        green = excess_green(np.asarray(Image.open(file).convert("RGB"))) > 0.15
        rows, columns = np.nonzero(green)
        middle = (x + np.median(columns), y + np.median(rows))
        (box,) = [b for b in boxes if b[0] <= middle[0] < b[2] and b[1] <= middle[1] < b[3]]
        assert box[2] - box[0] == box[3] - box[1]
        # Nearly all that is clearly green is inside, and the box is not the whole picture and more.
        inside = (columns + x >= box[0]) & (columns + x < box[2]) & (rows + y >= box[1]) & (rows + y < box[3])
        assert inside.mean() > 0.95
        assert box[2] - box[0] <= 1.25 * 150


def test_bare_ground_has_no_plants():
    noise = np.random.default_rng(1).normal(0, 6, (300, 300, 3))
    ground = Image.fromarray((np.array(GROUND) + noise).clip(0, 255).astype(np.uint8))
    assert find_plants(ground) == []
    assert find_plants(Image.new("RGB", (50, 50))) == []


def test_what_is_smaller_than_the_least_side_is_no_plant(tray):
    tray.paste((40, 200, 40), (10, 540, 14, 544))
    assert len(find_plants(tray)) == 6
    assert len(find_plants(tray, min_side=0.005)) > 6


def test_leaves_with_a_gap_between_are_one_plant_or_two_as_the_gap_says():
    image = Image.new("RGB", (400, 400), GROUND)
    image.paste((40, 180, 40), (100, 100, 140, 140))
    image.paste((40, 180, 40), (148, 100, 190, 140))
    assert len(find_plants(image, max_gap=0.025)) == 1
    assert len(find_plants(image, max_gap=0.01)) == 2


def test_a_plant_at_the_edge_has_a_square_box_that_is_moved_in():
    image = Image.new("RGB", (400, 300), GROUND)
    image.paste((40, 180, 40), (360, 0, 400, 60))
    assert find_plants(image) == [(328, 0, 400, 72)]


def test_a_plant_as_large_as_the_photograph_has_a_box_within_it():
    image = Image.new("RGB", (400, 300), GROUND)
    image.paste((40, 180, 40), (2, 2, 398, 298))
    assert find_plants(image) == [(0, 0, 400, 300)]


def test_brightness_does_not_change_what_is_green(tray):
    darker = tray.point(lambda value: value // 2)
    assert len(find_plants(darker)) == len(find_plants(tray))


def test_excess_green_is_2_for_green_and_0_for_grey_and_black():
    pixels = np.array([[[0, 255, 0], [90, 90, 90], [0, 0, 0], [255, 0, 0]]], np.uint8)
    np.testing.assert_allclose(excess_green(pixels), [[2, 0, 0, -1]])


def test_boxes_are_drawn_on_a_copy_with_their_names(tray):
    boxes = find_plants(tray)
    before = tray.tobytes()
    drawn = draw_boxes(tray, boxes, ["Charlock"] * 6)
    assert tray.tobytes() == before
    changed = (np.asarray(drawn) != np.asarray(tray)).any(-1)
    for left, top, right, bottom in boxes:
        assert changed[top, left:right].all() and changed[bottom - 1, left:right].all()
    assert not changed[300:310, 260:290].any()
    with pytest.raises(ValueError, match="zip"):
        draw_boxes(tray, boxes, ["Charlock"])
