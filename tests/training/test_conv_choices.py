"""The first process times the convolution, the others and resumed runs do as it did."""

import json
from types import SimpleNamespace

import pytest
import torch
from faults import assert_sentence, assert_well, command

from seedling_hf.inference.prediction import CHOICES_VARIABLE
from seedling_hf.replknet import RepLKNetConfig, large_kernel_conv
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training import conv_choices
from seedling_hf.training.checkpoint_files import read_run_state
from seedling_hf.training.conv_choices import settle_choices

CHOICE = {
    "device": "NVIDIA H100", "dtype": "torch.float32", "shape": [2, 8, 14, 14], "kernel_size": [13, 13],
    "direction": "forward", "name": "fft",
}  # fmt: skip


@pytest.fixture
def training(monkeypatch):
    """A run of growing images on a GPU, as far as its convolution is concerned, and the sides that are timed."""
    monkeypatch.setattr(large_kernel_conv, "_chosen", {})
    sides = []

    def try_step(config, arguments, side, accelerator):
        sides.append((arguments.per_device_train_batch_size, side))
        large_kernel_conv.set_choices([CHOICE])

    monkeypatch.setattr(conv_choices, "_try_step", try_step)
    monkeypatch.setattr(conv_choices, "broadcast_object_list", lambda values: values)
    return SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cuda"), is_main_process=True),
        learner=SimpleNamespace(bare_model=SimpleNamespace(config=RepLKNetConfig.from_variant("tiny"))),
        batches=SimpleNamespace(list_image_sizes=lambda: [32, 48]),
        arguments=SimpleNamespace(per_device_train_batch_size=8),
        sides=sides,
    )


def test_the_first_process_times_every_size_and_keeps_the_choices(training, tmp_path, monkeypatch):
    path = tmp_path / "choices.json"
    monkeypatch.setenv(CHOICES_VARIABLE, str(path))
    settle_choices(training)
    assert training.sides == [(8, 32), (8, 48)]
    assert json.loads(path.read_text()) == [CHOICE]
    path.write_text("mine")
    settle_choices(training)
    assert path.read_text() == "mine"


def test_another_process_times_nothing_and_takes_them(training, tmp_path, monkeypatch):
    training.accelerator.is_main_process = False
    monkeypatch.setenv(CHOICES_VARIABLE, str(tmp_path / "choices.json"))
    monkeypatch.setattr(conv_choices, "broadcast_object_list", lambda values: values.__setitem__(0, [CHOICE]))
    settle_choices(training)
    assert large_kernel_conv.choices() == [CHOICE | {"shape": (2, 8, 14, 14), "kernel_size": (13, 13)}]
    assert not training.sides
    assert not list(tmp_path.iterdir())


def test_nothing_is_timed_on_a_cpu_or_for_another_network(training):
    training.accelerator.device = torch.device("cpu")
    settle_choices(training)
    training.accelerator.device = torch.device("cuda")
    training.learner.bare_model.config = SimpleNamespace(model_type="timm_wrapper")
    settle_choices(training)
    assert not training.sides


def test_a_timed_step_leaves_the_random_numbers_alone():
    from accelerate import Accelerator

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    arguments = TrainArguments(train_dir="images", variant="tiny", per_device_train_batch_size=2)
    conv_choices._try_step(RepLKNetConfig.from_variant("tiny"), arguments, 32, Accelerator(cpu=True))
    assert torch.equal(torch.rand(3), expected)


def have_chosen() -> None:
    large_kernel_conv.set_choices([CHOICE])


def test_a_resumed_run_makes_the_choices_of_its_checkpoint(images, tmp_path):
    (tmp_path / "work").mkdir()
    words = [
        "train", "--train_dir", images, "--output_dir", "run", "--variant", "tiny", "--image_size", 32, "--max_steps",
        2, "--save_steps", 1, "--per_device_train_batch_size", 8, "--no_duplicate_check",
    ]  # fmt: skip
    assert_well(command(words, tmp_path / "work", before=have_chosen))
    source = ["--resume_from_checkpoint", "run/checkpoints/step-00000001"]
    assert_well(command([*words, *source], tmp_path / "work"))
    state = read_run_state(tmp_path / "work" / "run" / "checkpoints" / "step-00000002").state
    assert [choice["name"] for choice in state["conv_choices"]] == ["fft"]


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', json.dumps([CHOICE | {"name": "fastest"}])])
def test_a_file_without_choices_is_named(text, images, model_dir, tmp_path):
    (tmp_path / "work").mkdir()
    path = tmp_path / "choices.json"
    path.write_text(text)
    words = ["predict", "--model_name_or_path", model_dir, images, "--output_file", "answers.csv"]
    outcome = command(words, tmp_path / "work", environment={CHOICES_VARIABLE: str(path)})
    assert_sentence(outcome, str(path), CHOICES_VARIABLE, "delete the file")
    assert not list((tmp_path / "work").iterdir())
