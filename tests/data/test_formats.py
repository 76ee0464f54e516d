import ast
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from seedling_hf.data.formats import HEIF_SUFFIXES, SUFFIXES, describe_beginning, image_formats, image_suffixes
from seedling_hf.data.images import ImageError, read_image
from seedling_hf.data.listing import list_images

PACKAGE = Path(__file__).resolve().parents[2] / "seedling_hf"


def test_the_suffixes_of_a_format_are_pillows():
    registered = {}
    for suffix, name in Image.registered_extensions().items():
        registered.setdefault(name, set()).add(suffix)
    for name, suffixes in SUFFIXES.items():
        expected = registered[name] | (registered["MPO"] if name == "JPEG" else set())
        assert set(suffixes) == expected, name


@pytest.mark.parametrize("suffix", sorted(set().union(*SUFFIXES.values())))
def test_an_image_of_each_suffix_is_listed_and_read_in_any_case(tmp_path, suffix):
    for name in (f"a{suffix}", f"B{suffix.upper()}"):
        format = Image.registered_extensions()[suffix]
        mode = "F" if suffix == ".pfm" else "RGB"
        Image.new(mode, (16, 16)).save(tmp_path / name, format=format)
    found = list(list_images([tmp_path]))
    assert [path.name for path in found] == [f"B{suffix.upper()}", f"a{suffix}"]
    if suffix == ".pfm":  # only as a name for other PPM files: its own pixels are floats
        return
    assert {read_image(path).size for path in found} == {(16, 16)}


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
def test_no_image_starts_ghostscript(tmp_path, monkeypatch):
    called, gs = tmp_path / "called", tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {called}\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(gs.parent))
    Image.new("RGB", (16, 16)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(ImageError, match="PostScript, which is not read; convert it to PNG"):
        read_image(tmp_path / "a.png")
    assert not called.exists()


def test_every_file_is_opened_with_the_formats_that_are_meant():
    calls = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open"):
                calls.append(path)
                assert "formats" in {keyword.arg for keyword in node.keywords}, path
    assert PACKAGE / "data" / "images.py" in calls


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\r\n<!DOCTYPE html><html>", "a page in HTML"),
        (b"<html lang=en>", "a page in HTML"),
        (b"<?xml version='1.0'?><svg>", "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x18ftypheic\0\0", "pillow-heif"),
        (b"\0\0\0\x18ftypmif1\0\0", "pillow-heif"),
        (b"PK\x03\x04", "ZIP"),
        (b"\xff\x0a\xfa", "JPEG XL"),
    ],
)
def test_what_is_met_in_place_of_an_image_is_named(tmp_path, head, words):
    (tmp_path / "a.png").write_bytes(head)
    assert words in describe_beginning(head)
    with pytest.raises(ImageError, match=words):
        read_image(tmp_path / "a.png")


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    assert "HEIF" in image_formats() and image_suffixes() >= HEIF_SUFFIXES
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), "green")).save(tmp_path / "a.HEIC")
    (path,) = list_images([tmp_path])
    assert read_image(path).size == (64, 48)


def test_without_pillow_heif_other_formats_are_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert image_formats.__wrapped__() == tuple(SUFFIXES)
