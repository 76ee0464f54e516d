import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from processes import command_on_two_processes
from sample import copy_sample
from small_models import SPECIES

from seedling_hf.commands import run
from seedling_hf.commands.probe import main
from seedling_hf.data.dataset import load_folder
from seedling_hf.data.greenness import excess_green, otsu_threshold, plant_mask
from seedling_hf.data.transforms import EvalTransform, to_rgb
from seedling_hf.errors import InputError
from seedling_hf.evaluation import probes, probing
from seedling_hf.evaluation.evaluator import Evaluator, open_evaluator
from seedling_hf.evaluation.metrics import wilson_interval
from seedling_hf.evaluation.probes import PHOTOGRAPHED, PROBES, Probe, list_probes, shuffle_patches
from seedling_hf.evaluation.probing import ProbeTransform, format_probes, probe
from seedling_hf.inference.classifier import load_classifier
from seedling_hf.inference.prediction import build_accelerator, build_dataloader, predict

pytestmark = pytest.mark.usefixtures("unsettled_precision")


@pytest.fixture(scope="module")
def test_dir(tmp_path_factory) -> Path:
    """Five images of each of four species."""
    return copy_sample(tmp_path_factory.mktemp("images"), SPECIES, slice(5))


@pytest.fixture(scope="module")
def charlock(sample_dir) -> Image.Image:
    with Image.open(sample_dir / "Charlock" / "022179d65.jpg") as image:
        image.load()
        return to_rgb(image)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def named(name: str) -> Probe:
    return next(each for each in list_probes() if each.name == name)


def altered(name: str, image: Image.Image) -> np.ndarray:
    return np.asarray(named(name).alter(image, generator())).astype(int)


# Patches


@pytest.mark.parametrize("patches", [2, 4, 8])
def test_patches_change_places_and_stay_intact(patches):
    image = torch.arange(3 * 32 * 48).reshape(3, 32, 48)
    shuffled = shuffle_patches(image, patches, generator())
    high, wide = 32 // patches, 48 // patches

    def cut(pixels):
        return [pixels[:, y : y + high, x : x + wide] for y in range(0, 32, high) for x in range(0, 48, wide)]

    before, after = cut(image), cut(shuffled)
    assert {tuple(p.flatten().tolist()) for p in before} == {tuple(p.flatten().tolist()) for p in after}
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_the_remainder_of_the_division_stays():
    image = torch.rand(3, 34, 35)
    shuffled = shuffle_patches(image, 4, generator())
    assert torch.equal(shuffled[:, 32:], image[:, 32:])
    assert torch.equal(shuffled[:, :, 32:], image[:, :, 32:])
    assert not torch.equal(shuffled, image)


def test_the_order_of_patches_is_that_of_the_seed():
    image = torch.rand(3, 32, 32)
    first, same, other = (shuffle_patches(image, 4, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("patches", [0, 1, 33])
def test_impossible_patches_are_refused(patches):
    with pytest.raises(InputError, match=f"found {patches} in 32×32 pixels"):
        shuffle_patches(torch.rand(3, 32, 32), patches, generator())


# Plant and background


def test_otsus_threshold_has_the_least_variance_within():
    draw = generator()
    values = np.concatenate([draw.normal(0, 1, 3000), draw.normal(6, 0.5, 500)])
    edges = np.linspace(values.min(), values.max(), 257)[1:-1]

    def variance_within(threshold):
        below, above = values[values <= threshold], values[values > threshold]
        return below.var() * len(below) + above.var() * len(above)

    best = min(map(variance_within, edges))
    # 1e-3: Otsu's method sees the bins' centres, not the values.
    assert variance_within(otsu_threshold(values)) == pytest.approx(best, rel=1e-3)


def test_excess_green_is_that_of_the_chromatic_coordinates():
    colors = np.array([[[0, 255, 0], [200, 100, 100], [90, 90, 90], [0, 0, 0]]], np.uint8)
    assert excess_green(colors)[0].tolist() == [2.0, -0.25, 0.0, 0.0]


def test_a_drawn_plant_is_found():
    pixels = np.full((100, 100, 3), (140, 105, 70), np.uint8)
    pixels[30:60, 40:70] = (60, 150, 40)
    mask = plant_mask(Image.fromarray(pixels))
    expected = np.zeros((100, 100), bool)
    expected[30:60, 40:70] = True
    assert (mask != expected).mean() < 0.02


def test_the_plant_of_a_real_image_is_kept_and_the_rest_is_grey(charlock):
    mask, pixels = plant_mask(charlock), altered("plant_only", charlock)
    assert 0.1 < mask.mean() < 0.6
    assert np.array_equal(pixels[mask], np.asarray(charlock)[mask])
    assert (pixels[~mask] == probes.GREY).all()


def test_the_background_of_a_real_image_has_no_green_left_and_is_otherwise_the_same(charlock):
    pixels, mask = altered("background_only", charlock), plant_mask(charlock)
    threshold = otsu_threshold(excess_green(np.asarray(charlock)))
    green = excess_green(pixels) > threshold
    assert green.mean() < 0.02 < mask.mean()
    far = ~np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(17)), bool)
    assert np.array_equal(pixels[far], np.asarray(charlock)[far])


def test_an_image_that_is_all_plant_can_be_altered_too():
    image = Image.new("RGB", (20, 20), (40, 160, 40))
    assert altered("background_only", image).shape == (20, 20, 3)
    assert altered("plant_only", image).shape == (20, 20, 3)


def test_a_silhouette_has_two_colors(charlock):
    pixels = altered("silhouette", charlock)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) == 2


# The other probes


def test_every_probe_leaves_the_size_and_changes_the_image(charlock):
    for each in list_probes():
        if each.alter is not None and each.name != "stretched":  # the image is
            output = each.alter(charlock, generator())
            assert (output.size, output.mode) == (charlock.size, "RGB"), each.name
            assert np.abs(np.subtract(output, charlock, dtype=int)).mean() > 0.5, each.name


def test_light_and_size_change_as_the_titles_say():
    gray = Image.new("RGB", (50, 50), (100, 100, 100))
    assert altered("warm", gray)[0, 0].tolist() == [120, 100, 80]
    assert altered("cool", gray)[0, 0].tolist() == [80, 100, 120]
    assert altered("dark", gray)[0, 0].tolist() == [60, 60, 60]
    assert altered("bright", gray)[0, 0].tolist() == [150, 150, 150]
    pixels = np.zeros((50, 50, 3), np.uint8)
    pixels[15:35, 15:35] = 255
    sizes = ("scale_0.3", "scale_0.6", "scale_1.4", "scale_2")
    white = {name: (altered(name, Image.fromarray(pixels)) > 127).all(-1).sum() for name in sizes}
    assert 5**2 <= white.pop("scale_0.3") <= 7**2  # the edges of the square are between pixels
    assert white == {"scale_0.6": 12**2, "scale_1.4": 28**2, "scale_2": 40**2}


def test_exposure_changes_as_the_titles_say():
    pixels = np.full((50, 50, 3), (40, 60, 90), np.uint8)
    pixels[10:20] = (100, 120, 140)
    image = Image.fromarray(pixels)
    # 1: rounding to bytes.
    for name, low, high in (("stretched", 0, 255), ("white_65", 0, 166), ("white_40", 0, 102), ("haze", 64, 255)):
        found = altered(name, image)
        assert (found.min(), found.max()) == (low, high)
        assert abs(found[0, 0, 1] - (low + (high - low) * 20 / 100)) <= 1, name
    assert altered("gamma_0.6", image)[0, 0].tolist() == [round(255 * (v / 255) ** 0.6) for v in (40, 60, 90)]
    assert altered("gamma_1.6", image)[0, 0].tolist() == [round(255 * (v / 255) ** 1.6) for v in (40, 60, 90)]
    spreads = [altered(name, image).std() / pixels.std() for name in ("contrast_0.5", "contrast_1.6")]
    assert spreads == pytest.approx([0.5, 1.6], rel=0.05)
    gray = Image.new("RGB", (50, 50), (100, 100, 100))
    found = [altered(name, gray)[0, 0].tolist() for name in ("warm_40", "cool_10", "green", "magenta")]
    assert found == [[140, 100, 60], [90, 100, 110], [100, 120, 100], [100, 80, 100]]


def test_a_shadow_lies_on_half_of_the_image():
    white = Image.new("RGB", (100, 80), (250, 250, 250))
    for seed in range(8):
        found = np.asarray(named("shadow").alter(white, generator(seed)))[..., 0]
        assert 0.4 < (found < 150).mean() < 0.6
        assert found.min() in range(98, 102) and found.max() == 250


def test_noise_has_the_deviation_of_its_title_in_large_images_too():
    for side in (100, 600):
        gray = Image.new("RGB", (side, side + 50), (128, 128, 128))
        assert altered("noise_4", gray).std() == pytest.approx(0.04 * 255, rel=0.05)
        noisy = Image.fromarray(altered("noise_8", gray).astype(np.uint8))
        small = np.asarray(noisy.resize((75, 75), Image.Resampling.BOX))
        assert small.std() > 0.3 * 0.08 * 255  # it does not vanish when the image is resized


def test_a_moved_image_is_smeared_along_rows_only():
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[:, 50:] = 200
    found = altered("moved_4", Image.fromarray(pixels))
    assert ((found[0, :, 0] > 0) & (found[0, :, 0] < 200)).sum() in (3, 4)
    assert (found == found[:1]).all()


def test_a_quarter_turn_is_exact(charlock):
    square = charlock.resize((64, 64))
    assert np.array_equal(altered("rotation_90", square), np.rot90(np.asarray(square)))
    assert np.array_equal(altered("rotation_180", square), np.rot90(np.asarray(square), 2))


def test_probes_have_different_names_and_begin_with_the_plain_image():
    every = list_probes()
    assert len({each.name for each in every}) == len(every) == len({each.title for each in every})
    assert every[0] == Probe("plain", "plain", "plain")


def test_what_is_random_depends_only_on_seed_and_number(model_dir, charlock):
    _, image_processor = load_classifier(str(model_dir))
    rows = {"image": [charlock, charlock], "index": [0, 1]}
    make = ProbeTransform(named("patches_4"), image_processor, seed=3)
    first, other = make(rows)["pixel_values"]
    (again,) = make({"image": [charlock], "index": [0]})["pixel_values"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_scikit_image_there_are_all_probes_but_its_photographs(monkeypatch):
    monkeypatch.setattr(probes, "has_photographs", lambda: False)
    assert list_probes() == PROBES
    monkeypatch.setattr(probes, "has_photographs", lambda: True)
    assert set(list_probes()) == {*PROBES, *PHOTOGRAPHED}
    groups = [each.group for each in list_probes()]
    assert groups == sorted(groups, key=groups.index)


# The whole


@pytest.fixture(scope="module")
def result(model_dir, test_dir) -> dict:
    model, image_processor = load_classifier(str(model_dir))
    dataset, accelerator = load_folder(test_dir, class_names=SPECIES), build_accelerator("no")
    return asdict(probe(Evaluator(model, image_processor, accelerator, batch_size=8), dataset))


def test_the_plain_accuracy_is_that_of_the_predictions(result, model_dir, test_dir):
    model, image_processor = load_classifier(str(model_dir))
    dataset, accelerator = load_folder(test_dir, class_names=SPECIES), build_accelerator("no")
    loader = build_dataloader(dataset, image_processor, accelerator, batch_size=8, num_workers=0)
    logits, _ = predict(model, loader, accelerator)
    correct = int((logits.argmax(-1).numpy() == np.array(dataset["label"])).sum())
    plain = result["probes"][0]
    assert plain["accuracy"] == correct / 20
    assert plain["interval"] == list(wilson_interval(correct, 20))
    assert plain["change"] == 0 and plain["change_interval"] == [0, 0]


def test_a_probe_is_the_accuracy_on_images_altered_by_hand(result, model_dir, test_dir):
    model, image_processor = load_classifier(str(model_dir))
    dataset, transform = load_folder(test_dir, class_names=SPECIES), EvalTransform(image_processor)
    pixels = torch.stack([transform(Image.fromarray(np.rot90(np.asarray(to_rgb(row["image"]))))) for row in dataset])
    answers = model(pixels).logits.argmax(-1).numpy()
    (row,) = [row for row in result["probes"] if row["name"] == "rotation_90"]
    assert row["accuracy"] == (answers == np.array(dataset["label"])).mean()


def test_the_change_is_that_of_the_accuracy_and_lies_in_its_interval(result):
    plain = result["probes"][0]["accuracy"]
    for row in result["probes"]:
        assert row["change"] == pytest.approx(row["accuracy"] - plain)
        assert row["change_interval"][0] <= row["change"] <= row["change_interval"][1]
    assert any(row["change"] < 0 for row in result["probes"])
    assert json.loads(json.dumps(result)) == result
    assert (result["num_examples"], result["guess"]) == (20, 0.25)


def test_a_plant_on_other_ground_stands_on_that_of_the_images_probed(model_dir, test_dir, charlock):
    dataset, (_, image_processor) = load_folder(test_dir, class_names=SPECIES), load_classifier(str(model_dir))
    grounds = probing.list_grounds(dataset)
    assert 1 < len(grounds) <= 20
    rows = {"image": [charlock], "index": [0]}
    make = ProbeTransform(named("on_other_ground"), image_processor, grounds=grounds)
    mask = plant_mask(charlock)
    expected = named("on_other_ground").alter(charlock, np.random.default_rng([0, 0]), grounds)
    assert torch.equal(make(rows)["pixel_values"][0], EvalTransform(image_processor)(expected))
    assert np.abs(np.subtract(expected, charlock, dtype=int))[~mask].mean() > 5


def test_a_model_that_knows_tells_how_many_altered_images_are_unfamiliar(familiar_dir, strange_image, test_dir, result):
    evaluator = open_evaluator(str(familiar_dir), build_accelerator("no"), 8, 0)
    other = Probe("other", "something else", "color", lambda image, generator: Image.open(strange_image).convert("RGB"))
    found = probe(evaluator, load_folder(test_dir, class_names=SPECIES), probes=[named("plain"), other])
    assert [row["unfamiliar"] for row in found.probes] == [0, 1]
    heading, _, first, second = format_probes(found).splitlines()
    assert heading.endswith("| unfamiliar |") and first.endswith("|       0.0% |") and second.endswith("|     100.0% |")
    assert "unfamiliar" not in result["probes"][0]


def test_images_in_another_order_keep_their_labels(model_dir, test_dir, result):
    model, image_processor = load_classifier(str(model_dir))
    dataset = load_folder(test_dir, class_names=SPECIES)
    turned = dataset.select(list(range(19, -1, -1)))
    found = probe(Evaluator(model, image_processor, build_accelerator("no")), turned, probes=PROBES[:2])
    assert [row["accuracy"] for row in found.probes] == [row["accuracy"] for row in result["probes"][:2]]


def test_the_bootstrap_interval_of_many_images_is_the_normal_one():
    differences = generator().choice([-1.0, 0.0, 1.0], 4000, p=[0.3, 0.6, 0.1])
    low, high = probing.bootstrap_interval(differences)
    half = 1.96 * differences.std() / 4000**0.5
    # A tenth of the half-width: 2,000 samples give the ends no better.
    assert low == pytest.approx(differences.mean() - half, abs=half / 10)
    assert high == pytest.approx(differences.mean() + half, abs=half / 10)


def test_the_command_writes_figures_table_and_images(model_dir, test_dir, tmp_path, capsys):
    words = ["--model_name_or_path", str(model_dir), "--test_dir", str(test_dir), "--output_dir", str(tmp_path / "out")]
    assert run(main, [*words, "--max_samples", "8"]) == 0
    result = json.loads((tmp_path / "out" / "probes.json").read_text())
    assert result["num_examples"] == 8
    assert [row["name"] for row in result["probes"]] == [each.name for each in list_probes()]
    text = (tmp_path / "out" / "probes.md").read_text()
    shown = capsys.readouterr().out
    for row in result["probes"]:
        assert f"{row['accuracy']:.1%}" in text
        assert row["title"] in text
        assert row["title"] in shown
    for name in ("probes.png", "examples.png"):
        assert Image.open(tmp_path / "out" / name).width > 800
        assert f"]({name})" in text


@pytest.mark.slow
def test_two_processes_find_what_one_finds(model_dir, test_dir, result, tmp_path):
    words = ["--model_name_or_path", str(model_dir), "--test_dir", str(test_dir), "--output_dir", str(tmp_path / "out")]
    answer = command_on_two_processes(main, [*words, "--per_device_eval_batch_size", "3"], tmp_path)
    assert answer.returncode == 0, answer.stderr
    found = json.loads((tmp_path / "out" / "probes.json").read_text())
    assert found["probes"] == result["probes"]


def test_the_command_refuses_a_folder_of_other_classes(model_dir, sample_dir, tmp_path, capsys):
    words = ["--model_name_or_path", str(model_dir), "--test_dir", str(sample_dir), "--output_dir", str(tmp_path / "o")]
    assert run(main, words) == 2
    assert "expected only the model's classes" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
