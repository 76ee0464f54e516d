"""The notebook of the documentation, as a page."""

from pathlib import Path

import nbformat

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "colab.ipynb"


def read_notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def source(cell_id: str) -> str:
    """The source of a cell."""
    (cell,) = (cell for cell in read_notebook().cells if cell.id == cell_id)
    return cell.source


def as_markdown(notebook: nbformat.NotebookNode) -> str:
    """The cells one after another, code as blocks of Python, bash, or text where a line is a magic."""
    blocks = []
    for cell in notebook.cells:
        text = cell.source
        if cell.cell_type == "code":
            language = "bash" if text.startswith("%%bash\n") else "text" if text.startswith("%") else "python"
            text = f"```{language}\n{text.removeprefix('%%bash').lstrip()}\n```"
        blocks.append(text)
    return "\n\n".join(blocks) + "\n"
