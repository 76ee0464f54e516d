"""Signals: the first is a flag, the second ends the process at once; the end of a launcher is a signal too."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from seedling_hf.signals import (
    ECHO_SECONDS,
    HANGUP,
    LOOK_SECONDS,
    RESUMABLE_EXIT_CODE,
    STOP_SIGNALS,
    EndSignal,
    Stopped,
    StopSignal,
    Terminated,
    sparing_children,
)

PROGRAM = """
import sys, time
from seedling_hf.signals import RESUMABLE_EXIT_CODE, StopSignal, ending_with_launcher
with ending_with_launcher(), StopSignal() as stop:
    print("running", flush=True)
    while not stop.received or "deaf" in sys.argv:
        time.sleep(0.01)
print("saved after", stop.received, flush=True)
sys.exit(RESUMABLE_EXIT_CODE)
"""


def start(*arguments: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "running\n"
    return process


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_first_signal_lets_the_program_save_and_exit_as_resumable(number):
    process = start()
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (75, f"saved after {number.name}\n")
    assert errors == f"{number.name}: finishing this step and saving; a second signal ends at once\n"


@pytest.mark.parametrize("second", [number for number in STOP_SIGNALS if number != HANGUP])
@pytest.mark.parametrize("first", STOP_SIGNALS)
def test_a_second_signal_ends_at_once_without_a_traceback(first, second):
    process = start("deaf")
    process.send_signal(first)
    assert first.name in process.stderr.readline()
    time.sleep(ECHO_SECONDS + 0.1)
    process.send_signal(second)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (-second, "", "")


@pytest.mark.skipif(HANGUP is None, reason="no SIGHUP on this system")
def test_a_terminal_that_closes_is_not_a_second_signal():
    process = start("deaf")
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM" in process.stderr.readline()
    time.sleep(ECHO_SECONDS + 0.1)
    process.send_signal(HANGUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.kill()
    process.communicate()


@pytest.mark.skipif(HANGUP is None, reason="no SIGHUP on this system")
@pytest.mark.parametrize("stop", [StopSignal, EndSignal])
def test_under_nohup_a_run_outlives_its_terminal(stop):
    former = signal.signal(HANGUP, signal.SIG_IGN)
    try:
        with stop() as received:
            os.kill(os.getpid(), HANGUP)
            assert received.received is None
    finally:
        signal.signal(HANGUP, former)


# Starts the words after its own, and waits.
PARENT = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:])
sys.stdin.read()
"""


def start_under(parent: str, folder: Path, *arguments: str) -> subprocess.Popen:
    """A launcher or another program of the name `parent` that has started the program above."""
    (folder / parent).write_text(PARENT)
    process = subprocess.Popen(
        [sys.executable, folder / parent, sys.executable, "-c", PROGRAM, *arguments],
        env=os.environ | {"ACCELERATE_MIXED_PRECISION": "no"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "running\n"
    return process


def assert_outlives(child: psutil.Process, parent: subprocess.Popen) -> None:
    """The child runs on, and says nothing, after its parent was killed."""
    parent.kill()
    parent.wait()
    time.sleep(3 * LOOK_SECONDS)
    assert child.is_running() and child.status() != psutil.STATUS_ZOMBIE
    child.kill()
    assert parent.communicate(timeout=20) == ("", "")


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the number of a parent that has ended")
@pytest.mark.parametrize("launcher", ["accelerate", "accelerate-launch", "torchrun"])
def test_the_end_of_the_launcher_stops_its_processes(launcher, tmp_path):
    process = start_under(launcher, tmp_path)
    process.kill()
    output, errors = process.communicate(timeout=20)
    assert output == "saved after SIGTERM\n"
    assert errors.splitlines()[0] == "the launcher has ended"


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps the number of a parent that has ended")
def test_the_end_of_the_launcher_after_a_signal_is_not_a_second_one(tmp_path):
    process = start_under("accelerate", tmp_path, "deaf")
    child = psutil.Process(process.pid).children()[0]
    child.send_signal(signal.SIGINT)
    assert "SIGINT" in process.stderr.readline()
    time.sleep(ECHO_SECONDS + 0.1)
    assert_outlives(child, process)


def test_a_run_outlives_a_parent_that_is_no_launcher(tmp_path):
    process = start_under("shell", tmp_path, "deaf")
    child = psutil.Process(process.pid).children()[0]
    assert_outlives(child, process)


def test_the_signal_forwarded_by_a_launcher_is_not_a_second_one():
    process = start()
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 75
    assert output.startswith("saved after SIG")


def test_without_a_signal_nothing_is_received_and_the_handlers_are_restored():
    former = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopSignal() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.received == "SIGUSR1"
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == former


def test_the_line_of_a_signal_says_what_the_command_does(capfd):
    with StopSignal("ending the watch"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == "SIGTERM: ending the watch; a second signal ends at once\n"


def test_a_child_process_does_not_handle_signals_of_its_parent(capfd):
    with StopSignal() as stop:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(0 if stop.received is None else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert capfd.readouterr().err == ""


def test_a_signal_raises_at_once_where_it_may(capfd):
    with StopSignal() as stop:
        with pytest.raises(Stopped), stop.raising():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        with pytest.raises(Stopped), stop.raising():  # one that came before, too
            pass
    assert capfd.readouterr().err.count("SIGTERM") == 1


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_command_without_state_ends_at_once(number, kind, capfd):
    with pytest.raises(KeyboardInterrupt) as raised, EndSignal() as end, end.raising():
        os.kill(os.getpid(), number)
        time.sleep(10)
    assert raised.type is kind
    assert capfd.readouterr().err == ""


def test_the_echo_of_a_signal_that_has_stopped_a_run_does_not_end_its_command(capfd):
    with EndSignal() as end, end.raising():
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == "SIGTERM"
        os.kill(os.getpid(), signal.SIGTERM)
        assert end.received is None


def test_a_command_in_the_background_of_a_shell_ignores_ctrl_c():
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with EndSignal() as end, end.raising():
            os.kill(os.getpid(), signal.SIGINT)
            assert end.received is None
    finally:
        signal.signal(signal.SIGINT, former)


@pytest.mark.parametrize("stop", [StopSignal, EndSignal])
def test_a_child_process_ends_at_sigterm(stop):
    with stop():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_children_that_are_spared_do_not_receive_ctrl_c():
    program = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('lives')"
    with sparing_children("spawn"):
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.communicate()[0] == "lives\n"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_in_a_thread_no_signals_are_taken():
    former = [signal.getsignal(number) for number in STOP_SIGNALS]

    def work() -> str | None:
        with StopSignal() as stop:
            assert [signal.getsignal(number) for number in STOP_SIGNALS] == former
            return stop.received

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() is None


def test_a_system_without_sigusr1_and_sighup_has_the_other_signals():
    program = (
        "import signal; del signal.SIGUSR1, signal.SIGHUP; from seedling_hf.signals import *; print(*STOP_SIGNALS)\n"
        "with StopSignal(), EndSignal(): pass"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert found == f"{signal.SIGTERM} {signal.SIGINT}\n"


def test_the_exit_code_is_that_of_a_temporary_failure():
    assert RESUMABLE_EXIT_CODE == os.EX_TEMPFAIL
