"""How far an answer can be trusted, from what a model computes for an image."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from seedling_hf.inference.classifier import Pretrained, load_classifier
from seedling_hf.inference.judgement import (
    Certainty,
    FamiliarClassifier,
    SideBySide,
    add_familiarity,
    choose_certainty,
    describe_silence,
    judge,
)
from seedling_hf.inference.prediction import EightSymmetries, build_accelerator, forward

NAMES = ["Charlock", "Maize"]


@pytest.fixture(scope="module")
def loaded(familiar_dir):
    model, image_processor = load_classifier(str(familiar_dir))
    return add_familiarity(model, Pretrained(str(familiar_dir))), image_processor


@pytest.fixture(scope="module")
def pixel_values(loaded, sample_dir, strange_image):
    """A seedling that the familiarity was fitted to, and something else."""
    files = [sorted((sample_dir / "Maize").iterdir())[0], strange_image]
    return loaded[1]([Image.open(file).convert("RGB") for file in files], return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize(
    ("certainty", "probability", "unfamiliarity", "word"),
    [
        (Certainty(0.6, True), 0.9, 0.5, "sure"),
        (Certainty(0.6, True), 0.6, 1.0, "sure"),  # both limits belong to what is sure
        (Certainty(0.6, True), 0.5, 0.5, "not sure"),
        (Certainty(0.6, True), 0.99, 1.1, "unfamiliar"),
        (Certainty(0.6, True), 0.1, 1.1, "unfamiliar"),
        (Certainty(0.6), 0.9, None, "sure"),
        (Certainty(0.6), 0.9, 2.0, "sure"),
        (Certainty(None, True), 0.9, 0.5, None),
        (Certainty(None, True), 0.9, 1.5, "unfamiliar"),
        (Certainty(), 0.9, None, None),
    ],
)
def test_an_answer_is_unfamiliar_first_and_then_sure_or_not(certainty, probability, unfamiliarity, word):
    assert certainty.of(probability, unfamiliarity) == word
    assert word is None or word in certainty.words


def test_outputs_become_a_ranking_and_a_word_for_each_image():
    logits = torch.tensor([[0.0, 3.0], [0.1, 0.0], [9.0, 0.0]])
    outputs = SimpleNamespace(logits=logits, unfamiliarity=torch.tensor([0.2, 0.3, 7.0]))
    said = judge(outputs, NAMES, Certainty(0.6, True), top_k=2)
    assert [each.certainty for each in said] == ["sure", "not sure", "unfamiliar"]
    assert [each.ranking[0][0] for each in said] == ["Maize", "Charlock", "Charlock"]
    assert said[0].ranking[0][1] == pytest.approx(logits[0].softmax(0)[1].item())


@pytest.mark.parametrize(
    ("given", "in_folder", "otherwise", "expected"),
    [(0.9, 0.6, 0.5, 0.9), (0.0, 0.6, None, 0.0), (None, 0.6, 0.5, 0.6), (None, None, 0.5, 0.5), (None,) * 4],
)
def test_the_flag_goes_before_the_threshold_of_the_model(given, in_folder, otherwise, expected):
    model = SimpleNamespace(config=SimpleNamespace(confidence_threshold=in_folder))
    assert choose_certainty(model, given, otherwise=otherwise) == Certainty(expected)


def test_what_cannot_be_said_is_described():
    assert "neither a confidence_threshold" in describe_silence(Certainty())
    assert "only what is unfamiliar" in describe_silence(Certainty(None, True))
    assert "only what is sure" in describe_silence(Certainty(0.5))
    assert describe_silence(Certainty(0.5, True)) is None


def test_one_pass_gives_the_logits_of_the_model_and_what_is_unfamiliar(loaded, pixel_values, monkeypatch):
    model, _ = loaded
    assert isinstance(model, FamiliarClassifier) and model.knows_familiar
    passes = []
    hook = model.model.register_forward_pre_hook(lambda *_: passes.append(1))
    outputs = forward(model, pixel_values)
    hook.remove()
    assert len(passes) == 1
    assert torch.equal(outputs.logits, forward(model.model, pixel_values).logits)
    familiar, strange = outputs.unfamiliarity.tolist()
    assert familiar < 1 < strange
    both = SideBySide(model)(pixel_values).logits
    assert both[:, -1].tolist() == pytest.approx([familiar, strange])
    assert torch.equal(both[:, :-1].float(), outputs.logits)


def test_symmetries_have_the_mean_unfamiliarity(loaded, pixel_values):
    model, _ = loaded
    turned = [forward(model, x.rot90(k, (-2, -1))).unfamiliarity for x in (pixel_values, pixel_values.flip(-1))
              for k in range(4)]  # fmt: skip
    found = forward(EightSymmetries(model), pixel_values).unfamiliarity
    torch.testing.assert_close(found, torch.stack(turned).mean(0))


def test_in_bfloat16_distances_are_computed_in_float32(loaded, pixel_values, unsettled_precision):
    model, _ = loaded
    accelerator = build_accelerator("bf16")
    exact, found = (forward(model, pixel_values, *how).unfamiliarity for how in ((), (accelerator.autocast,)))
    assert found.dtype == torch.float32
    # Rounding of the features to 8 bits; distances of bfloat16 would be off by several times their size.
    torch.testing.assert_close(found, exact, rtol=0.2, atol=0.05)


def test_a_folder_without_the_file_gives_the_model_alone(model_dir):
    model, _ = load_classifier(str(model_dir))
    assert add_familiarity(model, Pretrained(str(model_dir))) is model
