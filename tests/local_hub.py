#!/usr/bin/env python3
# Licensed under the Apache License, Version 2.0.
"""A small local Hugging Face Hub for tests: the real HTTP protocol, on 127.0.0.1, repositories on disk.

Point any unmodified client at it with ``HF_ENDPOINT=http://127.0.0.1:PORT`` and ``HF_TOKEN=...`` (both must be
set before ``huggingface_hub`` is imported). It speaks what ``huggingface_hub`` 2.x, ``transformers``, ``datasets``
and ``evaluate`` use: create/delete/move repos, preupload, NDJSON commits, Git LFS batch with basic transfer, Xet
(token, xorbs, shards, reconstructions), tree, paths-info, refs, commits, branches, tags, resolve (ETag, ranges,
redirect of large files to a second origin as the real CDN does), whoami and card validation.

Shell::

    python local_hub.py --root DIR --port 8090 --token alice=hf_alice --token bob=hf_bob:read \\
        --fault '{"method": "POST", "path": "/commit/", "status": 503, "times": 2}'

Python::

    with LocalHub(root, tokens={"hf_alice": User("alice")}) as hub:
        hub.faults.append(Fault(path="/commit/", method="POST", status=503, times=2))
        HfApi(endpoint=hub.endpoint, token="hf_alice").create_repo("alice/demo")
        print(hub.log)  # [(method, path, status), ...]; status 0: the connection was dropped

A running server can also be steered over HTTP: ``POST /_control/faults`` with a JSON list of fault rules replaces
the rules, ``GET /_control/log`` returns the request log, ``DELETE /_control/log`` clears it.

Commits are git-like (content-addressed, parents, branches, tags, atomic compare-and-swap of the head) but are not
git objects: ``git clone`` is not served. Gating, discussions, search and inference are out of scope.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import dataclasses
import datetime as dt
import fnmatch
import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml  # a dependency of huggingface_hub

KINDS = ("models", "datasets", "spaces")
PREFIX = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}
LFS_PATTERNS = [
    "7z",
    "arrow",
    "bin",
    "bz2",
    "ckpt",
    "ftz",
    "gz",
    "h5",
    "joblib",
    "lfs.*",
    "mlmodel",
    "model",
    "msgpack",
    "npy",
    "npz",
    "onnx",
    "ot",
    "parquet",
    "pb",
    "pickle",
    "pkl",
    "pt",
    "pth",
    "rar",
    "safetensors",
    "tar.*",
    "tar",
    "tflite",
    "tgz",
    "wasm",
    "xz",
    "zip",
    "zst",
    "*tfevents*",
]
DEFAULT_GITATTRIBUTES = "".join(
    f"{p if p.startswith('*') else '*.' + p} filter=lfs diff=lfs merge=lfs -text\n" for p in LFS_PATTERNS
).encode()
LFS_SIZE_THRESHOLD = 10 * 1024 * 1024
COPY_CHUNK = 64 * 1024
SHA_RE = re.compile(r"[0-9a-f]{40}")
SHA256_RE = re.compile(r"[0-9a-f]{64}")
NAME_RE = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][\w.-]{0,95}")
ACTIONS = {
    "revision", "tree", "refs", "commits", "paths-info", "preupload", "commit", "branch", "tag", "settings",
    "super-squash", "auth-check", "xet-read-token", "xet-write-token", "resolve", "compare",
}  # fmt: skip
LICENSES = {
    "apache-2.0",
    "mit",
    "openrail",
    "bigscience-openrail-m",
    "creativeml-openrail-m",
    "afl-3.0",
    "artistic-2.0",
    "bsl-1.0",
    "bsd",
    "bsd-2-clause",
    "bsd-3-clause",
    "bsd-3-clause-clear",
    "c-uda",
    "cc",
    "cc0-1.0",
    "cc-by-2.0",
    "cc-by-2.5",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "cc-by-nc-2.0",
    "cc-by-nc-3.0",
    "cc-by-nc-4.0",
    "cc-by-nd-4.0",
    "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0",
    "cdla-sharing-1.0",
    "cdla-permissive-1.0",
    "cdla-permissive-2.0",
    "wtfpl",
    "ecl-2.0",
    "epl-1.0",
    "epl-2.0",
    "eupl-1.1",
    "agpl-3.0",
    "gfdl",
    "gpl",
    "gpl-2.0",
    "gpl-3.0",
    "lgpl",
    "lgpl-2.1",
    "lgpl-3.0",
    "isc",
    "lppl-1.3c",
    "ms-pl",
    "mpl-2.0",
    "odc-by",
    "odbl",
    "openrail++",
    "osl-3.0",
    "postgresql",
    "ofl-1.1",
    "ncsa",
    "unlicense",
    "zlib",
    "pddl",
    "llama2",
    "llama3",
    "gemma",
    "unknown",
    "other",
}


@dataclasses.dataclass
class User:
    """Owner of an access token. ``role`` is ``write`` or ``read``; ``orgs`` are further writable namespaces."""

    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()


@dataclasses.dataclass
class Fault:
    """One fault-injection rule. The first matching rule that is due fires; all of them count their matches.

    ``path`` is a regular expression searched in the request path. A rule skips its first ``after`` matches, then
    fires on every ``every``-th one, at most ``times`` times (0: for ever). What happens when it fires:

    - ``status``: answer with it (``retry_after`` adds the header; ``headers`` adds others) and do nothing else;
    - ``drop``: ``request`` resets the connection after ``at_bytes`` bytes of the request body,
      ``response`` carries the request out, then resets the connection before any answer (the answer is lost),
      ``body`` / ``body-reset`` ends (orderly / with a reset) after ``at_bytes`` bytes of the answer's body;
    - ``delay``: sleep that many seconds first (combines with everything else);
    - ``bytes_per_second``: throttle request and answer bodies.
    """

    path: str = ""
    method: str = ""
    status: int = 0
    drop: str = ""
    at_bytes: int = 0
    delay: float = 0.0
    bytes_per_second: int = 0
    retry_after: int | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    every: int = 1
    after: int = 0
    times: int = 0
    seen: int = 0
    fired: int = 0

    def due(self, method: str, path: str) -> bool:
        if (self.method and self.method != method) or not re.search(self.path, path):
            return False
        self.seen += 1
        if self.seen <= self.after or (self.seen - self.after - 1) % self.every or 0 < self.times <= self.fired:
            return False
        self.fired += 1
        return True


class HubError(Exception):
    """An HTTP error answer, with the ``X-Error-Code`` / ``X-Error-Message`` headers that the client reads."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers


class Dropped(Exception):  # noqa: N818
    """The connection is to be reset, or closed early where ``orderly`` is true (fault injection)."""

    orderly = False


class Truncated(Dropped):
    orderly = True


# --------------------------------------------------------------------------------------------------------- storage


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write_atomic(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, tmp = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    os.replace(tmp, path)


class Repo:
    """One repository: ``repo.json`` (settings, refs) and ``commits/SHA.json`` (parents, message, full tree)."""

    def __init__(self, store: Store, kind: str, repo_id: str) -> None:
        self.store, self.kind, self.id = store, kind, repo_id
        self.dir = store.root / kind / repo_id
        self.meta: dict[str, Any] = json.loads((self.dir / "repo.json").read_text())

    def save(self) -> None:
        write_atomic(self.dir / "repo.json", json.dumps(self.meta, indent=1).encode())

    def commit_data(self, sha: str) -> dict[str, Any]:
        return json.loads((self.dir / "commits" / f"{sha}.json").read_text())

    def find(self, revision: str) -> str:
        """Commit id of a branch, tag, ref or (abbreviated) commit id."""
        name = re.sub(r"^refs/(heads|tags)/", "", revision)
        for refs in (self.meta["branches"], self.meta["tags"], self.meta["pulls"]):
            if name in refs:
                return refs[name]
        if name == "HEAD":
            return self.meta["branches"]["main"]
        if re.fullmatch(r"[0-9a-f]{7,40}", name):
            for path in (self.dir / "commits").glob(f"{name}*.json"):
                return path.stem
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def new_commit(self, tree: dict, parents: list[str], title: str, message: str, author: str) -> str:
        data = {"parents": parents, "title": title, "message": message, "author": author, "date": now(), "tree": tree}
        body = json.dumps(data, sort_keys=True).encode()
        sha = hashlib.sha1(b"commit %d\0" % len(body) + body).hexdigest()
        write_atomic(self.dir / "commits" / f"{sha}.json", body)
        return sha

    def history(self, sha: str) -> Iterator[tuple[str, dict[str, Any]]]:
        while sha:
            data = self.commit_data(sha)
            yield sha, data
            sha = data["parents"][0] if data["parents"] else ""


class Store:
    """Repositories, git blobs and large files under one directory. ``lock`` guards every change of a ref."""

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root)
        self.lock = threading.RLock()
        for name in (*KINDS, "blobs", "lfs", "xorbs", "xet", "tmp"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def repo(self, kind: str, repo_id: str) -> Repo:
        try:
            if not all(NAME_RE.fullmatch(part) for part in repo_id.split("/")):
                raise FileNotFoundError(repo_id)
            return Repo(self, kind, repo_id)
        except (FileNotFoundError, NotADirectoryError):
            raise HubError(404, "Repository not found", "RepoNotFound") from None

    def create(self, kind: str, repo_id: str, private: bool, author: str) -> Repo:
        if not all(NAME_RE.fullmatch(part) for part in repo_id.split("/")):
            raise HubError(400, f"Invalid repository name: {repo_id}")
        directory = self.root / kind / repo_id
        if (directory / "repo.json").exists():
            raise HubError(409, f"You already created this {kind[:-1]} repo: {repo_id}")
        meta = {"private": private, "createdAt": now(), "branches": {}, "tags": {}, "pulls": {}, "gated": False}
        write_atomic(directory / "repo.json", json.dumps(meta).encode())
        repo = Repo(self, kind, repo_id)
        tree = {".gitattributes": self.add_blob(DEFAULT_GITATTRIBUTES)}
        repo.meta["branches"]["main"] = repo.new_commit(tree, [], "initial commit", "", author)
        repo.save()
        return repo

    def add_blob(self, data: bytes) -> dict[str, Any]:
        oid = git_oid(data)
        if not (self.root / "blobs" / oid).exists():
            write_atomic(self.root / "blobs" / oid, data)
        return {"oid": oid, "size": len(data)}

    def lfs_path(self, sha256: str) -> Path:
        return self.root / "lfs" / sha256

    def lfs_entry(self, sha256: str, size: int) -> dict[str, Any]:
        pointer = lfs_pointer(sha256, size)
        (self.root / "blobs" / git_oid(pointer)).write_bytes(pointer)
        lfs = {"oid": sha256, "size": size, "pointerSize": len(pointer)}
        entry: dict[str, Any] = {"oid": git_oid(pointer), "size": size, "lfs": lfs}
        xet = self.root / "xet" / f"{sha256}.sha256"
        if xet.exists():
            entry["xetHash"] = xet.read_text()
        return entry

    def content_path(self, entry: dict[str, Any]) -> Path:
        return self.lfs_path(entry["lfs"]["oid"]) if "lfs" in entry else self.root / "blobs" / entry["oid"]

    def read(self, entry: dict[str, Any]) -> bytes:
        return self.content_path(entry).read_bytes()


def is_lfs(attributes: bytes, path: str, size: int) -> bool:
    """Upload mode as the Hub decides it: ``.gitattributes`` of the revision, or more than 10 MiB."""
    for line in reversed(attributes.decode(errors="replace").splitlines()):
        pattern, *flags = line.split() or ["#"]
        if not pattern.startswith("#") and fnmatch.fnmatch(path if "/" in pattern else path.split("/")[-1], pattern):
            return "filter=lfs" in flags or size > LFS_SIZE_THRESHOLD
    return size > LFS_SIZE_THRESHOLD


def is_ignored(gitignore: str, path: str) -> bool:
    ignored = False
    for line in (raw.strip() for raw in gitignore.splitlines()):
        if not line or line.startswith("#"):
            continue
        pattern, negate = line.lstrip("!"), line.startswith("!")
        parts = path.split("/")
        prefixes = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        target = pattern.strip("/")
        anchored = "/" in pattern.rstrip("/")
        candidates = prefixes[:-1] if pattern.endswith("/") else prefixes
        names = candidates if anchored else [c.split("/")[-1] for c in candidates]
        if any(fnmatch.fnmatch(name, target) for name in names):
            ignored = not negate
    return ignored


def card_metadata(text: str) -> dict[str, Any]:
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.S)
    data = yaml.safe_load(match.group(1)) if match else {}
    if not isinstance(data, dict):
        raise ValueError("repo card metadata must be a dictionary")
    return json.loads(json.dumps(data, default=str))


def check_card(text: str) -> tuple[list[str], list[str]]:
    """(errors, warnings) of a README.md, for the checks of the Hub that matter to a model card."""
    try:
        data = card_metadata(text)
    except (yaml.YAMLError, ValueError) as error:
        return [f"YAML Metadata Error: {error}"], []
    if not data:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = []
    for license_ in data["license"] if isinstance(data.get("license"), list) else [data.get("license")]:
        if license_ is not None and license_ not in LICENSES:
            errors.append(f'"license" must be one of the known identifiers, or "other": {license_!r}')  # noqa: PERF401
    for key in ("tags", "datasets", "metrics"):
        value = data.get(key)
        if value is not None and not isinstance(value, (str, list)):
            errors.append(f'"{key}" must be an array')
    index = data.get("model-index", [])
    for i, model in enumerate(index if isinstance(index, list) else [None]):
        where = f'"model-index[{i}]'
        if not isinstance(model, dict) or not model.get("name"):
            errors.append(f'{where}.name" is required')
            continue
        for j, result in enumerate(model.get("results") or []):
            there = f"{where}.results[{j}]"
            result = result if isinstance(result, dict) else {}
            if not (result.get("task") or {}).get("type"):
                errors.append(f'{there}.task.type" is required')
            for key in ("type", "name"):
                if result.get("dataset") is not None and not result["dataset"].get(key):
                    errors.append(f'{there}.dataset.{key}" is required')  # noqa: PERF401
            for metric in result.get("metrics") or [{}]:
                if not metric.get("type") or "value" not in metric:
                    errors.append(f'{there}.metrics" need "type" and "value"')  # noqa: PERF401
    return errors, []


# ------------------------------------------------------------------------------------------------------------- xet


def xet_hex(raw: bytes) -> str:
    """Xet writes a hash as four little-endian 64-bit words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def parse_xorb(data: bytes) -> list[tuple[int, int, int]]:
    """(start, end, unpacked size) of each chunk: 8-byte headers, then data; a footer, if any, is left out."""
    chunks, pos = [], 0
    while pos + 8 <= len(data) and data[pos : pos + 7] != b"XETBLOB":
        packed = int.from_bytes(data[pos + 1 : pos + 4], "little")
        unpacked = int.from_bytes(data[pos + 5 : pos + 8], "little")
        chunks.append((pos, pos + 8 + packed, unpacked))
        pos += 8 + packed
    return chunks


def parse_shard(data: bytes) -> Iterator[dict[str, Any]]:
    """Files of a shard: Xet hash, SHA-256 and terms (xorb, unpacked size, first and end chunk)."""
    pos = 48  # 32 bytes magic, version, footer size
    while data[pos : pos + 32] != b"\xff" * 32:
        file_hash = xet_hex(data[pos : pos + 32])
        flags, count = struct.unpack_from("<II", data, pos + 32)
        pos += 48
        terms = []
        for _ in range(count):
            _flags, size, start, end = struct.unpack_from("<4I", data, pos + 32)
            terms.append({"hash": xet_hex(data[pos : pos + 32]), "size": size, "start": start, "end": end})
            pos += 48
        if flags & 1 << 31:  # verification entries
            pos += 48 * count
        sha256 = ""
        if flags & 1 << 30:  # metadata: the SHA-256 of the file
            sha256 = xet_hex(data[pos : pos + 32])
            pos += 48
        yield {"hash": file_hash, "sha256": sha256, "terms": terms}


def lz4_block(src: bytes, out: bytearray) -> None:
    pos, end = 0, len(src)
    while pos < end:
        token = src[pos]
        pos += 1
        length = token >> 4
        if length == 15:
            while True:
                length += src[pos]
                pos += 1
                if src[pos - 1] != 255:
                    break
        out += src[pos : pos + length]
        pos += length
        if pos >= end:
            return
        offset = src[pos] | src[pos + 1] << 8
        pos += 2
        length = (token & 15) + 4
        if length == 19:
            while True:
                length += src[pos]
                pos += 1
                if src[pos - 1] != 255:
                    break
        start = len(out) - offset
        if offset >= length:
            out += out[start : start + length]
        else:
            piece = bytes(out[start:])
            out += (piece * (length // offset + 1))[:length]


def lz4_frame(src: bytes) -> bytes:
    flags, pos = src[4], 7
    if flags & 8:
        pos += 8
    out = bytearray()
    while size := int.from_bytes(src[pos : pos + 4], "little"):
        pos += 4
        body = src[pos : pos + (size & 0x7FFFFFFF)]
        pos += len(body) + (4 if flags & 16 else 0)
        if size >> 31:
            out += body
        else:
            lz4_block(body, out)
    return bytes(out)


def unpack_chunk(data: bytes) -> bytes:
    scheme, size = data[4], int.from_bytes(data[5:8], "little")
    body = data[8:]
    if scheme:
        body = lz4_frame(body)
    if scheme == 2:  # bytes grouped by their position modulo 4
        split, rest = divmod(size, 4)
        out, pos = bytearray(size), 0
        for i in range(4):
            length = split + (i < rest)
            out[i::4] = body[pos : pos + length]
            pos += length
        body = bytes(out)
    if len(body) != size:
        raise ValueError("corrupt chunk")
    return body


# ---------------------------------------------------------------------------------------------------------- server


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "local-hub/1.0"
    hub: LocalHub

    # -- plumbing

    def log_message(self, format: str, *args: Any) -> None:
        if self.hub.verbose:
            super().log_message(format, *args)

    def do_GET(self) -> None:
        self.handle_request()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.url_path, self.query = url.path, parse_qs(url.query)
        self.request_id, self.status_sent, self.rate = secrets.token_hex(8), 0, 0
        self.fault: Fault | None = None
        try:
            if not url.path.startswith("/_control/"):
                with self.hub.store.lock:
                    due = [fault for fault in self.hub.faults if fault.due(self.command, url.path)]
                self.fault = due[0] if due else None
            if self.fault:
                self.inject(self.fault)
            self.route(url.path)
        except HubError as error:
            self.send_error_json(error)
        except (Dropped, ConnectionError) as error:
            self.reset(orderly=getattr(error, "orderly", False))
        except Exception as error:  # a bug here must look like a server error, not like a hang
            import traceback

            traceback.print_exc()
            self.send_error_json(HubError(500, f"Internal error: {error!r}"))
        finally:
            if not self.status_sent:  # no answer was begun: a dropped connection
                self.hub.log.append((self.command, self.path, 0))

    def inject(self, fault: Fault) -> None:
        self.rate = fault.bytes_per_second
        time.sleep(fault.delay)
        if fault.drop == "request":
            for _ in self.body_chunks(fault.at_bytes or 1):
                pass
            raise Dropped
        if fault.status:
            headers = dict(fault.headers)
            if fault.retry_after is not None:
                headers["Retry-After"] = str(fault.retry_after)
            raise HubError(fault.status, "Injected fault", "", **headers)

    def reset(self, orderly: bool = False) -> None:
        """Close with RST, so that the client sees a broken connection; with FIN where ``orderly`` is true."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            if orderly:
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def body_chunks(self, limit: int | None = None) -> Iterator[bytes]:
        """The request body, streamed; may be called once, later calls yield nothing."""
        if getattr(self, "_body_of", None) == self.request_id:
            return
        self._body_of = self.request_id
        seen = 0
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        left = 0 if chunked else int(self.headers.get("Content-Length") or 0)
        while True:
            if chunked and not left:
                left = int(self.rfile.readline().split(b";")[0] or b"0", 16)
                if not left:
                    self.rfile.readline()
                    return
            if not left:
                return
            piece = self.rfile.read(min(COPY_CHUNK, left, limit or left))
            if not piece:
                raise ConnectionError("client went away")
            left -= len(piece)
            seen += len(piece)
            if chunked and not left:
                self.rfile.readline()
            if self.rate:
                time.sleep(len(piece) / self.rate)
            yield piece
            if limit and seen >= limit:
                return

    def body(self) -> bytes:
        return b"".join(self.body_chunks())

    def json(self) -> dict[str, Any]:
        try:
            return json.loads(self.body() or b"{}")
        except ValueError:
            raise HubError(400, "Invalid JSON body") from None

    def start(self, status: int, headers: dict[str, Any], length: int) -> None:
        for _ in self.body_chunks():  # an unread request body would corrupt the next request of this connection
            pass
        if self.fault and self.fault.drop == "response":
            raise Dropped
        self.status_sent = status
        self.hub.log.append((self.command, self.path, status))
        self.send_response(status)
        for key, value in {"X-Request-Id": self.request_id, **headers, "Content-Length": length}.items():
            self.send_header(key, str(value).replace("\n", " "))
        self.end_headers()

    def send(self, data: bytes, status: int = 200, **headers: Any) -> None:
        self.start(status, {"Content-Type": "application/octet-stream", **headers}, len(data))
        if self.command != "HEAD":
            self.stream(memoryview(data)[i : i + COPY_CHUNK] for i in range(0, len(data), COPY_CHUNK))

    def stream(self, pieces: Iterator[Any]) -> None:
        sent, cut = 0, self.fault.drop if self.fault else ""
        limit = self.fault.at_bytes if self.fault and cut.startswith("body") else None
        for piece in pieces:
            if limit is not None:
                piece = piece[: limit - sent]
            self.wfile.write(piece)
            sent += len(piece)
            if limit is not None and sent >= limit:
                raise Truncated if cut == "body" else Dropped
            if self.rate:
                time.sleep(len(piece) / self.rate)

    def send_json(self, data: Any, status: int = 200, **headers: Any) -> None:
        self.send(json.dumps(data).encode(), status, **{"Content-Type": "application/json", **headers})

    def send_error_json(self, error: HubError) -> None:
        headers = {"X-Error-Message": error.message, **error.headers}
        if error.code:
            headers["X-Error-Code"] = error.code
        with contextlib.suppress(OSError):
            try:
                self.send_json({"error": error.message}, error.status, **headers)
            except Dropped:
                self.reset()

    # -- access

    def user(self) -> User | None:
        header = self.headers.get("Authorization", "")
        if not header:
            return None
        user = self.hub.tokens.get(header.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def may_write(self, namespace: str) -> bool:
        user = self.user()
        return bool(user and user.role == "write" and namespace in (user.name, *user.orgs))

    def need_write(self, namespace: str, message: str) -> User:
        user = self.user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if user.role != "write":
            raise HubError(403, "Forbidden: this token has no write permission")
        if not self.may_write(namespace):
            raise HubError(403, message)
        return user

    def repo(self, kind: str, repo_id: str, write: bool = False) -> Repo:
        """The repository, or the same answers as the Hub: what may not be seen is not found."""
        user = self.user()
        namespace = repo_id.split("/")[0]
        try:
            repo = self.hub.store.repo(kind, repo_id)
            hidden = repo.meta["private"] and not (user and namespace in (user.name, *user.orgs))
        except HubError:
            hidden = True
        if hidden:
            if user is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write:
            self.need_write(namespace, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo

    # -- routing

    def route(self, path: str) -> None:
        if path.startswith("/_control/"):
            return self.control(path.removeprefix("/_control/"))
        if path == "/v1/telemetry":  # hf_xet sends its own there
            return self.send_json({})
        if path.startswith("/cdn/"):
            return self.cdn(path.split("/")[2])
        if path.startswith("/lfs/"):
            return self.lfs_put(path.split("/")[2])
        if path.startswith("/xet/"):
            return self.xet(path.removeprefix("/xet/").split("/"))
        if match := re.fullmatch(r"/(datasets/|spaces/)?([^/]+(?:/[^/]+)?)\.git/info/lfs/objects/(batch|verify)", path):
            return self.lfs_api((match[1] or "models/")[:-1], unquote(match[2]), match[3])
        if match := re.fullmatch(r"/(datasets/|spaces/)?([^/]+(?:/[^/]+)?)/(resolve|raw)/([^/]+)/(.+)", path):
            kind = (match[1] or "models/")[:-1]
            return self.resolve(kind, unquote(match[2]), unquote(match[4]), unquote(match[5]), match[3] == "raw")
        if path.startswith("/api/"):
            parts = path.removeprefix("/api/").strip("/").split("/")
            name = parts[0].replace("-", "_")
            if parts[0] in KINDS:
                if len(parts) == 1:
                    return self.list_repos(parts[0])
                # "gpt2/tree/main" has no namespace (never found here), "alice/x/tree/main" has one.
                bare = len(parts) == 2 or (parts[2] in ACTIONS and (len(parts) == 3 or parts[3] not in ACTIONS))
                ids = 1 if bare else 2
                repo_id = unquote("/".join(parts[1 : 1 + ids]))
                rest = [unquote(part) for part in parts[1 + ids :]]
                action = rest[0] if rest else "revision"
                method = getattr(self, "repo_" + action.replace("-", "_"), None)
                if method and action in ACTIONS:
                    return method(parts[0], repo_id, rest[1:])
            elif name in ("whoami_v2", "validate_yaml", "repos", "telemetry"):
                return getattr(self, "api_" + name)(parts[1:])
        raise HubError(404, "Sorry, we can't find the page you are looking for.")

    def control(self, what: str) -> None:
        if what == "faults" and self.command == "POST":
            self.hub.faults[:] = [Fault(**rule) for rule in json.loads(self.body())]
            return self.send_json({"ok": True})
        if what == "faults":
            return self.send_json([dataclasses.asdict(fault) for fault in self.hub.faults])
        if what == "log" and self.command == "DELETE":
            self.hub.log.clear()
        return self.send_json(self.hub.log)

    # -- account, repositories

    def api_telemetry(self, _: list[str]) -> None:
        self.send_json({})

    def api_whoami_v2(self, _: list[str]) -> None:
        user = self.user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        orgs = [{"type": "org", "name": org, "fullname": org, "roleInOrg": "admin"} for org in user.orgs]
        token = {"type": "access_token", "accessToken": {"displayName": "local", "role": user.role}}
        email = f"{user.name}@example.invalid"
        self.send_json(
            {"type": "user", "id": user.name, "name": user.name, "fullname": user.name, "email": email, "orgs": orgs,
             "emailVerified": True, "isPro": False, "canPay": False, "auth": token}
        )  # fmt: skip

    def api_validate_yaml(self, _: list[str]) -> None:
        errors, warnings = check_card(self.json().get("content", ""))
        answer = {"errors": [{"message": m} for m in errors], "warnings": [{"message": m} for m in warnings]}
        self.send_json(answer, 400 if errors else 200)

    def api_repos(self, rest: list[str]) -> None:
        data, action = self.json(), rest[0] if rest else ""
        kind = (data.get("type") or "model") + "s"
        if kind not in KINDS:
            raise HubError(400, f"Unsupported repository type: {kind}")
        user = self.user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        with self.hub.store.lock:
            if action == "move":
                source, target = data["fromRepo"], data["toRepo"]
                self.repo(kind, source, write=True)
                self.need_write(target.split("/")[0], "You don't have the rights to move a repo to this namespace")
                if not all(NAME_RE.fullmatch(part) for part in target.split("/")):
                    raise HubError(400, f"Invalid repository name: {target}")
                if (self.hub.store.root / kind / target).exists():
                    raise HubError(409, "This repository already exists")
                (self.hub.store.root / kind / target).parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.hub.store.root / kind / source, self.hub.store.root / kind / target)
                return self.send_json({"url": f"{self.hub.endpoint}/{PREFIX[kind]}{target}"})
            namespace = data.get("organization") or user.name
            repo_id = f"{namespace}/{data.get('name')}"
            if action == "delete":
                shutil.rmtree(self.repo(kind, repo_id, write=True).dir)
                return self.send_json({"ok": True})
            if action != "create":
                raise HubError(404, "Not found")
            kind_name = kind[:-1]
            self.need_write(
                namespace, f'You don\'t have the rights to create a {kind_name} under the namespace "{namespace}"'
            )
            private = data.get("visibility") == "private" or bool(data.get("private"))
            url = f"{self.hub.endpoint}/{PREFIX[kind]}{repo_id}"
            try:
                self.hub.store.create(kind, repo_id, private, user.name)
            except HubError as error:
                if error.status != 409:
                    raise
                # The client reads "url" from the body of this 409 when `exist_ok=True`.
                return self.send_json({"error": error.message, "url": url}, 409, **{"X-Error-Message": error.message})
            self.send_json({"url": url, "name": repo_id, "id": repo_id})

    def list_repos(self, kind: str) -> None:
        user, found = self.user(), []
        author, search = self.query.get("author", [""])[0], self.query.get("search", [""])[0]
        for path in sorted((self.hub.store.root / kind).glob("*/*/repo.json")):
            repo = Repo(self.hub.store, kind, f"{path.parts[-3]}/{path.parts[-2]}")
            namespace = path.parts[-3]
            if repo.meta["private"] and not (user and namespace in (user.name, *user.orgs)):
                continue
            if (not author or author == namespace) and search.lower() in repo.id.lower():
                found.append(self.info(repo, repo.find("main"), False))
        self.send_json(found)

    def info(self, repo: Repo, sha: str, blobs: bool) -> dict[str, Any]:
        commit = repo.commit_data(sha)
        tree, card, config = commit["tree"], {}, None
        with contextlib.suppress(Exception):
            card = card_metadata(self.hub.store.read(tree["README.md"]).decode())
        with contextlib.suppress(Exception):
            loaded = json.loads(self.hub.store.read(tree["config.json"]))
            config = {key: loaded[key] for key in ("architectures", "auto_map", "model_type") if key in loaded}

        def as_list(value: Any) -> list:
            return value if isinstance(value, list) else [value] if value else []

        tags = [card[key] for key in ("library_name",) if key in card] + as_list(card.get("tags"))
        tags += [f"dataset:{d}" for d in as_list(card.get("datasets"))]
        tags += [f"license:{x}" for x in as_list(card.get("license"))]
        if config and "auto_map" in config:
            tags.append("custom_code")
        siblings = []
        for path, entry in sorted(tree.items()):
            item = {"rfilename": path}
            if blobs:
                item |= {"size": entry["size"], "blobId": entry["oid"]}
                if "lfs" in entry:
                    lfs = entry["lfs"]
                    item["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
            siblings.append(item)
        data = {
            "_id": hashlib.md5(repo.id.encode()).hexdigest()[:24], "id": repo.id, "author": repo.id.split("/")[0],
            "sha": sha, "lastModified": commit["date"], "createdAt": repo.meta["createdAt"],
            "private": repo.meta["private"], "gated": repo.meta["gated"], "disabled": False, "downloads": 0,
            "likes": 0, "tags": list(dict.fromkeys(tags)), "siblings": siblings, "cardData": card or None,
        }  # fmt: skip
        if repo.kind == "models":
            data |= {"modelId": repo.id, "pipeline_tag": card.get("pipeline_tag"), "config": config, "spaces": []}
            data |= {"library_name": card.get("library_name"), "model-index": card.get("model-index")}
        return data

    def repo_revision(self, kind: str, repo_id: str, rest: list[str]) -> None:
        repo = self.repo(kind, repo_id)
        sha = repo.find("/".join(rest) or "main")
        self.send_json(self.info(repo, sha, self.query.get("blobs", ["false"])[0].lower() in ("true", "1")))

    def repo_settings(self, kind: str, repo_id: str, rest: list[str]) -> None:
        data = self.json()
        with self.hub.store.lock:
            repo = self.repo(kind, repo_id, write=True)
            if "visibility" in data or "private" in data:
                repo.meta["private"] = data.get("visibility") == "private" or bool(data.get("private"))
            repo.meta["gated"] = data.get("gated", repo.meta["gated"])
            repo.save()
        self.send_json({"private": repo.meta["private"], "gated": repo.meta["gated"]})

    def repo_auth_check(self, kind: str, repo_id: str, rest: list[str]) -> None:
        self.repo(kind, repo_id, write="write" in rest)
        self.send_json({})

    # -- refs, history

    def repo_refs(self, kind: str, repo_id: str, rest: list[str]) -> None:
        meta = self.repo(kind, repo_id).meta

        def listing(refs: dict[str, str], prefix: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": prefix + n, "targetCommit": sha} for n, sha in refs.items()]

        answer = {"branches": listing(meta["branches"], "refs/heads/"), "tags": listing(meta["tags"], "refs/tags/")}
        if "include_prs" in self.query:
            answer["pullRequests"] = listing(meta["pulls"], "")
        self.send_json({**answer, "converts": []})

    def change_ref(self, kind: str, repo_id: str, table: str, name: str, target: str | None) -> None:
        """Create ``name`` at revision ``target``, or delete it when ``target`` is None."""
        with self.hub.store.lock:
            repo = self.repo(kind, repo_id, write=True)
            refs, what = repo.meta[table], "branch" if table == "branches" else "tag"
            if target is None:
                if name not in refs:
                    raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
                if what == "branch" and name == "main":
                    raise HubError(403, "Cannot delete the main branch")
                del refs[name]
            else:
                if name in refs:
                    raise HubError(409, f"Reference already exists: {what} {name}")
                refs[name] = repo.find(target)
            repo.save()
        self.send_json({"ok": True})

    def repo_branch(self, kind: str, repo_id: str, rest: list[str]) -> None:
        name = "/".join(rest)
        target = None if self.command == "DELETE" else self.json().get("startingPoint") or "main"
        self.change_ref(kind, repo_id, "branches", name, target)

    def repo_tag(self, kind: str, repo_id: str, rest: list[str]) -> None:
        if self.command == "DELETE":
            return self.change_ref(kind, repo_id, "tags", "/".join(rest), None)
        self.change_ref(kind, repo_id, "tags", self.json()["tag"], "/".join(rest) or "main")

    def repo_commits(self, kind: str, repo_id: str, rest: list[str]) -> None:
        repo = self.repo(kind, repo_id)
        self.send_json(
            [
                {"id": sha, "title": c["title"], "message": c["message"], "date": c["date"],
                 "authors": [{"user": c["author"]}], "parents": c["parents"]}
                for sha, c in repo.history(repo.find("/".join(rest) or "main"))
            ]
        )  # fmt: skip

    def repo_super_squash(self, kind: str, repo_id: str, rest: list[str]) -> None:
        data, branch = self.json(), "/".join(rest)
        with self.hub.store.lock:
            repo = self.repo(kind, repo_id, write=True)
            if branch not in repo.meta["branches"]:
                raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            tree = repo.commit_data(repo.meta["branches"][branch])["tree"]
            title = data.get("message") or f"Super-squash branch '{branch}' using huggingface_hub"
            repo.meta["branches"][branch] = repo.new_commit(tree, [], title, "", repo_id.split("/")[0])
            repo.save()
        self.send_json({"ok": True})

    # -- tree

    @staticmethod
    def tree_item(path: str, entry: dict[str, Any] | None) -> dict[str, Any]:
        if entry is None:
            return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}
        return {"type": "file", "path": path, **entry}

    def tree_listing(self, repo: Repo, sha: str, paths: dict[str, Any], expand: bool) -> list[dict[str, Any]]:
        items = [self.tree_item(path, entry) for path, entry in sorted(paths.items())]
        if expand:
            for item in items:
                item["lastCommit"] = self.last_commit(repo, sha, item["path"])
                item["securityFileStatus"] = None
        return items

    def last_commit(self, repo: Repo, sha: str, path: str) -> dict[str, str]:
        def state(tree: dict[str, Any]) -> list:
            return sorted((p, e["oid"]) for p, e in tree.items() if p == path or p.startswith(path + "/"))

        best, wanted = None, None
        for commit_id, commit in repo.history(sha):
            current = state(commit["tree"])
            wanted = current if wanted is None else wanted
            if current != wanted:
                break
            best = {"id": commit_id, "title": commit["title"], "date": commit["date"]}
        assert best is not None
        return best

    def repo_tree(self, kind: str, repo_id: str, rest: list[str]) -> None:
        repo = self.repo(kind, repo_id)
        sha = repo.find(rest[0] if rest else "main")
        folder = "/".join(rest[1:]).strip("/")

        def flag(name: str) -> bool:
            return self.query.get(name, ["false"])[0].lower() in ("true", "1")

        tree, found = repo.commit_data(sha)["tree"], {}
        for path, entry in tree.items():
            if folder and not path.startswith(folder + "/"):
                continue
            inner = path[len(folder) + 1 if folder else 0 :].split("/")
            base = folder + "/" if folder else ""
            for depth in range(1, len(inner)):
                if depth == 1 or flag("recursive"):
                    found[base + "/".join(inner[:depth])] = None
            if len(inner) == 1 or flag("recursive"):
                found[path] = entry
        if folder and not found:
            raise HubError(404, f"{folder} does not exist on {rest[0]!r}", "EntryNotFound", **{"X-Repo-Commit": sha})
        items = self.tree_listing(repo, sha, found, flag("expand"))
        limit = min(int(self.query.get("limit", ["1000"])[0]), 50 if flag("expand") else 1000)
        start = int(self.query.get("cursor", ["0"])[0])
        headers = {"X-Repo-Commit": sha}
        if start + limit < len(items):
            params = "&".join(f"{k}={quote(v[0])}" for k, v in self.query.items() if k != "cursor")
            following = f"{self.hub.endpoint}{self.url_path}?{params}&cursor={start + limit}"
            headers["Link"] = f'<{following}>; rel="next"'
        self.send_json(items[start : start + limit], **headers)

    def repo_paths_info(self, kind: str, repo_id: str, rest: list[str]) -> None:
        raw = self.body()
        if "json" in self.headers.get("Content-Type", ""):
            data = json.loads(raw or b"{}")
            paths, expand = data.get("paths", []), bool(data.get("expand"))
        else:
            form = parse_qs(raw.decode())
            paths, expand = form.get("paths", []), form.get("expand", ["false"])[0].lower() in ("true", "1")
        repo = self.repo(kind, repo_id)
        sha = repo.find("/".join(rest) or "main")
        tree, found = repo.commit_data(sha)["tree"], {}
        for path in [paths] if isinstance(paths, str) else paths:
            path = path.strip("/")
            if path in tree:
                found[path] = tree[path]
            elif any(other.startswith(path + "/") for other in tree):
                found[path] = None
        self.send_json(self.tree_listing(repo, sha, found, expand), **{"X-Repo-Commit": sha})

    # -- commits

    def repo_preupload(self, kind: str, repo_id: str, rest: list[str]) -> None:
        data = self.json()
        repo = self.repo(kind, repo_id, write="create_pr" not in self.query)
        tree = repo.commit_data(repo.find("/".join(rest) or "main"))["tree"]

        def text(name: str) -> bytes:
            return self.hub.store.read(tree[name]) if name in tree else b""

        attributes = text(".gitattributes")
        ignore = data.get("gitIgnore") or text(".gitignore").decode(errors="replace")
        files = []
        for file in data.get("files", []):
            path, known = file["path"], tree.get(file["path"])
            lfs = is_lfs(attributes, path, file["size"])
            item = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": is_ignored(ignore, path)}
            if known and ("lfs" in known) == lfs:
                item["oid"] = known["lfs"]["oid"] if lfs else known["oid"]
            files.append(item)
        self.send_json({"files": files})

    def repo_commit(self, kind: str, repo_id: str, rest: list[str]) -> None:
        try:
            lines = [json.loads(line) for line in self.body().splitlines() if line.strip()]
        except ValueError:
            raise HubError(400, "Invalid NDJSON body") from None
        create_pr, revision = "create_pr" in self.query, "/".join(rest) or "main"
        header = next((line["value"] for line in lines if line["key"] == "header"), None)
        if not header or not header.get("summary"):
            raise HubError(400, "A commit needs a header with a summary")
        with self.hub.store.lock:
            repo = self.repo(kind, repo_id, write=not create_pr)
            user = self.user()
            if user is None:
                raise HubError(401, "Invalid username or password.")
            table = "pulls" if revision.startswith("refs/pr/") else "branches"
            if revision not in repo.meta[table]:
                raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            head = repo.meta[table][revision]
            if header.get("parentCommit") and repo.find(header["parentCommit"]) != head:
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            tree = self.apply(dict(repo.commit_data(head)["tree"]), lines)
            sha = repo.new_commit(tree, [head], header["summary"], header.get("description") or "", user.name)
            answer: dict[str, Any] = {"success": True, "commitOid": sha, "hookOutput": ""}
            if create_pr:
                number = len(repo.meta["pulls"]) + 1
                table, revision = "pulls", f"refs/pr/{number}"
                answer["pullRequestUrl"] = f"{self.hub.endpoint}/{PREFIX[kind]}{repo_id}/discussions/{number}"
            repo.meta[table][revision] = sha
            repo.save()
        answer["commitUrl"] = f"{self.hub.endpoint}/{PREFIX[kind]}{repo_id}/commit/{sha}"
        self.send_json(answer)

    def apply(self, tree: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, Any]:
        """The tree after the operations of a commit; all of them are checked before anything is recorded."""
        store = self.hub.store
        for line in sorted(lines, key=lambda item: not item["key"].startswith("deleted")):
            key, value = line["key"], line.get("value", {})
            path = value.get("path", "").strip("/")
            if key != "header" and (not path or any(part in ("", ".", "..", ".git") for part in path.split("/"))):
                raise HubError(400, f"Invalid path: {path!r}")
            if key == "file":
                try:
                    data = base64.b64decode(value["content"], validate=True)
                except binascii.Error:
                    raise HubError(400, f"Invalid base64 content: {path}") from None
                if path == "README.md" and (errors := check_card(data.decode(errors="replace"))[0]):
                    raise HubError(400, "; ".join(errors))
                tree[path] = store.add_blob(data)
            elif key == "lfsFile":
                if not SHA256_RE.fullmatch(value["oid"]) or not self.hub.has_large(value["oid"]):
                    raise HubError(400, f"LFS pointer of {path} points to an object that was never uploaded")
                size = value.get("size") or self.hub.large_size(value["oid"])
                tree[path] = store.lfs_entry(value["oid"], size)
            elif key == "deletedFile":
                if tree.pop(path, None) is None:
                    raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            elif key == "deletedFolder":
                inside = [other for other in tree if other.startswith(path + "/")]
                if not inside:
                    raise HubError(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
                for other in inside:
                    del tree[other]
            elif key != "header":
                raise HubError(400, f"Unknown operation: {key}")
        return tree

    # -- large files (Git LFS)

    def lfs_api(self, kind: str, repo_id: str, action: str) -> None:
        data = self.json()
        if action == "verify":
            self.repo(kind, repo_id)
            if not self.hub.has_large(data["oid"]) or self.hub.large_size(data["oid"]) != data["size"]:
                raise HubError(404, "Object not found")
            return self.send_json({})
        self.repo(kind, repo_id, write=data.get("operation") == "upload")
        objects = []
        for item in data.get("objects", []):
            oid, size = item["oid"], item["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if data.get("operation") != "upload":
                answer["actions"] = {"download": {"href": self.hub.signed(f"/cdn/{oid}", self.hub.endpoint)}}
            elif not self.hub.has_large(oid):
                verify = f"{self.hub.endpoint}/{PREFIX[kind]}{repo_id}.git/info/lfs/objects/verify"
                upload = {"href": self.hub.signed(f"/lfs/{oid}", self.hub.endpoint)}
                answer["actions"] = {"upload": upload, "verify": {"href": verify}}
            objects.append(answer)
        self.send_json({"transfer": "basic", "objects": objects}, **{"Content-Type": "application/vnd.git-lfs+json"})

    def need_signature(self) -> None:
        if not hmac.compare_digest(self.query.get("sig", [""])[0], self.hub.signature(self.url_path)):
            raise HubError(403, "Request signature does not match")

    def lfs_put(self, oid: str) -> None:
        self.need_signature()
        digest, store = hashlib.sha256(), self.hub.store
        fd, tmp = tempfile.mkstemp(dir=store.root / "tmp")
        try:
            with os.fdopen(fd, "wb") as file:
                for piece in self.body_chunks():
                    digest.update(piece)
                    file.write(piece)
            if digest.hexdigest() != oid:
                raise HubError(400, "Content does not match its SHA-256")
            os.replace(tmp, store.lfs_path(oid))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(tmp)
        self.send(b"", ETag=f'"{oid}"')

    # -- downloads

    def resolve(self, kind: str, repo_id: str, revision: str, path: str, raw: bool) -> None:
        if self.command not in ("GET", "HEAD"):
            raise HubError(405, "Method not allowed")
        repo = self.repo(kind, repo_id)
        sha = repo.find(revision)
        entry = repo.commit_data(sha)["tree"].get(path)
        if entry is None:
            raise HubError(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"}
        headers["Content-Disposition"] = f'inline; filename="{path.split("/")[-1]}";'
        if "lfs" not in entry or raw:
            return self.send_file(self.hub.store.root / "blobs" / entry["oid"], headers)
        oid = entry["lfs"]["oid"]
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": entry["lfs"]["size"]}
        if "xetHash" in entry:
            route = f"{self.hub.endpoint}/api/{kind}/{repo_id}/xet-read-token/{sha}"
            headers |= {"X-Xet-Hash": entry["xetHash"], "X-Xet-Refresh-Route": route}
        if self.hub.cdn_redirect:
            headers["Location"] = self.hub.signed(f"/cdn/{oid}", self.hub.cdn_endpoint)
            return self.send(b"", 302, **headers)
        self.send_file(self.hub.large_file(oid), headers | {"ETag": f'"{oid}"'})

    def cdn(self, oid: str) -> None:
        self.need_signature()
        if "Authorization" in self.headers:  # as S3: a signed URL and a token at once is refused
            raise HubError(400, "Only one auth mechanism allowed")
        if not self.hub.has_large(oid):
            raise HubError(404, "Not found")
        self.send_file(self.hub.large_file(oid), {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def send_file(self, path: Path, headers: dict[str, Any]) -> None:
        size, start, end, status = path.stat().st_size, 0, path.stat().st_size, 200
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if match and (match[1] or match[2]):
            start = int(match[1]) if match[1] else max(0, size - int(match[2]))
            end = min(size, int(match[2]) + 1) if match[1] and match[2] else size
            if start >= size or start >= end:
                raise HubError(416, "Range not satisfiable", **{"Content-Range": f"bytes */{size}"})
            status, headers = 206, headers | {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
        self.start(status, {"Content-Type": "application/octet-stream", **headers}, end - start)
        if self.command == "HEAD":
            return
        with open(path, "rb") as file:
            file.seek(start)
            self.stream(pieces_of(file, end - start))

    # -- Xet

    def xet_token(self, kind: str, repo_id: str, write: bool) -> None:
        self.repo(kind, repo_id, write=write and "create_pr" not in self.query)
        expires = int(time.time()) + 3600
        token = f"xet_{'write' if write else 'read'}_{self.hub.signature(str(expires))}_{expires}"
        headers = {"X-Xet-Cas-Url": f"{self.hub.endpoint}/xet", "X-Xet-Access-Token": token}
        answer = {"casUrl": f"{self.hub.endpoint}/xet", "accessToken": token, "exp": expires}
        self.send_json(answer, **headers, **{"X-Xet-Token-Expiration": expires})

    def repo_xet_read_token(self, kind: str, repo_id: str, rest: list[str]) -> None:
        self.xet_token(kind, repo_id, False)

    def repo_xet_write_token(self, kind: str, repo_id: str, rest: list[str]) -> None:
        self.xet_token(kind, repo_id, True)

    def xet(self, parts: list[str]) -> None:
        """The content-addressed store behind the Hub: v1 xorbs, shards, reconstructions; no global deduplication."""
        store = self.hub.store
        if parts[:2] == ["v1", "fetch"]:
            self.need_signature()
            return self.send_file(store.root / "xorbs" / parts[2], {})
        match = re.fullmatch(r"Bearer xet_(read|write)_(\w+)_(\d+)", self.headers.get("Authorization", ""))
        if not match or match[2] != self.hub.signature(match[3]) or int(match[3]) < time.time():
            raise HubError(401, "Invalid Xet token")
        if self.command == "POST" and match[1] != "write":
            raise HubError(403, "A write token is needed")
        if parts[0] == "v1" and len(parts) == 4 and parts[1] == "xorbs" and SHA256_RE.fullmatch(parts[3]):
            data, path = self.body(), store.root / "xorbs" / parts[3]
            if self.command == "HEAD":
                return self.send(b"", 200 if path.exists() else 404)
            if not parse_xorb(data):
                raise HubError(400, "Empty xorb")
            known = path.exists()
            write_atomic(path, data)
            return self.send_json({"was_inserted": not known})
        if parts in (["v1", "shards"], ["shards"]):
            for file in parse_shard(self.body()):
                if any(not (store.root / "xorbs" / term["hash"]).exists() for term in file["terms"]):
                    raise HubError(400, "A shard names a xorb that was never uploaded")
                write_atomic(store.root / "xet" / f"{file['hash']}.json", json.dumps(file).encode())
                if file["sha256"]:
                    write_atomic(store.root / "xet" / f"{file['sha256']}.sha256", file["hash"].encode())
            return self.send_json({"result": 1})
        if parts[:2] == ["v1", "reconstructions"] and len(parts) == 3 and SHA256_RE.fullmatch(parts[2]):
            return self.xet_reconstruction(parts[2])
        raise HubError(404, "Not found")  # also the answer to the global deduplication query: unknown chunk

    def xet_reconstruction(self, file_hash: str) -> None:
        path = self.hub.store.root / "xet" / f"{file_hash}.json"
        if not path.exists():
            raise HubError(404, "Unknown file")
        terms = json.loads(path.read_text())["terms"]
        total = sum(term["size"] for term in terms)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(match[1]), int(match[2] or total - 1)) if match else (0, total - 1)
        if terms and first >= total:
            raise HubError(416, "Range not satisfiable")
        answer: dict[str, Any] = {"offset_into_first_range": 0, "terms": [], "fetch_info": {}}
        pos = 0
        for term in terms:
            begin, pos = pos, pos + term["size"]
            if pos <= first or begin > last:
                continue
            if not answer["terms"]:
                answer["offset_into_first_range"] = first - begin
            span = {"start": term["start"], "end": term["end"]}
            answer["terms"].append({"hash": term["hash"], "unpacked_length": term["size"], "range": span})
            chunks = parse_xorb((self.hub.store.root / "xorbs" / term["hash"]).read_bytes())
            url_range = {"start": chunks[term["start"]][0], "end": chunks[term["end"] - 1][1] - 1}
            url = self.hub.signed(f"/xet/v1/fetch/{term['hash']}", self.hub.endpoint)
            fetch = {"range": span, "url": url, "url_range": url_range}
            known = answer["fetch_info"].setdefault(term["hash"], [])
            if fetch not in known:
                known.append(fetch)
        self.send_json(answer)


def pieces_of(file: BinaryIO, length: int) -> Iterator[bytes]:
    while length > 0 and (piece := file.read(min(COPY_CHUNK, length))):
        length -= len(piece)
        yield piece


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        self.open_sockets: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open_sockets.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open_sockets.discard(request)
        super().shutdown_request(request)

    def drop_connections(self) -> None:
        for request in list(self.open_sockets):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away


class LocalHub:
    """The server. ``faults`` and ``log`` may be read and changed while it runs."""

    def __init__(
        self,
        root: str | os.PathLike,
        tokens: dict[str, User] | None = None,
        port: int = 0,
        faults: list[Fault] | None = None,
        cdn_redirect: bool = True,
        verbose: bool = False,
    ) -> None:
        self.store = Store(root)
        self.tokens = tokens if tokens is not None else {"hf_local": User("local")}
        self.faults: list[Fault] = faults if faults is not None else []
        self.log: list[tuple[str, str, int]] = []
        self.cdn_redirect, self.verbose = cdn_redirect, verbose
        self.secret = secrets.token_bytes(16)
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = _Server(("127.0.0.1", port), handler)
        self.port = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        # Another host name is another origin: clients must drop their token on the way there, as with the real CDN.
        self.cdn_endpoint = f"http://localhost:{self.port}"
        self.thread: threading.Thread | None = None

    def signature(self, text: str) -> str:
        return hmac.new(self.secret, text.encode(), "sha256").hexdigest()[:32]

    def signed(self, path: str, origin: str) -> str:
        return f"{origin}{path}?sig={self.signature(path)}"

    # Large files arrive by LFS (whole) or by Xet (in pieces, put together at their first plain download).

    def xet_file(self, sha256: str) -> dict[str, Any] | None:
        mark = self.store.root / "xet" / f"{sha256}.sha256"
        if not mark.exists():
            return None
        return json.loads((self.store.root / "xet" / f"{mark.read_text()}.json").read_text())

    def has_large(self, sha256: str) -> bool:
        return self.store.lfs_path(sha256).exists() or self.xet_file(sha256) is not None

    def large_size(self, sha256: str) -> int:
        path = self.store.lfs_path(sha256)
        return path.stat().st_size if path.exists() else sum(t["size"] for t in (self.xet_file(sha256) or {})["terms"])

    def large_file(self, sha256: str) -> Path:
        path = self.store.lfs_path(sha256)
        if not path.exists():
            file, data = self.xet_file(sha256), bytearray()
            assert file is not None
            for term in file["terms"]:
                xorb = (self.store.root / "xorbs" / term["hash"]).read_bytes()
                for start, end, _ in parse_xorb(xorb)[term["start"] : term["end"]]:
                    data += unpack_chunk(xorb[start:end])
            if hashlib.sha256(data).hexdigest() != sha256:
                raise HubError(500, "Xet file does not match its SHA-256")
            write_atomic(path, bytes(data))
        return path

    def start(self) -> LocalHub:
        self.thread = threading.Thread(target=self.server.serve_forever, name="local-hub", daemon=True)
        self.thread.start()
        return self

    def stop(self) -> None:
        """Go down at once, open keep-alive connections included; a new LocalHub on the same root goes on."""
        if self.thread:
            self.server.shutdown()
            self.thread.join()
            self.thread = None
        self.server.server_close()
        self.server.drop_connections()

    def __enter__(self) -> LocalHub:
        return self.start()

    def __exit__(self, *_: Any) -> None:
        self.stop()


def parse_token(text: str) -> tuple[str, User]:
    """``USER[+ORG...]=TOKEN[:read]``"""
    names, _, rest = text.partition("=")
    token, _, role = rest.partition(":")
    name, *orgs = names.split("+")
    if not (name and token) or role not in ("", "read", "write"):
        raise argparse.ArgumentTypeError(f"expected USER[+ORG...]=TOKEN[:read], got {text!r}")
    return token, User(name, role or "write", tuple(orgs))


def main() -> None:
    parser = argparse.ArgumentParser(description="Local Hugging Face Hub for tests (127.0.0.1 only)")
    parser.add_argument("--root", required=True, help="directory that keeps the repositories")
    parser.add_argument("--port", type=int, default=8090, help="0 picks a free one (default: 8090)")
    parser.add_argument("--token", action="append", type=parse_token, default=[], metavar="USER[+ORG...]=TOKEN[:read]")
    parser.add_argument("--fault", action="append", default=[], metavar="JSON", help="a fault rule; see class Fault")
    parser.add_argument("--no-cdn", action="store_true", help="serve large files directly, without a redirect")
    parser.add_argument("--verbose", action="store_true", help="log every request to stderr")
    args = parser.parse_args()
    faults = [Fault(**json.loads(text)) for text in args.fault]
    hub = LocalHub(args.root, dict(args.token) or None, args.port, faults, not args.no_cdn, args.verbose)
    print(f"HF_ENDPOINT={hub.endpoint}", flush=True)
    for token, user in hub.tokens.items():
        print(f"HF_TOKEN={token}  # {user.name} ({user.role})", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        hub.server.serve_forever()


if __name__ == "__main__":
    main()
