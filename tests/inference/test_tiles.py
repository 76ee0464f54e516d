from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from seedling_hf.data.greenness import excess_green
from seedling_hf.inference.tiles import draw_boxes, find_plants, in_reading_order

pytest.importorskip("skimage", reason="scikit-image finds the plants: pip install 'seedling-hf[all]'")

TRAY = Path(__file__).resolve().parents[2] / "scripts" / "sample" / "tray.jpg"
GROUND = (110, 105, 100)
PLACES = [(60, 50), (300, 80), (560, 40), (90, 330), (330, 360), (600, 320)]  # of the upper left corner of an image


@pytest.fixture(scope="module")
def seedlings(sample_dir) -> list[Path]:
    """Real images with one plant each that does not touch the edge."""
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
        # Nearly all clearly green pixels are inside, and the box is not larger than the image.
        inside = (columns + x >= box[0]) & (columns + x < box[2]) & (rows + y >= box[1]) & (rows + y < box[3])
        assert inside.mean() > 0.95
        assert box[2] - box[0] <= 1.25 * 150


def test_bare_ground_has_no_plants():
    noise = np.random.default_rng(1).normal(0, 6, (300, 300, 3))
    ground = Image.fromarray((np.array(GROUND) + noise).clip(0, 255).astype(np.uint8))
    assert find_plants(ground) == []
    assert find_plants(Image.new("RGB", (50, 50))) == []
    assert find_plants(Image.new("L", (50, 50), 128)) == []


def test_a_photograph_that_is_all_green_is_one_plant():
    assert find_plants(Image.new("RGB", (300, 200), (60, 160, 50))) == [(0, 0, 300, 200)]


def test_a_plant_below_the_minimum_side_is_not_found(tray):
    tray.paste((40, 200, 40), (10, 540, 14, 544))
    assert len(find_plants(tray)) == 6
    assert len(find_plants(tray, min_side=0.005)) > 6


def leaf(image: Image.Image, box: tuple[int, int, int, int]) -> None:
    ImageDraw.Draw(image).ellipse(box, fill=(40, 160, 40))


def cross(image: Image.Image, x: int, y: int) -> None:
    """A plant of four leaves that touch, 80 pixels wide."""
    leaf(image, (x, y + 32, x + 80, y + 48))
    leaf(image, (x + 32, y, x + 48, y + 80))


def test_two_leaves_without_a_stalk_are_one_plant_and_two_plants_with_the_same_gap_are_two():
    gap = 25
    image = Image.new("RGB", (600, 400), GROUND)
    leaf(image, (40, 40, 100, 80))
    leaf(image, (100 + gap, 40, 160 + gap, 80))
    assert len(find_plants(image)) == 1
    cross(image, 100, 200)
    cross(image, 180 + gap, 200)
    assert len(find_plants(image)) == 3


def test_leaves_that_lie_far_apart_are_two_plants():
    image = Image.new("RGB", (600, 400), GROUND)
    leaf(image, (40, 40, 100, 80))
    leaf(image, (190, 40, 250, 80))
    assert len(find_plants(image)) == 2


def test_specks_between_two_plants_do_not_join_them():
    image = Image.new("RGB", (600, 400), GROUND)
    leaf(image, (40, 40, 100, 80))
    leaf(image, (190, 40, 250, 80))
    for x in range(105, 190, 4):
        image.paste((40, 160, 40), (x, 60, x + 2, 62))
    assert len(find_plants(image, min_side=0.05)) == 2


@pytest.mark.parametrize("colour", [(235, 235, 235), (30, 60, 160), (20, 150, 150), (230, 205, 40), (20, 22, 20)])
def test_white_blue_turquoise_yellow_and_black_pots_are_not_plants(tray, colour):
    expected = find_plants(tray)
    tray.paste(colour, (0, 0, tray.width, 8))
    tray.paste(colour, (0, 545, tray.width, 560))
    tray.paste(colour, (230, 100, 280, 150))
    assert find_plants(tray) == expected


def test_a_large_photograph_has_the_boxes_of_a_small_one():
    small = Image.open(TRAY)
    boxes = find_plants(small.resize((5 * small.width, 5 * small.height), Image.Resampling.BICUBIC))
    assert len(boxes) == len(find_plants(small))
    # What is found in a copy is a pixel of the copy more or less, three of the large one, and the margin with it.
    difference = np.abs(np.array(boxes)[:, None] / 5 - np.array(find_plants(small))).max(-1)
    nearest = difference.argmin(0)  # two of one height may change places
    assert sorted(nearest) == list(range(len(boxes))) and difference.min(0).max() < 4
    for found in (boxes, find_plants(small)):
        for start in range(0, 18, 6):
            row = found[start : start + 6]
            assert row == sorted(row), "from left to right"
            assert max(box[1] for box in found[:start] or [(0, 0)]) < min(box[1] for box in row), "from top to bottom"


@pytest.mark.parametrize("tilt", [-0.08, 0, 0.08])
@pytest.mark.parametrize("side", [20, 80])
def test_plants_are_numbered_in_reading_order_although_rows_are_not_straight(side, tilt):
    rng = np.random.default_rng(0)
    expected = []
    for row in range(4):
        for column in range(6):
            x, y = np.array([100 * column, 100 * row + tilt * 100 * column]) + rng.uniform(-10, 10, 2)
            expected.append((int(x), int(y), int(x) + side, int(y) + side))
    shuffled = [expected[number] for number in rng.permutation(len(expected))]
    assert in_reading_order(shuffled) == expected


def test_two_plants_below_each_other_are_two_rows():
    assert in_reading_order([(0, 50, 10, 60), (20, 0, 30, 10)]) == [(20, 0, 30, 10), (0, 50, 10, 60)]
    assert in_reading_order([(20, 0, 30, 10)]) == [(20, 0, 30, 10)]
    assert in_reading_order([]) == []


def test_a_plant_at_the_edge_has_a_square_box_that_is_moved_in():
    image = Image.new("RGB", (400, 300), GROUND)
    image.paste((40, 180, 40), (360, 0, 400, 60))
    (box,) = find_plants(image)
    # Blur makes the plant wider by a pixel.
    assert np.abs(np.subtract(box, (328, 0, 400, 72))).max() <= 1
    assert box[2] == 400 and box[1] == 0 and box[2] - box[0] == box[3] - box[1]


def test_a_plant_as_large_as_the_photograph_has_a_box_within_it():
    image = Image.new("RGB", (400, 300), GROUND)
    image.paste((40, 180, 40), (2, 2, 398, 298))
    assert find_plants(image) == [(0, 0, 400, 300)]


def test_brightness_does_not_change_the_plants(tray):
    darker = tray.point(lambda value: value // 2)
    assert len(find_plants(darker)) == len(find_plants(tray))


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
