"""How commands end: sentences, reports of what nobody foresaw, and output that cannot take every character."""

import os
import signal
import subprocess
import sys
import time

import pytest

from seedling_hf.commands import main, run
from seedling_hf.errors import InputError, first_line, without_advice
from seedling_hf.files import replacing, write_text


def _fails(argv):
    raise RuntimeError("first\nlast")


def test_an_unforeseen_error_is_its_last_line_the_versions_and_where_to_report_it(capsys):
    assert run(_fails, []) == 1
    printed = capsys.readouterr().err
    assert "RuntimeError: last" in printed and "seedling-hf" in printed and "report" in printed
    assert "Traceback" not in printed


def test_the_traceback_is_printed_on_request(capsys, monkeypatch):
    run(_fails, ["--traceback"])
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("SEEDLING_HF_TRACEBACK", "1")
    run(_fails, [])
    assert "Traceback" in capsys.readouterr().err


def test_the_traceback_may_come_before_or_after_the_commands_name(capsys):
    for words in (["--traceback", "describe_dataset", "--imagez"], ["describe_dataset", "--traceback", "--imagez"]):
        assert main(words) == 2
        assert "Traceback" in (printed := capsys.readouterr().err) and "--imagez" in printed


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "gbk"])
def test_what_an_encoding_lacks_is_written_out(encoding):
    program = "from seedling_hf.commands import run; run(lambda argv: print('\\u5e7c \\xe9 \\u2019 \\U0001f331'), [])"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    outcome = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert not outcome.stderr and b"\\U0001f331" in outcome.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_standard_output_that_is_full_is_a_sentence():
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "seedling_hf", "--help"]
        outcome = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (
        outcome.returncode == 74 and outcome.stderr.startswith("error: expected") and "Exception" not in outcome.stderr
    )


def test_a_closed_pipe_ends_a_command_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    outcome = subprocess.run([sys.executable, "-m", "seedling_hf", "--help"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert outcome.returncode == 141 and not outcome.stderr


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("I/O error: No space left on device (os error 28)")]
)
def test_a_full_disk_is_a_sentence_and_leaves_nothing(error, tmp_path, capsys):
    def write(argv):
        with replacing(tmp_path / "file") as temporary:
            temporary.write_bytes(bytes(1000))
            raise error

    assert run(write, []) == 74
    assert "1,000 bytes" in (printed := capsys.readouterr().err) and str(tmp_path / "file") in printed
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_too_long_is_a_sentence_and_the_longest_is_written(tmp_path, capsys):
    write_text(tmp_path / ("x" * 255), "text")
    assert run(lambda argv: write_text(tmp_path / ("x" * 256), "text"), []) == 74
    assert "at most 255 bytes, found 256" in capsys.readouterr().err


def test_an_error_of_a_file_that_is_read_is_not_one_of_writing(tmp_path):
    with pytest.raises(PermissionError), replacing(tmp_path / "written"):
        raise PermissionError(13, "Permission denied", "/elsewhere/folder/deep/image.png")


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_a_command_with_one_word_and_nothing_temporary(number, code, word, tmp_path, capsys):
    def work(argv):
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), number)
            time.sleep(10)

    assert run(work, []) == code
    assert capsys.readouterr().err == f"{word}\n"
    assert not list(tmp_path.iterdir())


def test_a_second_signal_ends_a_command_that_does_not_end():
    program = """
import os, signal, time
from seedling_hf.commands import run
from seedling_hf.signals import ECHO_SECONDS
def work(argv):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)  # the launcher's
        time.sleep(ECHO_SECONDS + 0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
run(work, [])
"""
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (outcome.returncode, outcome.stderr) == (-signal.SIGINT, "")


def test_the_end_of_a_program_is_short_and_takes_ctrl_c():
    program = """
import gc, signal
from seedling_hf.commands import run
run(lambda argv: None, [])
print(gc.get_freeze_count() > 0, signal.getsignal(signal.SIGINT) is signal.SIG_DFL)
run(lambda argv: None)
print(gc.get_freeze_count() > 0, signal.getsignal(signal.SIGINT) is signal.SIG_DFL)
"""
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert outcome.stdout == "False False\nTrue True\n"


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_weights_have_the_permissions_of_other_files(tmp_path, umask):
    program = f"""
import os, torch
from pathlib import Path
from safetensors.torch import save_file
from seedling_hf.files import creating_folder, replacing
os.umask({umask})
with replacing("file.safetensors") as temporary:
    save_file({{"a": torch.ones(1)}}, temporary)
with creating_folder(Path("folder")) as folder:
    save_file({{"a": torch.ones(1)}}, folder / "file.safetensors")
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    for path in (tmp_path / "file.safetensors", tmp_path / "folder" / "file.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize(("message", "line"), [("", "OSError"), ("broken.\nmore", "broken"), ("\n", "OSError")])
def test_an_error_without_words_is_named_by_its_kind(message, line):
    assert first_line(OSError(message)) == line


@pytest.mark.parametrize(("message", "rest"), [("found a; b; do c", "found a; b"), ("found a", "found a")])
def test_other_advice_takes_the_place_of_the_last_part_of_a_sentence(message, rest):
    assert without_advice(InputError(message)) == rest
