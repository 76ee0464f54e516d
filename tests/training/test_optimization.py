"""Learning rates, decay and averages are those of their definitions, computed in float64."""

import math
from types import SimpleNamespace

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from transformers import get_scheduler

from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification
from seedling_hf.training.optimization import (
    ExponentialMovingAverage,
    build_optimizer,
    build_scheduler,
    layer_depths,
    parameter_groups,
)

SETTINGS = SimpleNamespace(
    optim="adamw", learning_rate=2e-3, weight_decay=0.05, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-7,
    layer_decay=1.0,
)  # fmt: skip
NUM_STEPS, WARMUP = 40, 7


class Block(nn.Sequential):
    """A convolution and its BatchNorm."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4))


class ThreeBlocks(nn.Module):
    """A stem, three blocks and a head, in timm's words too."""

    _no_split_modules = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.head = nn.Linear(4, 2)

    def group_matcher(self, coarse: bool) -> dict:
        return {"stem": r"^stem", "blocks": r"^blocks\.(\d+)"}  # the head, which nothing matches, is the last layer


@pytest.fixture(scope="module")
def replknet() -> RepLKNetForImageClassification:
    return RepLKNetForImageClassification(RepLKNetConfig.from_variant("tiny", num_labels=4))


def settings_by_name(model: nn.Module, groups: list[dict], rate: str) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    rows = [(names[p], (group[rate], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(rows) == len(names) == len(dict(rows))  # each parameter once
    return dict(rows)


def test_layer_decay_and_weight_decay_are_those_of_timm():
    model = ThreeBlocks()
    expected = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.7)
    found = parameter_groups(model, learning_rate=1.0, weight_decay=0.05, layer_decay=0.7)
    assert settings_by_name(model, found, "lr") == settings_by_name(model, expected, "lr_scale")


def test_each_block_of_a_replknet_learns_more_slowly_than_the_next(replknet):
    groups = parameter_groups(replknet, learning_rate=2e-3, weight_decay=0.05, layer_decay=0.5)
    rates = {name: rate for name, (rate, _) in settings_by_name(replknet, groups, "lr").items()}
    blocks = ["embeddings", *(f"encoder.stages.{s}.layers.{i}" for s, i in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0)))]
    for height, block in enumerate(reversed(blocks), start=1):
        found = {rate for name, rate in rates.items() if name.startswith(f"replknet.{block}.")}
        assert found == {2e-3 * 0.5**height}
    tops = ("classifier.weight", "classifier.bias", "replknet.normalization.weight", "replknet.normalization.bias")
    assert {rates[name] for name in tops} == {2e-3}
    # A transition belongs to the block that follows it.
    following = rates["replknet.encoder.stages.2.layers.0.large_kernel_block.normalization.weight"]
    assert rates["replknet.encoder.stages.2.downsampling.0.convolution.weight"] == following


def test_parameters_before_the_first_block_have_depth_zero():
    depths = layer_depths(ThreeBlocks())
    assert (depths["stem.weight"], depths["blocks.0.0.weight"], depths["head.bias"]) == (0, 1, 4)


def test_matrices_and_kernels_decay_and_vectors_do_not(replknet):
    groups = parameter_groups(replknet, learning_rate=1e-3, weight_decay=0.05)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    settings = settings_by_name(replknet, groups, "lr")
    for name, parameter in replknet.named_parameters():
        assert settings[name] == (1e-3, 0.05 if parameter.ndim > 1 else 0.0)
    decayed = [name for name, (_, decay) in settings.items() if decay]
    assert not any("normalization" in name or name.endswith("bias") for name in decayed)
    assert "classifier.weight" in decayed


def test_a_frozen_parameter_is_in_no_group():
    model = ThreeBlocks()
    model.stem.requires_grad_(False)
    parameters = {parameter for group in parameter_groups(model, 1e-3, 0.05) for parameter in group["params"]}
    assert parameters == {p for p in model.parameters() if p.requires_grad}


def test_adamw_makes_the_step_of_its_definition():
    parameter = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    model = nn.Module()
    model.register_parameter("weight", parameter)
    optimizer = build_optimizer(model, SETTINGS)
    gradient = parameter.grad = torch.tensor([[0.3, 0.01]], dtype=torch.float64)
    expected = parameter.detach() * (1 - 2e-3 * 0.05) - 2e-3 * gradient / (gradient.abs() + 1e-7)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=0)
    # The second step shows both betas: bias-corrected means of the gradient and of its square.
    second = parameter.grad = torch.tensor([[-0.1, 0.02]], dtype=torch.float64)
    mean = (0.8 * 0.2 * gradient + 0.2 * second) / (1 - 0.8**2)
    square = (0.95 * 0.05 * gradient**2 + 0.05 * second**2) / (1 - 0.95**2)
    expected = parameter.detach() * (1 - 2e-3 * 0.05) - 2e-3 * mean / (square.sqrt() + 1e-7)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=0)


def test_muon_has_the_matrices_between_channels_and_adamw_the_rest(replknet):
    optimizer = build_optimizer(replknet, SimpleNamespace(**{**vars(SETTINGS), "optim": "muon"}))
    for parameter in replknet.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in replknet.named_parameters()}
    optimizer.step()
    names = {parameter: name for name, parameter in replknet.named_parameters()}
    by_muon = {names[p] for p, state in optimizer.state.items() if "momentum_buffer" in state}
    by_adamw = {names[p] for p, state in optimizer.state.items() if "exp_avg" in state}
    shapes = {name: tuple(parameter.shape) for name, parameter in replknet.named_parameters()}
    # The second dimension of a depthwise kernel is 1; vectors have none.
    assert by_muon == {name for name, shape in shapes.items() if len(shape) > 1 and shape[1] > 1}
    assert by_adamw == shapes.keys() - by_muon
    with torch.no_grad():  # AdamW's first step with Nesterov's momentum, after the decay of what decays
        name = "replknet.encoder.stages.0.layers.0.large_kernel_block.large_kernel.large.convolution.weight"
        moved = before[name] * (1 - 2e-3 * 0.05) - replknet.get_parameter(name)
    torch.testing.assert_close(moved, torch.full_like(moved, 1.8 * 2e-3), rtol=1e-4, atol=1e-7)  # weights in float32


def schedule(kind: str, warmup_steps: int, warmup_ratio: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(lr_scheduler_type=kind, warmup_steps=warmup_steps, warmup_ratio=warmup_ratio)


def rates(kind: str, num_warmup_steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    return _step_through(optimizer, build_scheduler(optimizer, schedule(kind, num_warmup_steps), NUM_STEPS))


def rates_of_transformers(kind: str, num_warmup_steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    kind = "constant_with_warmup" if kind == "constant" else kind
    return _step_through(optimizer, get_scheduler(kind, optimizer, num_warmup_steps, NUM_STEPS))


def _step_through(optimizer, scheduler) -> list[float]:
    found = []
    for _ in range(NUM_STEPS):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("num_warmup_steps", [0, WARMUP])
def test_after_the_warm_up_the_schedule_is_that_of_transformers(kind, num_warmup_steps):
    found, expected = rates(kind, num_warmup_steps), rates_of_transformers(kind, num_warmup_steps)
    assert found[num_warmup_steps:] == pytest.approx(expected[num_warmup_steps:], rel=1e-12, abs=1e-16)
    assert found[num_warmup_steps] == 0.3


def test_the_warm_up_is_linear_and_its_first_step_is_not_lost():
    found = rates("cosine", WARMUP)[: WARMUP + 1]
    assert found == pytest.approx([0.3 * k / 8 for k in range(1, 9)], rel=1e-12)
    # That of transformers begins at 0; ours is its next step, of a warm-up that is one step longer.
    assert found[:-1] == pytest.approx(rates_of_transformers("cosine", WARMUP + 1)[1 : WARMUP + 1], rel=1e-12)


def test_a_warm_up_as_a_share_of_the_steps_is_rounded_up_and_steps_go_before_it():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    by_share, by_steps = (
        _step_through(optimizer, build_scheduler(optimizer, settings, NUM_STEPS))
        for settings in (schedule("cosine", 0, 0.16), schedule("cosine", 7, 0.5))
    )
    assert by_share == by_steps  # 0.16 of 40 steps are 6.4


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_the_rate_falls_to_zero_and_stays_there(kind):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    factor = build_scheduler(optimizer, schedule(kind, WARMUP), NUM_STEPS).lr_lambdas[0]
    assert factor(NUM_STEPS) == factor(NUM_STEPS + 5) == pytest.approx(0, abs=1e-16)


class Scale(nn.Module):
    """A weight, a floating-point buffer and a counter."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2, 3), value, dtype=torch.float64))
        self.register_buffer("running_mean", torch.full((3,), 10 * value, dtype=torch.float64))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def set(self, value: float, count: int) -> None:
        with torch.no_grad():
            self.weight.fill_(value)
            self.running_mean.fill_(10 * value)
            self.num_batches_tracked.fill_(count)


def test_the_average_follows_with_a_decay_that_warms_up():
    model = Scale(1.0)
    ema, expected = ExponentialMovingAverage(model, decay=0.5), 1.0
    decays = []
    for step, value in enumerate([4.0, -2.0, 3.0, 0.5, 7.0, -1.0, 2.0, 5.0, 1.0, 9.0, 0.0]):
        model.set(value, count=step + 1)
        ema.update(model)
        decays.append(min(0.5, (1 + step) / (10 + step)))
        expected = decays[-1] * expected + (1 - decays[-1]) * value
        torch.testing.assert_close(ema.model.weight, torch.full((2, 3), expected).double(), rtol=1e-6, atol=1e-6)
        assert ema.model.weight[0, 0].item() == pytest.approx(expected, rel=1e-12)
        assert ema.model.running_mean[0].item() == pytest.approx(10 * expected, rel=1e-12)
        assert ema.model.num_batches_tracked.item() == step + 1  # an integer is copied
    assert decays[0] == 0.1 and decays[7] < 0.5 == decays[8] == decays[10]  # both arms of the minimum
    assert ema.updates == 11


def test_the_average_is_a_copy_that_gets_no_gradient():
    model = Scale(1.0).train()
    ema = ExponentialMovingAverage(model, decay=0.9)
    assert not ema.model.training and model.training
    assert not ema.model.weight.requires_grad and model.weight.requires_grad
    model.set(2.0, count=1)
    assert ema.model.weight[0, 0].item() == 1.0
    assert not math.isclose(ema.model.running_mean[0].item(), 20.0)
