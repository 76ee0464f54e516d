"""Locks on outputs: one run at a time writes to a folder or a file, and its lock ends with its process in any case.

    RUN/.seedling-hf.lock                   the lock of the folder RUN
    .answers.csv.seedling-hf.lock           the lock of the file answers.csv, or of a folder that appears whole

The file says who holds the lock. What counts is the lock of the operating system: a file that a killed run has left is
taken over by the next one. `commands.run` releases what its command has locked.
"""

import errno
import json
import os
import shlex
import socket
import stat
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from seedling_hf.errors import InputError
from seedling_hf.files import fitting

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

LOCK = ".seedling-hf.lock"
LONGEST_COMMAND = 200
# Windows keeps others from reading what is locked, so it is a byte that nobody reads.
LOCKED_BYTE = 1 << 30
NOT_PERMITTED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})

_held: dict[Path, "_Lock"] = {}
_notices: set[str] = set()


def lock_folder(folder: str | os.PathLike) -> None:
    """Locks an output folder, which is made if it is missing, until `release_locks`.

    Raises:
        InputError: if another run writes to it, or it may not be written to.
    """
    _hold(Path(folder), Path(folder, LOCK))


def lock_file(file: str | os.PathLike) -> None:
    """Locks an output file, or a folder that appears whole, by a file beside it; otherwise as `lock_folder`."""
    _hold(Path(file), Path(file).with_name(fitting(f".{Path(file).name}", LOCK)))


def release_locks() -> None:
    """Releases the locks of this thread, and removes their files and the folders that they alone have needed."""
    for path, lock in list(_held.items()):
        if lock.owner == _this_thread():
            del _held[path]
            lock.release()


def keeps_lock(folder: str | os.PathLike) -> bool:
    """Whether what `lock_folder` has locked is still there: not if the folder was deleted or replaced since."""
    lock = _held.get(Path(os.path.realpath(Path(folder, LOCK))))
    if lock is None or lock.descriptor is None:  # a file system without locks
        return os.path.isdir(folder)
    return _is_at(lock.path, lock.descriptor)


def lock_again(folder: str | os.PathLike) -> None:
    """Locks an output folder whose lock was deleted with it; otherwise as `lock_folder`."""
    if (lock := _held.pop(Path(os.path.realpath(Path(folder, LOCK))), None)) is not None:
        lock.release()
    lock_folder(folder)


def is_lock(path: str | os.PathLike) -> bool:
    """Whether a path is named as a lock, by its last part."""
    return Path(path).name.endswith(LOCK)


def _hold(output: Path, path: Path) -> None:
    key = Path(os.path.realpath(path))
    held = _held.get(key)
    if held is not None and held.owner == _this_thread():
        return
    # The system would grant a second lock to this process, and release both with the first.
    if held is not None and held.owner[0] == os.getpid():
        raise InputError(_refusal(output, held.holder))
    _held[key] = _Lock(output, path)


class _Lock:
    """The lock of one output; `descriptor` is None where the file system has no locks."""

    def __init__(self, output: Path, path: Path) -> None:
        self.output, self.path, self.owner = output, path, _this_thread()
        self.holder = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:LONGEST_COMMAND],
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        self.made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
        self.descriptor = None
        try:
            while self.descriptor is None:
                self.descriptor = self._try()
        except OSError as error:
            if error.errno in NOT_PERMITTED or isinstance(error, FileExistsError):
                raise InputError(
                    f"expected a writable place for {output}, found that {path} cannot be made ({error.strerror}); "
                    "name another, or change the permissions"
                ) from error
            _notice(output, error)

    def release(self) -> None:
        if self.descriptor is not None and fcntl is None:  # Windows does not remove an open file
            os.close(self.descriptor)
            with suppress(OSError):
                self.path.unlink()
        elif self.descriptor is not None:
            if _is_at(self.path, self.descriptor):
                with suppress(OSError):
                    self.path.unlink()
            os.close(self.descriptor)
        with suppress(OSError):
            for folder in self.made:
                folder.rmdir()  # only an empty one

    def _try(self) -> int | None:
        """The locked file; None if its former holder has removed it in between."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _lock(descriptor)
            if not _is_at(self.path, descriptor):
                os.close(descriptor)
                return None
            self._check_ours(descriptor)
        except BlockingIOError:
            holder = _read_holder(descriptor)
            os.close(descriptor)
            raise InputError(_refusal(self.output, holder)) from None
        except BaseException:
            if os.fstat(descriptor).st_size == 0:
                with suppress(OSError):
                    self.path.unlink()
            os.close(descriptor)
            raise
        with suppress(OSError):  # a full disk; the lock itself needs no room
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, json.dumps(self.holder).encode() + b"\n")
            os.chmod(self.path, 0o666)  # after a kill, others who share the folder can take it over
        return descriptor

    def _check_ours(self, descriptor: int) -> None:
        """Refuses another file of this name; one with zeros only is what a power cut leaves of ours."""
        text = os.read(descriptor, 12) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b"no file"
        if text.strip(b"\0") and not text.startswith(b'{"process": '):
            raise InputError(
                f"expected a lock of seedling-hf at {self.path}, or nothing, found something else; move it away"
            )


def _lock(descriptor: int) -> None:
    """Takes the lock, or raises BlockingIOError if another process has it; OSError where there are no locks."""
    try:
        if fcntl is None:
            os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            # Not flock, which the loader's workers would hold for a while after this process is killed.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:
        raise BlockingIOError(*error.args) from error


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _read_holder(descriptor: int) -> dict[str, object]:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        holder = json.loads(os.read(descriptor, 1 << 16))
        return holder if isinstance(holder, dict) else {}
    except (OSError, ValueError, RecursionError):  # it is being written
        return {}


def _refusal(output: Path, holder: dict[str, object]) -> str:
    known = {name: "".join(c for c in str(value) if c.isprintable()) for name, value in holder.items()}
    who = ""
    if known.keys() >= {"process", "host", "command", "since"}:
        who = f", process {known['process']} on {known['host']} since {known['since']} (`{known['command']}`)"
    return (
        f"expected {output} to be free, found another run writing to it{who}; wait until it ends, stop it, or name "
        "another output"
    )


def _notice(output: Path, error: OSError) -> None:
    """Says once that nothing keeps a second run away."""
    if not _notices:
        print(
            f"warning: {output} could not be locked ({error.strerror or error}): make sure that no second run writes "
            "to it",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    _notices.add(str(output))


def _this_thread() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()
