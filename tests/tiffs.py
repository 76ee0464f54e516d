"""TIFFs with tags that are damaged, around pixels that are whole or not."""

import io
import struct

from PIL import Image

BEYOND = 1 << 27  # an offset far beyond the end of the files


def tiff(image: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "TIFF", **options)
    return stream.getvalue()


def tags(content: bytes) -> dict[int, tuple[int, int, int]]:
    """Type, count and value of each tag."""
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    entries = (struct.unpack_from("<HHII", content, at + 2 + 12 * i) for i in range(count))
    return {tag: tuple(rest) for tag, *rest in entries}


def with_tag(content: bytes, tag: int, kind: int | None = None, count: int | None = None, value: int = BEYOND) -> bytes:
    """Adds or replaces a tag, in a directory that is written to the end of the file."""
    found = tags(content)
    former = found.get(tag, (3, 1, 0))
    found[tag] = (former[0] if kind is None else kind, former[1] if count is None else count, value & 0xFFFFFFFF)
    return _with_tags(content, found)


def without_tags(content: bytes, *numbers: int) -> bytes:
    return _with_tags(content, {number: values for number, values in tags(content).items() if number not in numbers})


def _with_tags(content: bytes, found: dict[int, tuple[int, int, int]]) -> bytes:
    content += bytes(len(content) % 2)
    entries = b"".join(struct.pack("<HHII", number, *found[number]) for number in sorted(found))
    directory = struct.pack("<H", len(found)) + entries + bytes(4)
    return content[:4] + struct.pack("<I", len(content)) + content[8:] + directory


def whole(image: Image.Image) -> dict[str, bytes]:
    """Files whose pixels are those of `image`."""
    found = {}
    for name, options in {"raw": {}, "lzw": {"compression": "tiff_lzw"}}.items():
        plain = tiff(image, **options)
        content = with_tag(plain, 305, 2, 1, 0)  # the directory is at the end
        (at,) = struct.unpack_from("<I", content, 4)
        found |= {
            f"{name}, text beyond the end": with_tag(plain, 270, 2, 100),
            f"{name}, text of 4 GB": with_tag(plain, 305, 2, -1 & 0xFFFFFFFF, 8),
            f"{name}, orientation beyond the end": with_tag(plain, 274, 3, 50),
            f"{name}, orientation that is none": with_tag(plain, 274, 3, 1, 99),
            f"{name}, profile beyond the end": with_tag(plain, 34675, 7, 1000),
            f"{name}, profile of 2 GB": with_tag(plain, 34675, 7, (1 << 31) - 1, 8),
            f"{name}, XMP beyond the end": with_tag(plain, 700, 1, 1000),
            f"{name}, EXIF beyond the end": with_tag(plain, 34665, 4, 1),
            f"{name}, EXIF in itself": with_tag(plain, 34665, 4, 1, len(plain) + len(plain) % 2),
            f"{name}, position beyond the end": with_tag(plain, 34853, 4, 1),
            f"{name}, resolution beyond the end": with_tag(plain, 282, 5, 1),
            f"{name}, a type that is none": with_tag(plain, 50_000, 99, 5),
            f"{name}, extra samples beyond the end": with_tag(plain, 338, 3, 900),
            f"{name}, formats of samples beyond the end": with_tag(plain, 339, 3, 900),
            f"{name}, a count of 0": with_tag(plain, 305, 2, 0, 0),
            f"{name}, more entries than there are": content[:at] + b"\xff\xff" + content[at + 2 :],
            f"{name}, next image beyond the end": content[:-4] + struct.pack("<I", BEYOND),
            f"{name}, next image the same": content[:-4] + struct.pack("<I", at),
        }  # fmt: skip
    return found


def broken(image: Image.Image) -> dict[str, bytes]:
    """Files without whole pixels, or that do not say where these are."""
    found = {}
    for name, options in {"raw": {}, "lzw": {"compression": "tiff_lzw"}}.items():
        plain = tiff(image, **options)
        found |= {
            f"{name}, directory beyond the end": plain[:4] + struct.pack("<I", BEYOND) + plain[8:],
            f"{name}, directory at 0": plain[:4] + bytes(4) + plain[8:],
            f"{name}, directory at the end": plain[:4] + struct.pack("<I", len(plain) - 3) + plain[8:],
            f"{name}, pixels beyond the end": with_tag(plain, 273),
            f"{name}, pixels at -1": with_tag(plain, 273, value=-1),
            f"{name}, strips more than the file": with_tag(plain, 273, count=100_000),
            f"{name}, 4 billion strips": with_tag(plain, 273, count=0xFFFFFFFF),
            f"{name}, a width of 0": with_tag(plain, 256, value=0),
            f"{name}, a width of -1": with_tag(plain, 256, kind=9, value=-1),
            f"{name}, a width of 4 billion": with_tag(plain, 256, kind=4, value=-1),
            f"{name}, a height of 2 billion": with_tag(plain, 257, kind=4, value=(1 << 31) - 1),
            f"{name}, a height beyond the strips": with_tag(plain, 257, value=2 * image.height),
            f"{name}, depth beyond the end": with_tag(plain, 258),
            f"{name}, 60,000 samples": with_tag(plain, 277, value=60_000),
            f"{name}, no rows in a strip": with_tag(plain, 278, value=0),
            f"{name}, unknown compression": with_tag(plain, 259, value=9999),
            f"{name}, half": plain[: len(plain) // 2],
            f"{name}, header": plain[:8],
        }  # fmt: skip
    return found
