"""Several models as one: the mean of their probabilities, by the names of the classes."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import assert_sentence, assert_well, command
from small_models import SPECIES, write_familiarity, write_model

from seedling_hf.errors import InputError
from seedling_hf.inference.classifier import list_classes, load_classifier
from seedling_hf.inference.classifier_arguments import ClassifierArguments
from seedling_hf.inference.ensemble import Ensemble, load_ensemble
from seedling_hf.inference.judgement import add_familiarity, without_familiarity
from seedling_hf.inference.prediction import EightSymmetries
from seedling_hf.words import name_words


@pytest.fixture(scope="module")
def folds_dir(tmp_path_factory, sample_dir) -> Path:
    """Two models that know what is familiar, the second with its classes in another order."""
    folder = tmp_path_factory.mktemp("folds")
    for number, (names, threshold) in enumerate(((SPECIES, 0.5), (SPECIES[::-1], 0.7)), 1):
        write_model(folder / f"fold_{number}", sample_dir, names, images=3 + number)
        write_familiarity(folder / f"fold_{number}", sample_dir, threshold)
    return folder


@pytest.fixture
def names(folds_dir) -> list[str]:
    return [str(folds_dir / "fold_1"), str(folds_dir / "fold_2")]


@pytest.fixture
def pixel_values(sample_dir, names) -> torch.Tensor:
    from PIL import Image

    files = [sorted((sample_dir / name).iterdir())[20] for name in SPECIES]
    processor = load_classifier(names[0])[1]
    return processor([Image.open(file).convert("RGB") for file in files], return_tensors="pt")["pixel_values"]


@torch.no_grad()
def test_the_mean_of_probabilities_goes_by_the_names_of_the_classes(names, pixel_values):
    ensemble, _ = load_ensemble(names, name="both")
    assert list_classes(ensemble.config) == SPECIES
    first, second = (load_classifier(name)[0](pixel_values).logits.double().softmax(-1) for name in names)
    expected = (first + second.flip(-1)) / 2  # the second has the classes in reverse
    found = ensemble(pixel_values=pixel_values).logits.double().exp()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)  # logarithms in float32
    assert not torch.allclose(found, (first + second) / 2, atol=1e-2)
    torch.testing.assert_close(found.sum(-1), torch.ones(4, dtype=torch.float64), rtol=1e-5, atol=0)


@torch.no_grad()
def test_unfamiliarity_is_the_mean_and_needs_every_member(names, pixel_values, tmp_path):
    ensemble, _ = load_ensemble(names, name="both")
    assert not ensemble.knows_familiar
    source = ClassifierArguments(model_name_or_path=names[0]).source
    familiar = add_familiarity(ensemble, source)
    assert familiar.knows_familiar
    pairs = zip(ensemble.members, ensemble.sources, strict=True)
    told = [add_familiarity(*pair)(pixel_values).unfamiliarity for pair in pairs]
    torch.testing.assert_close(familiar(pixel_values).unfamiliarity, (told[0] + told[1]) / 2)
    assert not without_familiarity(familiar).knows_familiar
    assert familiar.config.confidence_threshold == pytest.approx(0.6)
    shutil.copytree(names[1], tmp_path / "without")
    (tmp_path / "without" / "familiarity.safetensors").unlink()
    ensemble, _ = load_ensemble([names[0], str(tmp_path / "without")], name="both")
    assert not add_familiarity(ensemble, source).knows_familiar


@torch.no_grad()
def test_the_eight_symmetries_work_over_an_ensemble(names, pixel_values):
    ensemble, _ = load_ensemble(names, name="both")
    turned = EightSymmetries(ensemble)
    found = turned(pixel_values=pixel_values).logits
    torch.testing.assert_close(turned(pixel_values=pixel_values.rot90(1, (-2, -1))).logits, found, rtol=0, atol=1e-4)
    assert not torch.allclose(ensemble(pixel_values=pixel_values).logits.double(), found, atol=1e-2)


def test_other_classes_are_refused(names, sample_dir, tmp_path):
    write_model(tmp_path / "other", sample_dir, [*SPECIES[:3], "Fat Hen"])
    with pytest.raises(InputError, match=r"same classes, found others in .*other than in .*fold_1: Fat Hen, Maize"):
        load_ensemble([names[0], str(tmp_path / "other")], name="both")


def test_images_of_another_size_are_refused(names, sample_dir, tmp_path):
    write_model(tmp_path / "larger", sample_dir, image_size=96)
    with pytest.raises(InputError, match=r"prepare images in the same way, found crop_size .*96.* and .*64"):
        load_ensemble([names[0], str(tmp_path / "larger")], name="both")


def test_a_folder_of_folds_counts_as_its_members(folds_dir, names):
    class Several(ClassifierArguments):
        _takes_several = True

    assert Several(model_name_or_path=[str(folds_dir)]).members == names
    assert isinstance(Several(model_name_or_path=[str(folds_dir)]).load()[0], Ensemble)
    with pytest.raises(InputError, match="expected each model once"):
        Several(model_name_or_path=[str(folds_dir), names[0]])


@pytest.mark.parametrize("name", ["probe", "embed", "saliency"])
def test_commands_for_one_model_refuse_several(name, folds_dir, sample_dir, tmp_path):
    images = {"probe": "--test_dir", "embed": "--images", "saliency": "--images"}[name]
    output = {"embed": ["--embeddings_file", "out.parquet"]}.get(name, ["--output_dir", "out"])
    words = [name, "--model_name_or_path", folds_dir, images, sample_dir, *output]
    assert_sentence(command(words, tmp_path), "expected one model in --model_name_or_path, found 2", "fold_1")


def test_images_may_follow_a_model(folds_dir, names, sample_dir, tmp_path):
    from argparse import ArgumentParser

    from seedling_hf.inference.classifier_arguments import names_a_model

    parser = ArgumentParser()
    parser.add_argument("--model_name_or_path", nargs="+")
    parser.add_argument("--images", nargs="+")
    words = ["--model_name_or_path", *names, str(sample_dir)]
    accepts = {"--model_name_or_path": names_a_model}
    found = parser.parse_args(name_words(words, "--images", parser._option_string_actions, accepts))
    assert (found.model_name_or_path, found.images) == (names, [str(sample_dir)])


def test_predict_and_evaluate_take_several(folds_dir, names, sample_dir, tmp_path):
    images = tmp_path / "images"
    for name in SPECIES:
        for file in sorted((sample_dir / name).iterdir())[20:22]:
            (images / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, images / name)
    assert_well(command(["predict", "--model_name_or_path", *names, images, "--output_file", "a.csv"], tmp_path))
    assert_well(command(["predict", images, "--model_name_or_path", folds_dir, "--output_file", "b.csv"], tmp_path))
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    assert_well(
        command(["evaluate", "--model_name_or_path", *names, "--test_dir", images, "--output_dir", "report"], tmp_path)
    )
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    single = sum(p.numel() for name in names for p in load_classifier(name)[0].parameters())
    assert report["provenance"]["num_parameters"] == single and report["num_examples"] == 8
    rows = {row["file"]: row for row in csv.DictReader((tmp_path / "a.csv").open(newline=""))}
    archive = np.load(tmp_path / "report" / "probabilities.npz")
    assert len(rows) == 8
    for row, probabilities in zip(rows.values(), archive["probabilities"], strict=True):
        assert row["class"] == SPECIES[probabilities.argmax()] and row["certainty"] in (
            "sure",
            "not sure",
            "unfamiliar",
        )
        assert float(row["probability"]) == pytest.approx(probabilities.max(), abs=1e-4)


def test_one_exported_file_holds_all_members(folds_dir, names, pixel_values, sample_dir, tmp_path):
    from seedling_hf.export.torch_program import run_torch_export

    words = ["export", "--model_name_or_path", folds_dir, "--format", "torch_export", "--output_file", "both.pt2"]
    assert_well(command([*words, "--images", sample_dir / "Maize", "--max_check_samples", "2"], tmp_path))
    logits, unfamiliarity = run_torch_export(tmp_path / "both.pt2")(pixel_values.numpy())
    ensemble, _ = load_ensemble(names, name="both")
    with torch.no_grad():
        expected = add_familiarity(ensemble, ensemble.sources[0])(pixel_values)
    np.testing.assert_allclose(logits, expected.logits.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(unfamiliarity, expected.unfamiliarity.numpy(), rtol=1e-3)
    words = ["export", "--model_name_or_path", folds_dir, "--format", "half", "--output_file", "half"]
    assert_sentence(command(words, tmp_path), "expected one model for --format half, found 2")
