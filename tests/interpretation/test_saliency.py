import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_python
from torch.nn import functional as F
from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from seedling_hf.commands import run
from seedling_hf.commands.saliency import file_names, main
from seedling_hf.errors import InputError
from seedling_hf.inference.classifier import load_classifier
from seedling_hf.interpretation.saliency import crop_to_view, overlay, saliency_maps
from seedling_hf.replknet import RepLKNetImageProcessor


@pytest.fixture(scope="module")
def pixel_values(sample_dir) -> torch.Tensor:
    files = [sorted((sample_dir / name).iterdir())[0] for name in ("Charlock", "Maize", "Black-grass")]
    processor = RepLKNetImageProcessor.from_variant("tiny", image_size=128)
    return processor([Image.open(file) for file in files], return_tensors="pt")["pixel_values"]


def direct_gradcam(model, pixel_values, targets) -> np.ndarray:
    """Equations 1 and 2 of arXiv 1610.02391 on the map that the head of a RepLKNet pools, written down once more."""
    features = model.replknet.normalization(model.replknet(pixel_values).last_hidden_state).detach().requires_grad_()
    logits = model.classifier(features.mean((-2, -1)))
    (gradient,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), features)
    maps = (gradient.mean((-2, -1), keepdim=True) * features).sum(1, keepdim=True).relu()
    maps = F.interpolate(maps.detach(), size=pixel_values.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return (maps / maps.amax((1, 2), keepdim=True)).numpy()


@pytest.mark.parametrize("merge", [False, True])
def test_the_maps_are_those_of_a_direct_computation(merge, model_dir, pixel_values):
    model, _ = load_classifier(str(model_dir), merge=merge)
    targets = torch.tensor([1, 3, 0])
    maps = saliency_maps(model, pixel_values, targets)
    assert maps.dtype == np.float32
    assert maps.shape == (3, 128, 128)
    # 1e-4: float32 sums in another order, divided by a largest value that may be small.
    assert np.abs(maps - direct_gradcam(model, pixel_values, targets)).max() < 1e-4
    assert maps.min() >= 0
    assert maps.max((1, 2)).tolist() == [1, 1, 1]


def test_without_targets_the_predicted_classes_are_explained(model_dir, pixel_values):
    model, _ = load_classifier(str(model_dir))
    answers = model(pixel_values).logits.argmax(-1)
    assert np.array_equal(saliency_maps(model, pixel_values), saliency_maps(model, pixel_values, answers))
    assert not np.array_equal(saliency_maps(model, pixel_values), saliency_maps(model, pixel_values, (answers + 1) % 4))


def test_an_image_has_the_same_map_alone_and_in_a_batch(model_dir, pixel_values):
    model, _ = load_classifier(str(model_dir))
    together = saliency_maps(model, pixel_values)
    # 1e-4: as above.
    assert np.abs(together[1] - saliency_maps(model, pixel_values[1:2])[0]).max() < 1e-4


def test_a_stage_before_the_last_gives_a_finer_map(model_dir, pixel_values):
    model, _ = load_classifier(str(model_dir))
    roughness = [np.abs(np.diff(saliency_maps(model, pixel_values, stage=s), 2)).sum() for s in (-1, -2, -3)]
    assert roughness == sorted(roughness)


def test_the_model_is_unchanged(model_dir, pixel_values):
    model, _ = load_classifier(str(model_dir), merge=False)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        saliency_maps(model, pixel_values.clone())  # as from a loop of predictions
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_resnet_of_the_library_is_explained():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1], layer_type="basic")
    maps = saliency_maps(ResNetForImageClassification(config), torch.rand(2, 3, 96, 96))
    assert maps.shape == (2, 96, 96)


def test_where_nothing_speaks_for_a_class_the_map_is_zero(model_dir, pixel_values):
    model, _ = load_classifier(str(model_dir))
    with torch.no_grad():
        model.classifier.weight.zero_()
    assert np.array_equal(saliency_maps(model, pixel_values), np.zeros((3, 128, 128)))


def test_gradients_that_overflow_are_refused(model_dir, pixel_values):
    model, _ = load_classifier(str(model_dir))
    with torch.no_grad():
        model.classifier.weight.fill_(3e38)
        model.classifier.bias.zero_()
    with pytest.raises(InputError, match=r"expected finite gradients of the model .*, found NaN or infinity"):
        saliency_maps(model, pixel_values, torch.tensor([0, 0, 0]))


def test_without_captum_an_error_says_how_to_install_it(model_dir, pixel_values, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(InputError, match=r'pip install "seedling-hf\[all\]"'):
        saliency_maps(load_classifier(str(model_dir))[0], pixel_values)


def test_captum_is_not_imported_before_it_is_needed(tmp_path):
    code = "import sys, seedling_hf.interpretation.saliency; sys.exit('captum' in sys.modules)"
    assert run_python([sys.executable, "-c", code], dict(os.environ), tmp_path).returncode == 0


# Overlays


def test_an_overlay_shows_the_image_where_the_map_is_zero_and_heat_where_it_is_one():
    image = Image.new("RGB", (40, 30), (10, 200, 30))
    saliency = np.zeros((6, 8), np.float32)
    saliency[:, 4:] = 1
    covered = np.asarray(overlay(image, saliency)).astype(int)
    assert covered.shape == (30, 40, 3)
    assert (covered[:, :15] == (10, 200, 30)).all()
    assert np.abs(covered[:, 25:] - (10, 200, 30)).max(-1).min() > 50


def test_an_overlay_without_strength_is_the_image():
    image = Image.effect_noise((20, 20), 50).convert("RGB")
    assert np.array_equal(np.asarray(overlay(image, np.ones((4, 4)), strength=0.0)), np.asarray(image))


@pytest.mark.parametrize(
    ("image_processor", "size", "expected"),
    [
        (RepLKNetImageProcessor.from_variant("nano", image_size=96), (160, 160), (140, 140)),
        (RepLKNetImageProcessor.from_variant("nano", image_size=96), (320, 160), (140, 140)),
        (RepLKNetImageProcessor.from_variant("nano", image_size=96), (90, 300), (79, 79)),
        (RepLKNetImageProcessor.from_variant("31B", image_size=384), (300, 200), (300, 200)),
        (ViTImageProcessor(size={"height": 64, "width": 64}), (300, 200), (300, 200)),
        (ConvNextImageProcessor(size={"shortest_edge": 112}, crop_pct=0.875), (160, 160), (140, 140)),
    ],
)
def test_the_part_that_the_model_sees_is_found_for_any_image_processor(image_processor, size, expected):
    image = Image.effect_noise(size, 80).convert("RGB").resize((size[0] // 4, size[1] // 4)).resize(size)
    seen = crop_to_view(image, image_processor)
    # 2 pixels: colours of 8 bits, and what the processor rounds.
    assert np.abs(np.subtract(seen.size, expected)).max() <= 2
    middle = [(whole - part) // 2 for whole, part in zip(size, seen.size, strict=True)]
    cut = image.crop((*middle, middle[0] + seen.size[0], middle[1] + seen.size[1]))
    assert np.abs(np.subtract(cut, seen, dtype=int)).mean() < 25


# The command


def test_the_command_writes_an_overlay_of_each_image_and_a_sheet(model_dir, sample_dir, tmp_path, capsys):
    words = [
        "--model_name_or_path",
        str(model_dir),
        "--images",
        str(sample_dir / "Maize"),
        str(sample_dir / "Charlock"),
    ]
    assert run(main, [*words, "--max_samples", "3", "--output_dir", str(tmp_path / "out")]) == 0
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(files) == 4
    assert "saliency.png" in files
    assert sum(name.startswith("Maize_") for name in files) == 2
    assert Image.open(tmp_path / "out" / files[0]).width > 1000
    assert "overlays of 3 images are in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "Oak"], "expected --target of Black-grass, Charlock, Loose Silky-bent, Maize, found Oak"),
        (["--stage", "0"], "expected --stage at most -1, found 0"),
        (["--images", str(Path(__file__))], "expected images that can be decoded, found 1 that cannot"),
    ],
)
def test_the_command_refuses_bad_input_in_one_line(words, message, model_dir, sample_dir, tmp_path, capsys):
    words = ["--model_name_or_path", str(model_dir), "--images", str(sample_dir / "Maize" / "006196e1c.jpg"), *words]
    assert run(main, [*words, "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert not (tmp_path / "out").exists()


def test_images_of_one_name_get_files_of_their_own():
    files = [Path("a/x.jpg"), Path("b/a/x.png"), Path("b/x.png"), Path("saliency.png")]
    assert list(file_names(files).values()) == ["a_x.png", "a_x_2.png", "b_x.png", "saliency_2.png"]
