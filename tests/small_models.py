"""A small model that answers differently to different images, for tests that need one to read."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification, RepLKNetImageProcessor

SPECIES = ["Black-grass", "Charlock", "Loose Silky-bent", "Maize"]


def write_model(
    folder: Path, sample_dir: Path, class_names: Sequence[str] = SPECIES, images: int = 4, image_size: int = 64
) -> None:
    """A small model with random features whose head is fitted to a few images, so that its answers differ."""
    torch.manual_seed(0)
    config = RepLKNetConfig.from_variant("tiny", id2label=dict(enumerate(class_names)), drop_path_rate=0.0)
    model = RepLKNetForImageClassification(config).train()
    processor = RepLKNetImageProcessor.from_variant("tiny", image_size=image_size)
    files = [file for name in class_names for file in sorted((sample_dir / name).iterdir())[:images]]
    pixel_values = processor([Image.open(file) for file in files], return_tensors="pt")["pixel_values"]
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # one pass gives statistics that fit; without them all images get one answer
    with torch.no_grad():
        model.replknet(pixel_values)
        features = model.eval().replknet(pixel_values).pooler_output.flatten(1)
        mean, targets = features.mean(0), torch.eye(len(class_names)).repeat_interleave(images, 0)
        weight = torch.linalg.lstsq(features - mean, 6 * targets, driver="gelsd").solution.T
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(-weight @ mean)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
