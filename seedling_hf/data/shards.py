"""The files that a dataset lies in: whether a set of them is whole, and which of them is damaged, and where."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import IterableDataset
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.utils import parse_hf_uri
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from pyarrow import parquet

from seedling_hf.data.formats import describe_beginning
from seedling_hf.data.images import a_few
from seedling_hf.errors import InputError, first_line
from seedling_hf.network import explain_network

REMOTE = "hf://"
NUMBERED = re.compile(r"(?P<name>.*?)-(?P<number>\d{5,})-of-(?P<total>\d{5,})(?P<end>.*)")
UNFINISHED = (".part", ".partial", ".tmp", ".incomplete", ".crdownload", ".download")  # of a browser, or a copy
READ_ERRORS = (OSError, ValueError, pa.ArrowException)
ROWS_AT_ONCE = 1024


def check_sets(files: Iterable[str]) -> None:
    """Compares the shards that there are with those that their names, as `train-00000-of-00003.parquet`, speak of.

    Raises:
        InputError: for shards that are missing or there twice.
    """
    sets: dict[tuple[str, str], list[tuple[int, int, str]]] = defaultdict(list)
    for file in files:
        folder, name = os.path.split(file)
        if not name.endswith(UNFINISHED) and (match := NUMBERED.fullmatch(name)):
            sets[folder, match["name"]].append((int(match["total"]), int(match["number"]), name))
    for (folder, name), shards in sets.items():
        _check_set(folder, name, sorted(shards))


def _check_set(folder: str, name: str, shards: list[tuple[int, int, str]]) -> None:
    total, names = shards[0][0], [file for *_, file in shards]
    numbers = [number for _, number, _ in shards]
    remote = folder.startswith(REMOTE)
    if shards[-1][0] != total or len(set(numbers)) < len(numbers):
        firsts = {t: file for t, _, file in reversed(shards)}
        twice = [file for number, file in zip(numbers, names, strict=True) if numbers.count(number) > 1]
        names = twice if len(firsts) == 1 else sorted(firsts.values())
        advice = "choose another --dataset_revision, or tell its author" if remote else "remove those of the older set"
        raise InputError(f"expected each shard of {name} once in {folder}, found {a_few(names)}; {advice}")
    first = int(numbers[-1] == total)  # some writers count from 1
    missing = sorted(set(range(first, first + total)) - set(numbers))
    if missing:
        end = os.path.splitext(names[0])[1]
        lacking = a_few([f"{name}-{number:05d}-of-{total:05d}{end}" for number in missing])
        advice = "choose another --dataset_revision, or tell its author" if remote else "copy or download them too"
        raise InputError(
            f"expected {total} shards of {name} in {folder}, found {len(numbers)}, without {lacking}; {advice}"
        )


def check_downloads(files: Iterable[str]) -> None:
    """Compares files of the Hub, as far as they were downloaded before, with the checksums that they are kept by.

    Raises:
        InputError: for one that has been damaged since.
    """
    for file in files:
        if (path := _find_download(file)) is not None and not _is_as_on_hub(path):
            raise InputError(
                f"expected the download of {file} as it was, found it damaged; delete {path.resolve()} and run the "
                "command again, which downloads it anew"
            )


def check_shards(files: Iterable[str], *, in_full: bool) -> None:
    """Reads the Parquet files among those on this machine: their ends, or `in_full` all of them.

    Raises:
        InputError: for one that is damaged.
    """
    for file in files:
        path = _find_download(file) if file.startswith(REMOTE) else Path(file)
        if path is None or path.suffix != ".parquet":
            continue
        try:
            with parquet.ParquetFile(path) as shard:
                for _ in shard.iter_batches(ROWS_AT_ONCE) if in_full else ():
                    pass
        except READ_ERRORS as error:
            raise InputError(_describe(file, path, error)) from error


def _describe(file: str, path: Path, error: Exception) -> str:
    reason = first_line(error)
    if file.startswith(REMOTE):
        return (
            f"expected a whole Parquet file at {file}, found it damaged on the Hub too ({reason}); choose another "
            "--dataset_revision, or tell its author"
        )
    try:
        with open(path, "rb") as stream:
            found = describe_beginning(stream.read(512))
    except OSError:
        found = None
    if found is None or ";" not in found:
        return (
            f"expected a whole Parquet file at {file}, found it damaged ({found or reason}); write or download it again"
        )
    return f"expected a Parquet file at {file}, found {found}"


def _find_download(file: str) -> Path | None:
    """Where a file of the Hub is kept; None for one that is not, or not yet."""
    if not file.startswith(REMOTE):
        return None
    uri = parse_hf_uri(file)
    found = try_to_load_from_cache(uri.id, uri.path_in_repo, repo_type=uri.type, revision=uri.revision)
    return Path(found) if isinstance(found, str) else None


def _is_as_on_hub(path: Path) -> bool:
    """Whether a download has the checksum that it is named by; without links in the cache it has another name."""
    kept = path.resolve()
    with open(kept, "rb") as stream:
        if re.fullmatch(r"[0-9a-f]{64}", kept.name):
            return sha_fileobj(stream).hex() == kept.name
        return not re.fullmatch(r"[0-9a-f]{40}", kept.name) or git_hash(stream.read()) == kept.name


def name_shards(stream: IterableDataset, files: Iterable[str]) -> None:
    """Tells a stream the names of its shards, for `read_shard`."""
    stream.info.download_checksums = {file: {} for file in files}


def read_shard(stream: IterableDataset, number: int, advice: str) -> Iterator[dict[str, Any]]:
    """The rows of a shard.

    Raises:
        InputError: if it is damaged or cannot be reached any more; the sentence ends with `advice`.
    """
    rows = iter(stream.shard(stream.num_shards, number))
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            explained = explain_network(error)
            if explained is None and not isinstance(error, READ_ERRORS):
                raise
            reason = explained[0] if explained else first_line(error)
            names = list(stream.info.download_checksums or ())
            where = names[number] if len(names) == stream.num_shards else f"shard {number}"
            raise InputError(f"expected to read the images of {where}, found: {reason}; {advice}") from error
        yield row
