"""A batch that does not fit is divided, and nothing else in the run changes."""

import os
import sys

import pytest
import torch
from accelerate import Accelerator
from processes import run_python

from seedling_hf.errors import InputError
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification
from seedling_hf.train_arguments import TrainArguments
from seedling_hf.training import batch_size
from seedling_hf.training.batch_size import fit_batch_size


@pytest.fixture
def model():
    return RepLKNetForImageClassification(RepLKNetConfig.from_variant("tiny"))


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def arguments(batch_size: int, accumulation: int = 1) -> TrainArguments:
    return TrainArguments(
        output_dir="run", train_dir="images", variant="tiny", per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
    )  # fmt: skip


def fit_at_most(monkeypatch, limit: int) -> list[int]:
    """Makes steps on more images fail as torch does when it is out of memory; returns the tried batch sizes."""
    tried, step = [], batch_size._try_step

    def trial(arguments, model, size, *others):
        tried.append(size)
        if size > limit:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        step(arguments, model, size, *others)

    monkeypatch.setattr(batch_size, "_try_step", trial)
    return tried


def test_a_batch_that_fits_stays(model, accelerator):
    given = arguments(4)
    assert fit_batch_size(given, model, 64, accelerator) is given


@pytest.mark.parametrize(
    ("whole", "limit", "tried", "found", "accumulation"),
    [(12, 5, [12, 6, 4], 4, 6), (7, 3, [7, 1], 1, 14), (8, 4, [8, 4], 4, 4)],
)
def test_the_global_batch_stays(model, accelerator, monkeypatch, whole, limit, tried, found, accumulation):
    seen = fit_at_most(monkeypatch, limit)
    fitted = fit_batch_size(arguments(whole, 2), model, 64, accelerator)
    assert seen == tried
    assert (fitted.per_device_train_batch_size, fitted.gradient_accumulation_steps) == (found, accumulation)
    assert found * accumulation == whole * 2


def test_weights_statistics_and_random_numbers_do_not_change(model, accelerator):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    fit_batch_size(arguments(4), model, 64, accelerator)
    assert torch.rand(1) == expected
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_run_is_refused_if_not_even_one_image_fits(model, accelerator, monkeypatch):
    fit_at_most(monkeypatch, 0)
    with pytest.raises(InputError, match="memory for a batch of 1, 64×64 pixels, found too little"):
        fit_batch_size(arguments(4), model, 64, accelerator)


def test_another_error_is_not_mistaken_for_a_lack_of_memory(model, accelerator, monkeypatch):
    def fail(*args):
        raise RuntimeError("expected scalar type Float")

    monkeypatch.setattr(batch_size, "_try_step", fail)
    with pytest.raises(RuntimeError, match="expected scalar type"):
        fit_batch_size(arguments(4), model, 64, accelerator)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process's memory is Linux's")
def test_a_real_lack_of_memory_divides_the_batch(tmp_path):
    program = """
import logging, resource
logging.basicConfig(level=logging.INFO, format="%(message)s")
from seedling_hf.train_arguments import TrainArguments
from accelerate import Accelerator
from seedling_hf.training.batch_size import fit_batch_size
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification
import torch
def arguments(size):
    return TrainArguments(output_dir="run", train_dir="images", variant="tiny", per_device_train_batch_size=size)
model, accelerator = RepLKNetForImageClassification(RepLKNetConfig.from_variant("tiny")), Accelerator(cpu=True)
fit_batch_size(arguments(1), model, 64, accelerator)  # a first step loads libraries
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, -1))
print(fit_batch_size(arguments(2 * 32749), model, 64, accelerator).per_device_train_batch_size)
"""
    result = run_python([sys.executable, "-c", program], dict(os.environ), tmp_path)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == 2  # 32749 is prime, and so many images alone take 1.6 GB
    assert "do not fit into memory" in result.stderr
