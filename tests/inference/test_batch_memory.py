import pytest
import torch
from transformers import BitImageProcessor

from seedling_hf import machine
from seedling_hf.errors import InputError
from seedling_hf.inference import batch_memory
from seedling_hf.inference.batch_memory import bytes_of_a_pixel, check_memory, image_side
from seedling_hf.replknet import RepLKNetConfig, RepLKNetForImageClassification, RepLKNetImageProcessor


@pytest.fixture(scope="module")
def model():
    return RepLKNetForImageClassification(RepLKNetConfig.from_variant("tiny", num_labels=3)).train()


@pytest.mark.parametrize("trains", [False, True])
def test_a_pixel_takes_the_same_in_images_of_any_size(model, trains):
    found = [bytes_of_a_pixel(model, side, trains=trains) for side in (64, 10_000)]
    assert found[0] == found[1] > 30
    assert model.training and not torch.is_inference_mode_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_looking_at_a_model_changes_neither_its_statistics_nor_the_random_numbers(model):
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    bytes_of_a_pixel(model, 64, trains=True)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_what_fits_is_not_refused_and_what_cannot_fit_is_refused_with_figures(model, monkeypatch):
    monkeypatch.setattr(batch_memory, "memory_size", lambda device: 8 * 10**9)
    check_memory(model, 64, 224, "lower it", trains=True)
    check_memory(model, 1_000_000, None, "lower it", trains=True)
    check_memory(model, 1_000_000, 224, "lower it", count=lambda: 3)
    with pytest.raises(InputError, match=r"into the 8.0 GB of this machine, found 32 images of 20,000×20,000 pixels at "
                       r"a time, which need at least \d,\d{3} GB; lower it"):  # fmt: skip
        check_memory(model, 32, 20_000, "lower it", trains=True)


def test_a_model_that_takes_no_small_images_is_measured_by_its_images_alone(model, monkeypatch):
    monkeypatch.setattr(batch_memory, "memory_size", lambda device: 8 * 10**9)
    monkeypatch.setattr(model, "forward", lambda **_: (_ for _ in ()).throw(AssertionError("224 only")))
    with pytest.raises(InputError, match="which need at least 120 GB"):
        check_memory(model, 100, 10_000, "lower it")


@pytest.mark.parametrize(
    ("processor", "side"),
    [
        (RepLKNetImageProcessor(), 224),
        (RepLKNetImageProcessor.from_variant("31B", image_size=384), 384),
        (BitImageProcessor(size={"shortest_edge": 300}, do_center_crop=False), 300),
        (type("Timm", (), {"data_config": {"input_size": [3, 96, 96]}})(), 96),
        (object(), None),
    ],
)
def test_the_side_of_the_images_is_that_of_the_processor(processor, side):
    assert image_side(processor) == side


def test_the_memory_is_that_of_the_machine_or_of_the_smallest_group(tmp_path, monkeypatch):
    import psutil

    whole = machine.memory_size()
    assert 2**28 < whole <= psutil.virtual_memory().total + psutil.swap_memory().total
    monkeypatch.setattr(machine, "_container_limits", lambda: iter([2**63 - 4096, 2**20]))
    assert machine.memory_size() == 2**20
