"""Reads published `.pth` files, and names what came in place of one; executes nothing that they contain."""

import argparse
import hashlib
import os
import pickle
import pickletools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor

from seedling_hf.errors import InputError
from seedling_hf.export.checkpoint_layouts import authors_layout
from seedling_hf.inference.model_files import check_file, check_finite

CHECKPOINT_KEYS = ("model", "model_ema", "state_dict")
MOST_INSTRUCTIONS = 1000  # of a pickle that is only to be named
# Any object of these in a checkpoint is replaced by an `Unread`: the optimizer's learning rates and the best scores are
# NumPy numbers, a palette is an array, the folder of a run is a path. Nothing of them is needed.
UNREAD = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
)
FIRST_BYTES = {
    b"\x89HDF": ("an HDF5 file, as Keras saves weights", "convert the PyTorch file (.pth)"),
    b"\x93NUMPY": ("an array of NumPy", "convert the PyTorch file (.pth)"),
    b"\x1f\x8b": ("a file compressed by gzip", "unpack it, and convert the .pth file in it"),
    b"BZh": ("a file compressed by bzip2", "unpack it, and convert the .pth file in it"),
    b"\xfd7zXZ": ("a file compressed by xz", "unpack it, and convert the .pth file in it"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it, and convert the .pth file in it"),
    b"Rar!": ("a RAR archive", "unpack it, and convert the .pth file in it"),
}


@dataclass(frozen=True)
class Checkpoint:
    """Weights with the authors' names, the arguments of their run, and the names that are no part of a RepLKNet."""

    state_dict: dict[str, Tensor]
    arguments: dict[str, Any]
    sha256: str
    left_out: list[str] = field(default_factory=list)


class Unread:
    """Takes what a pickle gives to an object of another library, and keeps nothing of it."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_checkpoint(path: str | os.PathLike, key: str | None = None) -> Checkpoint:
    """Reads a published `.pth` file without executing anything in it.

    Its state dict is bare or under one of `CHECKPOINT_KEYS`: under `key`, or by default under the first one present.
    The layouts are those of `authors_layout`.

    Raises:
        InputError: for any other file, which is named where it is a known kind, or objects other than tensors, plain
            values, a Namespace and what `UNREAD` lists.
    """
    path = Path(path)
    check_file(path, "a checkpoint")
    try:
        _refuse_other_files(path)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        with torch.serialization.safe_globals([argparse.Namespace, *((Unread, name) for name in UNREAD)]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"expected a checkpoint at {path}, found none ({error.strerror}); check the path") from error
    except Exception as error:  # torch.load raises many kinds of errors for broken files
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if culprit is None:
            raise InputError(
                f"expected a checkpoint of torch.save at {path}, found another or a damaged file; download it again"
            ) from error
        raise InputError(
            f"expected tensors, plain values and at most an argparse.Namespace in {path}, found the object "
            f"{culprit[1]}; nothing was executed: get the file from the authors, or save its state dict alone"
        ) from error
    content = content if isinstance(content, Mapping) else {}
    arguments = content.get("args")
    weights, left_out = authors_layout(_state_dict(content, key, path))
    return Checkpoint(
        state_dict=weights,
        arguments=vars(arguments) if isinstance(arguments, argparse.Namespace) else {},
        sha256=sha256,
        left_out=left_out,
    )


def _refuse_other_files(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(512)
    found = next((kind for magic, kind in FIRST_BYTES.items() if head.startswith(magic)), None)
    if head.startswith(b"PK\x03\x04"):
        found = _other_zip(path)
    elif head.startswith(b"\x80"):
        found = _other_pickle(path)
    elif head[257:262] == b"ustar":
        found = ("a tar archive", "unpack it, and convert the .pth file in it")
    elif head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < path.stat().st_size:
        found = ("a safetensors file", "convert the .pth file, or load the folder of this one with from_pretrained")
    elif text := re.match(rb"[\t\n\r -~]{12,}", head):
        start = " ".join(text[0].decode("ascii").split())
        found = (f'a text file ("{start[:40]}{"…" * (len(start) > 40)}")', "download the file itself")
    if found:
        raise InputError(f"expected a checkpoint of torch.save at {path}, found {found[0]}; {found[1]}")


def _other_zip(path: Path) -> tuple[str, str] | None:
    """What a zip file is that torch.save did not write, and what to do; None for one that it wrote."""
    try:
        with ZipFile(path) as archive:
            names = archive.namelist()
    except (BadZipFile, NotImplementedError, UnicodeDecodeError, ValueError):
        return ("the beginning of a zip archive", "the download broke off: download it again")
    folders = {name.rpartition("/")[0] for name in names if name.rpartition("/")[2] == "data.pkl"}
    if any(name == f"{folder}/constants.pkl" for name in names for folder in folders):
        return ("a TorchScript program", "convert the file with its state dict")
    if folders:
        return None
    files = [name for name in names if not name.endswith("/")]
    if files and all(name.endswith(".npy") for name in files):
        return ("arrays of NumPy (.npz)", "convert the PyTorch file (.pth)")
    listed = ", ".join(ascii(name)[1:-1] for name in files[:3]) + ", …" * (len(files) > 3)
    return (f"a zip archive of {listed or 'nothing'}", "unpack it, and convert the .pth file in it")


def _other_pickle(path: Path) -> tuple[str, str] | None:
    """What a pickle holds that torch.save did not write, read from its instructions; None for one that it wrote."""
    modules, words = [], []
    with path.open("rb") as file:
        try:
            for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
                if count == 1 and argument == torch.serialization.MAGIC_NUMBER:
                    return None
                if operation.name == "GLOBAL":
                    modules.append(argument.replace(" ", "."))
                elif operation.name == "STACK_GLOBAL" and len(words) > 1:
                    modules.append(".".join(words[-2:]))
                elif isinstance(argument, str):
                    words.append(argument)
                if count == MOST_INSTRUCTIONS:
                    break
        except Exception:  # genops raises many kinds of errors where a pickle is damaged
            if not modules:
                return None
    advice = "nothing was executed: get the PyTorch file (.pth)"
    if any(name.startswith("megengine") for name in modules):
        return ("a pickle of MegEngine", advice)
    named = next((name for name in modules if not name.startswith("collections.")), "plain values")
    if named.startswith("numpy."):
        return ("a pickle of NumPy arrays, as MegEngine saves weights", advice)
    return (f"a pickle of {re.sub(r'[^ .0-9A-Z_a-z]', '', named)[:80]}", advice)


def _state_dict(content: Mapping, key: str | None, path: Path) -> Mapping:
    present = [k for k in CHECKPOINT_KEYS if isinstance(content.get(k), Mapping)]
    if key is not None and key not in present:
        raise InputError(
            f"expected {key} in {path}, found {_first(content) or 'nothing'}; choose a --checkpoint_key that it has"
        )
    state_dict = content[key or present[0]] if present else content
    if not state_dict or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state_dict.items()):
        raise InputError(
            f"expected a state dict in {path}, bare or under {', '.join(CHECKPOINT_KEYS)}, found "
            f"{_first(content) or 'none'}; convert a file of weights"
        )
    _check_tensors(state_dict, path)
    return state_dict


def _first(content: Mapping) -> str:
    return ", ".join(map(str, list(content)[:10]))


def _check_tensors(state_dict: Mapping[str, Tensor], path: Path) -> None:
    """Refuses tensors that are no plain weights, or that claim more memory than the file has content."""
    storages, num_bytes = {}, 0
    for name, tensor in state_dict.items():
        counts = name.endswith("num_batches_tracked")
        if tensor.layout != torch.strided or tensor.is_quantized or not (tensor.is_floating_point() or counts):
            raise InputError(
                f"expected dense weights in floating point in {path}, found {name} in {tensor.dtype}, {tensor.layout}; "
                "convert the file as it was before it was compressed"
            )
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        num_bytes += tensor.nbytes
    if num_bytes > 2 * sum(storages.values()) + 2**20:
        raise InputError(
            f"expected the content of all weights in {path}, found {sum(storages.values()):,} bytes for weights of "
            f"{num_bytes:,}; get the authors' own file"
        )
    check_finite(state_dict, str(path))
