"""A small model that answers differently to different images, for tests that need one to read."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from seedling_hf.inference.familiarity import Familiarity, stage_features, stage_sizes
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


def write_familiarity(folder: Path, sample_dir: Path, confidence_threshold: float | None = 0.5) -> None:
    """What tells the images of the sample from others, for a folder of `write_model`, and when an answer is sure."""
    config = RepLKNetConfig.from_pretrained(
        folder, confidence_threshold=confidence_threshold, calibration_temperature=1.0
    )
    model = RepLKNetForImageClassification.from_pretrained(folder).eval()
    processor = RepLKNetImageProcessor.from_pretrained(folder)
    files = [sorted((sample_dir / name).iterdir())[:16] for name in config.id2label.values()]
    images = [Image.open(file).convert("RGB") for of_class in files for file in of_class]
    with torch.inference_mode():
        pixel_values = processor(images, return_tensors="pt")["pixel_values"]
        features = stage_features(model(pixel_values, output_hidden_states=True).hidden_states)
        labels = torch.arange(len(files)).repeat_interleave(torch.tensor([len(of_class) for of_class in files]))
        familiarity = Familiarity.fit(features.numpy(), labels.numpy(), stage_sizes(config))
        familiarity.set_threshold(2 * familiarity(features).numpy())
    familiarity.save(folder)
    config.save_pretrained(folder)


def write_strange_image(path: Path) -> None:
    """Stripes in the colours of a beach umbrella, which no model of seedlings has seen."""
    rows = torch.arange(96)[:, None, None] // 8 % 2 * torch.tensor([255, 80, 200])
    Image.fromarray(rows.expand(96, 96, 3).byte().numpy()).save(path)
