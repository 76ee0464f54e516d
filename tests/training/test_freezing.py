"""What is frozen stays as it is, to the bit, and works as in evaluation; everything else is trained."""

import copy
import re

import pytest
import torch
from accelerate import Accelerator
from test_learner import NUM_LABELS, batch
from torch import nn
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from seedling_hf.errors import InputError
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training.baseline import build_timm_classifier
from seedling_hf.training.freezing import count_trained, describe_freezing, freeze, list_parts, train_unfrozen
from seedling_hf.training.learner import Learner
from seedling_hf.training.models import needs_two_images

LABELS = {"id2label": dict(enumerate("abcd")), "label2id": {name: i for i, name in enumerate("abcd")}}


def replknet(**options) -> PreTrainedModel:
    return RepLKNetForImageClassification(RepLKNetConfig.from_variant("tiny", num_labels=NUM_LABELS, **options))


def resnet() -> PreTrainedModel:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", **LABELS)
    return ResNetForImageClassification(config)


def vit() -> PreTrainedModel:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, **LABELS,
    )  # fmt: skip
    return ViTForImageClassification(config)


def timm_resnet() -> PreTrainedModel:
    return build_timm_classifier("resnet10t", LABELS)[0]


NETWORKS = {
    "RepLKNet": (replknet, "classifier.", "replknet.embeddings.", "replknet.encoder.stages.1."),
    "ResNet of transformers": (resnet, "classifier.", "resnet.embedder.", "resnet.encoder.stages.1."),
    "ViT of transformers": (vit, "classifier.", "vit.embeddings.", "vit.layers.1."),
    "ResNet of timm": (timm_resnet, "timm_model.fc.", "timm_model.(conv1|bn1).", "timm_model.layer2."),
}  # fmt: skip


def flags(**settings) -> TrainArguments:
    return TrainArguments(output_dir="run", train_dir="images", variant="tiny", **settings)


def build(build_model=replknet, **settings) -> Learner:
    torch.manual_seed(0)
    model, arguments = build_model(), flags(**settings)
    freeze(model, arguments)
    return Learner(arguments, model, Accelerator(cpu=True), num_steps=10)


def take_step(found: Learner, *batches: dict[str, torch.Tensor]) -> None:
    found.accumulate_gradients(list(batches))
    found.update()


def changed(found: Learner, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in found.bare_model.state_dict().items() if not torch.equal(value, before[name])}


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("network", NETWORKS)
def test_parts_are_those_of_each_library(network):
    build_model, head, stem, second = NETWORKS[network]
    model = build_model()
    parts, names = list_parts(model), [name for name, _ in model.named_parameters()]
    assert parts["backbone"] == [name for name in names if not name.startswith(head)] != names
    assert parts["stem"] == [name for name in names if re.match(stem, name)] != []
    assert parts["stage2"] == [name for name in names if name.startswith(second)] != []


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("names", [["stem", "stage1"], ["backbone"]])
def test_what_is_frozen_keeps_every_bit_and_the_rest_learns(network, names):
    found = build(NETWORKS[network][0], freeze=names, ema_decay=0.9)
    model, before = found.bare_model, copied(found.bare_model)
    frozen = {name for part in names for name in list_parts(model)[part]}
    assert frozen == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for i in range(2):
        take_step(found, batch(i), batch(i + 5))
        found.evaluated_model()  # an evaluation between steps
        found.bare_model.eval()
    learned = changed(found, before)
    parameters, buffers = ({name for name, _ in each} for each in (model.named_parameters(), model.named_buffers()))
    assert learned & parameters == parameters - frozen
    folders = {name.rpartition(".")[0] for name in frozen}
    statistics = {name for name in buffers if name.rpartition(".")[0] in folders}
    assert learned & buffers == buffers - statistics
    averages = found.ema.model.state_dict()
    assert all(torch.equal(averages[name], before[name]) for name in frozen | statistics)
    optimized = [parameter for group in found.optimizer.param_groups for parameter in group["params"]]
    assert len(optimized) == len(parameters - frozen)


def test_a_frozen_backbone_gives_its_features_without_drops_and_needs_one_image():
    model = replknet(drop_path_rate=0.5)
    train_unfrozen(model)
    with torch.no_grad():
        model(torch.randn(16, 3, 32, 32))  # statistics unlike the first ones
    assert needs_two_images(model, 32)
    freeze(model, flags(freeze=["backbone"]))
    images = batch(0)["pixel_values"]
    expected = model.eval()(images).logits
    assert torch.equal(train_unfrozen(model)(images).logits, expected)
    assert not needs_two_images(model, 32)


@pytest.mark.parametrize("names", [["stem", "stage1"], ["stage3"]])
def test_checkpointing_gives_the_same_gradients_and_statistics(names):
    results = []
    for checkpointing in (False, True):
        found = build(freeze=names, gradient_checkpointing=checkpointing)
        torch.manual_seed(1)
        found.accumulate_gradients([batch(0)])
        gradients = {name: p.grad for name, p in found.bare_model.named_parameters() if p.grad is not None}
        assert gradients.keys() == {name for name, p in found.bare_model.named_parameters() if p.requires_grad}
        results.append(gradients | dict(found.bare_model.named_buffers()))
    for name, value in results[0].items():
        assert torch.equal(results[1][name], value), name


def test_a_frozen_layer_behind_trained_ones_is_computed_twice_too():
    found = build(freeze=["stage3"], gradient_checkpointing=True)
    calls = []
    layer = found.bare_model.replknet.encoder.stages[2].layers[0].large_kernel_block
    layer.register_forward_hook(lambda *_: calls.append(1))
    found.accumulate_gradients([batch(0)])
    assert len(calls) == 2


@pytest.mark.parametrize(("settings", "kept"), [
    ({"freeze_bn_statistics": True}, "all"), ({"freeze_bn_statistics": False, "freeze": ["backbone"]}, "none"),
    ({"freeze_bn_statistics": True, "freeze": ["stem"]}, "all"), ({}, "none"),
])  # fmt: skip
def test_statistics_are_frozen_everywhere_or_nowhere_as_the_flag_says(settings, kept):
    found = build(**settings)
    before = copied(found.bare_model)
    take_step(found, batch(0))
    statistics = {name for name in before if name.endswith(("running_mean", "running_var"))}
    assert changed(found, before) & statistics == (set() if kept == "all" else statistics)
    if not settings.get("freeze"):  # scales and shifts learn all the same
        assert {name for name, _ in found.bare_model.named_parameters()} <= changed(found, before)


def test_muon_and_layer_decay_leave_out_what_is_frozen():
    found = build(freeze=["stem", "stage1"], optim="muon", layer_decay=0.5)
    rates = {group["initial_lr"] for group in found.optimizer.param_groups}
    whole = {group["initial_lr"] for group in build(layer_decay=0.5).optimizer.param_groups}
    assert max(rates) == max(whole) and rates < whole  # each depth keeps the rate that it has without freezing
    before = copied(found.bare_model)
    take_step(found, batch(0))
    assert not changed(found, before) & {n for part in ("stem", "stage1") for n in list_parts(found.bare_model)[part]}


def test_a_module_is_frozen_by_its_name_with_and_without_that_of_the_base_model():
    for name in ("replknet.encoder.stages.2.layers.1", "encoder.stages.2.layers.1"):
        model = replknet()
        freeze(model, flags(freeze=[name]))
        frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
        assert frozen == {n for n, _ in model.named_parameters() if n.startswith("replknet.encoder.stages.2.layers.1.")}


REFUSED = {
    "an unknown stage": (
        replknet, {"freeze": ["stage5"]},
        r"expected parts of the network for --freeze \(backbone, stem, stage1 to stage4, or the name of a module with "
        r"parameters\), found stage5; did you mean stage\d\?",
    ),
    "an unknown word": (replknet, {"freeze": ["all"]}, "found all; choose among them"),
    "a module without parameters": (
        replknet, {"freeze": ["encoder.stages.0.layers.0.large_kernel_block.drop_path"]}, "found encoder.stages.0"
    ),
    "everything": (
        replknet, {"freeze": ["backbone", "classifier"]},
        "expected something left to train, found --freeze backbone classifier, which is the whole network; backbone is "
        "all but the classifier",
    ),
    "statistics that are not there": (
        vit, {"freeze_bn_statistics": True},
        "expected a network with BatchNorm for --freeze_bn_statistics, found a ViTForImageClassification without; "
        "remove the flag",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build_model", "settings", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_frozen_is_refused_in_a_sentence(build_model, settings, message):
    with pytest.raises(InputError, match=message):
        freeze(build_model(), flags(**settings))


def test_the_summary_counts_what_is_trained():
    model = replknet()
    assert describe_freezing(model, flags()) is None
    freeze(model, flags(freeze=["backbone"]))
    assert count_trained(model) == 4 * model.config.hidden_sizes[-1] + 4
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    expected = f"frozen: backbone; {norms} of {norms} BatchNorms use their stored statistics"
    assert describe_freezing(model, flags(freeze=["backbone"])) == expected


def test_a_copy_is_frozen_as_its_original():
    model = replknet()
    freeze(model, flags(freeze=["stem"]))
    other = train_unfrozen(copy.deepcopy(model))
    assert not any(module.training for module in other.replknet.embeddings.modules())
    assert other.replknet.encoder.stages[0].training
