"""Machines and processes unlike those of the developers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import assert_well, command
from processes import run_python
from safetensors.torch import load_file

from seedling_hf.commands import COMMANDS

# Signals: Windows lacks some, and threads take none.

WINDOWS = """
import os, signal, sys
del signal.SIGUSR1, os.memfd_create, os.sched_getaffinity
"""
ALL_HELP = f"""{WINDOWS}
import contextlib, io, json
from seedling_hf.commands import COMMANDS, main
found = {{}}
for name in COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            main([name, "--help"])
        except SystemExit as end:
            found[name] = end.code or 0 if "usage" in text.getvalue() else "no help"
print(json.dumps(found))
"""
ONE_COMMAND = f"{WINDOWS}\nfrom seedling_hf.commands import main\nsys.exit(main(sys.argv[1:]))"
IN_A_THREAD = """
import sys, threading
from seedling_hf.commands import main
codes = []
thread = threading.Thread(target=lambda: codes.append(main(sys.argv[1:])))
thread.start()
thread.join()
sys.exit(codes[0] if codes else 70)
"""
WATCH_IN_A_THREAD = """
import os, sys, threading, time
from pathlib import Path
from seedling_hf.commands import main
threading.Thread(target=main, args=(sys.argv[1:],), daemon=True).start()
answers, end = Path("answers.csv"), time.monotonic() + 30
while time.monotonic() < end and not (answers.exists() and answers.read_text().count("\\n") == 49):
    time.sleep(0.1)
sys.stderr.flush()
os._exit(0 if time.monotonic() < end else 71)
"""


def words_of(name: str, images: Path, model: Path, workers: int = 0) -> list[str]:
    loading = ["--dataloader_num_workers", str(workers), "--per_device_eval_batch_size", "4"]
    if name == "train":
        flags = "--output_dir run --variant tiny --image_size 32 --max_steps 3 --eval_steps 2 --save_steps 2"
        return ["train", "--train_dir", str(images), *flags.split(), *loading, "--per_device_train_batch_size", "4"]
    return [name, "--model_name_or_path", str(model), *loading, *{
        "predict": ["--images", str(images), "--output_file", "answers.csv"],
        "embed": ["--images", str(images), "--embeddings_file", "features.parquet"],
    }[name]]  # fmt: skip


@pytest.fixture(scope="module")
def helps() -> dict[str, int]:
    done = subprocess.run([sys.executable, "-c", ALL_HELP], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_starts_without_the_signals_that_windows_lacks(helps, name):
    assert helps.get(name) == 0


@pytest.mark.parametrize("name", ["train", "predict"])
def test_a_run_goes_to_its_end_without_the_signals_that_windows_lacks(tmp_path, images, model_dir, name):
    words = words_of(name, images, model_dir, workers=1)
    done = subprocess.run(
        [sys.executable, "-c", ONE_COMMAND, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["train", "predict", "embed"])
def test_a_run_goes_to_its_end_in_a_thread(tmp_path, images, model_dir, name, workers):
    _assert_ends(IN_A_THREAD, words_of(name, images, model_dir, workers), tmp_path)


def test_a_watch_answers_in_a_thread(tmp_path, images, model_dir):
    _assert_ends(WATCH_IN_A_THREAD, [*words_of("predict", images, model_dir), "--watch"], tmp_path)


def _assert_ends(program: str, words: list[str], folder: Path) -> None:
    done = run_python([sys.executable, "-c", f"import os; os.chdir({str(folder)!r})\n{program}", *words],
                      dict(os.environ), folder)  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


# The launcher's switch for compiling, `accelerate launch --dynamo_backend`: names stay those of the plain model.


@pytest.mark.parametrize(
    "settings", [{}, {"ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "1"}], ids=["whole", "regions"]
)
@pytest.mark.parametrize("ema", [[], ["--ema_decay", "0.9"]], ids=["plain", "averaged"])
def test_a_compiled_run_saves_resumes_and_predicts_under_plain_names(tmp_path, images, settings, ema):
    (tmp_path / "work").mkdir()
    environment = {"ACCELERATE_DYNAMO_BACKEND": "EAGER", **settings}
    steps = ["--save_steps", 2, "--eval_steps", 2, "--max_steps", 4, "--per_device_train_batch_size", 8]
    words = [
        "train",
        "--train_dir",
        images,
        "--output_dir",
        "run",
        "--variant",
        "tiny",
        "--image_size",
        32,
        *steps,
        *ema,
    ]
    assert_well(command(words, tmp_path / "work", environment=environment))
    run = tmp_path / "work" / "run"
    for path in run.rglob("*.safetensors"):
        assert not [name for name in load_file(path) if "_orig_mod" in name], path
    whole = load_file(run / "checkpoints" / "step-00000004" / "model.safetensors")
    for name, own in (("compiled", environment), ("plain", {})):  # both go on from the checkpoint of a compiled run
        again = [name if word == "run" else word for word in words]
        source = ["--resume_from_checkpoint", "run/checkpoints/step-00000002"]
        assert_well(command([*again, *source], tmp_path / "work", environment=own))
        resumed = load_file(tmp_path / "work" / name / "checkpoints" / "step-00000004" / "model.safetensors")
        assert resumed.keys() == whole.keys()
        # The plain model rounds otherwise, and Adam makes much of the smallest gradients.
        assert name == "plain" or all((tensor == whole[key]).all() for key, tensor in resumed.items())
    predict = ["predict", "--model_name_or_path", run, "--images", images / "Maize", "--output_file", "answers.csv"]
    assert_well(command(predict, tmp_path / "work"))


def test_two_compiled_processes_train_as_one(tmp_path, images):
    (tmp_path / "work").mkdir()
    losses = []
    for number, backend in (("one", "NO"), ("two", "EAGER")):
        flags = f"--output_dir {number} --variant tiny --image_size 32 --max_steps 2 --logging_steps 1".split()
        words = ["train", "--train_dir", images, *flags, "--per_device_train_batch_size", 4]
        outcome = command(words, tmp_path / "work", environment={"ACCELERATE_DYNAMO_BACKEND": backend}, num_processes=2)
        assert_well(outcome)
        rows = (tmp_path / "work" / number / "metrics.jsonl").read_text().splitlines()
        losses.append([row["loss"] for row in map(json.loads, rows) if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
