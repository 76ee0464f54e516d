import io
import logging
import os
import sys
import threading
import time
import warnings

import pytest

from seedling_hf import progress
from seedling_hf.escaping import visible_output
from seedling_hf.progress import Progress, follow, heartbeat, idling


class Stream(io.StringIO):
    """Standard error that is a terminal, or not."""

    def __init__(self, terminal: bool = False) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def lively(monkeypatch):
    """The heartbeat as it is without tests, and a hundred times faster."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    for name in ("FIRST_SECONDS", "LATER_SECONDS", "TICK_SECONDS", "BAR_SECONDS"):
        monkeypatch.setattr(progress, name, getattr(progress, name) / 100)


def wait_for(stream: io.StringIO, text: str) -> None:
    end = time.monotonic() + 20
    while text not in stream.getvalue():
        assert time.monotonic() < end, stream.getvalue()
        time.sleep(0.005)


def test_a_silent_start_is_broken_by_a_line(lively, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Stream())
    with visible_output(), heartbeat():
        wait_for(stream, "starting: 1 s\n")


def test_what_is_slow_is_named_with_its_number(lively, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Stream())
    with visible_output(), heartbeat(), Progress("checking images", 2000, done=1000) as shown:
        shown.update()
        wait_for(stream, "checking images: 1,001 of 2,000 images, 1 s\n")


def test_lines_go_on_while_one_item_takes_its_time(lively, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Stream())
    with visible_output(), heartbeat():
        for _ in follow([1, 2], "reading"):
            wait_for(stream, "reading: 0 of 2 images")
            lines = stream.getvalue().count("\n")
            end = time.monotonic() + 20
            while stream.getvalue().count("\n") < lines + 3:
                assert time.monotonic() < end
                time.sleep(0.005)
            break


def test_nothing_is_said_while_others_speak(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(progress, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(progress, "FIRST_SECONDS", 1000.0)
    monkeypatch.setattr(sys, "stderr", stream := Stream())
    with visible_output(), heartbeat():
        print("a sentence", file=sys.stderr)
        time.sleep(0.1)
    assert stream.getvalue() == "a sentence\n"


def test_no_line_is_put_into_the_middle_of_another(lively, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Stream())
    with visible_output(), heartbeat():
        print("password: ", end="", file=sys.stderr)
        time.sleep(0.3)
        assert stream.getvalue().endswith("password: ")
        print(file=sys.stderr)
        said = len(stream.getvalue())
        end = time.monotonic() + 20
        while len(stream.getvalue()) == said:
            assert time.monotonic() < end
            time.sleep(0.005)


def test_a_command_that_waits_for_somebody_is_silent(lively, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Stream())
    with visible_output(), heartbeat(), idling():
        said = stream.getvalue()
        time.sleep(0.4)
        assert stream.getvalue() == said


def test_a_command_that_has_waited_for_somebody_need_not_say_so(lively, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream())
    with visible_output(), heartbeat():
        with idling():
            time.sleep(0.5)
        assert time.monotonic() - progress._heartbeat.heard < 0.4


def test_a_terminal_has_a_bar_that_others_do_not_run_into(lively, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Stream(terminal=True))
    with visible_output(), heartbeat():
        with Progress("training", 40, unit="step", done=10) as shown:
            shown.update(10, note="loss 1.250")
            wait_for(stream, "training:  50%")
            wait_for(stream, "loss 1.250")
            print("a sentence", file=sys.stderr)
            before, after = stream.getvalue().split("a sentence\n", 1)
            assert before.endswith("\r") and before.rsplit("\r", 2)[-2].strip() == ""
            wait_for(stream, "a sentence\n" + after)
        assert stream.getvalue().endswith("\r")
    assert "\n" not in stream.getvalue().replace("a sentence\n", "")


def test_what_is_short_gets_no_bar(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(progress, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(progress, "BAR_SECONDS", 1000.0)
    monkeypatch.setattr(sys, "stderr", stream := Stream(terminal=True))
    with visible_output(), heartbeat(), Progress("reading", 3):
        time.sleep(0.1)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("variable", [{"TQDM_DISABLE": "1"}, {"RANK": "1"}], ids=["disabled", "second process"])
def test_nothing_is_shown_where_it_is_unwanted(lively, monkeypatch, variable):
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", stream := Stream())
    with visible_output(), heartbeat(), Progress("reading", 3):
        assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]
        time.sleep(0.1)
    assert stream.getvalue() == ""


def test_without_a_command_nothing_is_shown(lively, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Stream())
    assert list(follow(range(3), "reading")) == [0, 1, 2]
    assert stream.getvalue() == ""


def test_the_thread_ends_with_the_command(lively, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream())
    with pytest.raises(KeyError), visible_output(), heartbeat(), Progress("reading", 3):
        raise KeyError
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]
    assert progress._current == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_writes_at_once_and_shows_nothing(lively, monkeypatch):
    monkeypatch.setattr(progress, "TICK_SECONDS", 1e-5)
    monkeypatch.setattr(sys, "stderr", stream := Stream(terminal=True))
    with visible_output(), heartbeat(), Progress("reading", 3):
        wait_for(stream, "reading")
        for _ in range(20):
            if (child := os.fork()) == 0:
                print("from the child", file=sys.stderr)
                with Progress("in the child", 2) as shown:
                    shown.update()
                os._exit(7 if progress._heartbeat is None else 8)
            end = time.monotonic() + 20
            while (found := os.waitpid(child, os.WNOHANG)) == (0, 0):
                if time.monotonic() > end:
                    os.kill(child, 9)
                time.sleep(0.001)
            assert os.waitstatus_to_exitcode(found[1]) == 7


def test_the_log_of_a_library_keeps_its_warnings_and_loses_its_reports(monkeypatch, caplog):
    from seedling_hf.verbosity import VERBOSE_VARIABLE, set_verbosity

    monkeypatch.delenv(VERBOSE_VARIABLE, raising=False)
    with warnings.catch_warnings():
        set_verbosity(verbose=False)
        caplog.clear()
        models, images = logging.getLogger("transformers.modeling_utils"), logging.getLogger("datasets.builder")
        monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
        models.warning("\nAutoModel LOAD REPORT from: x\nclassifier.weight | MISSING")
        images.warning("Setting num_proc from 4 back to 1 for the train split")
        models.warning("these weights are of another architecture")
        images.warning("the disk is nearly full")
    # Once or twice, as the library has handlers of its own or not.
    assert set(caplog.messages) == {"these weights are of another architecture", "the disk is nearly full"}


def test_warnings_of_torch_are_dropped_where_the_memory_is_the_same():
    from seedling_hf.verbosity import set_verbosity

    text = "Grad strides do not match bucket view strides. This is no error.\ngrad.sizes() = {}, strides() = [9, 1]\n"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        set_verbosity(verbose=False)
        for sizes in ("[256, 1, 3, 3]", "[64, 32, 1, 1]", "[64, 32, 3, 3]"):
            warnings.warn(text.format(sizes), UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == [text.format("[64, 32, 3, 3]")]
