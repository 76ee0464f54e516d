"""What a model repository has for Hugging Face Inference Endpoints: the handler, and what it needs installed."""

import json
from pathlib import Path

MARK = "seedling_hf writes this file"  # in each of them, so that those of people are known and stay
ENDPOINT_FILES = {"handler.py": "handler.py", "requirements.txt": "handler_requirements.txt"}


def endpoint_files(folder: Path) -> dict[str, Path]:
    """The files that are pushed with a RepLKNet, by their paths in the repository; none for other networks.

    The service runs no code of a repository unless its `handler.py` does. Networks of transformers and timm need none,
    and are served without one. A file of that name in the folder that is not ours is pushed in its place.
    """
    config = folder / "config.json"
    if not config.is_file() or json.loads(config.read_text(encoding="utf-8")).get("model_type") != "replknet":
        return {}
    here = Path(__file__).parent
    own = {name: folder / name for name in ENDPOINT_FILES if (folder / name).is_file() and not is_ours(folder / name)}
    return {name: own.get(name, here / source) for name, source in ENDPOINT_FILES.items()}


def is_ours(path: Path) -> bool:
    """Whether a file was written here, and may be replaced by a newer one."""
    return MARK in path.read_text(encoding="utf-8", errors="replace")
