"""pyproject.toml declares what is imported, and a wheel holds what the commands read."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# The authors' extension is optional, and Triton comes with torch where it exists.
OURS = {"seedling_hf", "study", "results", "saliency_methods", "depthwise_conv2d_implicit_gemm", "triton"}
NOT_IMPORTED = {"onnxscript"}  # torch.onnx.export imports it


def imports() -> Iterator[tuple[Path, int, str]]:
    """File, line and module of each import of another library."""
    for path in [*(ROOT / "seedling_hf").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                if module.split(".")[0] not in OURS | set(sys.stdlib_module_names):
                    yield path, node.lineno, module


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", line)[0] for line in requirements}


def test_the_dependencies_and_extras_are_what_is_imported():
    distributions = {name: found[0].lower().replace("_", "-") for name, found in packages_distributions().items()}
    tops = {module.split(".")[0] for _, _, module in imports()}
    imported = {distributions.get(top, top.replace("_", "-")) for top in tops}
    extras = names(EXTRAS["all"])
    assert names(PROJECT["dependencies"]) == imported - extras
    assert extras - NOT_IMPORTED <= imported


def test_a_private_import_has_a_reason_next_to_it():
    for path, line, module in imports():
        if "._" in module:
            lines = path.read_text(encoding="utf-8").splitlines()
            above = next(text for text in reversed(lines[: line - 1]) if not text.startswith("from torch"))
            assert above.strip().startswith("# Private: "), f"{path.name}:{line} imports {module}"


def test_a_wheel_holds_the_card_template_the_pages_and_the_shipped_model(tmp_path):
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    (wheel,) = builder.build(directory=str(tmp_path), versions=["standard"])
    files = {path.removeprefix("seedling_hf/") for path in ZipFile(wheel).namelist()}
    package = ROOT / "seedling_hf"
    templates = {
        path.relative_to(package).as_posix() for path in package.rglob("*") if path.suffix in (".html", ".md", ".txt")
    }
    assert len(templates) >= 5
    shipped = {path.relative_to(package).as_posix() for path in (package / "nano").rglob("*") if path.is_file()}
    named = {"nano/model.safetensors", "nano/config.json", "nano/modeling_replknet.py", "nano/examples/Maize.jpg"}
    assert named <= shipped
    assert templates | shipped | {"hub/model_card.md", "finetune.yaml"} <= files
    code = ZipFile(wheel).read("seedling_hf/nano/modeling_replknet.py")  # a link in the repository
    assert code == (package / "replknet" / "modeling_replknet.py").read_bytes()
