"""ONNX Runtime for browsers, from its npm package in the one version that the page was tested with."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

from seedling_hf.errors import InputError, first_line

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
ARCHIVE = f"onnxruntime-web-{VERSION}.tgz"
# As package-lock.json writes it.
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# The smallest build: WebAssembly on the CPU, without WebGL and WebGPU.
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
SECONDS = 600
FLAG = "--onnxruntime_web"


def unpack_runtime(folder: Path, archive: str | None = None) -> dict[str, Path]:
    """Puts the `FILES` into `folder`, from an `archive` of `npm pack` or from npm; returns them by their names.

    npm asks its registry once, and has the package in its cache from then on.

    Raises:
        InputError: if npm is missing or fails, or for another archive than that of this version.
    """
    path = Path(archive) if archive else _pack(folder)
    try:
        digest = hashlib.sha512(path.read_bytes()).digest()
    except OSError as error:
        raise InputError(
            f"expected {ARCHIVE} for {FLAG} at {path}, found none ({error.strerror}); make it with npm pack {PACKAGE}"
        ) from error
    if f"sha512-{base64.b64encode(digest).decode()}" != INTEGRITY:
        raise InputError(
            f"expected {ARCHIVE} with the checksum {INTEGRITY[:23]}…, found another file at {path}; make it again with "
            f"npm pack {PACKAGE}"
        )
    with tarfile.open(path) as tar:
        for name in FILES:
            (folder / name).write_bytes(tar.extractfile(f"package/dist/{name}").read())
    return {name: folder / name for name in FILES}


def _pack(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(
            f"expected npm (of Node.js) for --static, found none; install it, or run npm pack {PACKAGE} elsewhere and "
            f"name the file with {FLAG}"
        )
    command = [
        npm,
        "pack",
        PACKAGE,
        "--prefer-offline",
        "--ignore-scripts",
        "--loglevel=error",
        "--pack-destination",
        str(folder),
    ]
    try:
        packed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
        failure = None if packed.returncode == 0 else first_line(packed.stderr)
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = first_line(error)
    if failure is not None:
        raise InputError(
            f"expected npm to fetch {PACKAGE}, found a failure ({failure}); check the connection, or run npm pack "
            f"{PACKAGE} elsewhere and name the file with {FLAG}"
        )
    return folder / ARCHIVE
