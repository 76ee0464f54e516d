"""Imports go downwards only: a module sees the floors below it."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "seedling_hf"
FLOORS = {
    0: {"answers", "duplicates", "errors", "files", "machine", "replknet"},
    # Between two floors: the steps from files to a DatasetDict.
    0.2: {"pictures"}, 0.4: {"splits"}, 0.6: {"folders"}, 0.8: {"hub_dataset"},
    1: {"arguments", "baseline", "calibration", "cards", "checkpointing", "collator", "dataset", "feature_maps",
        "journal", "ledger", "metrics", "optimization", "outbox", "plots", "sampler", "sharding", "signals",
        "statistics", "tiles", "transforms"},
    2: {"benchmark", "conversion", "dataset_card", "erf", "html_report", "hub", "inspection", "memory", "model_card",
        "picture_cache", "prediction", "probing", "saliency", "space", "stream"},
    3: {"batch_size", "demo", "distillation", "embedding", "evaluation", "export", "hub_pusher", "loading", "trays"},
    4: {"comparison", "training"}, 4.5: {"study"},
    5: {"commands"},
}  # fmt: skip
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def imported_names(path: Path) -> set[str]:
    """First names below `seedling_hf` that the file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {
                f"{node.module}.{alias.name}" if node.module == "seedling_hf" else node.module for alias in node.names
            }
    return {n.split(".")[1] for n in names if n.startswith("seedling_hf.")} - {"__version__", "SHIPPED_MODEL"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_lower_floors(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in FLOOR_OF, f"{own} stands on no floor"
    allowed = {own} if own in ("replknet", "commands") else set()
    for name in imported_names(path) - allowed:
        assert FLOOR_OF[name] < FLOOR_OF[own], f"{own} (floor {FLOOR_OF[own]}) imports {name} (floor {FLOOR_OF[name]})"


@pytest.mark.parametrize("path", sorted((PACKAGE / "replknet").glob("*.py")), ids=lambda p: p.name)
def test_a_shipped_file_imports_nothing_but_torch_and_transformers(path):
    allowed = {"torch", "torchvision", "transformers", "huggingface_hub"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (isinstance(node, ast.ImportFrom) and node.level == 0) or isinstance(node, ast.Import):
            tops = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            for top in {t.split(".")[0] for t in tops}:
                guarded = top == "depthwise_conv2d_implicit_gemm"
                assert guarded or top in allowed or top in sys.stdlib_module_names, f"{path.name} imports {top}"


def test_every_command_has_a_script_of_its_name():
    commands = {p.stem for p in (PACKAGE / "commands").glob("*.py")} - {"__init__"}
    scripts = {p.stem for p in (PACKAGE.parent / "scripts").glob("*.py")}
    assert commands == scripts


def test_the_list_of_commands_names_those_that_there_are():
    from seedling_hf.commands import COMMANDS

    assert set(COMMANDS) == {p.stem for p in (PACKAGE / "commands").glob("*.py")} - {"__init__"}
