"""The script that makes the tables of a GPU runs through on a CPU, and leaves every part's results behind."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gpu_tables.sh"
PARTS = re.search(r"^PARTS=\((.*?)\)", SCRIPT.read_text(), re.MULTILINE | re.DOTALL)[1].split()


def run(*arguments, timeout=60):
    python = str(Path(sys.executable).parent)  # the `python` of the script
    environment = os.environ | {"PATH": os.pathsep.join([python, os.environ["PATH"]])}
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


def summary(folder):
    return {line.split("\t")[0]: int(line.split("\t")[1]) for line in (folder / "summary.tsv").read_text().splitlines()}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_part_runs_through_on_a_cpu(tmp_path):
    result = run(tmp_path / "tables", "--device", "cpu", timeout=1200)
    assert result.returncode == 0, result.stdout + result.stderr
    assert summary(tmp_path / "tables") == dict.fromkeys(PARTS, 0)
    tables = (tmp_path / "tables" / "tables.md").read_text()
    assert re.findall(r"^## (\w+)$", tables, re.MULTILINE) == [
        part for part in PARTS if part != "machine" and not part.endswith("tests")
    ]
    for part in ("compiled_bf16", "nano_bf16"):
        (line, *_) = json.loads((tmp_path / "tables" / part / "benchmark.json").read_text())["rows"]
        assert line["milliseconds_median"]["ours, compiled"] > 0
    assert "torch 2." in (tmp_path / "tables" / "machine.log").read_text()
    assert "3 passed" in (tmp_path / "tables" / "triton_tests.log").read_text()


def test_a_part_that_fails_is_told_and_the_next_one_runs(tmp_path):
    # where no folder can be made, the table fails before it starts
    (tmp_path / "layers_bf16").write_text("in the way")
    result = run(tmp_path, "--device", "cpu", "layers_bf16", "machine")
    assert result.returncode == 1
    assert summary(tmp_path) == {"machine": 0, "layers_bf16": 2}
    assert "error: expected every part to work, found 1 that did not" in result.stderr
    assert not (tmp_path / "tables.md").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "expected a folder for the results, found none"),
        (["--device", "cpu"], "expected a folder for the results, found --device"),
        (["FOLDER", "--device", "tpu"], "expected cuda or cpu for --device, found tpu"),
        (["FOLDER", "--device"], "expected cuda or cpu for --device, found none"),
        (["FOLDER", "lunch"], "found lunch; name parts of this list"),
    ],
    ids=str,
)
def test_what_the_script_does_not_know_is_refused(tmp_path, arguments, sentence):
    arguments = [tmp_path / "tables" if word == "FOLDER" else word for word in arguments]
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error: expected ") and sentence in result.stderr
    assert not (tmp_path / "tables" / "summary.tsv").exists()
