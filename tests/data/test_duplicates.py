from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedling_hf.data.duplicates import (
    SYMMETRIES,
    cluster_duplicates,
    connect,
    find_exact_duplicates,
    find_near_duplicates,
    fingerprint_images,
)

SEEDLINGS = Path(__file__).resolve().parents[3] / "shared" / "seedlings"


@pytest.fixture(scope="module")
def files(sample_dir) -> list[Path]:
    """Four images of each class."""
    return [file for folder in sorted(sample_dir.iterdir()) for file in sorted(folder.iterdir())[:4]]


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def crop(image: Image.Image, share: float) -> Image.Image:
    """Without `share` of the side on each side."""
    margin = round(share * image.width)
    return image.crop((margin, margin, image.width - margin, image.height - margin))


def found_pairs(sources) -> set[tuple[int, int]]:
    return {(pair.first, pair.second) for pair in find_near_duplicates(fingerprint_images(sources))}


ALTERATIONS = {
    "encoded again": lambda image: encode(image, quality=60),
    "half as large": lambda image: encode(image.resize((image.width // 2, image.height // 2))),
    "brighter": lambda image: encode(image.point(lambda value: min(255, int(1.15 * value)))),
    "flipped": lambda image: encode(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "turned": lambda image: encode(image.transpose(Image.Transpose.ROTATE_90)),
    "transversed": lambda image: encode(image.transpose(Image.Transpose.TRANSVERSE)),
    "cropped by 3%": lambda image: encode(crop(image, 0.03)),
    "cropped by 5%": lambda image: encode(crop(image, 0.05)),
    "cropped and flipped": lambda image: encode(crop(image, 0.04).transpose(Image.Transpose.FLIP_TOP_BOTTOM)),
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_altered_copy_is_a_near_duplicate_of_its_original_and_of_no_other(files, name):
    chosen = files[::4]
    altered = [ALTERATIONS[name](Image.open(file).convert("RGB")) for file in chosen]
    assert found_pairs([*chosen, *altered]) == {(i, i + len(chosen)) for i in range(len(chosen))}


@pytest.mark.parametrize("name", ["cropped by 5%", "cropped and flipped"])
def test_it_does_not_matter_which_of_two_is_the_crop(files, name):
    altered = [ALTERATIONS[name](Image.open(file).convert("RGB")) for file in files[:6]]
    assert found_pairs([*altered, *files[:6]]) == {(i, i + 6) for i in range(6)}


def test_different_seedlings_of_a_class_are_not_duplicates(files):
    fingerprints = fingerprint_images(files)
    assert len(fingerprints) == 48
    assert find_near_duplicates(fingerprints) == []
    assert find_exact_duplicates(fingerprints.digests) == []


def test_the_one_pair_of_the_sample_is_found_among_its_480_images(sample_dir):
    files = sorted(sample_dir.glob("*/*"))
    (pair,) = find_near_duplicates(fingerprint_images(files))
    assert {files[pair.first].parent.name, files[pair.second].parent.name} == {"Common Chickweed"}
    assert pair.distance == 2
    assert 0.95 < pair.correlation < 1


def test_exact_is_what_has_the_same_pixels_however_they_are_packed(files):
    original = Image.open(files[0]).convert("RGB")
    packed = [encode(original, "PNG"), encode(original, "BMP"), encode(original, "JPEG", quality=95)]
    fingerprints = fingerprint_images([files[0], *packed, files[1]])
    assert find_exact_duplicates(fingerprints.digests) == [[0, 1, 2]]
    assert [(pair.first, pair.second) for pair in find_near_duplicates(fingerprints)] == [(0, 3)]


def test_images_of_equal_pixels_and_another_shape_are_not_exact_duplicates():
    wide, high = (encode(Image.new("RGB", size, "green"), "PNG") for size in ((20, 10), (10, 20)))
    assert find_exact_duplicates(fingerprint_images([wide, high]).digests) == []


def test_blank_images_are_near_duplicates_of_nothing():
    blank = [encode(Image.new("RGB", (20, 20), (i, i, i)), "PNG") for i in range(30)]
    assert found_pairs(blank) == set()


def test_16_bit_images_that_are_equal_in_8_bits_are_different():
    dark, light = (
        encode(Image.fromarray(np.full((8, 8), value, np.uint16)), "PNG") for value in (1000, 60000)
    )  # PIL's own conversion clips both to 255
    assert find_exact_duplicates(fingerprint_images([dark, light]).digests) == []


def test_an_image_that_is_turned_by_its_exif_counts_as_it_is_seen(files):
    image = Image.open(files[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    lying = encode(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    assert find_exact_duplicates(fingerprint_images([files[0], lying]).digests) == [[0, 1]]


def test_there_are_eight_symmetries():
    square = np.arange(9).reshape(3, 3)
    assert len({symmetry(square).tobytes() for symmetry in SYMMETRIES}) == 8


def test_no_images_have_no_duplicates():
    fingerprints = fingerprint_images([])
    assert len(fingerprints) == 0
    assert find_exact_duplicates(fingerprints.digests) == find_near_duplicates(fingerprints) == []
    assert connect(0, [], []) == []


def test_a_cluster_holds_what_duplicates_lead_to(files):
    image = Image.open(files[0]).convert("RGB")
    clusters = cluster_duplicates([files[1], files[0], encode(image, quality=60), files[0], files[2]])
    assert Counter(clusters).most_common(1)[0][1] == 3
    assert clusters[1] == clusters[2] == clusters[3]


def test_the_number_of_threads_does_not_matter(files):
    one, four = (fingerprint_images(files, num_threads) for num_threads in (1, 4))
    assert one.digests == four.digests
    assert (one.hashes == four.hashes).all() and (one.inner_hashes == four.inner_hashes).all()


@pytest.mark.slow
@pytest.mark.skipif(not SEEDLINGS.is_dir(), reason=f"needs the 4,027 seedlings in {SEEDLINGS}")
def test_the_seedlings_hold_54_pairs_that_were_looked_at_and_two_groups_of_equal_pixels():
    files = sorted(SEEDLINGS.glob("*/*"))
    fingerprints = fingerprint_images(files)
    exact, near = find_exact_duplicates(fingerprints.digests), find_near_duplicates(fingerprints)
    assert len(files) == 4027
    assert [[files[i].name for i in group] for group in exact] == [
        ["629176d9d.png", "78e98a1ea.png", "91f32c678.png"], ["4fd1fe7ac.png", "9af73f331.png"],
    ]  # fmt: skip
    assert len(near) == 54
    assert all(files[pair.first].parent == files[pair.second].parent for pair in near)
    assert Counter(Counter(connect(len(files), exact, near)).values()) == {1: 3915, 2: 53, 3: 2}


@pytest.mark.slow
def test_twelve_thousand_images_are_compared_in_half_a_minute_of_one_core(files):
    import dataclasses
    import time

    generator = np.random.default_rng(0)
    count = 12_500
    some = fingerprint_images(files)
    hashes = generator.integers(0, 2**64, (count, 9), np.uint64)
    many = dataclasses.replace(
        some,
        digests=[str(i) for i in range(count)],
        thumbnails=np.resize(some.thumbnails, (count, 32, 32)),
        inner_thumbnails=np.resize(some.inner_thumbnails, (count, 32, 32)),
        hashes=hashes[:, :8],
        inner_hashes=hashes[:, 8],
    )
    started = time.process_time()  # of this process, whatever else the machine does
    find_near_duplicates(many)
    assert time.process_time() - started < 30
