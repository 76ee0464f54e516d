"""Commands bound the machine code that PyTorch and oneDNN keep for each shape; `import seedling_hf` sets nothing."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from seedling_hf import commands
from seedling_hf.machine_code import KEPT, ONEDNN_VARIABLE, ONEDNN_VARIABLES, PYTORCH_VARIABLE

ROOT = Path(__file__).resolve().parents[1]
VARIABLES = (*ONEDNN_VARIABLES, PYTORCH_VARIABLE)
X86 = platform.machine().lower() in ("x86_64", "amd64")


def _ours(kept: int) -> dict[str, str]:
    return dict.fromkeys((ONEDNN_VARIABLE, PYTORCH_VARIABLE) if X86 else (ONEDNN_VARIABLE,), str(kept))


# Runs a launcher, and prints the variables as its command finds them, before a library is imported.
LAUNCH = """
import importlib, json, os, runpy, sys
from seedling_hf import commands
def command(argv):
    print(json.dumps(dict(os.environ)), "torch" in sys.modules, sep="\\n")
launcher, sys.argv = sys.argv[1], sys.argv[1:]
if launcher.endswith(".py"):
    command.__module__ = "seedling_hf.commands." + os.path.basename(launcher)[:-3]
    importlib.import_module(command.__module__).main = command
    runpy.run_path(launcher, run_name="__main__")
else:
    commands._dispatch = command
    runpy.run_module(launcher, run_name="__main__")
"""

# Classifies images of many sizes, and prints the growth of the memory after the first sizes, in bytes, and the answers.
MANY_SHAPES = """
import hashlib, random, sys
def main(argv):
    import psutil, torch
    from seedling_hf import SHIPPED_MODEL, RepLKNetForImageClassification
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    answers = hashlib.sha256()
    model = RepLKNetForImageClassification.from_pretrained(SHIPPED_MODEL).eval().fuse_batch_norms()
    with torch.no_grad():
        for number in range(100):
            if number == 30:
                before = psutil.Process().memory_info().rss
            images = torch.randn(1, 3, random.randint(64, 224), random.randint(64, 224))
            answers.update(model(images).logits.numpy().tobytes())
    print(psutil.Process().memory_info().rss - before, answers.hexdigest())
if sys.argv[1] == "command":
    from seedling_hf.commands import run
    sys.exit(run(main))
main([])
"""


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in VARIABLES}


@pytest.fixture
def unset(monkeypatch):
    """No variable is set, and what is set in a test does not stay."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is removed afterwards if it was not there
        monkeypatch.delenv(name)


def _found(*words: str, monkeypatch) -> dict[str, str]:
    """The variables that `seedling-hf` with these words finds."""
    found = {}
    with monkeypatch.context() as patch:
        patch.setattr(
            commands, "_dispatch",
            lambda argv: found.update({name: os.environ[name] for name in VARIABLES if name in os.environ}),
        )  # fmt: skip
        patch.setattr(commands, "set_verbosity", lambda verbose: None)  # which holds for the process
        commands.main(words)
    return found


@pytest.mark.parametrize(
    ("words", "kept"),
    [("seedling_hf train", 256), ("seedling_hf predict", 64), ("scripts/train.py", 256), ("scripts/predict.py", 64)],
)
def test_every_launcher_bounds_the_code_before_torch_is_imported(words, kept):
    words = [sys.executable, "-c", LAUNCH, *words.split()]
    printed = subprocess.run(words, env=_environment(), capture_output=True, text=True, check=True, cwd=ROOT)
    variables, has_torch = printed.stdout.splitlines()
    assert json.loads(variables).items() >= _ours(kept).items()
    assert has_torch == "False"


@pytest.mark.parametrize("name", VARIABLES)
def test_what_the_user_has_set_is_kept(name, unset, monkeypatch):
    monkeypatch.setenv(name, "7")
    same = ONEDNN_VARIABLES if name in ONEDNN_VARIABLES else (PYTORCH_VARIABLE,)
    others = {other: value for other, value in _ours(KEPT).items() if other not in same}
    assert _found("predict", monkeypatch=monkeypatch) == {name: "7"} | others


@pytest.mark.parametrize("words", [["benchmark"], ["--verbose", "benchmark", "--variant", "nano"]])
def test_a_benchmark_keeps_the_code_of_all_that_it_times(words, unset, monkeypatch):
    assert _found(*words, monkeypatch=monkeypatch) == {}
    assert _found("evaluate", monkeypatch=monkeypatch) == _ours(KEPT)


def test_importing_the_package_sets_nothing():
    program = (
        "import os; before = dict(os.environ); import seedling_hf.commands, seedling_hf.machine_code; "
        "assert os.environ == before"
    )
    subprocess.run([sys.executable, "-c", program], env=_environment(), check=True)


@pytest.mark.slow
@pytest.mark.skipif(not X86, reason="the caches of other processors differ")
def test_the_memory_of_a_command_is_level_over_many_shapes_and_grows_without_the_bound():
    def classify(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-c", MANY_SHAPES, *words]
        printed = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=True).stdout
        growth, answers = printed.split()
        return int(growth), answers

    (bounded, answers), (unbounded, same_answers) = classify("command"), classify("embedded")
    assert answers == same_answers
    assert unbounded > 150e6
    assert bounded < 0.25 * unbounded
