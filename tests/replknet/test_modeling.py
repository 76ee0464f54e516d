import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from transformers import AutoBackbone, AutoModel, AutoModelForImageClassification

from seedling_hf.export.checkpoint_files import read_checkpoint
from seedling_hf.export.checkpoint_layouts import official_names
from seedling_hf.export.conversion import load_model
from seedling_hf.replknet import RepLKNetBackbone, RepLKNetConfig, RepLKNetForImageClassification, RepLKNetModel

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_NAMES = ["small_kernel_5", "no_small_kernel", "three_stages"]


def small_config(**values) -> RepLKNetConfig:
    defaults = {
        "kernel_sizes": [9, 7, 5],
        "depths": [1, 2, 1],
        "hidden_sizes": [8, 12, 16],
        "small_kernel_size": 3,
        "drop_path_rate": 0.0,
        "num_labels": 5,
    }
    return RepLKNetConfig(**{**defaults, **values})


def random_images(number: int = 2, size: int = 32, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=dtype)


def with_used_norms(model: nn.Module) -> nn.Module:
    """Gives the BatchNorms weights and statistics that are not those of a new model."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(0, 0.2, generator=generator)
    return model


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


# The authors' numbers. They were computed in float32, so 1e-5 leaves room for another order of summation.


@pytest.fixture(scope="module", params=GOLDEN_NAMES)
def golden(request):
    checkpoint = read_checkpoint(GOLDEN / f"{request.param}.pth")
    return checkpoint, torch.load(GOLDEN / f"{request.param}.expected.pt", weights_only=True)


@torch.no_grad()
def test_logits_are_the_authors(golden):
    checkpoint, expected = golden
    assert relative_error(load_model(checkpoint)(expected["pixel_values"]).logits, expected["logits"]) < 1e-5


@torch.no_grad()
def test_stage_features_are_the_authors(golden):
    checkpoint, expected = golden
    outputs = load_model(checkpoint)(expected["pixel_values"], output_hidden_states=True)
    assert len(outputs.hidden_states) == len(expected["stage_features"]) + 1
    for found, feature in zip(outputs.hidden_states[1:], expected["stage_features"], strict=True):
        assert relative_error(found, feature) < 1e-5


@torch.no_grad()
def test_merged_logits_are_the_authors(golden):
    checkpoint, expected = golden
    model = load_model(checkpoint).reparameterize()
    assert relative_error(model(expected["pixel_values"]).logits, expected["logits_merged"]) < 1e-5


@torch.no_grad()
def test_fused_logits_are_the_authors_merged_ones(golden):
    checkpoint, expected = golden
    model = load_model(checkpoint).fuse_batch_norms()
    assert relative_error(model(expected["pixel_values"]).logits, expected["logits_merged"]) < 1e-5


def test_loss_and_gradients_in_training_are_the_authors_in_float64(golden):
    checkpoint, expected = golden
    model = load_model(checkpoint).double().train()
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    loss = model(expected["pixel_values"].double(), labels=expected["labels"]).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected["train_loss_float64"], rel=1e-12)
    names = official_names(model.config)
    parameters = dict(model.named_parameters())
    for theirs, gradient in expected["train_gradients"].items():
        # 1e-6: the expected gradients were rounded to float32.
        assert relative_error(parameters[names[theirs]].grad, gradient.double()) < 1e-6, theirs


# Outputs


@pytest.mark.parametrize(
    ("variant", "millions"), [("31B", 79.86), ("31L", 172.67), ("XL", 335.44), ("nano", 3.59), ("tiny", 0.21)]
)
def test_a_variant_has_its_number_of_parameters(variant, millions):
    with torch.device("meta"):
        model = RepLKNetForImageClassification(RepLKNetConfig.from_variant(variant, num_labels=1000))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_shapes_of_the_outputs():
    outputs = RepLKNetModel(small_config())(random_images(size=64), output_hidden_states=True)
    assert [tuple(h.shape) for h in outputs.hidden_states] == [
        (2, 8, 16, 16),
        (2, 8, 16, 16),
        (2, 12, 8, 8),
        (2, 16, 4, 4),
    ]
    assert torch.equal(outputs.last_hidden_state, outputs.hidden_states[-1])
    assert outputs.pooler_output.shape == (2, 16)


def test_pooler_output_is_the_mean_of_the_normalized_last_features():
    model = with_used_norms(RepLKNetModel(small_config())).eval()
    outputs = model(random_images())
    expected = model.normalization(outputs.last_hidden_state).mean((2, 3))
    assert torch.equal(outputs.pooler_output, expected)


def test_the_whole_model_works_in_channels_last():
    seen = []
    model = RepLKNetModel(small_config())
    for module in model.modules():
        module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(random_images())
    maps = [output for output in seen if isinstance(output, torch.Tensor)]
    assert len(maps) > 50
    assert all(output.is_contiguous(memory_format=torch.channels_last) for output in maps)


def test_the_memory_format_of_the_images_changes_nothing():
    model = RepLKNetModel(small_config()).eval()
    images = random_images()
    expected = model(images).pooler_output
    assert torch.equal(model(images.contiguous(memory_format=torch.channels_last)).pooler_output, expected)


def test_a_tuple_holds_what_the_dict_holds():
    model = RepLKNetForImageClassification(small_config()).eval()
    labels = torch.tensor([0, 4])
    as_dict = model(random_images(), labels=labels, output_hidden_states=True)
    as_tuple = model(random_images(), labels=labels, output_hidden_states=True, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], as_dict.loss)
    assert torch.equal(as_tuple[1], as_dict.logits)
    assert all(map(torch.equal, as_tuple[2], as_dict.hidden_states))


def test_hidden_states_are_returned_only_on_request():
    model = RepLKNetModel(small_config()).eval()
    assert model(random_images()).hidden_states is None
    model.config.output_hidden_states = True
    assert len(model(random_images()).hidden_states) == 4


def test_chosen_hidden_states_can_be_counted_from_the_end():
    hidden_states = RepLKNetModel(small_config()).eval()(random_images(), output_hidden_states=[0, -1]).hidden_states
    assert [h is not None for h in hidden_states] == [True, False, False, True]


def test_gradients_reach_the_hidden_states():
    outputs = RepLKNetModel(small_config())(random_images(), output_hidden_states=True)
    for hidden_state in outputs.hidden_states:
        hidden_state.retain_grad()
    outputs.pooler_output.square().sum().backward()
    assert all(hidden_state.grad is not None for hidden_state in outputs.hidden_states)


def test_every_parameter_gets_a_gradient():
    model = RepLKNetForImageClassification(small_config())
    model(random_images(), labels=torch.tensor([0, 1])).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_in_eval_mode_an_image_does_not_depend_on_its_batch():
    model = with_used_norms(RepLKNetModel(small_config())).double().eval()
    images = random_images(3, dtype=torch.float64)
    together = model(images).pooler_output
    alone = torch.cat([model(image[None]).pooler_output for image in images])
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-12)  # float64, another order of summation


def test_missing_images_are_refused():
    with pytest.raises(ValueError, match="expected pixel_values, found None"):
        RepLKNetModel(small_config())()


def test_images_with_another_number_of_channels_are_refused():
    with pytest.raises(ValueError, match=r"shape \(N, 3, H, W\), found \(2, 1, 32, 32\)"):
        RepLKNetModel(small_config())(torch.zeros(2, 1, 32, 32))


def test_a_model_of_four_channels_takes_four():
    assert RepLKNetModel(small_config(num_channels=4))(torch.randn(2, 4, 32, 32)).pooler_output.shape == (2, 16)


@pytest.mark.slow
@torch.no_grad()
def test_the_model_compiles_without_a_graph_break():
    model = RepLKNetForImageClassification(small_config()).eval()
    compiled = torch.compile(model, fullgraph=True)
    # 1e-4: compiled kernels sum in another order.
    torch.testing.assert_close(compiled(random_images()).logits, model(random_images()).logits, rtol=1e-4, atol=1e-4)


# Stochastic depth


def test_drop_path_rates_grow_linearly_over_the_layers():
    model = RepLKNetModel(small_config(drop_path_rate=0.3))
    rates = [m.drop_prob for m in model.modules() if hasattr(m, "drop_prob")]
    assert rates == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3])


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    model = RepLKNetModel(small_config(drop_path_rate=0.25))
    drop_path = model.encoder.stages[-1].layers[-1].feed_forward_block.drop_path
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(10_000, 2, 3, 3)).flatten(1)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(dropped.amin(1), dropped.amax(1))
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)  # five standard errors of 10,000 draws


def test_drop_path_does_nothing_in_eval_mode():
    config = small_config(drop_path_rate=0.9)
    model = RepLKNetModel(config).eval()
    assert torch.equal(model(random_images()).pooler_output, model(random_images()).pooler_output)


# Losses


def test_class_indices_give_the_cross_entropy():
    model = RepLKNetForImageClassification(small_config()).eval()
    labels = torch.tensor([1, 3])
    outputs = model(random_images(), labels=labels)
    torch.testing.assert_close(outputs.loss, F.cross_entropy(outputs.logits, labels))
    assert model.config.problem_type == "single_label_classification"


def test_soft_labels_give_the_cross_entropy_with_soft_targets():
    model = RepLKNetForImageClassification(small_config()).eval()
    labels = torch.tensor([[0.7, 0.3, 0, 0, 0], [0, 0, 0, 0.5, 0.5]])
    outputs = model(random_images(), labels=labels)
    torch.testing.assert_close(outputs.loss, -(labels * outputs.logits.log_softmax(1)).sum(1).mean())


def test_one_hot_soft_labels_give_the_loss_of_class_indices():
    model = RepLKNetForImageClassification(small_config()).eval()
    labels = torch.tensor([1, 3])
    soft = model(random_images(), labels=F.one_hot(labels, 5).float()).loss
    torch.testing.assert_close(soft, model(random_images(), labels=labels).loss)


def test_soft_labels_do_not_change_the_problem_type():
    model = RepLKNetForImageClassification(small_config())
    model(random_images(), labels=torch.full((2, 5), 0.2))
    assert model.config.problem_type is None


def test_multi_label_targets_give_the_binary_cross_entropy():
    model = RepLKNetForImageClassification(small_config(problem_type="multi_label_classification")).eval()
    labels = torch.tensor([[1.0, 1, 0, 0, 0], [0, 0, 0, 0, 1]])
    outputs = model(random_images(), labels=labels)
    torch.testing.assert_close(outputs.loss, F.binary_cross_entropy_with_logits(outputs.logits, labels))


@pytest.mark.parametrize("num_labels", [1, 5])
def test_regression_targets_give_the_squared_error(num_labels):
    model = RepLKNetForImageClassification(small_config(num_labels=num_labels, problem_type="regression")).eval()
    labels = torch.arange(2.0 * num_labels).view(2, num_labels)
    outputs = model(random_images(), labels=labels)
    torch.testing.assert_close(outputs.loss, F.mse_loss(outputs.logits, labels))


# Weights: initialization, saving, loading


def assert_initialized(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
            assert torch.equal(module.running_var, torch.ones_like(module.running_var)), name
            assert not module.bias.any() and not module.running_mean.any() and module.num_batches_tracked == 0, name
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for tensor in (module.weight, *([] if module.bias is None else [module.bias])):
                assert tensor.abs().max() <= bound, name
                if tensor.numel() > 60:  # so that a quarter is far outside of what chance does to the deviation
                    assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.25), name


def test_a_new_model_has_torchs_own_initialization_as_the_authors_do():
    assert_initialized(RepLKNetForImageClassification(small_config()))


@pytest.mark.parametrize("cls", [RepLKNetModel, RepLKNetBackbone, RepLKNetForImageClassification])
@pytest.mark.parametrize("form", [{}, {"reparameterized": True}, {"reparameterized": True, "fused": True}])
def test_loading_leaves_no_missing_tensor_uninitialized(cls, form):
    config = small_config(norm_intermediate_features=True, **form)
    model, report = cls.from_pretrained(None, config=config, state_dict={}, output_loading_info=True)
    assert set(report["missing_keys"]) == set(model.state_dict())
    assert_initialized(model)


@pytest.mark.parametrize("cls", [RepLKNetModel, RepLKNetBackbone, RepLKNetForImageClassification])
def test_a_saved_model_loads_bit_for_bit(cls, tmp_path):
    model = with_used_norms(cls(small_config(norm_intermediate_features=True))).eval()
    model.save_pretrained(tmp_path)
    loaded, report = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_state(state(loaded), state(model))
    assert not loaded.training
    found, expected = loaded(random_images(), return_dict=False), model(random_images(), return_dict=False)
    for one, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert torch.equal(one, other)


def test_the_statistics_of_batchnorm_survive_training_and_a_load(tmp_path):
    model = RepLKNetModel(small_config())
    model(random_images())
    model.save_pretrained(tmp_path)
    norm = RepLKNetModel.from_pretrained(tmp_path).normalization
    assert norm.num_batches_tracked == 1
    assert torch.equal(norm.running_mean, model.normalization.running_mean)


def test_only_safetensors_are_written(tmp_path):
    RepLKNetModel(small_config()).save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir() if file.suffix not in (".py", ".json")] == ["model.safetensors"]


def test_building_on_the_meta_device_draws_no_numbers():
    with torch.device("meta"):
        model = RepLKNetForImageClassification(RepLKNetConfig())
    assert all(tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_a_device_map_loads_everything(device_map, tmp_path):
    model = with_used_norms(RepLKNetForImageClassification(small_config())).eval()
    model.save_pretrained(tmp_path)
    loaded = RepLKNetForImageClassification.from_pretrained(tmp_path, device_map=device_map)
    assert_same_state({k: v.cpu() for k, v in loaded.state_dict().items()}, state(model))


def test_a_dtype_casts_all_but_the_counters(tmp_path):
    RepLKNetForImageClassification(small_config()).save_pretrained(tmp_path)
    model = RepLKNetForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    dtypes = {name.rsplit(".")[-1]: tensor.dtype for name, tensor in model.state_dict().items()}
    assert dtypes.pop("num_batches_tracked") == torch.int64
    assert set(dtypes.values()) == {torch.bfloat16}
    assert model(random_images(dtype=torch.bfloat16)).logits.dtype == torch.bfloat16


def test_a_head_of_another_size_is_refused_unless_requested(tmp_path):
    RepLKNetForImageClassification(small_config()).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        RepLKNetForImageClassification.from_pretrained(tmp_path, num_labels=3)


def test_a_new_head_is_initialized_and_the_rest_is_kept(tmp_path):
    model = with_used_norms(RepLKNetForImageClassification(small_config()))
    model.save_pretrained(tmp_path)
    loaded = RepLKNetForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert loaded.classifier.weight.shape == (7, 16)
    assert_initialized(loaded.classifier)
    assert_same_state(state(loaded.replknet), state(model.replknet))


def test_class_names_are_saved_with_the_model(tmp_path):
    names = {0: "Black-grass", 1: "Common Chickweed"}
    config = small_config(num_labels=2, id2label=names, label2id={name: i for i, name in names.items()})
    RepLKNetForImageClassification(config).save_pretrained(tmp_path)
    assert RepLKNetForImageClassification.from_pretrained(tmp_path).config.id2label == names


def test_the_bare_model_loads_from_a_classifiers_folder(tmp_path):
    classifier = with_used_norms(RepLKNetForImageClassification(small_config()))
    classifier.save_pretrained(tmp_path)
    model, report = RepLKNetModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert_same_state(state(model), state(classifier.replknet))


@pytest.mark.parametrize(
    ("auto", "cls"),
    [
        (AutoModel, RepLKNetModel),
        (AutoBackbone, RepLKNetBackbone),
        (AutoModelForImageClassification, RepLKNetForImageClassification),
    ],
)
def test_auto_classes_know_the_models(auto, cls):
    assert type(auto.from_config(small_config())) is cls


@pytest.mark.parametrize("cls", [RepLKNetModel, RepLKNetBackbone, RepLKNetForImageClassification])
def test_whichever_class_saves_the_auto_map_is_complete(cls, tmp_path):
    cls(small_config()).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map.keys() == {"AutoConfig", "AutoModel", "AutoBackbone", "AutoModelForImageClassification"}
    for reference in auto_map.values():
        module, name = reference.split(".")
        assert f"class {name}(" in (tmp_path / f"{module}.py").read_text()


def test_a_copied_model_is_independent_and_the_same():
    model = RepLKNetModel(small_config())
    model.activation_checkpointing_enable()
    twin = copy.deepcopy(model)
    twin(random_images()).pooler_output.sum().backward()
    assert model.normalization.num_batches_tracked == 0
    assert all(parameter.grad is None for parameter in model.parameters())
    model(random_images()).pooler_output.sum().backward()
    assert_same_state(state(model), state(twin))


# Activation checkpointing


def trained(every_n_layers: int | None, **kwargs) -> RepLKNetForImageClassification:
    torch.manual_seed(0)
    model = RepLKNetForImageClassification(small_config(drop_path_rate=0.3)).double()
    if every_n_layers is not None:
        model.activation_checkpointing_enable(every_n_layers=every_n_layers, **kwargs)
    torch.manual_seed(1)
    for _ in range(2):
        model(random_images(4, dtype=torch.float64), labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    return model


@pytest.mark.parametrize("every_n_layers", [1, 2])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_neither_gradients_nor_running_statistics(every_n_layers, use_reentrant):
    plain = trained(None)
    checkpointed = trained(every_n_layers, activation_checkpointing_kwargs={"use_reentrant": use_reentrant})
    assert_same_state(state(checkpointed), state(plain))
    for (name, one), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


def test_checkpointing_computes_the_layers_twice():
    model = RepLKNetModel(small_config())
    model.activation_checkpointing_enable()
    calls = []
    for module in model.modules():
        if type(module).__name__ == "RepLKNetLargeKernel":
            module.register_forward_hook(lambda *_: calls.append(1))
    model(random_images()).pooler_output.sum().backward()
    assert len(calls) == 2 * 4


def test_checkpointing_can_be_switched_off_again():
    model = RepLKNetModel(small_config())
    model.activation_checkpointing_enable()
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing


# The forms for inference


@torch.no_grad()
@pytest.mark.parametrize("small_kernel_size", [3, 5, None])
@pytest.mark.parametrize("form", ["reparameterize", "fuse_batch_norms"])
def test_a_form_for_inference_computes_the_same(form, small_kernel_size):
    config = small_config(small_kernel_size=small_kernel_size, dw_ratio=1.5)
    model = with_used_norms(RepLKNetForImageClassification(config)).double().eval()
    images = random_images(dtype=torch.float64)
    before = model(images, output_hidden_states=True)
    assert getattr(model, form)() is model
    after = model(images, output_hidden_states=True)
    assert relative_error(after.logits, before.logits) < 1e-12  # float64 throughout
    for one, other in zip(after.hidden_states, before.hidden_states, strict=True):
        assert relative_error(one, other) < 1e-12


def test_a_merged_model_has_one_kernel_where_there_were_two_with_their_norms():
    model = RepLKNetModel(small_config()).reparameterize()
    block = "encoder.stages.0.layers.0.large_kernel_block.large_kernel"
    names = [name for name in model.state_dict() if name.startswith(block)]
    assert names == [f"{block}.merged.weight", f"{block}.merged.bias"]


def test_a_fused_model_keeps_one_batchnorm():
    model = RepLKNetModel(small_config()).fuse_batch_norms()
    assert [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)] == ["normalization"]


@pytest.mark.parametrize("form", ["reparameterize", "fuse_batch_norms"])
def test_a_second_call_changes_nothing(form):
    model = getattr(with_used_norms(RepLKNetModel(small_config())), form)()
    before, config = state(model), model.config
    getattr(model, form)()
    assert_same_state(state(model), before)
    assert model.config is config


def test_fusing_a_merged_model_is_fusing_at_once():
    model = with_used_norms(RepLKNetModel(small_config()))
    twin = copy.deepcopy(model)
    assert_same_state(state(model.reparameterize().fuse_batch_norms()), state(twin.fuse_batch_norms()))


def test_a_fused_model_is_merged_already():
    model = RepLKNetModel(small_config()).fuse_batch_norms()
    before = state(model)
    assert_same_state(state(model.reparameterize()), before)


@pytest.mark.parametrize("form", ["reparameterize", "fuse_batch_norms"])
def test_a_form_for_inference_saves_and_loads_as_such(form, tmp_path):
    model = getattr(with_used_norms(RepLKNetForImageClassification(small_config())), form)().eval()
    model.save_pretrained(tmp_path)
    loaded, report = RepLKNetForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.config.reparameterized and loaded.config.fused == (form == "fuse_batch_norms")
    assert torch.equal(loaded(random_images()).logits, model(random_images()).logits)


def test_merging_does_not_change_the_configuration_of_other_models():
    config = small_config()
    merged, other = RepLKNetForImageClassification(config), RepLKNetForImageClassification(config)
    merged.reparameterize()
    assert not config.reparameterized and not other.replknet.encoder.config.reparameterized
    parts = (merged, merged.replknet, merged.replknet.encoder)
    assert all(part.config is merged.config and part.config.reparameterized for part in parts)


def test_merging_keeps_dtype_and_mode():
    model = RepLKNetModel(small_config()).to(torch.bfloat16).reparameterize()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(module.training for module in model.modules())


def test_merging_takes_the_running_statistics_also_in_training_mode():
    model = with_used_norms(RepLKNetModel(small_config()))
    twin = copy.deepcopy(model)
    assert_same_state(state(model.train().reparameterize()), state(twin.eval().reparameterize()))


@pytest.mark.parametrize("form", ["reparameterize", "fuse_batch_norms"])
def test_a_merged_model_refuses_training(form):
    model = getattr(RepLKNetForImageClassification(small_config()), form)().train()
    with pytest.raises(ValueError, match=r"train the model from before reparameterize\(\), or call eval\(\)"):
        model(random_images(), labels=torch.tensor([0, 1]))


def test_a_merged_backbone_refuses_training():
    with pytest.raises(ValueError, match="found a merged one"):
        RepLKNetBackbone(small_config()).reparameterize().train()(random_images())


def test_a_merged_model_has_gradients_of_images_in_eval_mode():
    model = RepLKNetForImageClassification(small_config()).reparameterize().eval()
    images = random_images().requires_grad_()
    model(images).logits[:, 0].sum().backward()
    assert images.grad.abs().sum() > 0


def test_merging_without_weights_is_refused():
    with torch.device("meta"):
        model = RepLKNetModel(small_config())
    with pytest.raises(ValueError, match="found parameters on the meta device; load the weights first"):
        model.reparameterize()


def test_a_partly_merged_model_is_not_saved(tmp_path):
    model = RepLKNetForImageClassification(small_config())
    model.replknet.reparameterize()
    with pytest.raises(ValueError, match="expected replknet to be merged like the whole model"):
        model.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


# Backbone


def test_feature_maps_are_the_chosen_hidden_states():
    config = small_config(out_features=["stem", "stage2", "stage3"])
    backbone = RepLKNetBackbone(config).eval()
    outputs = backbone(random_images(), output_hidden_states=True)
    assert len(outputs.feature_maps) == len(backbone.channels) == 3
    for feature_map, channels, index in zip(outputs.feature_maps, [8, 12, 16], [0, 2, 3], strict=True):
        assert feature_map.shape[1] == channels
        assert torch.equal(feature_map, outputs.hidden_states[index])
    assert backbone.channels == [8, 12, 16]


def test_a_backbone_returns_hidden_states_only_on_request():
    outputs = RepLKNetBackbone(small_config()).eval()(random_images())
    assert "hidden_states" not in outputs
    assert len(outputs.feature_maps) == 1


def test_a_backbone_loads_from_a_classifiers_folder(tmp_path):
    classifier = with_used_norms(RepLKNetForImageClassification(small_config())).eval()
    classifier.save_pretrained(tmp_path)
    backbone, report = RepLKNetBackbone.from_pretrained(
        tmp_path, out_features=["stage1", "stage3"], output_loading_info=True
    )
    assert not report["missing_keys"]
    expected = classifier(random_images(), output_hidden_states=True).hidden_states
    outputs = backbone(random_images())
    assert torch.equal(outputs.feature_maps[0], expected[1])
    assert torch.equal(outputs.feature_maps[1], expected[3])


def test_norm_intermediate_features_normalizes_each_stage():
    config = small_config(norm_intermediate_features=True, out_features=["stem", "stage1", "stage3"])
    backbone = RepLKNetBackbone(config).train()
    assert list(backbone.hidden_states_norms) == ["stage1", "stage3"]
    for feature_map in backbone(random_images(4)).feature_maps[1:]:
        mean, variance = feature_map.mean((0, 2, 3)), feature_map.var((0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
        torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-2, rtol=0)  # eps of small variances
