"""The files of a Space that runs the demo of a model: app, requirements, card, and this package's code."""

import sys
from importlib.metadata import version
from pathlib import Path

import yaml

from seedling_hf.demo.facts import example_files
from seedling_hf.demo.words import DEFAULT, TEXTS
from seedling_hf.escaping import Markdown
from seedling_hf.files import write_text
from seedling_hf.hub.outbox import CARD, model_files

MODEL = "model"
# Of the pins, which are those of this environment, so that they have been installed on it; the Hub's own is 3.10.
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
# What the demo imports; gradio itself comes with the Space, in the version that the card names.
REQUIREMENTS = (
    "accelerate", "captum", "datasets", "huggingface-hub", "jinja2", "matplotlib", "pyyaml", "safetensors",
    "scikit-image", "torch", "torchvision", "transformers",
)  # fmt: skip
APP = '''"""Classifies plant seedlings; written by `seedling-hf push_space`."""

from seedling_hf.demo.page import build_demo, launch

demo = build_demo({model!r}, revision={revision!r}, threshold={threshold!r}, title={title!r})

if __name__ == "__main__":
    launch(demo)
'''


def write_space(
    folder: Path, model_name_or_path: str, *, revision: str | None, threshold: float | None, title: str | None
) -> dict[str, Path]:
    """Writes the app, its requirements and its card into an empty `folder`.

    The model is a repository on the Hub at `revision`, or a model folder, which becomes part of the Space. Without a
    `threshold` the page uses that of the model, and without a `title` it has its own, in the language of the browser.
    Returns all files by their paths in the Space.
    """
    local = Path(model_name_or_path)
    model = MODEL if local.is_dir() else model_name_or_path
    app = APP.format(model=model, revision=revision, threshold=threshold, title=title)
    write_text(folder / "app.py", app)
    write_text(folder / "requirements.txt", "".join(f"{name}=={_version(name)}\n" for name in REQUIREMENTS))
    write_text(folder / CARD, _card(title or TEXTS[DEFAULT]["title"], None if local.is_dir() else model_name_or_path))
    files = {path.name: path for path in sorted(folder.iterdir())}
    if local.is_dir():
        files |= {f"{MODEL}/{name}": path for name, path in model_files(local, results=False).items()}
        files |= {f"{MODEL}/{path.relative_to(local).as_posix()}": path for path in example_files(local)}
    root = Path(__file__).parents[2]
    return files | {path.relative_to(root).as_posix(): path for path in sorted((root / "seedling_hf").rglob("*.py"))}


def _card(title: str, repo_id: str | None) -> str:
    header = {
        "title": title, "emoji": "🌱", "colorFrom": "green", "colorTo": "yellow", "sdk": "gradio",
        "sdk_version": _version("gradio"), "python_version": PYTHON, "app_file": "app.py", "pinned": False,
        "license": "apache-2.0",
    }  # fmt: skip
    if repo_id:
        header["models"] = [repo_id]
    origin = f"of [{repo_id}](https://huggingface.co/{repo_id})" if repo_id else f"in `{MODEL}/`"
    front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return (
        f"---\n{front}---\n\n<!-- begin space -->\n# {Markdown.of(title)}\n\nDrop the image of a seedling: the "
        f"RepLKNet {origin} predicts its species with a probability, and shows where it looked.\n<!-- end space -->\n"
    )


def _version(name: str) -> str:
    """The version on PyPI: torch adds the device that it was built for."""
    return version(name).split("+")[0]
