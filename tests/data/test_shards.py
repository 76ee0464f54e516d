"""Sets of shards are whole, and damaged files are named with where they lie."""

import hashlib
import os

import pytest
from huggingface_hub import constants

from seedling_hf.data.shards import check_downloads, check_sets, check_shards, read_shard
from seedling_hf.errors import InputError

COMMIT = "0123456789" * 4
FILE = f"hf://datasets/alice/photographs@{COMMIT}/data/train-00000-of-00001.parquet"


def names(*numbers: int, total: int, folder: str = "data", end: str = ".parquet") -> list[str]:
    return [f"{folder}/train-{number:05d}-of-{total:05d}{end}" for number in numbers]


@pytest.mark.parametrize(
    "files",
    [
        [],
        names(0, 1, 2, total=3),
        names(2, 0, 1, total=3),
        names(1, 2, 3, total=3),
        names(0, total=1) + names(0, 1, total=2, folder="other"),
        names(0, total=2, end="-a1b2.tar") + names(1, total=2, end="-c3d4.tar"),
        ["data/train.parquet", "data/cat-1-of-2.jpg"],
    ],
)
def test_whole_sets_are_accepted(files):
    check_sets(files)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (names(0, 2, total=3), r"expected 3 shards of train in data, found 2, without train-00001-of-00003\.parquet;"),
        (names(1, 2, total=4), r"without train-00000-of-00004\.parquet, train-00003-of-00004\.parquet; copy or"),
        (names(2, 3, total=3), r"without train-00001-of-00003\.parquet;"),
        (names(0, total=1) + names(0, 1, total=2), r"expected each shard of train once in data, found .*older set"),
        (names(0, 1, total=2) + names(0, total=2, end="-a1.parquet"), r"expected each shard of train once"),
        (names(0, total=2, folder="hf://datasets/a/b@main"), r"in hf://datasets/a/b@main, .*--dataset_revision"),
    ],
)
def test_missing_and_doubled_shards_are_named(files, message):
    with pytest.raises(InputError, match=message):
        check_sets(files)


@pytest.mark.parametrize("kind", ["sha256", "git"])
def test_a_download_that_is_not_what_its_name_says_is_to_be_deleted(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    check_downloads([FILE])  # nothing was downloaded
    folder = tmp_path / "datasets--alice--photographs"
    link = folder / "snapshots" / COMMIT / "data" / "train-00000-of-00001.parquet"
    digest = hashlib.sha256(b"content") if kind == "sha256" else hashlib.sha1(b"blob 7\0content")
    kept = folder / "blobs" / digest.hexdigest()
    link.parent.mkdir(parents=True)
    kept.parent.mkdir()
    kept.write_bytes(b"content")
    link.symlink_to(os.path.relpath(kept, link.parent))
    check_downloads([FILE])
    kept.write_bytes(b"contenT")
    with pytest.raises(InputError, match=f"found it damaged; delete {kept} and run the command again"):
        check_downloads([FILE])
    kept.write_bytes(b"content")  # no Parquet, but what the Hub has
    with pytest.raises(InputError, match=f"at {FILE}, found it damaged on the Hub too"):
        check_shards([FILE], in_full=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"\(an empty file\); write or download it again"),
        (b"PAR1", r"found it damaged \(.*\); write or download it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
    ],
)
def test_a_file_that_is_no_parquet_says_what_it_is(tmp_path, content, message):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(InputError, match=message):
        check_shards([str(tmp_path / "a.parquet")], in_full=False)


class Broken:
    """A stream of three shards, the second of which breaks after one row."""

    num_shards, info = 3, type("Info", (), {"download_checksums": {"a": {}, "b": {}, "c": {}}})

    def __init__(self, error: Exception) -> None:
        self.error = error

    def shard(self, count: int, number: int):
        yield {"row": number}
        if number == 1:
            raise self.error


def test_a_shard_that_breaks_off_is_named():
    stream = Broken(ConnectionError("Server Disconnected"))
    assert [row for number in (0, 2) for row in read_shard(stream, number, "resume")] == [{"row": 0}, {"row": 2}]
    rows = read_shard(stream, 1, "resume")
    assert next(rows) == {"row": 1}
    with pytest.raises(InputError, match=r"^expected to read the images of b, found: Server Disconnected; resume$"):
        next(rows)
    with pytest.raises(ZeroDivisionError):
        list(read_shard(Broken(ZeroDivisionError()), 1, "resume"))
