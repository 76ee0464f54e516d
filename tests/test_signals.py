"""Signals: the first is a flag, the second ends the process at once."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from seedling_hf.signals import (
    ECHO_SECONDS,
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
from seedling_hf.signals import RESUMABLE_EXIT_CODE, StopSignal
with StopSignal() as stop:
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


@pytest.mark.parametrize("second", STOP_SIGNALS)
@pytest.mark.parametrize("first", STOP_SIGNALS)
def test_a_second_signal_ends_at_once_without_a_traceback(first, second):
    process = start("deaf")
    process.send_signal(first)
    assert first.name in process.stderr.readline()
    time.sleep(ECHO_SECONDS + 0.1)
    process.send_signal(second)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (-second, "", "")


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


def test_a_system_without_sigusr1_has_the_other_signals():
    program = "import signal; del signal.SIGUSR1; from seedling_hf.signals import STOP_SIGNALS; print(*STOP_SIGNALS)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert found == f"{signal.SIGTERM} {signal.SIGINT}\n"


def test_the_exit_code_is_that_of_a_temporary_failure():
    assert RESUMABLE_EXIT_CODE == os.EX_TEMPFAIL
