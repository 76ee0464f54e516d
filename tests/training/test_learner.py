"""A step that is not finite changes neither weights nor the optimizer's state, whichever way decides it."""

import copy

import pytest
import torch
from accelerate import Accelerator

from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training import learner
from seedling_hf.training.learner import Learner
from seedling_hf.training.optimization import place_schedule
from seedling_hf.training.sharding import load_optimizer_state

NUM_LABELS = 4


def build(monkeypatch, *, optim: str = "adamw", fused: bool = False, **settings) -> Learner:
    """Of a tiny model on the CPU; `fused`: with AdamW as it is on a GPU."""
    original = learner.build_optimizer
    with monkeypatch.context() as patch:
        patch.setattr(learner, "build_optimizer", lambda model, arguments, **_: original(model, arguments, fused=fused))
        torch.manual_seed(0)
        model = RepLKNetForImageClassification(RepLKNetConfig.from_variant("tiny", num_labels=NUM_LABELS))
        arguments = TrainArguments(output_dir="run", train_dir="images", variant="tiny", optim=optim, **settings)
        return Learner(arguments, model, Accelerator(cpu=True), num_steps=10)


def batch(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    return {"pixel_values": images, "labels": torch.randint(NUM_LABELS, (4,), generator=generator)}


def state(found: Learner) -> dict[str, torch.Tensor]:
    """Copies of weights and of the optimizer's state."""
    moments = found.optimizer.state_dict()["state"]
    kept = {f"{i}.{name}": value for i, values in moments.items() for name, value in values.items()}
    # Of Muon some values are flags.
    kept |= dict(found.model.named_parameters())
    return {name: torch.as_tensor(value).detach().clone() for name, value in kept.items()}


def take_step(found: Learner, *batches: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return found.accumulate_gradients(list(batches)), found.update()


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


WAYS = [("adamw", False), ("adamw", True), ("muon", False)]


@pytest.mark.parametrize("max_grad_norm", [0.0, 5.0])
@pytest.mark.parametrize(("optim", "fused"), WAYS)
def test_an_image_that_is_nan_changes_nothing_and_the_next_step_goes_on(monkeypatch, optim, fused, max_grad_norm):
    found = build(monkeypatch, optim=optim, fused=fused, max_grad_norm=max_grad_norm, ema_decay=0.9)
    take_step(found, batch(0), batch(1))
    before = state(found)
    bad = batch(2)
    bad["pixel_values"][1, 0, 3, 3] = torch.nan
    loss, grad_norm = take_step(found, bad, batch(3))  # not only the last batch counts
    assert loss.isnan() and grad_norm.isnan()
    assert equal(state(found), before)
    assert all(average.isfinite().all() for average in found.ema.model.parameters())
    loss, grad_norm = take_step(found, batch(4))
    assert loss.isfinite() and grad_norm.isfinite()
    after = state(found)
    assert not equal(after, before) and all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize(("optim", "fused"), WAYS)
def test_an_infinite_loss_whose_gradients_are_finite_changes_nothing(monkeypatch, optim, fused):
    found = build(monkeypatch, optim=optim, fused=fused)
    take_step(found, batch(0))
    with torch.no_grad():
        found.bare_model.classifier.bias[:2] = torch.tensor([3e38, -3e38])
    bad = batch(1) | {"labels": torch.ones(4, dtype=torch.int64)}
    found.model(**bad).loss.backward()
    assert all(p.grad.isfinite().all() for p in found.model.parameters())
    found.optimizer.zero_grad()
    before = state(found)
    loss, grad_norm = take_step(found, bad)
    assert loss.isinf() and grad_norm.isnan()
    assert equal(state(found), before)


def test_a_finite_step_is_that_of_pytorch_to_the_last_bit(monkeypatch):
    found = build(monkeypatch, max_grad_norm=0.05)
    model, images = copy.deepcopy(found.bare_model).train(), batch(0)
    groups = [{"params": [], "weight_decay": group["weight_decay"]} for group in found.optimizer.param_groups]
    for parameter in model.parameters():
        groups[0 if parameter.ndim > 1 else 1]["params"].append(parameter)
    arguments = TrainArguments(output_dir="run", train_dir="images", variant="tiny")
    optimizer = torch.optim.AdamW(
        groups, lr=found.learning_rate, betas=(arguments.adam_beta1, arguments.adam_beta2), eps=arguments.adam_epsilon
    )
    torch.manual_seed(1)
    expected_loss = model(**images).loss
    expected_loss.backward()
    expected_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    optimizer.step()
    torch.manual_seed(1)
    loss, grad_norm = take_step(found, images)
    assert (loss.item(), grad_norm.item()) == (expected_loss.item(), expected_norm.item())
    assert grad_norm > 0.05
    assert equal(dict(found.bare_model.named_parameters()), dict(model.named_parameters()))


@pytest.mark.parametrize("to_fused", [False, True])
def test_a_run_goes_on_on_another_kind_of_device(monkeypatch, to_fused):
    one, other = (build(monkeypatch, fused=fused) for fused in (not to_fused, to_fused))
    take_step(one, batch(0))
    other.model.load_state_dict(one.model.state_dict())
    load_optimizer_state(other.optimizer, copy.deepcopy(one.optimizer.state_dict()))
    place_schedule(other.scheduler, 1)
    assert {group["fused"] for group in other.optimizer.param_groups} == {to_fused or None}
    for found in (one, other):
        torch.manual_seed(1)
        take_step(found, batch(1))
    for (name, expected), (_, found) in zip(one.model.named_parameters(), other.model.named_parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=name)
