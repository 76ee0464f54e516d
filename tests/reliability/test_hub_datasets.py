"""Datasets whose shards are damaged, missing, or cut off while they are downloaded or streamed."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
from damage import append, cut, cut_by_one, empty, flip_at, put_html, put_zeros
from hub_client import COMMAND, HEAVY, TOKENS, Client, free_port
from local_hub import Fault, LocalHub

NUM_SHARDS = 6  # an epoch of 36 images takes 9 steps, and reads them all
TRAIN = [
    "--variant", "tiny", "--image_size", 32, "--max_steps", 9, "--eval_steps", 3, "--logging_steps", 1,
    "--per_device_train_batch_size", 4, "--output_dir", "run",
]  # fmt: skip
WHOLE = "alice/photographs"
# The libraries wait half a minute between their tries, and up to twenty times.
SETUP = """
import os
os.chdir({folder!r})
import datasets, huggingface_hub
from huggingface_hub.utils import _http
huggingface_hub.constants.HF_HUB_CACHE = {cache!r} + "/hub"
datasets.config.HF_DATASETS_CACHE = __import__("pathlib").Path({cache!r}, "datasets")
datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 2
datasets.config.STREAMING_READ_RETRY_INTERVAL = datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 0.1
datasets.config.STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL = 0.1
datasets.config.STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL = 0.1
for retry in (_http.http_backoff, _http.http_stream_backoff):
    getattr(retry, "__wrapped__", retry).__kwdefaults__.update(base_wait_time=0.01, max_wait_time=0.05)
huggingface_hub.file_download.time.sleep = lambda seconds, sleep=__import__("time").sleep: sleep(min(seconds, 0.05))
"""


def put_pointer(file: Path) -> None:
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")


# That a Parquet file without checksums shows by itself.
VISIBLE: dict[str, Callable[[Path], None]] = {
    "cut short": cut, "cut by a byte": cut_by_one, "emptied": empty, "a byte at the end": partial(flip_at, 1.0),
    "a byte of the footer": partial(flip_at, 0.9999), "zeros": put_zeros, "a page of HTML": put_html,
    "a pointer of Git LFS": put_pointer,
}  # fmt: skip
DAMAGE = VISIBLE | {
    "a byte at the start": partial(flip_at, 0.0), "a byte of a pixel": partial(flip_at, 0.5), "longer": append,
}  # fmt: skip


@pytest.fixture(scope="module")
def shards(images, tmp_path_factory) -> Path:
    """A dataset of images in Parquet shards."""
    folder = tmp_path_factory.mktemp("shards")
    files = sorted(file for file in images.rglob("*") if file.is_file())
    files = files[::3] + files[1::3] + files[2::3]  # each shard has all classes
    names = sorted({file.parent.name for file in files})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    columns = {
        "image": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "label": [names.index(file.parent.name) for file in files],
    }
    table = datasets.Dataset.from_dict(columns, features=features)
    for number in range(NUM_SHARDS):
        part = table.select(range(36)).shard(NUM_SHARDS, number)
        part.to_parquet(folder / f"train-{number:05d}-of-{NUM_SHARDS:05d}.parquet")
    table.select(range(36, 48)).to_parquet(folder / "validation-00000-of-00001.parquet")
    return folder


def shard(number: int, total: int = NUM_SHARDS) -> str:
    return f"train-{number:05d}-of-{total:05d}.parquet"


def slug(words: str) -> str:
    return "alice/" + words.replace(" ", "-")


def put_on_hub(hub: LocalHub, repo_id: str, folder: Path) -> None:
    """Files as they are after a push without Xet: they come in one piece over HTTP."""
    repo = hub.store.create("datasets", repo_id, False, "alice")
    head = repo.find("main")
    tree = dict(repo.commit_data(head)["tree"])
    for file in folder.iterdir():
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        hub.store.lfs_path(digest).write_bytes(content)
        tree[f"data/{file.name}"] = hub.store.lfs_entry(digest, len(content))
    repo.meta["branches"]["main"] = repo.new_commit(tree, [head], "push", "", "alice")
    repo.save()


@pytest.fixture(scope="module")
def shared_hub(shards, tmp_path_factory) -> Iterator[LocalHub]:
    """A Hub with a whole dataset, with damaged ones, and with one that lacks a shard."""
    folder = tmp_path_factory.mktemp("hub")
    with LocalHub(folder / "hub", tokens=dict(TOKENS), port=free_port()) as hub:
        put_on_hub(hub, WHOLE, shards)
        for name, damage in {**VISIBLE, "lacking": Path.unlink}.items():
            copied = folder / name
            shutil.copytree(shards, copied)
            damage(copied / shard(1))
            put_on_hub(hub, slug(name), copied)
        yield hub


@pytest.fixture
def hub(shared_hub) -> Iterator[LocalHub]:
    yield shared_hub
    shared_hub.faults.clear()


class Machine:
    """Where commands run: a folder, and a cache of what the Hub has."""

    def __init__(self, hub: LocalHub, folder: Path) -> None:
        self.client, self.folder, self.cache = Client(hub, folder / "home"), folder / "work", folder / "cache"
        self.folder.mkdir(parents=True)

    def start(self, *words: object) -> Any:
        program = SETUP.format(folder=str(self.folder), cache=str(self.cache)) + COMMAND
        return self.client.start(program, *words, modules=HEAVY)

    def run(self, *words: object, timeout: float = 150) -> tuple[int, str]:
        result = self.start(*words).finish(timeout)
        return result.returncode, result.stdout

    def train(self, dataset: object = WHOLE, *words: object) -> tuple[int, str]:
        return self.run("train", "--dataset_name", dataset, *TRAIN, *words)

    def losses(self) -> list[dict[str, Any]]:
        lines = map(json.loads, (self.folder / "run" / "metrics.jsonl").read_text().splitlines())
        return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]

    def blobs(self) -> list[Path]:
        return sorted(self.cache.glob("hub/datasets--*/blobs/*"))

    def download(self, number: int) -> Path:
        """The link to a downloaded shard."""
        (path,) = self.cache.glob(f"hub/datasets--*/snapshots/*/data/{shard(number)}")
        return path


@pytest.fixture
def machine(hub, tmp_path) -> Machine:
    return Machine(hub, tmp_path)


def assert_well(result: tuple[int, str]) -> None:
    assert result[0] == 0 and "Traceback" not in result[1], result[1]


def sentence_of(result: tuple[int, str], *parts: str, code: int = 2) -> str:
    """The only sentence of a command that failed, without a traceback."""
    assert result[0] == code and "Traceback" not in result[1], result[1]
    (sentence,) = [line for line in result[1].splitlines() if line.startswith("error: ")]
    for part in parts:
        assert part in sentence, result[1]
    return sentence


@pytest.fixture(scope="module")
def downloaded(shared_hub, tmp_path_factory) -> Machine:
    """A machine that has trained on the downloaded dataset."""
    machine = Machine(shared_hub, tmp_path_factory.mktemp("downloaded"))
    assert_well(machine.train())
    return machine


@pytest.fixture(scope="module")
def streamed(shared_hub, tmp_path_factory) -> Machine:
    """A machine that has trained on the stream."""
    machine = Machine(shared_hub, tmp_path_factory.mktemp("streamed"))
    assert_well(machine.train(WHOLE, "--streaming"))
    return machine


# Downloads that are damaged afterwards


def copy_downloads(source: Machine, machine: Machine) -> None:
    """The downloads, and nothing that was made of them."""
    shutil.copytree(source.cache / "hub", machine.cache / "hub", symlinks=True)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_download_is_named_with_the_file_to_delete(downloaded, machine, damage):
    copy_downloads(downloaded, machine)
    kept = machine.download(1).resolve()
    DAMAGE[damage](kept)
    sentence = sentence_of(machine.train(), shard(1), f"delete {kept} ", "run the command again")
    assert not (machine.folder / "run" / "metrics.jsonl").exists()
    assert kept.exists(), "it is the user who deletes"
    if damage in ("a byte of a pixel", "a page of HTML"):
        Path(sentence.partition("; delete ")[2].partition(" and run")[0]).unlink()
        assert_well(machine.train())
        assert machine.losses() == downloaded.losses()


@pytest.mark.parametrize("which", ["its content", "its name", "all of its names"])
def test_a_download_that_was_removed_comes_again(downloaded, machine, which):
    copy_downloads(downloaded, machine)
    file = machine.download(1)
    if which == "its content":
        file.resolve().unlink()
    elif which == "its name":
        file.unlink()
    else:
        shutil.rmtree(file.parents[2])
    assert_well(machine.train())
    assert machine.losses() == downloaded.losses()


def test_a_dataset_that_was_read_before_needs_no_download(downloaded, machine):
    shutil.copytree(downloaded.cache, machine.cache, symlinks=True)
    for file in machine.blobs():
        file.unlink()
    machine.client.hub.log.clear()
    assert_well(machine.train())
    assert machine.losses() == downloaded.losses()
    assert not any("/cdn/" in path for _, path, _ in machine.client.hub.log)


# Shards that are damaged where they come from


@pytest.mark.parametrize("stream", [(), ("--streaming",)], ids=["downloaded", "streamed"])
@pytest.mark.parametrize("damage", VISIBLE)
def test_a_shard_that_is_damaged_on_the_hub_is_named(machine, damage, stream):
    sentence = sentence_of(machine.train(slug(damage), *stream), shard(1), "hf://datasets/alice/")
    assert "delete" not in sentence


@pytest.mark.parametrize("stream", [(), ("--streaming",)], ids=["read whole", "streamed"])
@pytest.mark.parametrize("damage", VISIBLE)
def test_a_damaged_shard_in_a_folder_is_named_with_what_to_do(machine, shards, damage, stream):
    shutil.copytree(shards, machine.folder / "data")
    DAMAGE[damage](machine.folder / "data" / shard(1))
    advice = "run git lfs pull" if damage == "a pointer of Git LFS" else "download it again"
    sentence_of(machine.train("data", *stream), str(machine.folder / "data" / shard(1)), advice)


# Shards that are missing


def renamed(folder: Path, first: int) -> None:
    """Counts the shards from `first`."""
    for number in reversed(range(NUM_SHARDS)):
        (folder / shard(number)).rename(folder / shard(number + first))


MISSING: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "the first": (lambda folder: (folder / shard(0)).unlink(), (shard(0),)),
    "one in the middle": (lambda folder: (folder / shard(3)).unlink(), (shard(3),)),
    "the last": (lambda folder: (folder / shard(5)).unlink(), (shard(5),)),
    "all but one": (lambda folder: [(folder / shard(i)).unlink() for i in range(1, 6)], (shard(1), shard(5))),
    "the first of those counted from 1": (
        lambda folder: (renamed(folder, 1), (folder / shard(1)).unlink()), (shard(1),),
    ),
    "of validation": (
        lambda folder: (folder / "validation-00000-of-00001.parquet").rename(
            folder / "validation-00000-of-00002.parquet"
        ),
        ("validation-00001-of-00002.parquet",),
    ),
    "of another set": (lambda folder: shutil.copy(folder / shard(0), folder / shard(0, 7)), (shard(0), shard(0, 7))),
    "twice": (
        lambda folder: shutil.copy(folder / shard(0), folder / shard(0).replace(".parquet", "-abcdef.parquet")),
        (shard(0), "-abcdef"),
    ),
    "only begun": (lambda folder: (folder / shard(3)).rename(folder / f"{shard(3)}.part"), (shard(3),)),
}  # fmt: skip


@pytest.mark.parametrize("stream", [(), ("--streaming",)], ids=["read whole", "streamed"])
@pytest.mark.parametrize("which", MISSING)
def test_shards_that_are_missing_are_named(machine, shards, which, stream):
    shutil.copytree(shards, machine.folder / "data")
    change, names = MISSING[which]
    change(machine.folder / "data")
    sentence_of(machine.train("data", *stream), "expected ", str(machine.folder / "data"), *names)
    assert not (machine.folder / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("stream", [(), ("--streaming",)], ids=["downloaded", "streamed"])
def test_shards_that_the_hub_lacks_are_named(machine, stream):
    words = (shard(1), "hf://datasets/alice/lacking", "--dataset_revision")
    sentence_of(machine.train("alice/lacking", *stream), *words)


@pytest.mark.parametrize("form", ["counted from 1", "with digests", "without numbers"])
def test_whole_sets_of_other_names_are_read(machine, shards, form):
    folder = machine.folder / "data"
    shutil.copytree(shards, folder)
    if form == "counted from 1":
        renamed(folder, 1)
    for number, file in enumerate(sorted(folder.glob("train*")) if form != "counted from 1" else []):
        digest = f"train-{number:05d}-of-{NUM_SHARDS:05d}-{number}a5cd.parquet"
        file.rename(folder / (digest if form == "with digests" else f"train{number}.parquet"))
    assert_well(machine.train("data"))


# A stream that breaks off

STREAM = "/cdn/"  # where the Hub keeps large files
BREAKS = {
    "an error of the server": {"status": 500},
    "a server that is not there": {"status": 503},
    "an answer that is cut": {"drop": "body", "at_bytes": 1000},
    "a connection that is reset": {"drop": "body-reset", "at_bytes": 1000},
    "a request that is dropped": {"drop": "request"},
    "an answer that is lost": {"drop": "response"},
    "too many requests": {"status": 429},
}
LATER = 5  # requests, for the columns, for validation and for the first two shards of training


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fault", BREAKS)
def test_a_stream_that_breaks_off_once_goes_on_with_the_same_images(machine, streamed, fault, workers):
    fault = Fault(path=STREAM, method="GET", after=LATER, times=1, **BREAKS[fault])
    machine.client.hub.faults.append(fault)
    assert_well(machine.train(WHOLE, "--streaming", "--dataloader_num_workers", workers))
    assert fault.fired == 1
    assert machine.losses() == streamed.losses()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fault", BREAKS)
def test_a_stream_that_stays_away_ends_with_a_sentence_and_resumes(machine, streamed, fault, workers):
    words = ["--streaming", "--dataloader_num_workers", workers]  # the state is saved when it breaks off
    machine.client.hub.faults.append(Fault(path=STREAM, method="GET", after=LATER, **BREAKS[fault]))
    sentence_of(machine.train(WHOLE, *words), "hf://datasets/alice/photographs@", "train-0000", "resume")
    done = machine.losses()
    assert done == streamed.losses()[: len(done)]
    assert not list(machine.folder.rglob("*.tmp"))
    assert any((machine.folder / "run" / "checkpoints").glob("step-*"))
    machine.client.hub.faults.clear()
    assert_well(machine.train(WHOLE, *words, "--resume_from_checkpoint", "latest"))
    assert machine.losses()[-1] == streamed.losses()[-1]


def test_a_token_that_expires_during_a_stream_is_named(machine, streamed):
    machine.client.hub.faults.append(Fault(path=STREAM, method="GET", after=LATER, status=401))
    sentence_of(machine.train(WHOLE, "--streaming", "--save_steps", 1), "401", "HF_TOKEN", "resume")


def test_a_repository_that_goes_during_a_stream_is_named(machine, streamed):
    gone = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
    machine.client.hub.faults.append(Fault(path=STREAM, method="GET", after=LATER, status=404, headers=gone))
    sentence_of(machine.train(WHOLE, "--streaming", "--save_steps", 1), "404", "does not exist", "resume")
