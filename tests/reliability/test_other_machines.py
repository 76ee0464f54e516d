"""Machines and processes unlike those of the developers."""

import json
import os
import shutil
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from faults import assert_well, command
from named_classes import write_classes
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
    steps = []
    for number, backend in (("one", "NO"), ("two", "AOT_EAGER")):
        flags = f"--output_dir {number} --variant tiny --image_size 32 --max_steps 2 --logging_steps 1".split()
        words = ["train", "--train_dir", images, *flags, "--per_device_train_batch_size", 4]
        outcome = command(words, tmp_path / "work", environment={"ACCELERATE_DYNAMO_BACKEND": backend}, num_processes=2)
        assert_well(outcome)
        rows = (tmp_path / "work" / number / "metrics.jsonl").read_text().splitlines()
        steps.append([(row["loss"], row["grad_norm"]) for row in map(json.loads, rows) if "loss" in row])
    # 1e-3: kernels sum in another order. The norm is that of the gradients of both processes. After a step of Adam,
    # which makes much of the smallest gradients, losses differ by more.
    assert steps[0][0] == pytest.approx(steps[1][0], rel=1e-3)
    assert steps[0][1][0] == pytest.approx(steps[1][1][0], rel=0.05)


# Encodings of the terminal: what cannot be said is written out, no output ends a command, and files stay UTF-8.

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ["小麦", "ナズナ", "Maïs"]
FROM_MODEL = ["--model_name_or_path", "model"]
SPOKEN = {  # with the exit code where it is not 0: there is no Hub
    "describe_dataset": ["--train_dir", "images", "--output_file", "数.json"],
    "inspect_dataset": ["--train_dir", "images", "--output_dir", "报告"],
    "make_split": ["--train_dir", "images", "--output_dir", "报告"],
    "preview_augmentation": ["--train_dir", "images", "--output_dir", "报告", "--image_size", "32"],
    "train": [
        "--train_dir", "images", "--output_dir", "报告", "--variant", "tiny", "--image_size", "32", "--max_steps", "2",
        "--per_device_train_batch_size", "4",
    ],
    "estimate_memory": ["--variant", "tiny", "--image_size", "32", "--output_dir", "报告"],
    "evaluate": [*FROM_MODEL, "--test_dir", "images", "--output_dir", "报告", "--saliency"],
    "compare": ["--models", "model", "另一个", "--data_dir", "images", "--output_dir", "报告"],
    "probe": [*FROM_MODEL, "--test_dir", "images", "--output_dir", "报告", "--max_samples", "3"],
    "predict": [*FROM_MODEL, "--images", "images", "--output_file", "答案.csv"],
    "predict to the terminal": [*FROM_MODEL, "--images", "images", "--top_k", "3"],
    "predict lines": [*FROM_MODEL, "--images", "images", "--output_file", "答案.jsonl"],
    "embed": [*FROM_MODEL, "--images", "images", "--embeddings_file", "特征.parquet", "--query", "images/小麦/0.png"],
    "saliency": [*FROM_MODEL, "--images", "images/小麦", "--output_dir", "报告", "--target", "小麦"],
    "saliency of no class": [*FROM_MODEL, "--images", "images", "--output_dir", "报告", "--target", "大麦", 2],
    "visualize_erf": [*FROM_MODEL, "--images", "images/小麦", "--image_size", "64", "--output_dir", "报告"],
    "push_to_hub": ["--output_dir", "model", "--hub_model_id", "someone/seedlings", 1],
    "push_space": [*FROM_MODEL, "--hub_space_id", "someone/seedlings", 1],
    "push_dataset": [
        "--train_dir", "images", "--dataset_name", "someone/seedlings", "--license", "apache-2.0", 1,
    ],
    "export": [*FROM_MODEL, "--output_file", "模型.pt2", "--format", "torch_export", "--images", "images"],
    "convert_checkpoint": ["--checkpoint_path", GOLDEN / "three_stages.pth", "--output_dir", "报告"],
    "benchmark": ["--variant", "tiny", "--parts", "inference", "--repeats", "1", "--output_dir", "报告"],
}  # fmt: skip
TEXTS = (".json", ".jsonl", ".csv", ".md", ".html", ".yaml", ".txt", ".py")


def speak(encoding: str) -> None:
    """What PYTHONIOENCODING does when Python starts."""
    sys.stdout.reconfigure(encoding=encoding, errors="strict")
    sys.stderr.reconfigure(encoding=encoding, errors="backslashreplace")


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> Path:
    folder = write_classes(tmp_path_factory.mktemp("named") / "运行", NAMES, images=4)
    shutil.copytree(folder / "model", folder / "另一个")
    return folder


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "gbk"])
@pytest.mark.parametrize("name", SPOKEN)
def test_a_command_ends_well_whatever_the_terminal_can_say(name, encoding, named, tmp_path):
    folder = Path(shutil.copytree(named, tmp_path / "运行"))
    words = SPOKEN[name]
    code = words[-1] if isinstance(words[-1], int) else 0
    words = [name.split()[0], *(word for word in words if not isinstance(word, int))]
    environment = {"PYTHONIOENCODING": encoding}
    outcome = command(words, folder, before=partial(speak, encoding), environment=environment)
    expected = (1, 2) if code == 1 else (code,)  # without a Hub, a login that is missing is a mistake of the user
    assert outcome.code in expected and "Traceback" not in outcome.stderr + outcome.stdout, outcome
    assert "UnicodeEncodeError" not in outcome.stderr + outcome.stdout
    for stream in ("stdout", "stderr"):
        said = (folder.with_name("运行.output") / f"{stream}-0.txt").read_bytes().decode(encoding)
        assert code == 0 or stream == "stdout" or said.count("error: ") == 1
        if name in ("describe_dataset", "evaluate", "predict", "push_dataset") and stream == "stdout":
            assert ("小麦" if encoding == "gbk" else "\\u5c0f\\u9ea6") in said
    for path in folder.rglob("*"):
        if path.suffix in TEXTS:
            path.read_text(encoding="utf-8")
    named_in = {"describe_dataset": "数.json", "evaluate": "报告/report.md", "train": "报告/report.json",
                "predict": "答案.csv", "predict lines": "答案.jsonl", "make_split": "报告/split.csv"}  # fmt: skip
    if name in named_in:
        assert "小麦" in (folder / named_in[name]).read_text(encoding="utf-8")


# An error that nobody foresaw, on the processes of a launcher.

BROKEN = """
import os, runpy, sys
import torch
step, calls = torch.optim.AdamW.step, []
def broken(*arguments, **options):
    calls.append(None)
    if len(calls) > 1 and os.environ["RANK"] in os.environ["BROKEN_RANKS"]:
        raise KeyError("nobody foresaw this")
    return step(*arguments, **options)
torch.optim.AdamW.step = broken
assert os.environ["WORLD_SIZE"] == "2"
sys.argv[0] = os.environ["SCRIPT"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port"],
}


@pytest.mark.parametrize("ranks", ["01", "0", "1"], ids=["both", "the first", "the second"])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_an_error_that_nobody_foresaw_is_said_once_by_all_processes(launcher, ranks, tmp_path, images):
    outcome = launch(launcher, tmp_path, images, ranks)
    assert outcome.returncode != 0
    assert outcome.stderr.count("error: KeyError: 'nobody foresaw this'") == 1, outcome.stderr
    assert outcome.stderr.count("Please report it") == 1
    assert outcome.stderr.count(f"torch {torch.__version__.split('+')[0]}") == 1
    assert "in broken\n" not in outcome.stderr, "a traceback of ours"
    assert outcome.stderr.count("Traceback (most recent call last)") <= 1, "the launcher has one"


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_mistake_is_said_once_by_all_processes(launcher, tmp_path):
    outcome = launch(launcher, tmp_path, Path("missing"), "")
    assert outcome.returncode != 0
    assert outcome.stderr.count("error: expected") == 1, outcome.stderr
    assert "Please report it" not in outcome.stderr


def launch(launcher: str, folder: Path, images: Path, ranks: str) -> subprocess.CompletedProcess:
    """Trains on two processes until the optimizer of some `ranks` breaks; nothing may run afterwards."""
    (folder / "broken.py").write_text(BROKEN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = ["--variant", "tiny", "--image_size", "32", "--max_steps", "3", "--per_device_train_batch_size", "4"]
    words = [*LAUNCHERS[launcher], port, folder / "broken.py", "--train_dir", images, "--output_dir", folder / "run"]
    script = Path(__file__).parents[2] / "scripts" / "train.py"
    environment = {"BROKEN_RANKS": ranks, "SCRIPT": str(script), "OMP_NUM_THREADS": "1"}
    outcome = subprocess.run(
        [sys.executable, *map(str, words), *flags], capture_output=True, text=True, timeout=240,
        env=os.environ | environment, cwd=folder,
    )  # fmt: skip
    left = [process for process in psutil.process_iter(["cmdline"]) if str(folder) in str(process.info["cmdline"])]
    assert not left
    return outcome
