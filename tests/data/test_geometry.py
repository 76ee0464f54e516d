import pytest
import torch
from augmented import roughness, same_random_numbers
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from seedling_hf.data.backgrounds import Backgrounds
from seedling_hf.data.geometry import RandomQuarterTurn, RandomRotation, RandomZoom
from seedling_hf.data.greenness import soft_plant_mask
from seedling_hf.data.images import to_rgb

SIZE, MEAN = 96, (0.485, 0.456, 0.406)
HOW = {"interpolation": InterpolationMode.BICUBIC, "antialias": True}


@pytest.fixture
def images(sample_dir) -> list[Image.Image]:
    return [to_rgb(Image.open(sorted(folder.iterdir())[0])) for folder in sorted(sample_dir.iterdir())]


def test_an_image_is_turned_as_torchvision_turns_it_but_less_softly(images):
    ours = RandomRotation(180, SIZE, MEAN)
    theirs = v2.RandomRotation(180, interpolation=InterpolationMode.BILINEAR, fill=list(MEAN))
    prepare = v2.Compose([v2.PILToTensor(), v2.Resize((SIZE, SIZE)), v2.ToDtype(torch.float32, scale=True)])
    soften = v2.GaussianBlur(15, 3.0)  # then bilinear and bicubic are nearly the same
    gains = []
    for seed, original in enumerate(images):
        image = soften(prepare(original))
        found, expected = (same_random_numbers(seed, transform, image) for transform in (ours, theirs))
        # All but torchvision's seam, of two pixels along four edges.
        equal = (found - expected).abs().amax(0) < 0.01
        assert equal.float().mean() > 1 - 4 * 3 * SIZE / SIZE**2
        found, expected = (same_random_numbers(seed, transform, prepare(original)) for transform in (ours, theirs))
        middle = slice(SIZE // 3, -SIZE // 3)
        gains.append(roughness(found[:, middle, middle]) / roughness(expected[:, middle, middle]))
    assert min(gains) > 1.02 and sum(gains) / len(gains) > 1.04


def test_a_quarter_turn_moves_pixels_and_mixes_none(images):
    image = v2.functional.pil_to_tensor(images[0].resize((SIZE, SIZE)))
    torch.manual_seed(0)
    seen = [RandomQuarterTurn(1.0)(image) for _ in range(40)]
    turns = [torch.rot90(image, k, (1, 2)) for k in range(4)]
    counts = [sum(torch.equal(each, turn) for each in seen) for turn in turns]
    assert sum(counts) == 40 and min(counts) > 3
    assert all(torch.equal(RandomQuarterTurn(0.0)(image), image) for _ in range(9))


def test_the_corners_have_the_mean_colour_and_the_edge_no_seam():
    white = torch.ones(3, SIZE, SIZE)
    torch.manual_seed(1)
    turned = RandomRotation(45, SIZE, MEAN)(white)
    for channel, mean in zip(turned, MEAN, strict=True):
        assert mean - 0.07 < channel.min() < mean  # cubics undershoot beside an edge; a seam would be far darker
        assert channel[0, 0] == pytest.approx(mean)
        assert channel.max() == pytest.approx(1)


def test_mirrored_corners_show_the_image_and_its_middle_stays():
    ramp = torch.linspace(0.2, 0.8, SIZE).expand(3, SIZE, SIZE).contiguous()
    middle = slice(SIZE // 4, -SIZE // 4)
    for seed in range(5):
        mirrored, plain = (same_random_numbers(seed, RandomRotation(45, SIZE, fill), ramp) for fill in (None, MEAN))
        torch.testing.assert_close(mirrored[:, middle, middle], plain[:, middle, middle], rtol=0, atol=1e-6)
        assert mirrored.min() > 0.19 and mirrored.max() < 0.81  # bicubic interpolation overshoots a little
    assert (plain[:, 0, 0] == torch.tensor(MEAN)).all()


def zoom(closer: float, farther: float) -> RandomZoom:
    return RandomZoom(closer, farther, SIZE, v2.Resize((SIZE, SIZE), **HOW), Backgrounds(), **HOW)


def test_a_crop_from_close_shows_some_of_the_plant_and_its_details_larger():
    image = torch.full((3, 150, 200), 90, dtype=torch.uint8)
    image[:, 100:120, 20:40] = torch.tensor([40, 160, 40], dtype=torch.uint8)[:, None, None]  # 1% of the area
    for seed in range(30):
        close = same_random_numbers(seed, zoom(1, 0), image)
        assert (soft_plant_mask(close / 255) > 0.5).float().mean() > 0.02


def test_an_image_without_a_plant_can_be_seen_from_close():
    image = torch.randint(256, (1, 60, 50), generator=torch.Generator().manual_seed(0)).byte().expand(3, 60, 50)
    assert zoom(1, 0)(image).shape == (3, SIZE, SIZE)


def test_from_afar_the_whole_image_lies_somewhere_in_the_frame(images):
    """As sharp as evaluation would make it at that size."""
    for seed, image in enumerate(images):
        image = v2.functional.pil_to_tensor(image)
        found = same_random_numbers(seed, zoom(0, 1), image)
        torch.manual_seed(seed)
        torch.rand(())  # which
        inner = round(SIZE * (0.25 + 0.6 * torch.rand(()).item()))
        top, left = (int(torch.randint(SIZE - inner + 1, ())) for _ in range(2))
        small = v2.functional.resize(image, [inner, inner], **HOW).int()
        edge = round(0.12 * inner) + 1
        inside = slice(edge, inner - edge)
        seen = found[:, top : top + inner, left : left + inner].int()
        # Within the feathered edge; 1 is the rounding of its weight.
        assert (seen - small)[:, inside, inside].abs().max() <= 1


def test_mirror_images_have_no_seam():
    ramp = torch.arange(0, 240, 2, dtype=torch.uint8).expand(3, 120, 120)
    smooth = 0
    for seed in range(20):
        found = same_random_numbers(seed, zoom(0, 1), ramp).int()
        smooth += int(found.diff(dim=-1).abs().max()) < 12
    assert 5 < smooth < 16  # half of the frames are filled with ground instead
