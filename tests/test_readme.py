"""The README and the recipes speak of what there is."""

import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

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


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_line_of_a_recipe_is_read_and_makes_steps_of_as_many_images(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = re.sub(r" \\\n# +", " ", path.read_text(encoding="utf-8"))
    lines = re.findall(r"^#   accelerate launch (.*?)scripts/train\.py (.*)$", text, re.MULTILINE)
    steps = set()
    for launch, words in lines:
        launched = launch_command_parser().parse_args([*shlex.split(launch), "scripts/train.py"])
        number = launched.num_processes
        if launched.config_file:
            number = load_config_from_file(launched.config_file).num_processes
        arguments = parse_arguments(TrainArguments, shlex.split(words), prog="train", description="")
        steps.add(
            (number or 1) * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
        )  # fmt: skip
    assert len(steps) == 1, steps


def test_the_configuration_of_fsdp_is_one_of_accelerate_that_training_takes():
    config = load_config_from_file(str(ROOT / "scripts" / "recipes" / "accelerate" / "fsdp.yaml"))
    assert config.distributed_type == DistributedType.FSDP
    options = {action.dest for action in launch_command_parser()._actions}
    assert set(config.fsdp_config) <= options


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
