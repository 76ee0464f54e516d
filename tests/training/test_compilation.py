"""What a compiled run refuses, and that it trains, saves and resumes as an uncompiled one."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import TorchDynamoPlugin
from faults import assert_sentence, assert_well, command
from safetensors.torch import load_file

from seedling_hf.errors import InputError
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training.compilation import compile_options, compile_plugin, configure_compilation

FLAGS = [
    "train", "--output_dir", "run", "--variant", "tiny", "--image_size", "32", "--per_device_train_batch_size", "8",
    "--max_steps", "4", "--save_steps", "2", "--eval_steps", "2", "--logging_steps", "1", "--ema_decay", "0.9",
]  # fmt: skip
AOT = {"ACCELERATE_DYNAMO_BACKEND": "AOT_EAGER"}


def arguments(tmp_path, **values) -> TrainArguments:
    return TrainArguments(train_dir=str(tmp_path / "images"), output_dir=str(tmp_path / "run"), **values)


def accelerator(plugin: TorchDynamoPlugin, device: str = "cpu", **values):
    values = {"num_processes": 1, "is_fsdp2": False} | values
    return SimpleNamespace(device=torch.device(device), state=SimpleNamespace(dynamo_plugin=plugin), **values)


def test_a_run_is_compiled_on_request_only(tmp_path):
    assert compile_plugin(arguments(tmp_path)) is None
    plugin = compile_plugin(arguments(tmp_path, torch_compile_mode="reduce-overhead"))
    assert compile_options(accelerator(plugin)) == {"backend": "inductor", "mode": "reduce-overhead"}
    assert compile_options(accelerator(TorchDynamoPlugin())) == {}


@pytest.mark.parametrize(
    ("plugin", "flags", "machine", "found"),
    [
        ({}, {"gradient_checkpointing": True}, {}, "--gradient_checkpointing"),
        ({}, {"sync_bn": True}, {"num_processes": 2}, "--sync_bn"),
        ({}, {}, {"is_fsdp2": True}, "FSDP"),
        ({"mode": "max-autotune"}, {"gradient_accumulation_steps": 2}, {"device": "cuda"}, "in mode max-autotune"),
        ({}, {"image_size_start": 32}, {}, "--image_size_start"),
        ({"mode": "reduce-overhead"}, {"auto_find_batch_size": True}, {"device": "cuda"}, "--auto_find_batch_size"),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_together_is_refused(plugin, flags, machine, found, tmp_path):
    plugin = TorchDynamoPlugin(backend="eager", **plugin)
    with pytest.raises(InputError, match=f"expected what can be compiled .*{found}.*; remove it"):
        configure_compilation(accelerator(plugin, **machine), arguments(tmp_path, **flags))


def test_what_can_be_compiled_is_announced(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        configure_compilation(
            accelerator(TorchDynamoPlugin(backend="eager")), arguments(tmp_path, gradient_accumulation_steps=2)
        )
    assert "compiling by torch.compile (eager, default): the first step" in caplog.text


def losses(folder) -> list[float]:
    rows = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [({}, AOT), (AOT, {})], ids=["compiled", "uncompiled"])
def test_a_run_goes_on_from_the_same_state(first, second, images, tmp_path):
    words = [*FLAGS, "--train_dir", images]
    for number in "ab":
        (tmp_path / number).mkdir()
        assert_well(command(words, tmp_path / number, environment=first))
    outcome = command([*words, "--resume_from_checkpoint", "run/checkpoints/step-00000002"], tmp_path / "b",
                      environment=second)  # fmt: skip
    assert_well(outcome)
    # 1e-4: the weights are the same, and other kernels sum in another order.
    assert losses(tmp_path / "b")[2] == pytest.approx(losses(tmp_path / "a")[2], rel=1e-4)
    names = [load_file(tmp_path / n / "run" / "model.safetensors").keys() for n in "ab"]
    assert names[0] == names[1]


@pytest.mark.slow
def test_a_teacher_is_compiled_with_its_student(images, tmp_path):
    rows = []
    for number, environment in (("teacher", {}), ("plain", {}), ("compiled", AOT)):
        (tmp_path / number).mkdir()
        teacher = [] if number == "teacher" else ["--teacher_model_name_or_path", tmp_path / "teacher" / "run"]
        assert_well(command([*FLAGS, "--train_dir", images, *teacher], tmp_path / number, environment=environment))
        rows.append(losses(tmp_path / number))
    assert rows[1] != rows[0]
    assert rows[2][0] == pytest.approx(rows[1][0], rel=1e-4)  # as above


@pytest.mark.slow
def test_the_flag_trains_by_the_compiler_of_pytorch(images, tmp_path):
    (tmp_path / "work").mkdir()
    words = [*FLAGS, "--train_dir", images, "--torch_compile"]
    outcome = command(words, tmp_path / "work", timeout=500)
    assert_well(outcome)
    assert "compiling by torch.compile (inductor, default)" in outcome.stderr
    (tmp_path / "plain").mkdir()
    assert_well(command(words[:-1], tmp_path / "plain"))
    # Later steps differ by more, since Adam makes much of the smallest gradients.
    assert losses(tmp_path / "work")[0] == pytest.approx(losses(tmp_path / "plain")[0], rel=1e-4)


@pytest.mark.slow
def test_without_a_compiler_nothing_is_begun(images, tmp_path):
    (tmp_path / "work").mkdir()
    environment = {"PATH": str(tmp_path), "CXX": ""}
    outcome = command([*FLAGS, "--train_dir", images, "--torch_compile"], tmp_path / "work", environment=environment)
    assert_sentence(outcome, "expected a C++ compiler", "--torch_compile")
    assert not list((tmp_path / "work").iterdir())
