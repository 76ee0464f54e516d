"""README, docs and recipes show commands, flags and files that exist."""

import io
import re
import shlex
import subprocess
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from notebooks import as_markdown, read_notebook

from seedling_hf.arguments import parse_arguments
from seedling_hf.commands import COMMANDS, FLAGS_OF_ALL
from seedling_hf.commands import main as seedling_hf
from seedling_hf.train_arguments import TrainArguments

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST_PAGES = ["README.md", "README.zh.md"]
DOCS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
PAGES = [*FIRST_PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "scripts/sample/README.md", *DOCS, "docs/colab.ipynb"]
SCRIPTS = [path.stem for path in sorted((ROOT / "scripts").glob("*.py"))]
RECIPES = sorted((ROOT / "scripts" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_read_as_the_command_on_top_of_it_says(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    line = re.search(r"^#   seedling-hf train (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    words = shlex.split(line[1])
    assert words[:2] == ["--config", f"scripts/recipes/{path.name}"]
    arguments = parse_arguments(TrainArguments, words, prog="train")
    assert arguments.output_dir.startswith("outputs/")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_line_of_a_recipe_is_read_and_makes_steps_of_as_many_images(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = re.sub(r" \\\n# +", " ", path.read_text(encoding="utf-8"))
    lines = re.findall(r"^#   (?:seedling-hf train|accelerate launch (.*) scripts/train\.py) (.*)$", text, re.MULTILINE)
    steps = set()
    for launch, words in lines:
        launched = launch_command_parser().parse_args([*shlex.split(launch), "scripts/train.py"])
        number = launched.num_processes
        if launched.config_file:
            number = load_config_from_file(launched.config_file).num_processes
        arguments = parse_arguments(TrainArguments, shlex.split(words), prog="train")
        steps.add(
            (number or 1) * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
        )  # fmt: skip
    assert len(steps) == 1, steps


def test_the_configuration_of_fsdp_is_one_of_accelerate_that_training_takes():
    config = load_config_from_file(str(ROOT / "scripts" / "recipes" / "accelerate" / "fsdp.yaml"))
    assert config.distributed_type == DistributedType.FSDP
    options = {action.dest for action in launch_command_parser()._actions}
    assert set(config.fsdp_config) <= options


@cache
def help_of(command: str) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit):
        seedling_hf([command, "--help"])
    return printed.getvalue()


@cache
def flags_of(command: str) -> set[str]:
    """The flags in the command's own help."""
    return {"--help", *re.findall(r"^ +(--\w+)", help_of(command), re.MULTILINE)}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_the_usage_and_ends_with_examples_that_can_be_parsed(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    usage, *_, examples = help_of(command).split("\n\n")
    words = " [IMAGES …]" if command == "predict" else ""
    assert usage == f"usage: seedling-hf {command} [--config RECIPE.yaml] [flags]{words}"
    title, *lines = examples.strip().splitlines()
    assert title == "Examples:" and lines
    for line in lines:
        program, name, *words = shlex.split(line)
        assert (program, name) == ("seedling-hf", command)
        assert set(re.findall(r"--\w+", " ".join(words))) <= flags_of(command)
        assert len(line) <= 120


@cache
def page(name: str) -> str:
    if name == "docs/colab.ipynb":
        return as_markdown(read_notebook())
    return (ROOT / name).read_text(encoding="utf-8")


def shown_commands(text: str) -> list[tuple[str, str]]:
    """(command, the words after it) of every `seedling-hf COMMAND …` and `scripts/COMMAND.py …`."""
    text = text.replace("\\\n", " ")
    scripts = re.findall(rf"scripts/({'|'.join(SCRIPTS)})\.py((?: [^`\n|]*)?)", text)
    return re.findall(r"seedling-hf (\w+)((?: [^`\n|]*)?)", text) + scripts


def blocks(name: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page(name), re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_first_page_is_short():
    assert len(README.splitlines()) <= 180


@pytest.mark.parametrize("name", FIRST_PAGES)
def test_the_tree_of_the_package_has_every_folder(name):
    folders = {path.name for path in (ROOT / "seedling_hf").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(re.findall(r"^├── (\w+)/", page(name), re.MULTILINE)) == folders


@pytest.mark.parametrize("name", FIRST_PAGES)
def test_each_command_has_its_row(name):
    rows = re.findall(r"^\| `(\w+)` \|", page(name), re.MULTILINE)
    assert rows == [*COMMANDS]


@pytest.mark.parametrize("name", FIRST_PAGES)
@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_in_a_row_are_flags_of_the_command(command, name):
    row = re.search(rf"^\| `{command}` \|.*\| `([^`]*)` \|$", page(name), re.MULTILINE)[1]
    assert set(row.split()) <= flags_of(command)


def test_the_flags_of_train_that_are_named_exist():
    lines = "\n".join(map(page, PAGES)).replace("\\\n", " ").splitlines()
    used = {
        flag for line in lines if "scripts/train.py" in line for flag in re.findall(r"--\w+", line.split("train.py")[1])
    }
    assert used
    assert used <= flags_of("train")


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_that_are_shown_are_commands_with_such_flags(name):
    commands = shown_commands(page(name))
    if name in FIRST_PAGES:
        assert len(commands) > 5
    for command, words in commands:
        if command == "COMMAND":
            continue
        assert command in COMMANDS
        assert set(re.findall(r"--\w+", words)) <= flags_of(command), command


@pytest.mark.parametrize("name", [name for name in PAGES if name != "CHANGELOG.md"])  # which has former flags too
def test_a_flag_in_the_text_is_a_flag_of_some_command(name):
    text = re.sub(r"^```.*?^```$", "", page(name), flags=re.MULTILINE | re.DOTALL)
    launchers = {flag for action in launch_command_parser()._actions for flag in action.option_strings}
    known = launchers.union(
        {"--check", "--nproc_per_node", *FLAGS_OF_ALL}, *map(flags_of, COMMANDS)
    )  # ruff's and torchrun's
    assert set(re.findall(r"--\w+", text)) <= known


@pytest.mark.parametrize("name", PAGES)
def test_the_files_that_are_named_exist(name):
    names = re.findall(r"(?:\]\(|[\s\"`])((?:scripts|seedling_hf|tests)/[\w./-]+?\.\w+)", page(name))
    if name in FIRST_PAGES:
        assert len(names) >= 5
    assert [name for name in names if "COMMAND" not in name and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_link_leads_to_a_file_and_a_heading_that_exist(name):
    links = re.findall(r"\]\((?!\w+://)([^)\s]+)\)", page(name)) + re.findall(r"<img src=\"([^\"]+)\"", page(name))
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("name", PAGES)
def test_the_code_blocks_are_python_and_bash_that_can_be_read(name):
    for block in blocks(name, "python"):
        compile(block, name, "exec")
    for block in blocks(name, "bash"):
        assert subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True).stderr == ""


def test_the_program_of_the_first_page_prints_what_the_page_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    program, printed = re.search(r"```python\n(.*?)```\s+```text\n(.*?)```", README, re.DOTALL).groups()
    output = io.StringIO()
    with redirect_stdout(output):
        exec(compile(program, "README.md", "exec"), {})
    assert output.getvalue() == printed


@pytest.mark.slow
def test_the_programs_for_the_trainer_and_an_adapter_run(monkeypatch, tmp_path, capsys):
    import torch

    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    monkeypatch.chdir(tmp_path)
    section = page("docs/training.md").split("## Trainer and PEFT\n")[1].split("\n## ")[0]
    program, adapter, merging = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert program.count("num_train_epochs=3") == program.count("\ntrainer = ") == 1
    program = program.replace("num_train_epochs=3", "max_steps=2").replace("\ntrainer = ", f"\n{adapter}\ntrainer = ")
    names = {}
    exec(compile(program, "docs/training.md", "exec"), names)
    assert "trainable params: 104,268 || all params: 1,799,864" in capsys.readouterr().out
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {
        path.name for path in Path("outputs/trainer").iterdir()
    }
    images = names["processor"](names["data"]["test"][0]["image"], return_tensors="pt")
    with torch.no_grad():
        expected = names["trainer"].model.eval()(**images).logits
        exec(compile(merging, "docs/training.md", "exec"), names)
        torch.testing.assert_close(names["merged"](**images).logits, expected, rtol=1e-4, atol=1e-4)
    assert Path("outputs/merged/model.safetensors").exists()


def test_the_tests_line_is_the_one_that_the_continuous_integration_runs():
    assert re.search(r"^pip install .*&& pytest", README, re.MULTILINE)
    assert "README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
