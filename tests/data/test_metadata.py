import io
import struct
import zlib

import numpy as np
import pytest
import tiffs
from PIL import ExifTags, Image

from seedling_hf.data.images import ImageError, check_images, read_image, to_rgb
from seedling_hf.data.metadata import without_metadata

PIXELS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
UPRIGHT = Image.Exif()
UPRIGHT[ExifTags.Base.Orientation] = 6
BOMB = zlib.compress(bytes(5 << 20))


def save(format: str, **options) -> bytes:
    stream = io.BytesIO()
    PIXELS.save(stream, format, **options)
    return stream.getvalue()


def png(kind: bytes, content: bytes, *, checksum: bool = True, last: bool = False) -> bytes:
    data, at = save("PNG"), -12 if last else 33
    crc = zlib.crc32(kind + content) if checksum else 7
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)
    return data[:at] + chunk + data[at:]


def jpeg(kind: int, content: bytes) -> bytes:
    data = save("JPEG")
    return data[:2] + struct.pack(">BBH", 0xFF, kind, len(content) + 2) + content + data[2:]


EXIF = UPRIGHT.tobytes()
BROKEN = {
    "PNG, EXIF": png(b"eXIf", b"garbage garbage"),
    "PNG, EXIF at the end": png(b"eXIf", b"garbage", last=True),
    "PNG, EXIF, checksum": png(b"eXIf", b"II*\0", checksum=False),
    "PNG, EXIF cut short": png(b"eXIf", EXIF[6:14]),
    "PNG, text that claims to be EXIF": png(b"tEXt", b"Raw profile type exif\0\nexif\n  12\nzz zz"),
    "PNG, compressed text that claims to be EXIF": png(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nx\n1\nz")
    ),
    "PNG, text, checksum": png(b"tEXt", b"a\0b", checksum=False),
    "PNG, text that is a bomb": png(b"zTXt", b"a\0\0" + BOMB),
    "PNG, text in UTF-8 that is a bomb": png(b"iTXt", b"a\0\1\0\0\0" + BOMB),
    "PNG, text of no method": png(b"zTXt", b"a\0\1b"),
    "PNG, profile": png(b"iCCP", b"a\0\0garbage"),
    "PNG, profile that is a bomb": png(b"iCCP", b"a\0\0" + BOMB),
    "PNG, empty profile": png(b"iCCP", b""),
    "PNG, resolution": png(b"pHYs", b"\0"),
    "PNG, gamma": png(b"gAMA", b"\0"),
    "PNG, colour space": png(b"sRGB", b""),
    "PNG, animation": png(b"acTL", b"\0"),
    "PNG, unknown": png(b"a\x01cd", b""),
    "JPEG, EXIF": jpeg(0xE1, b"Exif\0\0garbage"),
    "JPEG, EXIF cut short": jpeg(0xE1, EXIF[:16]),
    "JPEG, EXIF of no entries": jpeg(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff\0\0\0\x10"),
    "JPEG, profile": jpeg(0xE2, b"ICC_PROFILE\0"),
    "JPEG, several images": jpeg(0xE2, b"MPF\0garbage"),
    "JPEG, JFIF": jpeg(0xE0, b"JFIF"),
    "JPEG, Adobe": jpeg(0xEE, b"Adobe"),
    "JPEG, Photoshop": jpeg(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10a"),
    "JPEG, XMP": jpeg(0xE1, b"http://ns.adobe.com/xap/1.0/\0<broken"),
    "WebP, EXIF": save("WEBP", lossless=True, exif=b"garbage garbage"),
    "WebP, EXIF cut short": save("WEBP", lossless=True, exif=EXIF[:16]),
    "WebP, profile": save("WEBP", lossless=True, icc_profile=b"garbage"),
    "WebP, XMP": save("WEBP", lossless=True, xmp=b"<garbage"),
    "TIFF, profile": save("TIFF", icc_profile=b"garbage"),
    **{f"TIFF, {name}": content for name, content in tiffs.whole(PIXELS).items()},
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, of the metadata
@pytest.mark.parametrize("name", BROKEN)
def test_broken_metadata_leave_the_image_as_it_stands(name):
    expected = to_rgb(Image.open(io.BytesIO(save(name[:4]))) if name.startswith("JPEG") else PIXELS)
    assert np.array_equal(to_rgb(read_image(BROKEN[name])), expected)
    assert check_images([BROKEN[name]]) == [None]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_image_is_turned_once_whatever_turns_it_again(format):
    image = read_image(save(format, exif=UPRIGHT))
    assert image.size == (30, 40)
    assert ExifTags.Base.Orientation not in image.getexif()


@pytest.mark.parametrize("orientation", range(10))
def test_an_image_is_turned_as_pillow_does(orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = save("PNG", exif=exif)
    assert np.array_equal(read_image(content), ImageOps.exif_transpose(Image.open(io.BytesIO(content))))


def test_pixels_that_are_damaged_are_refused_with_broken_metadata_too():
    content = bytearray(png(b"tEXt", b"a\0b", checksum=False))
    content[200:216] = bytes(16)
    with pytest.raises(ImageError):
        read_image(bytes(content))
    for name in ("PNG, text, checksum", "JPEG, JFIF"):
        with pytest.raises(ImageError):
            read_image(BROKEN[name][:-400])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", tiffs.broken(PIXELS))
def test_a_tiff_without_whole_pixels_is_refused(name):
    content = tiffs.broken(PIXELS)[name]
    assert check_images([content]) != [None]
    with pytest.raises(ImageError):
        read_image(content)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}, {"strip_size": 200}], ids=str)
def test_a_tiff_keeps_its_pixels_without_its_metadata(mode, options):
    image = Image.new("I;16", (40, 30), 300) if mode == "I;16" else PIXELS.convert("RGB").convert(mode)
    content = tiffs.tiff(image, **options, tiffinfo={270: "some text", 274: 6})
    stripped = without_metadata(content)
    assert b"some text" in content and len(stripped) == len(content)
    assert 270 not in Image.open(io.BytesIO(stripped)).tag_v2
    assert np.array_equal(read_image(stripped), read_image(content))
    assert read_image(stripped).size == (30, 40)


def test_the_tiles_of_a_tiff_may_reach_beyond_its_edges():
    pixels = np.asarray(PIXELS.convert("L"))
    padded = np.pad(pixels, ((0, 2), (0, 8)))
    tiles = [padded[y : y + 16, x : x + 16].tobytes() for y in (0, 16) for x in (0, 16, 32)]
    content = tiffs.tiff(Image.fromarray(pixels))
    first = len(content)
    content += (
        b"".join(tiles)
        + b"".join(struct.pack("<I", first + 256 * i) for i in range(6))
        + struct.pack("<6I", *[256] * 6)
    )
    for tag, count, value in ((322, 1, 16), (323, 1, 16), (324, 6, first + 6 * 256), (325, 6, first + 6 * 256 + 24)):
        content = tiffs.with_tag(content, tag, 4, count, value)
    content = tiffs.without_tags(content, 273, 278, 279)
    assert np.array_equal(read_image(content), pixels)
    with pytest.raises(ImageError, match="too few for its size"):
        read_image(tiffs.with_tag(content, 257, value=200))


def test_a_file_without_metadata_has_none_to_drop():
    assert without_metadata(save("PNG")) is None
    assert without_metadata(save("JPEG")) is None
    assert without_metadata(b"GIF89a") is None
    assert without_metadata(png(b"tEXt", b"a\0b")) == save("PNG")
