import os
import shutil
import sys

import pytest

from seedling_hf.data import listing
from seedling_hf.data.listing import list_images
from seedling_hf.errors import InputError


def test_images_are_listed_in_byte_order_without_other_files(tree):
    (tree / "Maize" / ".hidden.jpg").write_bytes(b"")
    (tree / "Maize" / "notes.txt").write_bytes(b"")
    (tree / ".cache").mkdir()
    (tree / ".cache" / "a.jpg").write_bytes(b"")
    assert list(list_images([tree])) == sorted(tree.glob("[CM]*/[!.]*.jpg"))


def test_a_folder_too_large_for_memory_is_listed_in_the_same_order(tree, monkeypatch):
    (tree / "Maize" / "Ä.jpg").write_bytes(b"")
    (tree / "Maize" / "\U0001f331.jpg").write_bytes(b"")
    (tree / "Maize" / "\uff21.jpg").write_bytes(b"")
    expected = list(list_images([tree]))
    monkeypatch.setattr(listing, "MOST_NAMES_IN_MEMORY", 2)
    assert list(list_images([tree])) == expected == sorted(expected)


def test_a_file_is_listed_whatever_it_is_called(tmp_path):
    (tmp_path / ".a").write_bytes(b"")
    (tmp_path / ".b").write_bytes(b"")
    assert list(list_images([tmp_path / ".a", str(tmp_path / ".b")])) == [tmp_path / ".a", tmp_path / ".b"]


def test_what_is_given_twice_is_listed_once(tmp_path):
    inner = tmp_path / "a" / "inner"
    inner.mkdir(parents=True)
    images = [inner / "2.png", tmp_path / "a" / "3.png"]
    for image in images:
        image.write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for again in (tmp_path / "a", tmp_path / "b" / ".." / "a", tmp_path / "link", inner, images[0]):
        assert list(list_images([tmp_path / "a", again])) == sorted(images)
    assert list(list_images([inner, tmp_path / "a"])) == sorted(images)


def test_a_folder_within_another_one_under_a_hidden_name_is_listed(tmp_path):
    (tmp_path / "a" / ".hidden").mkdir(parents=True)
    (tmp_path / "a" / ".hidden" / "1.png").write_bytes(b"")
    assert list(list_images([tmp_path / "a", tmp_path / "a" / ".hidden"])) == [tmp_path / "a" / ".hidden" / "1.png"]


def test_a_link_to_an_image_is_an_image_of_its_own(tmp_path):
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "2.png").symlink_to(tmp_path / "1.png")
    assert len(list(list_images([tmp_path / "1.png", tmp_path / "2.png"]))) == 2


def test_a_link_to_a_folder_above_is_not_followed(tree):
    (tree / "Maize" / "up").symlink_to(tree)
    assert len(list(list_images([tree]))) == 9


def test_a_link_to_a_folder_beside_is_followed(tree, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "all").symlink_to(tree)
    assert len(list(list_images([tmp_path / "links"]))) == 9


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected an image or a folder at .*nowhere, found nothing there"):
        list(list_images([tmp_path / "nowhere"]))


NOT_UTF8 = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")


@NOT_UTF8
def test_names_that_are_not_utf8_are_listed_in_byte_order(tree, monkeypatch):
    for name in (b"\xff.jpg", b"\xe4.jpg", "ä.jpg".encode()):
        shutil.copyfile(next((tree / "Maize").iterdir()), os.fsencode(tree / "Maize") + b"/" + name)
    found = list(list_images([tree]))
    assert len(found) == 12 and found == sorted(found, key=os.fsencode)
    monkeypatch.setattr(listing, "MOST_NAMES_IN_MEMORY", 2)
    assert list(list_images([tree])) == found


def test_what_is_left_out_is_counted_once_with_the_reason(tree, caplog, monkeypatch):
    monkeypatch.setattr(listing, "is_image", lambda name: name.endswith(".jpg"))  # as without pillow-heif
    for name in ("a.HEIC", "b.heic", "c.CR2", "d.txt", "e", ".hidden", "deeper/f.txt"):
        (tree / "Maize" / name).parent.mkdir(exist_ok=True)
        (tree / "Maize" / name).write_bytes(b"")
    for _ in range(2):
        assert len(list(list_images([tree]))) == 9
    (message,) = caplog.messages
    assert message.startswith(f"left out in {tree}: 2 .heic (reading HEIC needs pillow-heif: install it with pip")
    others = "2 .txt, 1 without a suffix (not an image by its suffix)"
    assert message.endswith(f"; 1 .cr2 (convert them to JPEG or PNG); {others}")
    (tree / "Maize" / "g.csv").write_bytes(b"")
    assert len(list(list_images([tree]))) == 9
    assert caplog.messages[1:] == [f"left out in {tree}: 1 .csv (not an image by its suffix)"]
