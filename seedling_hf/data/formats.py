"""The formats in which images are read, their suffixes, and what other files are by their first bytes."""

import os
from functools import cache

HEIF_ADVICE = (
    'reading HEIC needs pillow-heif: install it with pip install "seedling-hf[all]", or convert the images to JPEG, '
    "as with `magick mogrify -format jpg *.heic`"
)
# Of the formats that Pillow knows, those that hold photographs and that it decodes itself: EPS would start Ghostscript.
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "AVIF": (".avif", ".avifs"),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
}
HEIF_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
# Images that are not read: raw files of cameras, drawings, and formats of programs.
OTHER_IMAGE_SUFFIXES = frozenset(
    {
        ".ai", ".arw", ".cr2", ".cr3", ".dcr", ".dds", ".dng", ".eps", ".erf", ".exr", ".hdr", ".ico", ".jxl", ".jxr",
        ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pcx", ".pdf", ".pef", ".ps", ".psd", ".qoi", ".raf",
        ".raw", ".rw2", ".sgi", ".sr2", ".srf", ".srw", ".svg", ".svgz", ".tga", ".wmf", ".x3f", ".xcf",
    }
)  # fmt: skip
BEGINNINGS = {
    b"version https://git-lfs": "a pointer of Git LFS instead of the file; run git lfs pull",
    b"%!PS": "PostScript, which is not read; convert it to PNG",
    b"\xc5\xd0\xd3\xc6": "PostScript, which is not read; convert it to PNG",
    b"%PDF": "a PDF; convert it to PNG",
    b"PK\x03\x04": "a ZIP archive; extract its images",
    b"\xff\x0a": "JPEG XL, which is not read; convert it to JPEG",
    b"\0\0\0\x0cJXL ": "JPEG XL, which is not read; convert it to JPEG",
    b"8BPS": "a Photoshop file; convert it to PNG",
}
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


@cache
def image_formats() -> tuple[str, ...]:
    """Pillow's names of the formats; with HEIF where pillow-heif is installed."""
    try:
        import pillow_heif
    except ImportError:
        return tuple(SUFFIXES)
    pillow_heif.register_heif_opener()
    return (*SUFFIXES, "HEIF")


@cache
def image_suffixes() -> frozenset[str]:
    """In lower case, with the dot."""
    found = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    return found | HEIF_SUFFIXES if "HEIF" in image_formats() else found


def is_image(name: str) -> bool:
    """Whether a file is an image by its suffix."""
    return os.path.splitext(name)[1].lower() in image_suffixes()


def describe_beginning(head: bytes) -> str | None:
    """What a file is that begins with `head`, if it is often met in place of an image."""
    if not head:
        return "an empty file"
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        return HEIF_ADVICE
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a page in HTML instead of the file; download it again, not its page"
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return "a drawing in SVG, which is not read; convert it to PNG"
    return next((found for beginning, found in BEGINNINGS.items() if head.startswith(beginning)), None)
