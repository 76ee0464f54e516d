"""The README and the recipes speak of what there is."""

import re
import shlex
from pathlib import Path

import pytest

from seedling_hf.arguments import TrainArguments, parse_arguments
from seedling_hf.commands import COMMANDS
from seedling_hf.commands import main as seedling_hf

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "scripts" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_read_as_the_command_on_top_of_it_says(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    line = re.search(r"^#   accelerate launch scripts/train\.py (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    words = shlex.split(line[1])
    assert words[:2] == ["--config", f"scripts/recipes/{path.name}"]
    arguments = parse_arguments(TrainArguments, words, prog="train", description="")
    assert arguments.output_dir.startswith("outputs/")


def test_each_command_has_its_row():
    rows = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert rows == [*COMMANDS]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_in_a_row_are_flags_of_the_command(command, capsys):
    row = re.search(rf"^\| `{command}` \|.*\| `([^`]*)` \|$", README, re.MULTILINE)[1]
    with pytest.raises(SystemExit):
        seedling_hf([command, "--help"])
    flags = set(re.findall(r"--\w+", capsys.readouterr().out))
    assert set(row.split()) <= flags


def test_the_flags_of_train_that_are_named_exist(capsys):
    with pytest.raises(SystemExit):
        seedling_hf(["train", "--help"])
    flags = set(re.findall(r"--\w+", capsys.readouterr().out))
    lines = README.replace("\\\n", " ").splitlines()
    used = {
        flag for line in lines if "scripts/train.py" in line for flag in re.findall(r"--\w+", line.split("train.py")[1])
    }
    assert used
    assert used <= flags


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_commands_that_are_shown_are_commands_with_such_flags(name, capsys):
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"seedling-hf (\w+)((?: [^`\n|]*)?)", text)
    assert len(lines) > 5
    for command, words in lines:
        if command == "COMMAND":
            continue
        assert command in COMMANDS
        with pytest.raises(SystemExit):
            seedling_hf([command, "--help"])
        assert set(re.findall(r"--\w+", words)) <= set(re.findall(r"--\w+", capsys.readouterr().out)), command


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_files_that_are_named_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    names = re.findall(r"(?:\]\(|[\s\"])((?:scripts|seedling_hf|tests)/[\w./-]+?\.\w+)", text)
    assert len(names) >= 5
    assert [name for name in names if "COMMAND" not in name and not (ROOT / name).exists()] == []
