"""Files without their metadata: where those are broken, Pillow refuses an image whose pixels are whole."""

import struct
import zlib
from collections.abc import Iterator

PNG_BEGINNING = b"\x89PNG\r\n\x1a\n"
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
START_OF_SCAN, COMMENT, JFIF, ADOBE = 0xDA, 0xFE, 0xE0, 0xEE


def without_metadata(content: bytes) -> bytes | None:
    """A PNG or JPEG with nothing but what its pixels need; None for other files, and where there is nothing to drop."""
    if content.startswith(PNG_BEGINNING):
        kept = b"".join([PNG_BEGINNING, *_png_chunks(content)])
    elif content.startswith(b"\xff\xd8\xff"):
        kept = b"".join([content[:2], *_jpeg_segments(content)])
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
