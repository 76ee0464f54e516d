"""Full batches are compiled, and nothing else is."""

import csv

import pytest
import torch
from faults import assert_sentence, assert_well, command

from seedling_hf.inference.compiled_batches import compile_batches
from seedling_hf.inference.familiarity import Familiarity, stage_features
from seedling_hf.inference.judgement import FamiliarClassifier
from seedling_hf.inference.prediction import EightSymmetries, forward
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification


@pytest.fixture
def model():
    torch.manual_seed(0)
    torch._dynamo.reset()
    return RepLKNetForImageClassification(RepLKNetConfig.from_variant("tiny")).eval()


def compiled_sizes(model, batch_size: int) -> list[tuple[int, ...]]:
    """The shapes that the compiled code is run with from now on."""
    shapes = []

    def backend(graph, inputs):
        def run(*inputs):
            shapes.append(
                next(tuple(x.shape) for x in inputs if x.ndim == 4 and x.shape[1] == 3 and not x.requires_grad)
            )
            return graph(*inputs)

        return run

    compile_batches(model, batch_size, backend=backend)
    return shapes


def test_only_full_batches_are_compiled(model):
    images = torch.randn(4, 3, 32, 32)
    expected = [forward(model, images[:n]).logits for n in (4, 3, 1, 4)]
    names, shapes = list(model.state_dict()), compiled_sizes(model, 4)
    found = [forward(model, images[:n]).logits for n in (4, 3, 1, 4)]
    assert shapes == [(4, 3, 32, 32)] * 2
    forward(model, torch.randn(4, 3, 64, 64))  # another size than the first batch's
    model(pixel_values=images).logits.sum().backward()  # with gradients, as saliency maps take them
    assert len(shapes) == 2
    assert list(model.state_dict()) == names
    # 1e-5: float32, and the graph of the compiler is run operation by operation.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_eight_symmetries_are_compiled_too(model):
    shapes = compiled_sizes(model, 4)
    forward(EightSymmetries(model), torch.randn(4, 3, 32, 32))
    assert shapes == [(4, 3, 32, 32)] * 8


def test_what_is_unfamiliar_is_computed_in_the_same_graph(model):
    images = torch.randn(4, 3, 32, 32)
    features = stage_features(model(pixel_values=images, output_hidden_states=True).hidden_states)
    num_features = features.shape[1]
    familiar = FamiliarClassifier(
        model, Familiarity(features.mean(0), torch.eye(num_features), torch.zeros(1, num_features), torch.tensor(1.0))
    ).eval()
    expected = [forward(familiar, images[:n]) for n in (4, 3)]
    shapes = compiled_sizes(familiar, 4)
    found = [forward(familiar, images[:n]) for n in (4, 3)]
    assert shapes == [(4, 3, 32, 32)], "one graph, for the full batch"
    for one, other in zip(found, expected, strict=True):
        # As above.
        torch.testing.assert_close((one.logits, one.unfamiliarity), (other.logits, other.unfamiliarity), rtol=1e-4,
                                   atol=1e-5)  # fmt: skip


@pytest.mark.slow
def test_compiled_predictions_are_those_of_the_model(images, model_dir, tmp_path):
    (tmp_path / "work").mkdir()
    words = ["predict", "--model_name_or_path", model_dir, images, "--per_device_eval_batch_size", 20, "--top_k", 4]
    found = {}
    for name, flags in (("plain.csv", []), ("compiled.csv", ["--torch_compile"])):
        outcome = command([*words, "--output_file", name, *flags], tmp_path / "work", timeout=500)
        assert_well(outcome)
        assert ("compiled by torch.compile (default)" in outcome.stderr) == bool(flags)
        with open(tmp_path / "work" / name) as file:
            found[name] = {(row["file"], row["class"]): float(row["probability"]) for row in csv.DictReader(file)}
    # 1e-3: probabilities are written with four digits, and compiled kernels sum in another order.
    assert len(found["plain.csv"]) == 48 * 4
    assert found["compiled.csv"] == pytest.approx(found["plain.csv"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["predict", "evaluate", "embed", "probe"])
def test_without_a_compiler_nothing_is_begun(name, images, model_dir, tmp_path):
    (tmp_path / "work").mkdir()
    words = {
        "predict": [images, "--output_file", "answers.csv"],
        "evaluate": ["--test_dir", images, "--output_dir", "report"],
        "embed": ["--images", images, "--embeddings_file", "features.parquet"],
        "probe": ["--test_dir", images, "--output_dir", "probes"],
    }[name]
    outcome = command(
        [name, "--model_name_or_path", model_dir, *words, "--torch_compile_mode", "default"],
        tmp_path / "work",
        environment={"PATH": str(tmp_path), "CXX": ""},
    )
    assert_sentence(outcome, "expected a C++ compiler", "--torch_compile")
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
