"""Damage that is done to a file: what disks, downloads and copies that broke off leave behind."""

import os
from pathlib import Path


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def cut_by_one(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def flip_at(share: float, file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[int(share * (len(content) - 1))] ^= 0xFF
    file.write_bytes(content)


def put_zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def put_html(file: Path) -> None:
    file.write_text("<html>Sign in to the network of the hotel</html>")


def append(file: Path) -> None:
    with open(file, "ab") as stream:
        stream.write(b"more")
