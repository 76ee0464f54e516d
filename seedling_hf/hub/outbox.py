"""Snapshots of a model folder that wait on disk until the Hub has them.

A snapshot is a folder of its own, so nothing that the run writes later can change it:

    hub_outbox/000003-step-00000120-best/push.json    target and message; never a token
    hub_outbox/000003-step-00000120-best/files/…      the files of the repository

It is built under a hidden name and then renamed, so a kill leaves no incomplete snapshot.
"""

import contextlib
import fnmatch
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from seedling_hf.escaping import format_count
from seedling_hf.inference.model_files import FAMILIARITY

OUTBOX = "hub_outbox"
LAST_CHECKPOINT = "last-checkpoint"
CARD = "README.md"
# Only these files are pushed, and the code that `auto_map` names; all are at the top of a model folder.
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
OF_WEIGHTS = (*WEIGHTS, FAMILIARITY)
OUT_OF_FOLD = "out_of_fold.json"  # the figures of the folds, of a model that was trained on all images
RESULTS = (
    OUT_OF_FOLD,
    "report.json", "report.md", "confusion_matrix.png", "reliability.png", "coverage_risk.png", "predictions.csv",
    "train_results.json", "curves.png",
)  # fmt: skip
PUSHED = (
    "config.json", "preprocessor_config.json", *OF_WEIGHTS, CARD, *RESULTS, "split.csv", "corrections.csv",
    "near_duplicates.json", "metrics.jsonl", "arguments.yaml",
)  # fmt: skip
# How transformers finds relative imports: in the text.
_RELATIVE_IMPORT = re.compile(r"^\s*from\s+\.(\w+)\s+import", re.MULTILINE)


@dataclass(frozen=True)
class Target:
    """Where a snapshot is pushed."""

    repo_id: str  # `user/name`; the user defaults to the owner of the token
    message: str  # of the commit
    private: bool | None = None  # whether a new repository is private; None leaves the choice to the Hub
    revision: str | None = None  # branch; None is `main`
    tag: str | None = None  # of the commit
    repo_type: str = "model"  # or `dataset`, `space`
    space_sdk: str = "gradio"  # of a new Space; or `static`

    @property
    def place(self) -> tuple[str, str, str | None]:
        """The branch that the commit goes to."""
        return self.repo_type, self.repo_id, self.revision

    def replaces(self, earlier: "Target") -> bool:
        """Whether a commit here makes an earlier one needless: it goes to the same place and loses no tag."""
        return self.place == earlier.place and earlier.tag in (None, self.tag)


@dataclass(frozen=True)
class Snapshot:
    """Files by their paths in the repository, and their target; `folder` is None for files that are not staged."""

    files: Mapping[str, Path]
    target: Target
    folder: Path | None = None

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())

    def exists(self) -> bool:
        return self.folder is None or self.folder.exists()

    def describe(self) -> str:
        """One line for the user: size, target and message."""
        target = self.target
        where = target.repo_id + (f", branch {target.revision}" if target.revision else "")
        return f"{format_count(len(self.files), 'file')}, {self.num_bytes / 1e6:.1f} MB, to {where}: {target.message}"

    def list_files(self) -> str:
        """The paths in the repository, one a line."""
        return "\n".join(f"  {name}" for name in self.files)


def model_files(folder: Path, *, results: bool = True, checkpoint: Path | None = None) -> dict[str, Path]:
    """The files of a model folder that may be pushed, by their paths in the repository.

    `results` includes report, curves and timing, if they belong to these weights; a `checkpoint` becomes
    `last-checkpoint`.
    """
    allowed = PUSHED if results else set(PUSHED) - set(RESULTS)
    chosen = {path.name for path in folder.iterdir() if path.is_file() and _matches(path.name, allowed)}
    files = {name: folder / name for name in sorted(chosen | set(_code_files(folder)))}
    if checkpoint is not None:
        files |= {f"{LAST_CHECKPOINT}/{path.name}": path for path in sorted(checkpoint.iterdir()) if path.is_file()}
    return files


def is_result(name: str) -> bool:
    """Whether a file of a repository belongs to particular weights."""
    return _matches(name, (*OF_WEIGHTS, *RESULTS))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


class Outbox:
    """The snapshots of one run, oldest first; each is complete, and replaces earlier ones of its kind.

    A checkpoint that waits is handed on to the next snapshot without one. Other places and tags wait by themselves.
    """

    def __init__(self, output_dir: str | os.PathLike) -> None:
        self.folder = Path(output_dir) / OUTBOX

    def put(self, files: Mapping[str, Path], target: Target, name: str) -> Snapshot:
        """Copies `files` into a new snapshot; weights are hard-linked, since they are replaced, never modified.

        Raises:
            OSError: if the disk fails; nothing is left of the snapshot then.
        """
        if not _checkpoint_of(files):
            waiting = [_checkpoint_of(s.files) for s in self.pending() if s.target.place == target.place]
            files = {**files, **next((found for found in reversed(waiting) if found), {})}
        former = [int(folder.name.split("-")[0]) for folder in self._folders()]
        folder = self.folder / f"{max(former, default=0) + 1:06d}-{name}"
        building = folder.with_name(f".{folder.name}.tmp")
        for leftover in self.folder.glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            for inside, path in files.items():
                copy = building / "files" / inside
                copy.parent.mkdir(parents=True, exist_ok=True)
                _link_or_copy(path, copy)
            (building / "push.json").write_text(json.dumps(asdict(target), indent=2) + "\n", encoding="utf-8")
            os.replace(building, folder)
        except OSError:
            shutil.rmtree(building, ignore_errors=True)
            raise
        return _read(folder)

    def pending(self) -> list[Snapshot]:
        """The snapshots that wait, oldest first, in which order they are to be pushed."""
        found = []
        for folder in self._folders():
            with contextlib.suppress(OSError, ValueError, TypeError):  # just removed by another process, or none
                found.append(_read(folder))
        return found

    def newest(self) -> Snapshot | None:
        """The newest pending snapshot, if any."""
        return next(reversed(self.pending()), None)

    def remove(self, snapshot: Snapshot) -> None:
        """Removes a snapshot that is on the Hub, and the earlier ones for the same place."""
        earlier = [s for s in self.pending() if s.target.place == snapshot.target.place]
        self._remove([snapshot.folder, *(s.folder for s in earlier if s.folder.name < snapshot.folder.name)])

    def remove_replaced(self, *, keep: Snapshot | None) -> None:
        """Removes the snapshots that newer ones replace, except one that is being pushed."""
        pending = self.pending()
        for number, earlier in enumerate(pending):
            if any(later.target.replaces(earlier.target) for later in pending[number + 1 :]):
                self._remove([earlier.folder] if earlier.folder != (keep and keep.folder) else [])

    def make_room(self, files: Mapping[str, Path], target: Target, *, keep: Snapshot | None) -> None:
        """Removes what a snapshot of `files` would replace, but no checkpoint if it has none of its own."""
        for earlier in self.pending():
            spared = earlier.folder == (keep and keep.folder) or (
                _checkpoint_of(earlier.files) and not _checkpoint_of(files)
            )
            if target.replaces(earlier.target) and not spared:
                self._remove([earlier.folder])

    def clear(self, *, keep: Snapshot | None) -> None:
        """Removes all snapshots, except one that is being pushed."""
        self._remove([folder for folder in self._folders() if folder != (keep and keep.folder)])

    def _remove(self, folders: list[Path]) -> None:
        for folder in folders:
            hidden = folder.with_name(f".{folder.name}.tmp")
            # Renamed first, so that no partly deleted folder looks like a snapshot.
            with contextlib.suppress(OSError):
                folder.rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()  # only if it is empty

    def _folders(self) -> list[Path]:
        """The snapshots, whole or damaged; what else lies in the folder is not ours."""
        folders = (path for path in self.folder.glob("[0-9]*-*") if re.match(r"\d{6,}-", path.name))
        return sorted(folder for folder in folders if (folder / "push.json").exists())


def _checkpoint_of(files: Mapping[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in files.items() if name.startswith(f"{LAST_CHECKPOINT}/")}


def _code_files(folder: Path) -> Iterator[str]:
    """The modules that `auto_map` names, and those that they import relatively."""
    waiting = []
    for name in ("config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            classes = json.loads((folder / name).read_text(encoding="utf-8")).get("auto_map", {}).values()
            names = [c for value in classes for c in (value if isinstance(value, list) else [value]) if c]
            waiting += [c.split(".")[0] for c in names if "--" not in c]  # `--`: code of another repository
    seen = set()
    while waiting:
        module = waiting.pop()
        path = folder / f"{module}.py"
        if module in seen or not path.is_file():
            continue
        seen.add(module)
        yield path.name
        waiting += _RELATIVE_IMPORT.findall(path.read_text(encoding="utf-8"))


def _link_or_copy(path: Path, copy: Path) -> None:
    if path.suffix == ".safetensors":
        try:
            os.link(path, copy)
            return
        except OSError:  # another disk, or a file system without links
            pass
    shutil.copyfile(path, copy)


def _read(folder: Path) -> Snapshot:
    target = Target(**json.loads((folder / "push.json").read_text(encoding="utf-8")))
    files = folder / "files"
    found = sorted(path for path in files.rglob("*") if path.is_file())
    return Snapshot({path.relative_to(files).as_posix(): path for path in found}, target, folder)
