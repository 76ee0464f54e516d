"""The files of a checkpoint, none of which can run code:

    model.safetensors, ema.safetensors, …      state dicts, one file each
    state.json, state.safetensors              everything else: counters, optimizer, scaler, …
    random_states.json, random_states.safetensors   one entry per process
    manifest.json                              format version, step, size and SHA-256 of every file

Nested values become JSON, with the tensors in them by name in the safetensors file beside it, so nothing is unpickled.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from seedling_hf.errors import InputError
from seedling_hf.files import share_as_usual

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


class DamageError(InputError):
    """A checkpoint cannot be used as it is; one before it may be."""


@dataclass(frozen=True)
class RunState:
    """A checkpoint that was read: the state of a run after `step` optimizer steps.

    Attributes:
        tensors: State dicts by name, on the CPU.
        state: What `Checkpoints.save` was given, tensors on the CPU.
        random_states: One entry for each process that wrote it, for `set_random_state`.
    """

    path: Path
    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]
    random_states: list[dict[str, Any]] = field(repr=False)


def checkpoint_name(step: int) -> str:
    """Name of the folder of a step's checkpoint."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's name, or None for another name."""
    return int(name.removeprefix("step-")) if re.fullmatch(r"step-\d{8,18}", name, re.ASCII) else None


def write_run_state(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Any, random_states: list[Any]
) -> None:
    """Writes the files of a checkpoint into an empty folder and flushes them to the disk."""
    contents = {f"{name}.safetensors": values for name, values in tensors.items()}
    contents |= _pack_files("state", state) | _pack_files("random_states", random_states)
    with ThreadPoolExecutor(max_workers=4) as pool:  # writing and hashing release Python's lock
        written = pool.map(write_file, [folder / name for name in contents], contents.values())
        files = dict(zip(contents, written, strict=True))
    write_file(folder / MANIFEST, manifest_text(step, files))
    flush(folder)


def read_run_state(path: Path, check: bool = True) -> RunState:
    """Reads a checkpoint; with `check`, size and SHA-256 of every file are compared with its manifest first."""
    manifest = read_manifest(path)
    if check:
        for name, written in manifest["files"].items():
            _check(path / name, **written)
    try:
        names = [name.removesuffix(".safetensors") for name in manifest["files"] if name.endswith(".safetensors")]
        return RunState(
            path=path,
            step=manifest["step"],
            tensors={
                name: load_file(path / f"{name}.safetensors")
                for name in names
                if name not in ("state", "random_states")
            },
            state=_read_state(path, "state"),
            random_states=_read_state(path, "random_states"),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as fault:
        raise InputError(
            f"expected a checkpoint that this program wrote in {path}, found other content than safetensors and JSON "
            f"({fault!r}); nothing of it was run or used"
        ) from fault


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint in the folder `path`.

    Raises:
        InputError: if it is missing, damaged or of another format version.
    """
    if not (path / MANIFEST).is_file():
        if path.is_dir() and step_of(path.name) is not None:
            raise InputError(f"the checkpoint {path} is damaged: {MANIFEST} is missing; resume from an older one")
        raise InputError(f"expected a checkpoint, a folder with {MANIFEST}, found none at {path}")
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        version, step, files = manifest["format_version"], manifest["step"], manifest["files"]
        intact = text == manifest_text(step, files, version) and isinstance(step, int)
        intact = intact and all(Path(name).name == name and files[name].keys() == {"size", "sha256"} for name in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise InputError(
            f"the checkpoint {path} is damaged: {MANIFEST} is not as it was written; resume from an older one"
        )
    if version != FORMAT_VERSION:
        raise InputError(
            f"expected a checkpoint of format version {FORMAT_VERSION}, found version {version} in {path}; resume with "
            "the version of seedling-hf that wrote it"
        )
    return manifest


def _check(file: Path, size: int, sha256: str) -> None:
    try:
        found = file.stat().st_size if file.is_file() else None
        if found is None:
            problem = "is missing"
        elif found != size:
            problem = f"has {found} bytes instead of {size}"
        elif _hash(file) != sha256:
            problem = "does not have the SHA-256 it was written with"
        else:
            return
    except OSError as fault:
        problem = f"cannot be read ({fault.strerror})"
    raise InputError(f"the checkpoint {file.parent} is damaged: {file.name} {problem}; resume from an older one")


def manifest_text(step: int, files: Mapping[str, Any], version: int = FORMAT_VERSION) -> str:
    """The manifest, with its own checksum."""
    manifest = {"format_version": version, "step": step, "files": files}
    digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": digest}, indent=2) + "\n"


def write_file(file: Path, content: str | Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Writes a text or tensors to the disk, and returns the file's entry in the manifest."""
    if isinstance(content, str):
        file.write_text(content, encoding="utf-8")
    else:
        tensors = {name: tensor.detach().contiguous() for name, tensor in content.items()}
        save_file(tensors, file, metadata={"format": "pt"})
    share_as_usual(file)
    flush(file)
    return {"size": file.stat().st_size, "sha256": _hash(file)}


def _pack_files(name: str, state: Any) -> dict[str, str | dict[str, torch.Tensor]]:
    """The contents of the two files that hold nested values."""
    tensors: dict[str, torch.Tensor] = {}
    packed = _pack(state, name, tensors)
    return {f"{name}.json": json.dumps(packed, indent=2) + "\n", f"{name}.safetensors": tensors}


def _read_state(folder: Path, name: str) -> Any:
    text = (folder / f"{name}.json").read_text(encoding="utf-8")
    return _unpack(json.loads(text), load_file(folder / f"{name}.safetensors"))


def _pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Turns nested values into JSON, in which each tensor is replaced by its name in `tensors`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        while name in tensors:  # {"a.b": x, "a": {"b": y}} have one name
            name += "'"
        tensors[name] = value
        return {"__tensor__": name}
    if isinstance(value, list):
        return [_pack(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"__tuple__": _pack(list(value), name, tensors)}
    if isinstance(value, Mapping):
        packed = {key: _pack(item, f"{name}.{key}", tensors) for key, item in value.items()}
        if all(isinstance(key, str) and not key.startswith("__") for key in packed):
            return packed
        return {"__items__": [[_pack(key, name, tensors), item] for key, item in packed.items()]}
    raise TypeError(f"{name} is of type {type(value).__name__}, which a checkpoint cannot hold")


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__tensor__"}:
        return tensors[value["__tensor__"]]
    if value.keys() == {"__tuple__"}:
        return tuple(_unpack(value["__tuple__"], tensors))
    if value.keys() == {"__items__"}:
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in value["__items__"]}
    return {key: _unpack(item, tensors) for key, item in value.items()}


def _hash(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as fault:
        # Some network file systems cannot flush a folder, and save its names by themselves.
        if not (path.is_dir() and fault.errno in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)
