import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_python
from transformers import (
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)
from transformers.modeling_outputs import ImageClassifierOutput

from seedling_hf import SHIPPED_MODEL
from seedling_hf.commands import run
from seedling_hf.commands.saliency import file_names, main
from seedling_hf.data.greenness import plant_mask
from seedling_hf.data.images import read_image, to_rgb
from seedling_hf.data.transforms import EvalTransform
from seedling_hf.errors import InputError
from seedling_hf.inference.classifier import load_classifier
from seedling_hf.interpretation.faithfulness import blur, plant_share, trace_curves
from seedling_hf.interpretation.saliency import (
    SMOOTHING,
    STEPS,
    crop_to_view,
    decisive_maps,
    overlay,
    saliency_maps,
)
from seedling_hf.replknet import RepLKNetImageProcessor


@pytest.fixture(scope="module")
def pixel_values(sample_dir) -> torch.Tensor:
    files = [sorted((sample_dir / name).iterdir())[0] for name in ("Charlock", "Maize", "Black-grass")]
    processor = RepLKNetImageProcessor.from_variant("tiny", image_size=128)
    return processor([Image.open(file) for file in files], return_tensors="pt")["pixel_values"]


def direct_gradients(model, pixel_values, targets) -> np.ndarray:
    """Equation 1 of arXiv 1703.01365 by Gauss and Legendre from the mean colour, written down once more."""
    places, weights = np.polynomial.legendre.leggauss(STEPS)
    start, total = pixel_values.mean((2, 3), keepdim=True), torch.zeros_like(pixel_values)
    for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
        images = (start + float(place) * (pixel_values - start)).requires_grad_()
        (gradient,) = torch.autograd.grad(model(images).logits.gather(1, targets[:, None]).sum(), images)
        total += float(weight) * gradient
    maps = blur(((pixel_values - start) * total).sum(1, keepdim=True), SMOOTHING)[:, 0].relu()
    return (maps / maps.flatten(1).quantile(0.99, dim=1)[:, None, None]).clamp(max=1).numpy()


@pytest.mark.parametrize("merge", [False, True])
def test_the_maps_are_those_of_a_direct_computation(merge, model_dir, pixel_values):
    model, _ = load_classifier(str(model_dir), merge=merge)
    targets = torch.tensor([1, 3, 0])
    maps = saliency_maps(model, pixel_values, targets)
    assert maps.dtype == np.float32
    assert maps.shape == (3, 128, 128)
    # 1e-3: float32 sums in another order, of gradients of both signs, divided by a largest value that may be small.
    assert np.abs(maps - direct_gradients(model, pixel_values, targets)).max() < 1e-3
    assert maps.min() >= 0
    assert maps.max((1, 2)).tolist() == [1, 1, 1]


class Looker(torch.nn.Module):
    """A classifier of two classes that answers by what `look` computes of an image."""

    def __init__(self, look) -> None:
        super().__init__()
        self.look, self.config = look, None

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        score = self.look(pixel_values)
        return ImageClassifierOutput(logits=torch.stack([torch.zeros_like(score), score], 1))


NOISE = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
SECOND = torch.tensor([1, 1])


def test_a_map_lies_where_the_evidence_is():
    square = torch.zeros(64, 96, dtype=torch.bool)
    square[16:32, 40:64] = True
    model = Looker(lambda images: 20 * (images - 0.5)[..., square].square().mean((1, 2)))
    maps = torch.from_numpy(saliency_maps(model, NOISE, SECOND))
    # The square is 1/16 of the image; smoothing moves a tenth over its edges.
    assert plant_share(maps, square[None]).min() > 0.85
    for saliency, lies in zip(decisive_maps(model, NOISE, SECOND), maps, strict=True):
        assert np.array_equal(saliency, lies.numpy())


@pytest.mark.parametrize(
    "look",
    [
        lambda images: 0 * images.sum((1, 2, 3)) + 3,  # one answer for all
        lambda images: 9 * images.mean((1, 2, 3)),  # brightness, to which all pixels add alike
    ],
)
def test_where_no_region_decides_there_is_no_map(look):
    assert decisive_maps(Looker(look), NOISE, SECOND) == [None, None]


@pytest.fixture(scope="module")
def shipped(sample_dir):
    """The shipped model, an image of each of six species, the answers, and where the plants are."""
    model, processor = load_classifier(str(SHIPPED_MODEL))
    files = [sorted(folder.iterdir())[5] for folder in sorted(sample_dir.iterdir())[::2]]
    images = [to_rgb(read_image(file)) for file in files]
    transform = EvalTransform(processor)
    pixel_values = torch.stack([transform(image) for image in images])
    side = pixel_values.shape[-2:]
    plants = [torch.from_numpy(plant_mask(crop_to_view(image, processor).resize(side))) for image in images]
    with torch.no_grad():
        answers = model(pixel_values).logits.argmax(-1)
    return model, pixel_values, answers, torch.stack(plants)


def test_of_real_images_the_maps_order_pixels_better_than_chance_and_than_the_middle(shipped):
    model, pixel_values, answers, _ = shipped
    maps = torch.from_numpy(saliency_maps(model, pixel_values, answers))
    random = torch.rand(maps.shape, generator=torch.Generator().manual_seed(0))
    places = [torch.linspace(-1, 1, side).square() for side in maps.shape[-2:]]
    middle = (-places[0][:, None] - places[1]).expand_as(maps)
    deletion, insertion = trace_curves(model, pixel_values, answers, maps, steps=8).areas()
    for other in (random, middle):
        worse = trace_curves(model, pixel_values, answers, other, steps=8).areas()
        # Means of six images differ by 0.1 and more.
        assert deletion.mean() < worse[0].mean() - 0.05
        assert insertion.mean() > worse[1].mean() + 0.05


def test_of_real_images_the_maps_lie_on_the_plants(shipped):
    model, pixel_values, answers, plants = shipped
    maps = torch.from_numpy(saliency_maps(model, pixel_values, answers))
    assert plant_share(maps, plants).mean() > 1.5 * plants.double().mean()


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


def resnet():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1], layer_type="basic")
    return ResNetForImageClassification(config)


def vit():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=96))


@pytest.mark.parametrize("build", [resnet, vit])
def test_any_classifier_of_the_library_is_explained(build):
    maps = saliency_maps(build(), torch.rand(2, 3, 96, 96))
    assert maps.shape == (2, 96, 96)
    assert (maps.max((1, 2)) == 1).all()


def test_where_nothing_speaks_for_a_class_the_map_is_zero(model_dir, pixel_values):
    model, _ = load_classifier(str(model_dir))
    with torch.no_grad():
        model.classifier.weight.zero_()
    assert np.array_equal(saliency_maps(model, pixel_values), np.zeros((3, 128, 128)))
    assert decisive_maps(model, pixel_values, torch.tensor([0, 1, 2])) == [None] * 3


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


def test_the_command_lays_nothing_over_images_of_which_no_region_decides(model_dir, sample_dir, tmp_path, capsys):
    model, image_processor = load_classifier(str(model_dir), merge=False)
    with torch.no_grad():
        model.classifier.weight.zero_()
    for part in (model, image_processor):
        part.save_pretrained(tmp_path / "model")
    words = [
        "--model_name_or_path",
        str(tmp_path / "model"),
        "--images",
        str(sample_dir / "Maize"),
        "--max_samples",
        "2",
    ]
    assert run(main, [*words, "--output_dir", str(tmp_path / "out")]) == 0
    assert "of 2 no region decides, so nothing lies over them" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "Oak"], "expected --target of Black-grass, Charlock, Loose Silky-bent, Maize, found Oak"),
        (["--max_samples", "0"], "expected --max_samples at least 1, found 0"),
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
