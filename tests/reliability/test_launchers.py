"""Training under each launcher of the documentation: a signal saves the state and leaves no process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import assert_well, command
from hub_client import wait_until
from launchers import Launched

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="terminals and processes as Linux has them")
FLAGS = [
    "--output_dir", "run", "--variant", "tiny", "--image_size", 32, "--per_device_train_batch_size", 4,
    "--eval_steps", 100_000, "--save_steps", 100_000, "--logging_steps", 1,
]  # fmt: skip
WAYS = {
    "Ctrl-C": Launched.type_ctrl_c,
    "SIGTERM to the launcher": lambda launched: launched.send_to_launcher(signal.SIGTERM),
    "SIGHUP to the launcher": lambda launched: launched.send_to_launcher(signal.SIGHUP),
    "SIGKILL to the launcher": lambda launched: launched.send_to_launcher(signal.SIGKILL),
    "SIGTERM to all": lambda launched: launched.send_to_all(signal.SIGTERM),
    "SIGUSR1 to all": lambda launched: launched.send_to_all(signal.SIGUSR1),
}
CASES = [
    *(("accelerate launch", way) for way in WAYS),
    *(("accelerate launch, two processes", way) for way in WAYS if "SIGHUP" not in way),
    *(("torchrun, two processes", f"{number} to the launcher") for number in ("SIGTERM", "SIGHUP")),
    *(("two tasks", f"{number} to all") for number in ("SIGTERM", "SIGUSR1")),
    *(("seedling-hf train", way) for way in ("Ctrl-C", "SIGHUP to the launcher")),
]
# The launcher is the run itself.
ALONE = ("seedling-hf train", "two tasks")
# How accelerate ends with one process; with several it is torchrun.
CODES = {
    "Ctrl-C": -signal.SIGINT, "SIGTERM to the launcher": -signal.SIGTERM, "SIGHUP to the launcher": -signal.SIGHUP,
    "SIGTERM to all": -signal.SIGTERM,
}  # fmt: skip


def expected_code(launcher: str, way: str) -> int:
    if launcher in ALONE:
        return 75
    if "SIGKILL" in way:
        return -signal.SIGKILL
    if "SIGUSR1" in way:  # no launcher handles it
        return -signal.SIGUSR1
    return CODES[way] if launcher == "accelerate launch" else 1


def last_step(folder: Path) -> int:
    return max(int(path.name.split("-")[1]) for path in (folder / "run" / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(("launcher", "way"), CASES)
def test_a_signal_saves_the_state_and_leaves_no_process(tmp_path, images, launcher, way):
    launched = Launched(launcher, ["--train_dir", images, *FLAGS, "--max_steps", 100_000], tmp_path)
    try:
        launched.wait_until_it_trains()
        WAYS[way](launched)
    finally:
        ending = launched.finish()
    assert not ending.left, ending.output
    assert set(ending.codes) == {expected_code(launcher, way)}, ending.output
    assert ending.output.count("finishing this step and saving") >= 1
    step = last_step(tmp_path)
    words = ["train", "--train_dir", images, *FLAGS, "--max_steps", step + 1, "--allow_changed_arguments"]
    resumed = command([*words, "--resume_from_checkpoint", "latest"], tmp_path)
    assert_well(resumed)
    assert f"resumed at step {step}" in resumed.stdout + resumed.stderr


@pytest.mark.parametrize("shield", ["nohup", "setsid"])
def test_a_run_outlives_the_shell_that_started_it(tmp_path, images, shield):
    words = [sys.executable, "-m", "seedling_hf", "train", "--train_dir", str(images), *map(str, FLAGS)]
    script = f'cd "{tmp_path}"; {shield} "$@" > output 2>&1 & echo $!'
    shell = subprocess.run(
        ["bash", "-c", script, "bash", *words, "--max_steps", "20"], start_new_session=True, capture_output=True,
        text=True, check=True, env=os.environ | {"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if shield == "nohup":
        program = Path("/proc", shell.stdout.strip(), "cmdline")
        wait_until(lambda: program.read_bytes().startswith(os.fsencode(sys.executable)))  # nohup has done its part
        os.kill(int(shell.stdout), signal.SIGHUP)  # as a terminal that closes does
    results, end = tmp_path / "run" / "train_results.json", time.monotonic() + 120
    while not results.exists():
        assert time.monotonic() < end, (tmp_path / "output").read_text()
        time.sleep(0.1)


def test_a_run_whose_output_nobody_reads_any_more_saves_its_state(tmp_path, images):
    words = [sys.executable, "-m", "seedling_hf", "train", "--train_dir", str(images), *map(str, FLAGS)]
    words += ["--max_steps", "100000", "--eval_steps", "2"]
    run = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while "validation loss" not in (line := run.stdout.readline()):
        assert line, "the run has ended"
    run.stdout.close()
    assert run.wait(60) == 141
    assert last_step(tmp_path) >= 2
