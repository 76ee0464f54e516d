"""Disks that fill and folders that cannot be written: one sentence with the path, exit code 74, nothing left behind."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from faults import COMMANDS, Outcome, command, contents
from sample import SAMPLE
from small_models import write_model

# How much room a disk has, in kB: no command's output fits into the smallest, and parts of it into the others.
SIZES = [8, 64, 256, 1024]


@pytest.fixture(scope="module")
def other_model(sample_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    write_model(folder, sample_dir, images=5)
    return folder


@pytest.fixture
def work(images, model_dir, other_model, tmp_path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    for name, target in {"images": images, "model": model_dir, "other": other_model}.items():
        (folder / name).symlink_to(target)
    return folder


@pytest.fixture
def disk(work):
    """Mounts a small disk at `out`."""
    out = work / "out"
    out.mkdir()

    def mount(options: str) -> None:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", out], capture_output=True, text=True)
        if mounted.returncode:
            pytest.skip(f"a disk of its own needs the right to mount: {mounted.stderr.strip()}")

    yield mount
    subprocess.run(["umount", "-l", out], capture_output=True)


def assert_refused(outcome: Outcome, codes: set[int]) -> None:
    everything = f"exit code {outcome.code} after {outcome.seconds:.0f} s\n{outcome.stdout}\n{outcome.stderr}"
    assert outcome.code in codes, everything
    assert "Traceback" not in outcome.stderr + outcome.stdout, everything
    if outcome.code:
        sentences = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
        assert len(sentences) == 1, everything
        assert "out" in sentences[0] and "expected" in sentences[0] and "found" in sentences[0], everything


def leftovers(folder: Path) -> list[str]:
    """Temporary files; a killed command's journal is none, since it goes on from there."""
    return [name for name in contents(folder) if Path(name).name.startswith(".") and ".partial" not in name]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size}k")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_fills(name, size, work, disk):
    disk(f"size={size}k")
    before = contents(work / "images"), contents(work / "model")
    outcome = command(COMMANDS[name].split(), work)
    assert_refused(outcome, {0, 74})
    assert outcome.code == 74 or size > SIZES[0] or name == "describe_dataset", outcome  # which writes 2 kB
    assert not [name for name in leftovers(work / "out") if "lock" not in name]
    assert (contents(work / "images"), contents(work / "model")) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_is_read_only(name, work, disk):
    disk("size=1m,ro")
    assert_refused(command(COMMANDS[name].split(), work), {2, 74})
    assert not contents(work / "out")


def fail_rename(number: int, kind: int) -> None:
    """The n-th file or folder that is finished in `out` is refused."""
    count = [0]

    def failing(function):
        def wrapper(source, target, **options):
            if "out" in Path(os.fspath(target)).absolute().parts:
                count[0] += 1
                if count[0] == number:
                    raise OSError(kind, os.strerror(kind), os.fspath(source), None, os.fspath(target))
            return function(source, target, **options)

        return wrapper

    os.replace, os.rename = failing(os.replace), failing(os.rename)


class FailRename:
    """`fail_rename` that can be sent to another process."""

    def __init__(self, number: int, kind: int) -> None:
        self.number, self.kind = number, kind

    def __call__(self) -> None:
        fail_rename(self.number, self.kind)


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("number", range(1, 13))
@pytest.mark.parametrize("name", ["train", "predict", "evaluate", "export, half"])
def test_a_write_that_is_refused(name, number, kind, work):
    (work / "out").mkdir()
    outcome = command(COMMANDS[name].split(), work, before=FailRename(number, kind))
    assert_refused(outcome, {0, 74})
    assert not [name for name in leftovers(work / "out") if "lock" not in name]


def test_training_keeps_the_best_model_until_there_is_room(work):
    (work / "out").mkdir()
    # The first files that are finished are arguments.yaml and split.csv; those of the best model follow.
    flags = [*COMMANDS["train"].split(), "--max_steps", "4"]
    whole = command(flags, work)
    expected = contents(work / "out")
    assert whole.code == 0, whole
    for number in range(3, 12):
        folder = work.with_name(f"work-{number}")
        folder.mkdir()
        for name in ("images", "model"):
            (folder / name).symlink_to((work / name).resolve())
        outcome = command(flags, folder, before=FailRename(number, errno.ENOSPC))
        if outcome.code == 0 and "tries again" in outcome.stderr:
            found = contents(folder / "out")
            assert found["model.safetensors"] == expected["model.safetensors"]
            assert found["config.json"] == expected["config.json"]
            return
    pytest.fail("no write of the best model was refused")


@pytest.mark.parametrize("name", ["predict", "embed", "describe_dataset", "evaluate"])
def test_a_name_that_is_too_long(name, work):
    long = "n" * 300
    words = COMMANDS[name].replace("out/answers.csv", f"out/{long}.csv").replace("out/features", f"out/{long}")
    words = words.replace("out/statistics", f"out/{long}").replace("--output_dir out", f"--output_dir out/{long}")
    assert_refused(command(words.split(), work), {2, 74})


@pytest.mark.parametrize("length", [245, 250, 255])
def test_a_name_as_long_as_the_file_system_allows(length, work):
    name = "n" * (length - 4) + ".csv"
    words = COMMANDS["predict"].replace("answers.csv", name).split()
    outcome = command(words, work)
    assert_refused(outcome, {0})
    assert list(contents(work / "out")) == [name]


@pytest.mark.parametrize("name", ["saliency", "predict, tiles", "embed"])
def test_an_image_with_the_longest_name_the_file_system_allows(name, work):
    (work / "images").unlink()
    folder = work / "images"
    folder.mkdir()
    source = next(iter(sorted(Path(SAMPLE, "Maize").iterdir())))
    shutil.copyfile(source, folder / ("i" * (255 - len(source.suffix)) + source.suffix))
    outcome = command(COMMANDS[name].split(), work)
    assert_refused(outcome, {0})
