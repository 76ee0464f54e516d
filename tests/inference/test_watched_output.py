"""A file that grows, and is moved, truncated, replaced or cut off in between."""

import errno
import os

import pytest

from seedling_hf.errors import InputError
from seedling_hf.inference.watched_output import WatchedOutput

HEADING = b"file,class\n"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.csv"


def open_output(path, heading=HEADING) -> WatchedOutput:
    return WatchedOutput(path, heading, ["inbox"])


def resumed(path, length=0, inode=None, entered=(), heading=HEADING) -> WatchedOutput:
    output = open_output(path, heading)
    output.resume(length, inode, lambda file: file in entered)
    return output


def row(number: int) -> bytes:
    return b"inbox/%d.jpg,Maize\n" % number


def test_rows_are_appended_below_one_heading(path):
    with resumed(path) as output:
        output.append(row(1))
        output.append(row(2))
    assert path.read_bytes() == HEADING + row(1) + row(2)
    assert (output.length, output.inode) == (path.stat().st_size, str(path.stat().st_ino))


def test_a_moved_file_is_followed_by_a_new_one_with_its_heading(path, capsys):
    with resumed(path) as output:
        output.append(row(1))
        path.rename(path.with_suffix(".1"))
        output.append(row(2))
        output.append(row(3))
    assert path.with_suffix(".1").read_bytes() == HEADING + row(1)
    assert path.read_bytes() == HEADING + row(2) + row(3)
    assert capsys.readouterr().err.count("was moved, truncated or replaced") == 1


def test_a_file_that_was_moved_while_nobody_watched_is_followed_by_a_new_one(path):
    with resumed(path) as output:
        output.append(row(1))
    path.rename(path.with_suffix(".1"))
    with resumed(path, output.length, output.inode, {"inbox/1.jpg"}) as output:
        output.append(row(2))
    assert path.read_bytes() == HEADING + row(2)


@pytest.mark.parametrize("size", [0, 4, 11, 20, 30])
def test_a_truncated_file_is_appended_to_and_never_padded(path, size):
    with resumed(path) as output:
        output.append(row(1) + row(2))
        os.truncate(path, size)
        output.append(row(3))
    left = (HEADING + row(1) + row(2))[:size]
    assert b"\0" not in path.read_bytes()
    assert path.read_bytes().startswith(left) and path.read_bytes().endswith(b"\n" + row(3))
    assert path.read_bytes().count(HEADING) == 1


def test_what_another_program_puts_in_its_place_stays_and_a_heading_follows(path):
    with resumed(path) as output:
        output.append(row(1))
        path.unlink()
        path.write_bytes(b"notes of mine")
        output.append(row(2))
    assert path.read_bytes() == b"notes of mine\n" + HEADING + row(2)


def test_a_copy_of_the_file_in_its_place_is_appended_to(path):
    with resumed(path) as output:
        output.append(row(1))
        content = path.read_bytes()
        path.rename(path.with_suffix(".1"))
        path.write_bytes(content)
        output.append(row(2))
    assert path.read_bytes() == HEADING + row(1) + row(2)


@pytest.mark.parametrize("cut", range(1, 2 * len(row(2))))
def test_rows_that_a_killed_watch_has_not_entered_are_cut(path, cut):
    with resumed(path) as output:
        output.append(row(1))
        length = output.length
    with open(path, "ab") as stream:
        stream.write((row(2) + row(3))[:cut])
    resumed(path, length, output.inode, {"inbox/1.jpg"})
    assert path.read_bytes() == HEADING + row(1)


@pytest.mark.parametrize("cut", range(len(HEADING) + 1))
def test_a_heading_that_a_killed_watch_has_begun_is_completed(path, cut):
    path.write_bytes(HEADING[:cut])
    resumed(path)
    assert path.read_bytes() == HEADING


@pytest.mark.parametrize("added", [b"# checked by hand\n", b"remark", row(1), row(2) + b"remark\n"])
def test_what_was_added_by_others_is_not_cut(path, added):
    with resumed(path) as output:
        output.append(row(1))
        length = output.length
    with open(path, "ab") as stream:
        stream.write(added)
    with resumed(path, length, output.inode, {"inbox/1.jpg"}) as output:
        output.append(row(3))
    assert path.read_bytes() == HEADING + row(1) + added.removesuffix(b"\n") + b"\n" + row(3)


def test_json_lines_that_were_not_entered_are_cut(path):
    line = b'{"file": "inbox/1.jpg", "class": "Maize"}\n'
    with resumed(path, heading=b"") as output:
        output.append(line)
        length = output.length
    with open(path, "ab") as stream:
        stream.write(line.replace(b"1", b"2") + line[:15])
    resumed(path, length, output.inode, {"inbox/1.jpg"}, b"")
    assert path.read_bytes() == line


def test_zeros_after_a_power_cut_are_cut(path):
    with resumed(path) as output:
        output.append(row(1))
    with open(path, "ab") as stream:
        stream.write(row(2) + bytes(100))
    resumed(path, output.length, output.inode, {"inbox/1.jpg"})
    assert path.read_bytes() == HEADING + row(1)


def test_a_folder_in_its_place_is_a_sentence(path):
    path.mkdir()
    with pytest.raises(InputError, match="expected a file at"):
        resumed(path)


def test_rows_that_do_not_fit_on_the_disk_leave_no_half_row(path, monkeypatch):
    with resumed(path) as output:
        output.append(row(1))
        write = os.write

        def full(descriptor, data):
            if len(data) < 10:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, data[:10])

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            output.append(row(2))
    assert path.read_bytes() == HEADING + row(1)
