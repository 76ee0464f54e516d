"""Models and class folders with the names that a test asks for, and a machine without fonts."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification, RepLKNetImageProcessor


def write_model(folder: Path, names: list[str], side: int = 32, answer: str | None = None) -> None:
    """A model of classes, which always answers `answer` if that is given."""
    torch.manual_seed(0)
    config = RepLKNetConfig.from_variant("tiny", id2label=dict(enumerate(names)), drop_path_rate=0.0)
    model = RepLKNetForImageClassification(config)
    if answer is not None:
        torch.nn.init.zeros_(model.classifier.weight)
        model.classifier.bias.data = torch.tensor([9.0 if name == answer else 0.0 for name in names])
    model.save_pretrained(folder)
    RepLKNetImageProcessor.from_variant("tiny", image_size=side).save_pretrained(folder)


def write_classes(folder: Path, names: list[str], images: int = 2, side: int = 32) -> Path:
    """A model of classes, and class folders of random images: `model` and `images` in the folder."""
    generator = np.random.default_rng(0)
    for name in names:
        (folder / "images" / name).mkdir(parents=True)
        for number in range(images):
            pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    write_model(folder / "model", names, side)
    return folder


def only_default_fonts() -> None:
    """A machine with the font that comes with matplotlib only."""
    import matplotlib.font_manager as manager

    manager.fontManager.ttflist = [entry for entry in manager.fontManager.ttflist if "DejaVu" in entry.name]
    manager.findSystemFonts = lambda *arguments, **flags: []
