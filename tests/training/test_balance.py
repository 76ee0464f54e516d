"""Weights of classes: scikit-learn's formula, in the loss of training only."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from test_learner import NUM_LABELS, batch
from torch.nn import functional as F
from training_runs import Run

from seedling_hf.errors import InputError
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training.balance import balanced_weights, weigh_targets
from seedling_hf.training.learner import Learner

WEIGHTS = torch.tensor([0.25, 1.0, 3.0, 0.5])


def test_weights_are_images_over_classes_and_images_of_the_class():
    weights = balanced_weights([0] * 6 + [3] + [1] * 3, num_labels=4)
    assert weights.tolist() == pytest.approx([10 / (3 * 6), 10 / (3 * 3), 1, 10 / 3])


SOFT = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.0, 0.5, 0.5, 0.0]], dtype=torch.float64)


def test_soft_targets_give_the_loss_that_pytorch_weights():
    logits = torch.randn(2, 4, dtype=torch.float64)
    expected = F.cross_entropy(logits, SOFT, weight=WEIGHTS.double())
    torch.testing.assert_close(F.cross_entropy(logits, weigh_targets(SOFT, WEIGHTS.double())), expected)


def test_classes_give_the_mean_of_weighted_losses_however_the_batch_is_divided():
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 0, 0, 2, 1, 3])
    whole = F.cross_entropy(logits, weigh_targets(labels, WEIGHTS.double()))
    each = F.cross_entropy(logits, labels, reduction="none") * WEIGHTS.double()[labels]
    torch.testing.assert_close(whole, each.mean())
    targets = weigh_targets(labels, WEIGHTS.double())
    halves = [F.cross_entropy(logits[part], targets[part]) for part in ([0, 1, 2], [3, 4, 5])]
    torch.testing.assert_close(sum(halves) / 2, whole)


def test_the_learner_weighs_the_loss_and_nothing_else():
    torch.manual_seed(0)
    config = RepLKNetConfig.from_variant("tiny", num_labels=NUM_LABELS, drop_path_rate=0.0)
    model, images = RepLKNetForImageClassification(config).train(), batch(0)
    logits = model(images["pixel_values"]).logits
    arguments = TrainArguments(output_dir="run", train_dir="images", variant="tiny")
    learner = Learner(arguments, model, Accelerator(cpu=True), num_steps=10, class_weights=WEIGHTS)
    expected = (F.cross_entropy(logits, images["labels"], reduction="none") * WEIGHTS[images["labels"]]).mean()
    torch.testing.assert_close(learner.accumulate_gradients([images]), expected)


@pytest.fixture(scope="module")
def unbalanced(images, tmp_path_factory):
    """Six images of Charlock beside sixteen of each other class."""
    folder = tmp_path_factory.mktemp("unbalanced") / "images"
    for name in ("Black-grass", "Charlock", "Maize"):
        (folder / name).mkdir(parents=True)
        for file in sorted((images / name).iterdir())[: 6 if name == "Charlock" else 16]:
            (folder / name / file.name).symlink_to(file)
    return folder


def test_a_run_says_the_weights_and_validates_by_the_plain_loss(tmp_path, unbalanced):
    run = Run(tmp_path / "run", unbalanced, class_weights="balanced", no_calibration="true", max_steps=3, save_steps=3)
    run.finish()
    # 26 images train: 4 of Charlock, 11 of each other class.
    assert (
        "training loss weighted by class: 2.17 for Charlock (4 images), 0.79 for Black-grass (11 images)" in run.output
    )
    found = np.load(run.folder / "run" / "probabilities.npz")
    plain = -np.log(found["probabilities"][np.arange(len(found["labels"])), found["labels"]]).mean()
    lines = [json.loads(line) for line in (run.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["eval_loss"] for line in lines if "eval_loss" in line][-1] == pytest.approx(plain, rel=1e-5)
    assert "class_weights: balanced" in (run.folder / "run" / "arguments.yaml").read_text()

    run.finish("--class_weights", "balanced", "--balanced_sampler", expected=2)
    assert "expected --class_weights balanced or --balanced_sampler, found both" in run.output


def test_a_run_says_how_often_images_are_drawn_and_resumes_by_the_same_sampler_only(tmp_path, unbalanced):
    run = Run(tmp_path / "run", unbalanced, balanced_sampler="true", max_steps=3, save_steps=3)
    run.finish()
    assert (
        "balanced sampler: in an epoch an image of Charlock (4 images) is drawn 2.17 times on average, one of "
        "Black-grass (11 images) 0.79 times" in run.output
    )
    run.finish("--balanced_sampler", "false", expected=2)
    assert "found that balanced_sampler was True and is False" in run.output


@pytest.mark.parametrize(("name", "value"), [("class_weights", "balanced"), ("balanced_sampler", True)])
def test_a_stream_whose_classes_are_not_counted_is_refused(name, value):
    with pytest.raises(InputError, match=rf"expected --{name}.* without --streaming, .* found both; drop one"):
        TrainArguments(dataset_name="user/name", streaming=True, max_steps=1, eval_steps=1, **{name: value})
