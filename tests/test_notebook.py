"""The notebook: as it is in the repository, its cells that decide something, and a run from top to bottom."""

import json
import os
import sys
import tarfile
from pathlib import Path

import nbformat
import pytest
from hub_client import clean
from nbclient import NotebookClient
from notebooks import read_notebook, source

from seedling_hf.inference.classifier import Pretrained

pytest_plugins = ("hub_fixtures",)

ROOT = Path(__file__).resolve().parents[1]


def test_the_notebook_is_valid_and_its_outputs_are_cleared():
    notebook = read_notebook()
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells) > 10
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in cells if cell.outputs or cell.execution_count is not None] == []
    assert set(notebook.metadata) == {"kernelspec", "language_info"}  # no widgets and no versions
    assert [cell.id for cell in cells if "install" in cell.metadata.get("tags", ())] == ["install"]


@pytest.mark.parametrize("start", [".", "docs"])
def test_the_repository_is_found_in_a_clone(start, tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    monkeypatch.chdir(tmp_path / start)
    exec(source("find-repository"), {})
    assert Path.cwd() == tmp_path


def test_the_repository_is_unpacked_from_its_archive_with_the_links_of_the_shipped_model(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "seedling_hf.tar.gz", "w:gz") as archive:  # as `git archive` makes it
        for name in ("scripts/recipes", "seedling_hf/nano", "seedling_hf/replknet"):
            archive.add(ROOT / name, name)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        exec(source("find-repository"), {})
        assert Path.cwd() == tmp_path / "seedling_hf"
        code = Path("seedling_hf/nano/pointwise_conv.py").read_bytes()
        assert code == (ROOT / "seedling_hf" / "replknet" / "pointwise_conv.py").read_bytes()


def test_without_a_repository_the_notebook_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"expected a clone around .*, or seedling_hf\.tar\.gz in it, found neither"
    ):
        exec(source("find-repository"), {})


@pytest.mark.parametrize(
    ("token", "repository", "printed"),
    [("", "user/seedlings", "you are not logged in"), ("hf_secret", "", "HUB_MODEL_ID is empty")],
)
def test_nothing_is_pushed_unasked(token, repository, printed, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HUB_MODEL_ID", repository)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token or None)
    monkeypatch.setattr("subprocess.run", None)
    exec(source("push"), {"os": os})
    assert capsys.readouterr().out == f"Nothing was pushed: {printed}.\n"


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_the_notebook_runs_from_top_to_bottom(client, hub, tmp_path):
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / "scripts").symlink_to(ROOT / "scripts")
    environment = clean(client.environment) | {
        "HUB_MODEL_ID": "alice/notebook",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    notebook = read_notebook()
    run = NotebookClient(
        notebook, timeout=None, kernel_name="python3", skip_cells_with_tag="install",
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    run.execute(env=environment)
    nbformat.write(notebook, tmp_path / "executed.ipynb")
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    for name in ("data", "curves", "answers", "boxes"):
        assert any("image/png" in output.get("data", {}) for output in outputs[name]), name
    report = json.loads((folder / "outputs" / "quickstart" / "report.json").read_text(encoding="utf-8"))
    assert report["num_examples"] == 144
    assert report["accuracy"] > 0.8  # 84 to 88% were measured
    assert "srcdoc=" in outputs["report"][-1]["data"]["text/html"]
    assert len((folder / "outputs" / "answers.csv").read_text(encoding="utf-8").splitlines()) == 13
    pushed = "".join(output["text"] for output in outputs["push"])
    assert f"{client.environment['HF_ENDPOINT']}/alice/notebook" in pushed
    stored = hub.store.repo("models", "alice/notebook")
    assert "model.safetensors" in stored.commit_data(stored.find("main"))["tree"]
    Pretrained(str(folder / "outputs" / "quickstart")).check()
