"""A run that FSDP shards across two processes equals the run of one, and is saved unsharded.

accelerate divides models on GPUs only. These tests have it believe that two processes on a CPU are two GPUs: all that
follows, `fully_shard` and what travels between the processes, is as it is there.
"""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy
from torch.distributed.tensor import DTensor
from training_runs import Run, killed_again_and_again

from seedling_hf.errors import InputError
from seedling_hf.inference.classifier import load_classifier
from seedling_hf.train_arguments import OptimizationArguments
from seedling_hf.training.loop import Training
from seedling_hf.training.sharding import configure_sharding

CONFIG = Path(__file__).parents[2] / "scripts" / "recipes" / "accelerate" / "fsdp.yaml"
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}
# Without clipping, whose norm is summed in another order, the sum of two gradients is the same wherever it is made.
STEPS = {
    "drop_path_rate": 0.0, "max_grad_norm": 0, "max_steps": 20, "save_steps": 10, "eval_steps": 10,
    "save_total_limit": 9,
}  # fmt: skip


def shard_on_cpus() -> None:
    """What `accelerate launch --config_file fsdp.yaml` sets, and the belief in GPUs."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(CONFIG))
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    os.environ |= {name.upper(): str(value) for name, value in config.fsdp_config.items()}
    init, run = AcceleratorState.__init__, Training.run

    def init_as_on_gpus(self, *args, fsdp_plugin=None, **kwargs) -> None:
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)

    def run_on_shards(self) -> bool:
        learner = self.learner
        models = [learner.model] + ([learner.ema.model] if learner.ema else [])
        for parameter in (p for model in models for p in model.parameters()):
            assert isinstance(parameter, DTensor)
        held, whole = (
            sum(size(p) for model in models for p in model.parameters())
            for size in (lambda p: p.to_local().numel(), lambda p: p.numel())
        )
        assert held < 0.6 * whole
        return run(self)

    AcceleratorState.__init__, Training.run = init_as_on_gpus, run_on_shards


class ShardedRun(Run):
    """A run sharded across two processes."""

    def __init__(self, folder: Path, images: Path, **settings) -> None:
        super().__init__(folder, images, num_processes=2, **settings)

    def start(self, *flags: str, before=None) -> list:
        return super().start(*flags, before=before or shard_on_cpus)


def logged(run: Run, name: str = "loss") -> torch.Tensor:
    lines = [json.loads(line) for line in (run.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([line[name] for line in lines if name in line])


def weights(run: Run, path: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(run.folder / "run" / path)


@pytest.fixture(scope="module")
def one(tmp_path_factory, images) -> Run:
    """On one process, which accumulates the batches that two would have."""
    run = Run(tmp_path_factory.mktemp("one") / "run", images, accumulation=2, **STEPS)
    run.finish()
    return run


@pytest.fixture(scope="module")
def two(tmp_path_factory, images) -> Run:
    run = ShardedRun(tmp_path_factory.mktemp("two") / "run", images, accumulation=1, **STEPS)
    run.finish()
    return run


def test_losses_weights_and_averages_are_those_of_one_process_to_the_last_bit(one, two):
    assert "sharded by FSDP" in two.output
    assert len(set(logged(one).tolist())) == 20
    assert torch.equal(logged(two), logged(one))
    for name in ("model", "ema"):
        expected, found = (weights(run, f"checkpoints/step-00000020/{name}.safetensors") for run in (one, two))
        assert found.keys() == expected.keys()
        # BatchNorm's statistics are each process's own.
        differing = {key for key in expected if not torch.equal(found[key], expected[key])}
        assert all(key.rpartition(".")[2] in STATISTICS for key in differing)


def test_the_model_is_saved_unsharded_as_without_fsdp(one, two):
    files = [{path.name for path in (run.folder / "run").iterdir()} for run in (one, two)]
    assert files[0] == files[1]
    for name in ("modeling_replknet.py", "preprocessor_config.json"):
        assert (one.folder / "run" / name).read_text() == (two.folder / "run" / name).read_text()
    configs = [json.loads((run.folder / "run" / "config.json").read_text()) for run in (one, two)]
    for config in configs:  # by the answers, which differ with BatchNorm's statistics
        del config["calibration_temperature"], config["confidence_threshold"]
    assert configs[0] == configs[1]
    model, _ = load_classifier(str(two.folder / "run"))
    assert type(model).__name__ == "RepLKNetForImageClassification"
    best = json.loads((two.folder / "run" / "train_results.json").read_text())["best_step"]
    expected, found = weights(two, f"checkpoints/step-{best:08d}/ema.safetensors"), weights(two)
    assert found.keys() == expected.keys()
    temperature = model.config.calibration_temperature
    for name in ("classifier.weight", "classifier.bias"):
        torch.testing.assert_close(found.pop(name), expected.pop(name) / temperature, rtol=1e-6, atol=0)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_checkpoint_has_the_format_of_one_process(one, two):
    for name in ("model", "ema", "state"):
        expected, found = (weights(run, f"checkpoints/step-00000010/{name}.safetensors") for run in (one, two))
        assert {key: value.shape for key, value in found.items()} == {k: v.shape for k, v in expected.items()}


def test_one_process_goes_on_where_two_were(two, tmp_path, images):
    run = Run(tmp_path / "run", images, accumulation=2, **STEPS)
    go_on_at_step_10(run, two)


def go_on_at_step_10(run: Run, other: Run) -> None:
    """`run` continues in the middle of the other's, and ends where that one did."""
    shutil.copytree(other.folder / "run", run.folder / "run")
    run.finish("--resume_from_checkpoint", "run/checkpoints/step-00000010")
    assert run.resumed_steps == [10]
    assert torch.equal(logged(run), logged(other))


def test_two_processes_go_on_where_one_was(one, tmp_path, images):
    run = ShardedRun(tmp_path / "run", images, accumulation=1, **STEPS)
    go_on_at_step_10(run, one)


def test_accumulation_clipping_checkpointing_and_bfloat16_give_what_they_give_without_fsdp(tmp_path, images):
    settings = {"drop_path_rate": 0.0, "max_steps": 6, "max_grad_norm": 0.5, "mixed_precision": "bf16",
                "gradient_checkpointing": "true"}  # fmt: skip
    one = Run(tmp_path / "one", images, accumulation=4, **settings)
    two = ShardedRun(tmp_path / "two", images, accumulation=2, **settings)
    for run in (one, two):
        run.finish()
    # bfloat16 has 8 bits, and sums are made in another order.
    torch.testing.assert_close(logged(two), logged(one), rtol=0.01, atol=0.01)
    norms = logged(one, "grad_norm")
    assert norms.min() > 0.5  # all were clipped
    torch.testing.assert_close(logged(two, "grad_norm")[:2], norms[:2], rtol=0.01, atol=0.01)
    # Of the last step: which one is best may hang on a rounding.
    expected, found = (weights(run, "checkpoints/step-00000006/model.safetensors") for run in (one, two))
    counts = [name for name in expected if name.endswith("num_batches_tracked")]
    assert counts
    assert all(2 * found[name] == expected[name] for name in counts)  # each process sees half of the batches, once


def test_a_frozen_stage_learns_nothing_under_fsdp_and_the_rest_as_on_one_process(tmp_path, images):
    settings = STEPS | {"max_steps": 4, "eval_steps": 4, "save_steps": 4, "freeze": "stage1"}
    one = Run(tmp_path / "one", images, accumulation=2, **settings)
    two = ShardedRun(tmp_path / "two", images, accumulation=1, **settings)
    for run in (one, two):
        run.finish()
    assert torch.equal(logged(two), logged(one))
    expected, found = (weights(run, "checkpoints/step-00000004/model.safetensors") for run in (one, two))
    stage = [name for name in expected if ".stages.0." in name]
    assert stage and all(torch.equal(found[name], expected[name]) for name in stage)  # with its statistics
    assert not any(expected[name].any() for name in stage if name.endswith("num_batches_tracked"))


def shard_and_spoil() -> None:
    """One process gets an image that is NaN at step 2."""
    shard_on_cpus()
    step = Training.optimization_step

    def step_on_bad_image(self, batches) -> None:
        if self.counters["step"] == 1 and self.accelerator.process_index == 1:
            batches[0]["pixel_values"][1] = torch.nan
        before = [parameter.to_local().detach().clone() for parameter in self.learner.model.parameters()]
        step(self, batches)
        after = [parameter.to_local() for parameter in self.learner.model.parameters()]
        changed = not all(torch.equal(*pair) for pair in zip(before, after, strict=True))
        assert changed == (self.counters["step"] != 1)

    Training.optimization_step = step_on_bad_image


def test_a_step_that_is_not_finite_on_one_process_changes_the_shards_of_none(tmp_path, images):
    run = ShardedRun(tmp_path / "run", images, logging_steps=3, eval_steps=1000, save_steps=1000)
    run.finish(before=shard_and_spoil, expected=2)
    assert re.search(r"error: expected a finite loss, found \[\d+\.\d+, nan\] at step 2 on the images ", run.output)
    assert not list((run.folder / "run").glob("checkpoints/step-*"))


@pytest.mark.slow
def test_a_sharded_run_that_is_killed_ends_as_an_uninterrupted_one(tmp_path, images):
    assert killed_again_and_again(lambda folder: ShardedRun(tmp_path / folder, images), kills=3, seed=0)


def accelerator(**changes) -> SimpleNamespace:
    plugin = SimpleNamespace(
        fsdp_version=2, cpu_offload=OffloadPolicy(), activation_checkpointing=False, ignored_modules=None,
        mixed_precision_policy=None, cpu_ram_efficient_loading=True,
    )  # fmt: skip
    values = {"distributed_type": DistributedType.FSDP, "mixed_precision": "bf16", "parallelism_config": None}
    for name, value in changes.items():
        if hasattr(plugin, name):
            setattr(plugin, name, value)
        else:
            values[name] = value
    return SimpleNamespace(**values, state=SimpleNamespace(fsdp_plugin=plugin))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fsdp_version": 1}, "found version 1 of FSDP; use --fsdp_version 2"),
        ({"cpu_offload": CPUOffloadPolicy()}, "found weights kept on the CPU; use --fsdp_offload_params false"),
        ({"activation_checkpointing": True}, "use --gradient_checkpointing of train"),
        ({"ignored_modules": "classifier"}, "found modules that FSDP ignores"),
        ({"mixed_precision": "fp16"}, "found --mixed_precision fp16; use bf16 or no"),
        ({"parallelism_config": object()}, "found other kinds of parallelism"),
        ({"distributed_type": DistributedType.DEEPSPEED}, "found DEEPSPEED in accelerate's configuration"),
        ({"distributed_type": DistributedType.MEGATRON_LM}, "found MEGATRON_LM in accelerate's configuration"),
    ],
)  # fmt: skip
def test_what_cannot_be_combined_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        configure_sharding(accelerator(**changes), OptimizationArguments())


def test_unsuitable_defaults_of_accelerate_are_overridden(monkeypatch):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")  # as `accelerate launch --use_fsdp` does
    found = accelerator()
    configure_sharding(found, OptimizationArguments())
    assert found.state.fsdp_plugin.mixed_precision_policy == MixedPrecisionPolicy()
    assert not found.state.fsdp_plugin.cpu_ram_efficient_loading
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "False"


def test_searching_for_a_batch_size_is_refused():
    with pytest.raises(InputError, match="found --auto_find_batch_size; give --per_device_train_batch_size"):
        configure_sharding(accelerator(), OptimizationArguments(auto_find_batch_size=True))


def test_an_optimizer_that_needs_complete_matrices_is_refused():
    with pytest.raises(InputError, match="found --optim muon; which needs complete matrices; use adamw"):
        configure_sharding(accelerator(), OptimizationArguments(optim="muon"))


def test_fsdp_without_gpus_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="expected GPUs for FSDP, found none"):
        configure_sharding(SimpleNamespace(distributed_type=DistributedType.MULTI_CPU), OptimizationArguments())


def test_unsharded_models_are_accepted():
    configure_sharding(
        SimpleNamespace(distributed_type=DistributedType.MULTI_GPU), OptimizationArguments(auto_find_batch_size=True)
    )
