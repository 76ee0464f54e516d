"""The files of a Space, and that a pushed Space runs from its own files."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import metadata, packages_distributions, version
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the extra [all] is not installed")

import yaml
from hub_client import Repository
from huggingface_hub import SpaceCard
from packaging.specifiers import SpecifierSet

from seedling_hf import SHIPPED_MODEL
from seedling_hf.commands import push_space, run
from seedling_hf.hub.cards import check_card
from seedling_hf.hub.space import PYTHON, REQUIREMENTS, write_space

pytest_plugins = ("hub_fixtures",)

ROOT = Path(__file__).resolve().parents[2]
# As on the Hub: its files in the current folder, and no other `seedling_hf`.
ANSWER = """
import sys
sys.path[:] = [".", *(path for path in sys.path if path not in ("", sys.argv[1]))]
import seedling_hf
assert seedling_hf.__file__.startswith(sys.argv[2]), seedling_hf.__file__
import app
print(app.demo.fns[0].fn(sys.argv[3], "one", None)[0])
"""


def words(model: object, *further: str) -> list[str]:
    return ["--model_name_or_path", str(model), "--hub_space_id", "alice/which-seedling", *further]


def header(card: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)---\n", card, re.DOTALL)[1])


def test_a_pushed_space_runs_from_its_own_files(client, hub, model_dir, sample_dir, tmp_path):
    pushed = client.command("push_space", *words(model_dir, "--threshold", "0.3"))
    assert pushed.returncode == 0, pushed.stdout
    assert "/spaces/alice/which-seedling/commit/" in pushed.stdout
    space = Repository(hub, "alice/which-seedling", "spaces")
    folder = tmp_path / "space"
    for name in space.tree():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(space.read(name))
    assert header((folder / "README.md").read_text(encoding="utf-8"))["sdk"] == "gradio"
    image = sorted((sample_dir / "Maize").iterdir())[0]
    answer = subprocess.run(
        [sys.executable, "-c", ANSWER, str(ROOT), str(folder), str(image)],
        cwd=folder, capture_output=True, text=True, env={"PATH": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "<h2>Maize</h2>" in answer.stdout


def test_a_second_push_of_the_same_space_makes_no_commit(client, hub, model_dir):
    for _ in range(2):
        assert client.command("push_space", *words(model_dir)).returncode == 0
    assert Repository(hub, "alice/which-seedling", "spaces").titles() == ["Push the demo"]


def test_the_space_of_a_model_on_the_hub_names_it_and_holds_no_weights(tmp_path):
    files = write_space(tmp_path, "alice/seedlings", revision="v1", threshold=0.8, title="Crop or weed?")
    assert "build_demo('alice/seedlings', revision='v1', threshold=0.8, title='Crop or weed?')" in files[
        "app.py"
    ].read_text(encoding="utf-8")
    card = header(files["README.md"].read_text(encoding="utf-8"))
    assert card["models"] == ["alice/seedlings"]
    assert (card["app_file"], card["title"]) == ("app.py", "Crop or weed?")
    assert not any(name.startswith("model/") for name in files)


def test_the_requirements_pin_dependencies_of_the_package(tmp_path):
    files = write_space(tmp_path, "alice/seedlings", revision=None, threshold=0.5, title="A")
    lines = files["requirements.txt"].read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["all"]]
    assert set(REQUIREMENTS) <= {re.match(r"[\w-]+", line)[0] for line in declared}


def test_the_python_of_the_space_takes_every_pin(tmp_path):
    text = write_space(tmp_path, "alice/seedlings", revision=None, threshold=0.5, title="A")["README.md"].read_text()
    assert re.search(r"^python_version: '3\.\d+'$", text, re.MULTILINE)  # a number, 3.10 would be 3.1
    python = header(text)["python_version"]
    pinned = [*REQUIREMENTS, "gradio"]
    assert [name for name in pinned if not SpecifierSet(metadata(name)["Requires-Python"]).contains(python)] == []
    # On the Python that the Hub takes otherwise it would not be built.
    assert not all(SpecifierSet(metadata(name)["Requires-Python"]).contains("3.10") for name in pinned)


def test_the_card_is_one_of_a_space(tmp_path):
    files = write_space(tmp_path, "alice/seedlings", revision=None, threshold=0.5, title="A: B")
    text = files["README.md"].read_text(encoding="utf-8")
    check_card(text)
    data = SpaceCard(text).data
    assert (data.title, data.sdk, data.sdk_version, data.app_file) == ("A: B", "gradio", version("gradio"), "app.py")
    assert (data.license, data.models, data.pinned) == ("apache-2.0", ["alice/seedlings"], False)
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {data.colorFrom, data.colorTo} <= colors
    assert len(data.emoji) == 1


@pytest.mark.slow
@pytest.mark.parametrize("python", [PYTHON, "3.10"])
def test_the_hub_can_install_what_the_space_needs(tmp_path, python):
    """As its builds do, with packages of their own; needs a package registry."""
    files = write_space(tmp_path, "alice/seedlings", revision=None, threshold=0.5, title="A")
    sdk = header(files["README.md"].read_text(encoding="utf-8"))["sdk_version"]
    result = subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--retries", "1",
            "--only-binary=:all:", "--python-version", python, "--target", str(tmp_path / "target"),
            "-r", str(files["requirements.txt"]), f"gradio[oauth,mcp]=={sdk}", "uvicorn>=0.14.0", "websockets>=10.4",
            "spaces",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=550,
    )  # fmt: skip
    if "connection broken" in result.stdout or "No module named pip" in result.stdout:
        pytest.skip("no package registry can be reached")
    if python == PYTHON:
        assert result.returncode == 0, result.stdout
        assert f" transformers-{version('transformers')} " in result.stdout
    else:
        assert result.returncode != 0
        assert "No matching distribution found for " in result.stdout


def imported_at_once(module: str) -> set[str]:
    """Top-level packages that a module imports, directly and through modules of ours."""
    paths = [ROOT / f"{module.replace('.', '/')}.py", *(ROOT / module.replace(".", "/")).glob("*.py")]
    names = set()
    for path in filter(Path.exists, paths):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module)
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
    for name in [name for name in names if name.startswith("seedling_hf.")]:
        names |= imported_at_once(name)
    return {name.split(".")[0] for name in names}


def test_the_requirements_hold_all_that_the_demo_imports():
    wanted = imported_at_once("seedling_hf.demo.page") - set(sys.stdlib_module_names) - {"seedling_hf"}
    assert wanted >= {"accelerate", "datasets", "gradio", "torch"}
    by_others = {"PIL", "gradio", "numpy", "tqdm"}
    distributions = {name: found[0].lower().replace("_", "-") for name, found in packages_distributions().items()}
    assert {distributions[name] for name in wanted - by_others} <= set(REQUIREMENTS)


def test_a_dry_run_lists_the_files_without_a_login(model_dir, capsys):
    assert run(push_space.main, words(model_dir, "--dry_run")) == 0
    listed = capsys.readouterr().out.split()
    assert {"app.py", "requirements.txt", "README.md", "model/model.safetensors", "seedling_hf/demo/page.py"} <= set(
        listed
    )


def test_the_space_of_the_shipped_model_has_its_card_and_the_images_to_try(tmp_path):
    files = write_space(tmp_path, str(SHIPPED_MODEL), revision=None, threshold=0.5, title=None)
    assert {"model/README.md", "model/examples/Maize.jpg", "model/examples/trays/tray.jpg"} <= set(files)
    assert "title=None" in files["app.py"].read_text(encoding="utf-8")
    assert header(files["README.md"].read_text(encoding="utf-8"))["title"] == "Which seedling is it?"


def test_a_path_that_is_neither_a_repository_nor_a_model_folder_is_refused(tmp_path, capsys):
    assert run(push_space.main, words(tmp_path)) == 2
    error = capsys.readouterr().err
    assert "expected a repository user/name or a model folder" in error
    assert error.count("\n") == 1


def test_a_push_without_a_login_says_what_to_do(client, hub, model_dir):
    client.token = None
    pushed = client.command("push_space", *words(model_dir))
    assert pushed.returncode == 2
    assert "hf auth login" in pushed.stdout
