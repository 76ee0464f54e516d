"""One run at a time writes to an output, and the lock ends with its process."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from seedling_hf import locks
from seedling_hf.errors import InputError
from seedling_hf.locks import LOCK, lock_file, lock_folder, release_locks

HOLD = """
import sys, time
from seedling_hf import locks
getattr(locks, sys.argv[1])(sys.argv[2])
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def released():
    yield
    release_locks()


@pytest.fixture
def hold():
    """Starts another process that locks an output, and waits until it has."""
    processes = []

    def start(kind, path):
        process = subprocess.Popen([sys.executable, "-c", HOLD, kind, str(path)], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "locked\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", ["lock_folder", "lock_file"])
def test_a_second_process_is_told_who_holds_the_lock(tmp_path, hold, kind):
    other = hold(kind, tmp_path / "out")
    with pytest.raises(InputError) as refused:
        getattr(locks, kind)(tmp_path / "out")
    assert f"expected {tmp_path / 'out'} to be free" in str(refused.value)
    assert f"process {other.pid} on " in str(refused.value) and f"{kind} {tmp_path / 'out'}" in str(refused.value)


def test_a_killed_process_leaves_no_lock_and_its_file_is_removed_by_the_next_run(tmp_path, hold):
    other = hold("lock_folder", tmp_path)
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / LOCK).exists()
    lock_folder(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    release_locks()
    assert not list(tmp_path.iterdir())


def test_a_released_lock_leaves_nothing(tmp_path):
    lock_folder(tmp_path / "new" / "folder")
    lock_file(tmp_path / "another" / "answers.csv")
    assert (tmp_path / "new" / "folder" / LOCK).exists() and (tmp_path / "another" / f".answers.csv{LOCK}").exists()
    release_locks()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_filled_stays(tmp_path):
    lock_folder(tmp_path / "run")
    (tmp_path / "run" / "model").touch()
    release_locks()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]


def test_another_thread_of_this_process_is_refused_and_does_not_release_the_lock(tmp_path):
    lock_folder(tmp_path)
    refused = []

    def try_it():
        try:
            lock_folder(tmp_path)
        except InputError as error:
            refused.append(str(error))
        release_locks()

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    assert len(refused) == 1 and f"process {os.getpid()}" in refused[0]
    assert (tmp_path / LOCK).exists()


def test_a_child_of_the_holder_does_not_release_the_lock(tmp_path):
    lock_folder(tmp_path)
    child = os.fork()
    if child == 0:
        release_locks()
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / LOCK).exists()
    code = f"from seedling_hf.locks import lock_folder; lock_folder({str(tmp_path)!r})"
    assert b"to be free" in subprocess.run([sys.executable, "-c", code], capture_output=True).stderr


def test_the_same_folder_by_another_name_is_the_same(tmp_path, hold):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    hold("lock_folder", tmp_path / "run")
    with pytest.raises(InputError, match="to be free"):
        lock_folder(tmp_path / "link")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_gets_one_notice_and_no_file(tmp_path, monkeypatch, capsys, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    monkeypatch.setattr(locks, "_notices", set())
    lock_folder(tmp_path / "a")
    lock_file(tmp_path / "b.csv")
    assert capsys.readouterr().err.count("warning: ") == 1
    release_locks()
    assert not list(tmp_path.iterdir())


def test_a_file_of_somebody_else_in_the_place_of_the_lock_is_left_alone(tmp_path):
    (tmp_path / LOCK).write_text("precious")
    with pytest.raises(InputError, match=r"expected a lock of seedling-hf at .*move it away"):
        lock_folder(tmp_path)
    assert (tmp_path / LOCK).read_text() == "precious"


@pytest.mark.parametrize("left", [b"", bytes(80), b'{"process": 12, "ho'])
def test_what_a_power_cut_leaves_of_a_lock_is_taken_over(tmp_path, left):
    (tmp_path / LOCK).write_bytes(left)
    lock_folder(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


def test_a_place_that_cannot_hold_a_lock_is_a_sentence(tmp_path):
    (tmp_path / LOCK).mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        lock_folder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="expected a writable place"):
        lock_folder(tmp_path / "file")


def test_a_name_of_255_bytes_can_be_locked(tmp_path):
    lock_file(tmp_path / ("x" * 251 + ".csv"))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_lock_whose_file_was_removed_and_made_by_another_is_not_removed(tmp_path):
    lock_folder(tmp_path)
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).write_text("another's")
    release_locks()
    assert (tmp_path / LOCK).read_text() == "another's"


# The module that Windows has in place of fcntl, with locks that last as long as the file is open.
MSVCRT = """
import errno, fcntl, os, sys, types

def locking(descriptor, mode, count):
    assert mode == 2 and count == 1 and os.lseek(descriptor, 0, os.SEEK_CUR) > 1 << 20
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PermissionError(errno.EACCES, "Permission denied") from error

sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
sys.modules["fcntl"] = None
from seedling_hf.errors import InputError
from seedling_hf.locks import LOCK, lock_folder, release_locks
"""


def test_windows_has_the_same_locks(tmp_path):
    program = f"""{MSVCRT}
lock_folder("run")
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or release_locks() or len(os.listdir()))
try:
    lock_folder("run")
except InputError as error:
    os._exit(f"process {{os.getppid()}} on " not in str(error))
os._exit(9)
"""
    found = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found
