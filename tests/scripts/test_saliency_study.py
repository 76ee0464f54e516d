"""Every method of the study gives maps, and its table in the documentation is that of the results."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image
from saliency import ON_THE_SHEET, SHIPPED, find_plant, format_table
from saliency_methods import list_methods

from seedling_hf.data.images import read_image, to_rgb
from seedling_hf.data.transforms import EvalTransform
from seedling_hf.inference.classifier import load_classifier

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_the_documentation_is_that_of_the_results():
    with (ROOT / "scripts" / "study" / "saliency.csv").open(encoding="utf-8", newline="") as file:
        table = format_table(list(csv.DictReader(file)))
    assert table in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert f"**{SHIPPED}**" in table


def test_every_method_gives_a_map_of_the_image(model_dir, sample_dir):
    pytest.importorskip("captum.attr")
    model, image_processor = load_classifier(str(model_dir))
    image = to_rgb(read_image(sorted((sample_dir / "Maize").iterdir())[0]))
    pixel_values, methods = EvalTransform(image_processor)(image)[None], list_methods(model)
    assert {*ON_THE_SHEET} <= methods.keys()
    maps = {name: method(pixel_values, torch.tensor([3])) for name, method in methods.items()}
    for name, saliency in maps.items():
        assert saliency.shape == (1, 64, 64), name
        assert saliency.min() >= 0 and saliency.isfinite().all(), name
    assert len({saliency.double().sum().item() for saliency in maps.values()}) == len(maps)


def test_the_plant_is_what_is_green():
    image = torch.zeros(40, 40, 3, dtype=torch.uint8) + torch.tensor([120, 100, 80], dtype=torch.uint8)
    image[10:30, 20:] = torch.tensor([60, 160, 40], dtype=torch.uint8)
    mask = find_plant(Image.fromarray(image.numpy()), (20, 20))
    assert mask[6:14, 11:].all()
    assert mask.double().mean() == pytest.approx(1 / 4, abs=0.02)
