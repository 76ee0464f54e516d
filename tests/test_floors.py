"""Imports go downwards only: a folder sees the folders below it, and the modules of a folder form no circle."""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "seedling_hf"
GROUND = {
    "allocator", "arguments", "compiling", "errors", "escaping", "files", "locks", "machine", "machine_code", "network",
    "origin", "paths", "plots", "progress", "signals", "spelling", "train_arguments", "verbosity", "words",
}  # fmt: skip
FLOORS = [
    GROUND, {"replknet"}, {"data"}, {"inference", "interpretation"}, {"demo", "evaluation"},
    {"hub", "export"}, {"speed", "training"}, {"commands"}, {"__main__"},
]  # fmt: skip
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# Imported at once by type checkers only, or within a function: the parser of `train` builds its model's config.
MAY_ALSO = {"train_arguments": {"replknet"}}
# The code beside the shipped model is links to `replknet`.
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py" and not p.is_symlink())
FOLDERS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def imported_modules(path: Path) -> set[str]:
    """What the file imports of the package, anywhere in it, as dotted names below `seedling_hf`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            # `from seedling_hf.export import programs` names a module, `from seedling_hf.errors import X` does not.
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.ImportFrom):
            names.add(".".join(["seedling_hf", *path.relative_to(PACKAGE).parent.parts, node.module]))
    ours = {name.removeprefix("seedling_hf.") for name in names if name.startswith("seedling_hf.")}
    return {name for name in ours if (PACKAGE / f"{name.replace('.', '/')}.py").exists() or name in FOLDERS}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_lower_floors(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in FLOOR_OF, f"{own} stands on no floor"
    for name in {name.split(".")[0] for name in imported_modules(path)} - {own} - MAY_ALSO.get(own, set()):
        if own in GROUND:
            assert name in GROUND, f"{own} is ground and imports {name}"
        else:
            assert FLOOR_OF[name] < FLOOR_OF[own], f"{own} imports {name}, which is not below it"


@pytest.mark.parametrize("folder", ["", *FOLDERS])
def test_the_modules_of_a_folder_form_no_circle(folder):
    graph = {}
    for path in (PACKAGE / folder).glob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        graph[name] = imported_modules(path) - {folder}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("path", sorted((PACKAGE / "commands").glob("*.py")), ids=lambda p: p.name)
def test_a_command_imports_no_other_command(path):
    assert not {name for name in imported_modules(path) if name.startswith("commands.")}


@pytest.mark.parametrize("folder", sorted(set(FOLDERS) - {"replknet", "commands"}))
def test_the_docstring_of_a_folder_names_its_modules(folder):
    docstring = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8")))
    modules = {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"}
    assert {name for name in modules if f"`{name}`" not in docstring} == set()


@pytest.mark.parametrize("path", sorted((PACKAGE / "replknet").glob("*.py")), ids=lambda p: p.name)
def test_a_shipped_file_imports_nothing_but_torch_and_transformers(path):
    allowed = {"torch", "torchvision", "transformers", "huggingface_hub"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (isinstance(node, ast.ImportFrom) and node.level == 0) or isinstance(node, ast.Import):
            tops = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            for top in {t.split(".")[0] for t in tops}:
                guarded = top in {"depthwise_conv2d_implicit_gemm", "triton"}
                assert guarded or top in allowed or top in sys.stdlib_module_names, f"{path.name} imports {top}"


def test_data_knows_no_model_and_no_accelerate():
    for path in (PACKAGE / "data").glob("*.py"):
        imported = {name for name in imported_modules(path) if name.split(".")[0] == "replknet"}
        assert not imported and "accelerate" not in path.read_text(encoding="utf-8"), path.name


def test_only_the_hub_folder_writes_to_the_network():
    writers = {"HfApi", "push_to_hub", "upload_file", "upload_folder", "upload_large_folder", "create_commit"}
    for path in set(MODULES) - {*(PACKAGE / "hub").glob("*.py")}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
            if isinstance(node, ast.Call):
                names = {getattr(node.func, "attr", None), getattr(node.func, "id", None)}
            assert not names & writers, f"{path.name} calls {names & writers}"


def test_what_runs_on_several_processes_has_a_launcher_of_its_name():
    scripts = {path.stem for path in (PACKAGE.parent / "scripts").glob("*.py")}
    assert scripts == {"train", "predict", "embed", "convert_checkpoint"}
    assert scripts <= {path.stem for path in (PACKAGE / "commands").glob("*.py")}


def test_no_launcher_hides_a_package():
    """Its folder comes first on the path: `import evaluate` would find `scripts/evaluate.py`."""
    launchers = {path.stem for path in (PACKAGE.parent / "scripts").glob("*.py")}
    assert not launchers & packages_distributions().keys()


def test_the_list_of_commands_names_those_that_there_are():
    from seedling_hf.commands import COMMANDS

    assert set(COMMANDS) == {path.stem for path in (PACKAGE / "commands").glob("*.py")} - {"__init__"}
