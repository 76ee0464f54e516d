import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import ConvNextConfig, ConvNextForImageClassification

from seedling_hf.commands import run
from seedling_hf.commands.visualize_erf import main
from seedling_hf.errors import InputError
from seedling_hf.export.checkpoint_files import read_checkpoint
from seedling_hf.export.conversion import load_model
from seedling_hf.interpretation.erf import (
    THRESHOLDS,
    area_ratios,
    build_untrained,
    contribution_scores,
    load_squares,
    measure_erf,
    scale_scores,
    settle_batch_norms,
    smallest_square,
)
from seedling_hf.replknet import RepLKNetImageProcessor

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_NAMES = ["small_kernel_5", "no_small_kernel", "three_stages"]


class AuthorsNetwork:
    """The authors' network up to its last feature map, written down once more on their names, with torch alone."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = {name: t.double() if t.is_floating_point() else t for name, t in weights.items()}

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            self.weights[f"{name}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.weights[f"{name}.conv.weight"]
        padding, groups = weight.shape[-1] // 2, x.shape[1] // weight.shape[1]
        return self.norm(F.conv2d(x, weight, None, stride, padding, 1, groups), f"{name}.bn")

    def large_kernel_block(self, x: Tensor, name: str) -> Tensor:
        y = F.relu(self.conv(self.norm(x, f"{name}.prelkb_bn"), f"{name}.pw1"))
        z = self.conv(y, f"{name}.large_kernel.lkb_origin")
        if f"{name}.large_kernel.small_conv.conv.weight" in self.weights:
            z = z + self.conv(y, f"{name}.large_kernel.small_conv")
        return x + self.conv(F.relu(z), f"{name}.pw2")

    def feed_forward_block(self, x: Tensor, name: str) -> Tensor:
        return x + self.conv(F.gelu(self.conv(self.norm(x, f"{name}.preffn_bn"), f"{name}.pw1")), f"{name}.pw2")

    def __call__(self, x: Tensor) -> Tensor:
        for number, stride in enumerate([2, 1, 1, 2]):
            x = F.relu(self.conv(x, f"stem.{number}", stride))
        stages = 1 + max(int(name.split(".")[1]) for name in self.weights if name.startswith("stages."))
        for stage in range(stages):
            names = {name.split(".")[3] for name in self.weights if name.startswith(f"stages.{stage}.blocks.")}
            for block in range(len(names)):
                step = self.feed_forward_block if block % 2 else self.large_kernel_block
                x = step(x, f"stages.{stage}.blocks.{block}")
            if stage < stages - 1:
                x = F.relu(self.conv(x, f"transitions.{stage}.0"))
                x = F.relu(self.conv(x, f"transitions.{stage}.1", 2))
        return x


def authors_scores(weights: dict[str, Tensor], pixel_values: Tensor) -> np.ndarray:
    """Image by image, as the authors' script does it: backwards from the centre, positive parts, mean."""
    network, maps = AuthorsNetwork(weights), []
    for image in pixel_values.double():
        image = image[None].requires_grad_()
        output = network(image)
        F.relu(output[0, :, output.shape[2] // 2, output.shape[3] // 2]).sum().backward()
        maps.append(image.grad[0].clamp(min=0).sum(0))
    return torch.stack(maps).mean(0).numpy()


@pytest.fixture(scope="module")
def images(sample_dir) -> list[Path]:
    return [sorted(folder.iterdir())[0] for folder in sorted(sample_dir.iterdir()) if folder.is_dir()][:4]


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_the_scores_of_a_golden_model_are_those_of_a_direct_computation_in_float64(name):
    checkpoint = read_checkpoint(GOLDEN / f"{name}.pth")
    pixel_values = torch.load(GOLDEN / f"{name}.expected.pt", weights_only=True)["pixel_values"]
    expected = authors_scores(checkpoint.state_dict, pixel_values)
    found = measure_erf(load_model(checkpoint).double(), [pixel_values.double()])
    assert expected.max() > 0
    # 1e-10: float64 sums in another order.
    assert np.abs(found - expected).max() < 1e-10 * expected.max()


@pytest.mark.parametrize("name", GOLDEN_NAMES)
@pytest.mark.parametrize("form", ["training", "merged", "fused"])
def test_float32_and_every_form_of_a_golden_model_give_the_same_ratios(name, form):
    checkpoint = read_checkpoint(GOLDEN / f"{name}.pth")
    pixel_values = torch.load(GOLDEN / f"{name}.expected.pt", weights_only=True)["pixel_values"]
    expected = authors_scores(checkpoint.state_dict, pixel_values)
    model = load_model(checkpoint).eval()
    model = {"training": lambda: model, "merged": model.reparameterize, "fused": model.fuse_batch_norms}[form]()
    found = measure_erf(model, [pixel_values])
    # 1e-4: a ReLU near 0 may go the other way in float32; forwards alone it would be 1e-5.
    assert np.abs(found - expected).max() < 1e-4 * expected.max()
    assert [row["side"] for row in area_ratios(found)] == [row["side"] for row in area_ratios(expected)]


def test_the_scores_are_a_mean_whatever_the_batches():
    checkpoint = read_checkpoint(GOLDEN / "three_stages.pth")
    model = load_model(checkpoint).double()
    pixel_values = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    together, apart = measure_erf(model, [pixel_values]), measure_erf(model, pixel_values.split([1, 3]))
    assert np.allclose(together, apart, rtol=1e-12)
    assert np.allclose(together, contribution_scores(model.eval(), pixel_values).numpy() / 4, rtol=1e-12)


def test_the_network_is_measured_in_evaluation_mode_and_keeps_its_own():
    model = load_model(read_checkpoint(GOLDEN / "small_kernel_5.pth")).train()
    pixel_values = torch.rand(2, 3, 64, 64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = (measure_erf(model, [pixel_values]) for _ in range(2))
    assert model.training
    assert np.array_equal(first, second)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_of_the_library_is_measured():
    model = ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1])).eval()
    scores = measure_erf(model, [torch.rand(1, 3, 160, 160)])
    assert scores.shape == (160, 160)
    assert scores[0, 0] < 1e-6 * scores.max()
    assert area_ratios(scores)[2]["area_ratio"] < 0.25


def test_weights_that_have_diverged_are_refused():
    model = load_model(read_checkpoint(GOLDEN / "three_stages.pth"))
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="expected finite features of the model, found NaN or infinity"):
        measure_erf(model, [torch.rand(1, 3, 64, 64)])


def test_features_that_overflow_are_refused_though_their_gradient_is_finite():
    class Overflowing(torch.nn.Module):
        def forward(self, pixel_values):
            return SimpleNamespace(last_hidden_state=(pixel_values + 2) * 3e38)

    # Of each infinite feature, 3e38 reaches its pixel.
    with pytest.raises(InputError, match="expected finite features of the model, found NaN or infinity"):
        measure_erf(Overflowing(), [torch.rand(1, 3, 64, 64)])


def test_gradients_that_overflow_are_refused_though_the_features_are_finite():
    class Steep(torch.nn.Module):
        def forward(self, pixel_values):
            return SimpleNamespace(last_hidden_state=pixel_values * 1e20 * 1e20)

    with pytest.raises(InputError, match="expected finite gradients of the model, found NaN or infinity"):
        measure_erf(Steep(), [torch.full((1, 3, 64, 64), 1e-30)])


def test_no_images_are_refused():
    with pytest.raises(InputError, match="expected at least one image"):
        measure_erf(load_model(read_checkpoint(GOLDEN / "three_stages.pth")), [])


# Ratios


def test_a_uniform_map_needs_the_fraction_of_the_area_that_equals_the_fraction_of_the_scores():
    scores = np.ones((101, 101))
    for threshold in THRESHOLDS:
        side, ratio = smallest_square(scores, threshold)
        assert side**2 / 101**2 == ratio > threshold
        assert (side - 2) ** 2 / 101**2 <= threshold


def test_the_ratio_table_of_a_map_of_known_rings_is_right():
    # On the paper's scale: 0.25 of the contribution in the centre, 0.45 in the ring of side 3, 0.295 in that of
    # side 11, 0.005 in that of side 21; 0.2 / 0.3 / 0.5 / 0.99 are held by sides 1, 3, 3 and 11.
    scaled = np.zeros((41, 41))
    for side, share in ((21, 0.005), (11, 0.295), (3, 0.45), (1, 0.25)):
        half, ring = side // 2, np.zeros((41, 41), bool)
        ring[20 - half : 21 + half, 20 - half : 21 + half] = True
        ring[21 - half : 20 + half, 21 - half : 20 + half] = side == 1
        scaled[ring] = share / ring.sum()
    rows = area_ratios(10**scaled - 1)
    assert [(row["threshold"], row["side"]) for row in rows] == [(0.2, 1), (0.3, 3), (0.5, 3), (0.99, 11)]
    assert [row["area_ratio"] for row in rows] == [side**2 / 41**2 for side in (1, 3, 3, 11)]


def test_the_ratios_of_the_paper_are_taken_after_the_logarithm():
    scores = np.full((9, 9), 9.0)  # log10 is 1 around and 4 in the centre
    scores[4, 4] = 9999.0
    row = area_ratios(scores)[2]
    assert scale_scores(scores).max() == 1
    assert scale_scores(scores)[0, 0] == pytest.approx(0.25)
    # 0.5 of 84: 4 + 48 with side 7; 0.5 of 10719: the centre alone.
    assert (row["threshold"], row["side"], row["area_ratio_linear"]) == (0.5, 7, 1 / 81)


def test_a_contribution_at_the_border_needs_the_whole_image():
    scores = np.zeros((8, 8))
    scores[0, 0] = 1.0
    assert smallest_square(scores, 0.2) == (8, 1.0)


def test_an_even_image_has_its_centre_where_the_authors_have_it():
    scores = np.zeros((8, 8))
    scores[4, 4] = 1.0
    assert smallest_square(scores, 0.99) == (1, 1 / 64)


# Large kernels against small ones


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kernels_of_31_see_further_than_kernels_of_3(seed, images):
    ratios = {}
    for name in ("tiny:31", "tiny:3"):
        model, image_processor = build_untrained(name, seed)
        pixel_values = torch.cat(list(load_squares(images[:2], image_processor, 256)))
        settle_batch_norms(model, [pixel_values])
        ratios[name] = area_ratios(measure_erf(model, [pixel_values]))
    for large, small in zip(ratios["tiny:31"], ratios["tiny:3"], strict=True):
        assert large["area_ratio"] > small["area_ratio"], large["threshold"]
        assert large["area_ratio_linear"] > small["area_ratio_linear"], large["threshold"]


@pytest.mark.slow
def test_nano_with_kernels_of_31_sees_the_whole_of_512_pixels_and_with_kernels_of_3_the_middle(images):
    ratios = {}
    for name in ("nano", "nano:3"):
        model, image_processor = build_untrained(name)
        settle_batch_norms(model, load_squares(images, image_processor, 512))
        ratios[name] = [
            row["area_ratio"] for row in area_ratios(measure_erf(model, load_squares(images, image_processor, 512)))
        ]
    assert all(large > 2 * small for large, small in zip(ratios["nano"], ratios["nano:3"], strict=True))
    assert ratios["nano"][-1] > 0.95
    assert ratios["nano:3"][-1] < 0.6


def test_the_kernels_of_an_untrained_network_are_the_requested_ones():
    assert build_untrained("nano")[0].config.kernel_sizes == [31, 29, 27, 13]
    config = build_untrained("nano:3")[0].config
    assert (config.kernel_sizes, config.small_kernel_size) == ([3, 3, 3, 3], 3)
    config = build_untrained("tiny:9,7,7,5")[0].config
    assert (config.kernel_sizes, config.small_kernel_size) == ([9, 7, 7, 5], 5)


def test_the_weights_of_an_untrained_network_are_those_of_its_seed():
    state = torch.get_rng_state()
    first, same, other = (build_untrained("tiny", seed)[0].classifier.weight for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["huge", "nano:4", "nano:x", "nano:3,3"])
def test_an_impossible_untrained_network_is_refused(name):
    with pytest.raises(InputError, match=f"expected --untrained VARIANT or VARIANT:KERNEL, found '{name}'"):
        build_untrained(name)


def test_settled_batch_norms_are_deterministic():
    pixel_values = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    models = [build_untrained("nano:3")[0] for _ in range(2)]
    for model in models:
        assert model.config.drop_path_rate > 0
        settle_batch_norms(model, [pixel_values])
    assert np.array_equal(*(measure_erf(model, [pixel_values]) for model in models))


def test_settled_batch_norms_keep_the_values_of_a_random_network_alive(images):
    model, image_processor = build_untrained("tiny")
    pixel_values = torch.cat(list(load_squares(images, image_processor, 64)))
    settle_batch_norms(model, pixel_values.split(2))
    assert not model.training
    assert model.replknet.normalization.momentum == 0.1
    with torch.no_grad():
        assert model.replknet(pixel_values).pooler_output.std() > 0.1


# The command


def test_images_are_squeezed_into_squares_and_normalised(tmp_path):
    Image.new("RGB", (30, 20), (255, 0, 0)).save(tmp_path / "red.png")
    (image,) = load_squares(
        [tmp_path / "red.png"], RepLKNetImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3), 48
    )
    assert image.shape == (1, 3, 48, 48)
    assert torch.equal(image[0, :, 5, 5], torch.tensor([2.0, -2.0, -2.0]))


def test_the_command_writes_map_table_and_figure_of_models_side_by_side(tmp_path, sample_dir, capsys):
    load_model(read_checkpoint(GOLDEN / "small_kernel_5.pth")).save_pretrained(tmp_path / "golden")
    RepLKNetImageProcessor.from_variant("nano").save_pretrained(tmp_path / "golden")
    words = ["--untrained", "tiny:31", "tiny:3", "--model_name_or_path", str(tmp_path / "golden")]
    words += ["--images", str(sample_dir), "--max_samples", "2", "--image_size", "96"]
    assert run(main, [*words, "--output_dir", str(tmp_path / "erf")]) == 0
    with open(tmp_path / "erf" / "erf.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = ["golden", "tiny:31, untrained", "tiny:3, untrained"]
    assert [(row["model"], float(row["threshold"])) for row in rows] == [(n, t) for n in names for t in THRESHOLDS]
    scores = np.load(tmp_path / "erf" / "erf.npz")
    assert [*scores] == names
    for row in rows:
        (found,) = [r for r in area_ratios(scores[row["model"]]) if r["threshold"] == float(row["threshold"])]
        assert float(row["area_ratio"]) == found["area_ratio"] == pytest.approx(int(row["side"]) ** 2 / 96**2)
    assert Image.open(tmp_path / "erf" / "erf.png").width > 1500
    assert f"{float(rows[0]['area_ratio']):.1%}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "."], "expected --model_name_or_path or --untrained, found neither"),
        (["--images", "nowhere", "--untrained", "tiny"], "expected an image or a folder at nowhere"),
        (["--images", str(GOLDEN), "--untrained", "tiny"], "expected images in"),
        (["--images", str(GOLDEN / "README.md"), "--untrained", "tiny"], "expected images that can be decoded"),
        (["--images", ".", "--untrained", "tiny", "--image_size", "8"], "expected --image_size at least 32, found 8"),
    ],
)
def test_the_command_refuses_bad_input_in_one_line(words, message, tmp_path, capsys):
    assert run(main, [*words, "--output_dir", str(tmp_path / "erf")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "erf").exists()
