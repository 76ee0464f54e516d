"""Files without their metadata: where those are broken, Pillow refuses an image whose pixels are whole."""

import struct
import zlib
from collections.abc import Iterator

PNG_BEGINNING = b"\x89PNG\r\n\x1a\n"
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# Of TIFF: the sizes of the types by their numbers, and the tags that pixels need, with the orientation.
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
TIFF_PIXEL_TAGS = frozenset(
    {
        256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, *range(322, 326), 338, 339, 347,
        *range(512, 522), *range(529, 533),
    }
)  # fmt: skip
START_OF_SCAN, COMMENT, JFIF, ADOBE = 0xDA, 0xFE, 0xE0, 0xEE


def without_metadata(content: bytes) -> bytes | None:
    """A PNG, JPEG or TIFF with nothing but what its pixels need; None for others, and if there is nothing to drop."""
    if content.startswith(PNG_BEGINNING):
        kept = b"".join([PNG_BEGINNING, *_png_chunks(content)])
    elif content.startswith(b"\xff\xd8\xff"):
        kept = b"".join([content[:2], *_jpeg_segments(content)])
    elif content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        kept = _tiff_of_pixels(content)
    else:
        return None
    return None if kept == content else kept


def _png_chunks(content: bytes) -> Iterator[bytes]:
    at = len(PNG_BEGINNING)
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        chunk = content[at : at + 12 + length]
        kind = chunk[4:8]
        # Transparency that does not fit is metadata too; for damaged pixels the checksum is left to the decoder.
        damaged = kind == b"tRNS" and (not length or chunk[-4:] != struct.pack(">I", zlib.crc32(chunk[4:-4])))
        if kind in PIXEL_CHUNKS and not damaged:
            yield chunk
        at += len(chunk)


def _jpeg_segments(content: bytes) -> Iterator[bytes]:
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != START_OF_SCAN:
        kind, (length,) = content[at + 1], struct.unpack_from(">H", content, at + 2)
        segment = content[at : at + 2 + length]
        # JFIF and Adobe's segment say what the colours are.
        says_colors = (kind == JFIF and length >= 16) or (kind == ADOBE and length >= 14)
        if says_colors or not (JFIF <= kind <= 0xEF or kind == COMMENT):
            yield segment
        at += len(segment)
    yield content[at:]


def _tiff_of_pixels(content: bytes) -> bytes:
    """The first image of a TIFF, without the tags whose values lie beyond the end of the file."""
    order, is_big = "<" if content.startswith(b"II") else ">", b"+" in content[:4]
    word, count_format = ("Q", "Q") if is_big else ("I", "H")
    beginning, width = struct.calcsize(f"{order}{count_format}"), 4 + 2 * struct.calcsize(f"{order}{word}")
    try:
        (at,) = struct.unpack_from(f"{order}{word}", content, 8 if is_big else 4)
        (count,) = struct.unpack_from(f"{order}{count_format}", content, at)
    except struct.error:
        return content
    kept = []
    for position in range(at + beginning, min(at + beginning + count * width, len(content) - width + 1), width):
        tag, kind, number, offset = struct.unpack_from(f"{order}HH{word}{word}", content, position)
        size = TIFF_SIZES.get(kind, 1) * number
        if tag in TIFF_PIXEL_TAGS and (size <= width // 2 - 2 or offset + size <= len(content)):
            kept.append(content[position : position + width])
    end = at + beginning + len(kept) * width
    directory = struct.pack(f"{order}{count_format}", len(kept)) + b"".join(kept)
    no_further = bytes(width // 2 - 2)  # where the offset of the next directory stands
    return content[:at] + directory + no_further + content[end + len(no_further) :]
