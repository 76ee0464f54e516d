import argparse
import io
import os
import pickle
import random
import tarfile
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from published_checkpoints import GOLDEN, saved, training_checkpoint
from safetensors.torch import save

from seedling_hf.commands import run
from seedling_hf.commands.convert_checkpoint import main
from seedling_hf.errors import InputError
from seedling_hf.export.checkpoint_files import Unread, read_checkpoint
from seedling_hf.export.conversion import convert_checkpoint


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return read_checkpoint(GOLDEN / "three_stages.pth").state_dict


# What is read


@pytest.mark.parametrize("zipped", [True, False])
def test_old_and_new_files_of_torch_are_read(zipped, weights, tmp_path):
    path = saved({"model": weights}, tmp_path, _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(path).state_dict
    assert found.keys() == weights.keys()
    assert [name for name in weights if not torch.equal(found[name], weights[name])] == []


def test_the_ema_weights_are_read_on_request(weights, tmp_path):
    ema = {name: tensor + 1 for name, tensor in weights.items()}
    path = saved({"model": weights, "model_ema": ema}, tmp_path)
    assert torch.equal(read_checkpoint(path).state_dict["head.bias"], weights["head.bias"])
    assert torch.equal(read_checkpoint(path, "model_ema").state_dict["head.bias"], ema["head.bias"])


def assert_numbers_of_numpy_are_unread(path: Path, weights: dict[str, torch.Tensor]) -> None:
    checkpoint = read_checkpoint(path)
    assert checkpoint.state_dict.keys() == weights.keys()
    assert checkpoint.arguments["input_size"] == 64 and checkpoint.arguments["drop_path"] == 0.25
    assert type(checkpoint.arguments["output_dir"]) is Unread


@pytest.mark.parametrize("zipped", [True, False])
def test_a_training_checkpoint_with_numbers_of_numpy_is_read(zipped, weights, tmp_path):
    content = training_checkpoint(weights) | {"best": np.float32(83.5), "seen": np.arange(3), "done": np.bool_(True)}
    assert_numbers_of_numpy_are_unread(saved(content, tmp_path, _use_new_zipfile_serialization=zipped), weights)


def test_numbers_of_numpy_1_are_read(weights, tmp_path):
    path = saved(training_checkpoint(weights), tmp_path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"cnumpy._core.multiarray\nscalar\n" in content
    path.write_bytes(content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert_numbers_of_numpy_are_unread(path, weights)


def test_nothing_of_numpy_runs(weights, tmp_path):
    """A dtype of 8 GB would be allocated by NumPy itself."""
    path = tmp_path / "checkpoint.pth"
    dtype = b"cnumpy\ndtype\n(X\x0b\x00\x00\x00V8000000000K\x00K\x01tR"
    scalar = b"cnumpy.core.multiarray\nscalar\n" + dtype + b"\x85R"
    with ZipFile(saved({"model": weights, "args": argparse.Namespace(best=3)}, tmp_path)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in files if name.endswith("data.pkl"))
    assert files[name].count(b"K\x03") >= 1
    where = files[name].rindex(b"K\x03")
    files[name] = files[name][:where] + scalar + files[name][where + 2 :]
    with ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    assert type(read_checkpoint(path).arguments["best"]) is Unread


# What is refused


def test_a_missing_part_is_refused(weights, tmp_path):
    with pytest.raises(InputError, match=r"expected model_ema in .*, found model"):
        read_checkpoint(saved({"model": weights}, tmp_path), "model_ema")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"model": {}}, [torch.zeros(3)], {"model": {"a": 1}}])
def test_a_file_without_a_state_dict_is_refused(content, tmp_path):
    with pytest.raises(InputError, match="expected a state dict"):
        read_checkpoint(saved(content, tmp_path))


def test_garbage_in_a_checkpoint_is_refused_or_read_as_numbers(tmp_path):
    whole = (GOLDEN / "three_stages.pth").read_bytes()
    generator = random.Random(0)
    path = tmp_path / "checkpoint.pth"
    refused = 0
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(10):  # the directory of the archive and its pickle are at both ends
            where = generator.choice([generator.randrange(30_000), len(whole) - 1 - generator.randrange(30_000)])
            content[where] = generator.randrange(256)
        path.write_bytes(content)
        try:
            read_checkpoint(path)
        except InputError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("name", ["nowhere.pth", "."])
def test_a_path_that_is_not_a_file_is_refused(name, tmp_path):
    with pytest.raises(InputError, match="expected a checkpoint at"):
        read_checkpoint(tmp_path / name)


class Malicious:
    """Makes a folder when it is unpickled without care."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["model", "args", "inside args", "inside an array"])
def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(place, zipped, weights, tmp_path):
    trap = Malicious(tmp_path / "trap")
    content = {
        "model": {"model": trap},
        "args": {"model": weights, "args": trap},
        "inside args": {"model": weights, "args": argparse.Namespace(drop_path=trap)},
        "inside an array": {"model": weights, "best": np.array([trap], dtype=object)},
    }[place]
    path = saved(content, tmp_path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"found the object \w+\.mkdir; nothing was executed"):
        convert_checkpoint(path, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_a_bare_malicious_pickle_is_refused_and_nothing_of_it_runs(tmp_path):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "trap"), protocol=2))
    with pytest.raises(InputError, match="nothing was executed"):
        read_checkpoint(path)
    assert not (tmp_path / "trap").exists()


def test_weights_without_content_are_refused(weights, tmp_path):
    large = {k: v[:1].expand(50_000, *v.shape[1:]) if v.ndim == 4 else v for k, v in weights.items()}
    with pytest.raises(InputError, match=r"expected the content of all weights in .* bytes for weights of"):
        read_checkpoint(saved(large, tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: dict(enumerate(w.values())), "expected a state dict in"),
        (lambda w: {name: tensor.int() for name, tensor in w.items()}, r"found \S+ in torch.int32"),
        (lambda w: {**w, "norm.weight": w["norm.weight"] * float("nan")}, "found NaN in norm.weight"),
    ],
)
def test_what_is_no_weights_is_refused(weights, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read_checkpoint(saved(change(weights), tmp_path))


# What came in place of a checkpoint


def bytes_of(write, *arguments) -> bytes:
    file = io.BytesIO()
    write(file, *arguments)
    return file.getvalue()


def zipped(file: io.BytesIO, *names: str) -> None:
    with ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")


def in_a_tar(file: io.BytesIO) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.add(GOLDEN / "three_stages.json", "31B.pth")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa\n"
DRIVE = b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head></html>"
ARRAYS = {"state_dict": {"stem.0.conv.weight": np.zeros((2, 3), np.float32)}}
HERE = "expected a checkpoint at checkpoint.pth, found "
TORCH = "expected a checkpoint of torch.save at checkpoint.pth, found "
PICKLE = "; nothing was executed: get the PyTorch file (.pth)"
UNPACK = "; unpack it, and convert the .pth file in it"
OTHERS = {
    "nothing": (b"", HERE + "an empty file; copy or download the file again"),
    "a pointer of Git LFS": (LFS, HERE + "a pointer of Git LFS in its place; run git lfs pull in that repository"),
    "a web page": (DRIVE, HERE + "a web page (HTML) in its place; download the file itself"),
    "text": (
        b"Invalid username or password, or a repository that is private\n",
        TORCH + 'a text file ("Invalid username or password, or a repos…"); download the file itself',
    ),
    "MegEngine's arrays": (
        pickle.dumps(ARRAYS),
        TORCH
        + "a pickle of NumPy arrays, as MegEngine saves weights; nothing was executed: get the PyTorch file (.pth)",
    ),
    "arrays in protocol 2": (
        pickle.dumps(ARRAYS, protocol=2),
        TORCH
        + "a pickle of NumPy arrays, as MegEngine saves weights; nothing was executed: get the PyTorch file (.pth)",
    ),
    "MegEngine's tensors": (
        b"\x80\x02}X\x01\x00\x00\x00acmegengine.tensor\nTensor\n)Rs.",
        TORCH + "a pickle of MegEngine" + PICKLE,
    ),
    "a pickle of numbers": (
        pickle.dumps({"epoch": 3}),
        TORCH + "a pickle of plain values" + PICKLE,
    ),
    "a pickle of something else": (
        pickle.dumps(Path("x")),
        TORCH + "a pickle of pathlib.PosixPath" + PICKLE,
    ),
    "Keras": (
        b"\x89HDF\r\n\x1a\n" + bytes(600),
        TORCH + "an HDF5 file, as Keras saves weights; convert the PyTorch file (.pth)",
    ),
    "safetensors": (
        save({"stem.0.conv.weight": torch.zeros(3)}),
        TORCH + "a safetensors file; convert the .pth file, or load the folder of this one with from_pretrained",
    ),
    "NumPy": (bytes_of(np.save, np.zeros(3)), TORCH + "an array of NumPy; convert the PyTorch file (.pth)"),
    "npz": (bytes_of(np.savez, np.zeros(3)), TORCH + "arrays of NumPy (.npz); convert the PyTorch file (.pth)"),
    "a zip of a checkpoint": (
        bytes_of(zipped, "weights/", "weights/31B.pth"),
        TORCH + "a zip archive of weights/31B.pth" + UNPACK,
    ),
    "a zip of many files": (
        bytes_of(zipped, "a\n", "b", "c", "d"),
        TORCH + "a zip archive of a\\n, b, c, …" + UNPACK,
    ),
    "TorchScript": (
        bytes_of(zipped, "m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"),
        TORCH + "a TorchScript program; convert the file with its state dict",
    ),
    "gzip": (
        b"\x1f\x8b\x08" + bytes(600),
        TORCH + "a file compressed by gzip" + UNPACK,
    ),
    "tar": (bytes_of(in_a_tar), TORCH + "a tar archive" + UNPACK),
    "a download that broke off": (
        (GOLDEN / "three_stages.pth").read_bytes()[:100_000],
        TORCH + "the beginning of a zip archive; the download broke off: download it again",
    ),
    "an old file that broke off": (
        bytes_of(lambda file: torch.save({"a": torch.zeros(999)}, file, _use_new_zipfile_serialization=False))[:900],
        "expected a checkpoint of torch.save at checkpoint.pth, found another or a damaged file; download it again",
    ),
    "noise": (
        bytes(range(255, 100, -1)) * 9,
        "expected a checkpoint of torch.save at checkpoint.pth, found another or a damaged file; download it again",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_came_in_place_of_a_checkpoint_is_named_in_one_sentence(kind, tmp_path, monkeypatch, capsys):
    content, sentence = OTHERS[kind]
    monkeypatch.chdir(tmp_path)
    Path("checkpoint.pth").write_bytes(content)
    assert run(main, ["--checkpoint_path", "checkpoint.pth", "--output_dir", "model"]) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pth"]
