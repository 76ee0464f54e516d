"""The estimated memory is the memory that a step takes."""

import ctypes
import gc
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import FORKS
from timm.optim import Muon
from torch.optim import AdamW

from seedling_hf.commands import run
from seedling_hf.commands.estimate_memory import main
from seedling_hf.replknet import RepLKNetConfig
from seedling_hf.speed.forms import build_model
from seedling_hf.train_arguments import OptimizationArguments
from seedling_hf.training.freezing import freeze, train_unfrozen
from seedling_hf.training.memory import LiveStorages, MemoryEstimate, estimate_memory
from seedling_hf.training.optimization import ExponentialMovingAverage, parameter_groups

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
OPTIMIZERS = {
    "adamw": lambda model: AdamW(parameter_groups(model, 1e-3, 0.05), fused=True),
    "muon": lambda model: Muon(parameter_groups(model, 1e-3, 0.05), nesterov=True),
}


def estimate(
    variant: str = "tiny", image_size: int = 64, batch_size: int = 4, launch: dict | None = None, **settings
) -> MemoryEstimate:
    config = RepLKNetConfig.from_variant(variant, drop_path_rate=0.0)
    arguments = OptimizationArguments(per_device_train_batch_size=batch_size, **settings)
    return estimate_memory(config, arguments, image_size, **launch or {})


def _status(name: str) -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def measure(
    variant: str, image_size: int, batch_size: int, checkpointing: bool, optim: str, frozen: list[str]
) -> tuple[int, float]:  # fmt: skip
    """Bytes by which this process grows at most while it makes two steps, averaging weights; CPU s of the second."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)  # freed memory returns to the system at once
    _make_steps("tiny", 32, 2, False, optim, [])  # a first step loads libraries
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    seconds = _make_steps(variant, image_size, batch_size, checkpointing, optim, frozen)
    return _status("VmHWM") - before, seconds


def _make_steps(
    variant: str, image_size: int, batch_size: int, checkpointing: bool, optim: str, frozen: list[str]
) -> float:  # fmt: skip
    model = build_model(variant, "cpu", 0)
    freeze(model, OptimizationArguments(freeze=frozen))
    train_unfrozen(model)
    if checkpointing:
        model.activation_checkpointing_enable()
    average = ExponentialMovingAverage(model, 0.9)
    optimizer = OPTIMIZERS[optim](model)
    for _ in range(2):  # the first step creates the moments
        started = time.process_time()
        images = torch.randn(batch_size, 3, image_size, image_size)
        model(pixel_values=images, labels=torch.zeros(batch_size, dtype=torch.int64)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(model)
    return time.process_time() - started


@pytest.mark.skipif(sys.platform != "linux", reason="how a process's peak is reset is Linux's")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("variant", "image_size", "batch_size", "optim"),
    [("nano", 96, 32, "adamw"), ("nano", 96, 8, "muon"), pytest.param("31B", 224, 4, "adamw", marks=pytest.mark.slow)],
)
def test_a_step_takes_the_estimated_memory(variant, image_size, batch_size, optim, checkpointing):
    compare_with_estimate(variant, image_size, batch_size, optim, checkpointing, [])


def compare_with_estimate(
    variant: str, image_size: int, batch_size: int, optim: str, checkpointing: bool, frozen: list[str]
) -> tuple[int, float]:  # fmt: skip
    """The memory and CPU seconds of a step, in a process of its own."""
    with FORKS.Pool(1, initializer=gc.freeze) as pool:
        measured, seconds = pool.apply(measure, (variant, image_size, batch_size, checkpointing, optim, frozen))
    estimated = estimate(
        variant, image_size, batch_size,
        ema_decay=0.9, gradient_checkpointing=checkpointing, optim=optim, freeze=frozen,
    ).peak  # fmt: skip
    print(
        f"{variant}, frozen: {' '.join(frozen) or 'nothing'}: {seconds:.2f} s, measured {measured / 1e6:,.0f} MB, "
        f"{measured / estimated:.2f} of the estimate"
    )
    # oneDNN keeps its own buffers, some 30 MB.
    assert 0.98 * estimated < measured < estimated + 100e6
    return measured, seconds


@pytest.mark.skipif(sys.platform != "linux", reason="how a process's peak is reset is Linux's")
@pytest.mark.parametrize(
    ("variant", "image_size", "batch_size"), [("nano", 96, 16), pytest.param("31B", 224, 2, marks=pytest.mark.slow)]
)
def test_frozen_parts_save_the_estimated_memory_and_time(variant, image_size, batch_size):
    found = [
        compare_with_estimate(variant, image_size, batch_size, "adamw", False, frozen)
        for frozen in ([], ["stem", "stage1", "stage2"], ["backbone"])
    ]
    memory, seconds = zip(*found, strict=True)
    assert memory[2] < memory[1] < memory[0]
    assert seconds[2] < 0.8 * seconds[0]  # no backward pass, which takes longer than the forward pass


def test_activations_are_what_autograd_saves():
    model = build_model("tiny", "cpu", 0).train()
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images = torch.randn(4, 3, 64, 64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(pixel_values=images, labels=torch.zeros(4, dtype=torch.int64))
    expected = sum(size for pointer, size in saved.items() if pointer not in known)
    assert output.loss.isfinite()
    found = estimate().activations
    # Alive but not saved: the images in their original layout, labels and logits.
    assert expected <= found <= expected + images.nbytes + 10_000


def test_activations_grow_with_the_images_alone():
    one, two, three = (estimate(batch_size=size).activations for size in (2, 4, 6))
    # The statistics of each BatchNorm are saved too, independently of the batch.
    assert three - two == two - one
    assert 0.95 < (two - one) / one <= 1


def test_everything_of_the_size_of_the_weights_is_counted_once():
    parameters = sum(4 * p.numel() for p in build_model("tiny", "cpu", 0).parameters())
    found = estimate(ema_decay=0.9)
    assert found.gradients == parameters
    assert found.moments == 2 * parameters
    assert found.weights == found.average
    assert parameters < found.weights < 1.1 * parameters  # BatchNorm's statistics
    assert estimate().average == 0
    assert estimate(launch={"num_processes": 8}).exchange == parameters
    assert found.peak == found.weights + found.average + found.moments + found.exchange + found.step


def test_the_moments_are_those_that_muon_keeps():
    model = build_model("tiny", "cpu", 0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = OPTIMIZERS["muon"](model)
    optimizer.step()
    kept = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t) and t.ndim]
    moments = estimate(optim="muon").moments
    assert moments == sum(moment.nbytes for moment in kept)
    assert moments < 0.7 * estimate().moments


def test_memory_saving_options_save_memory():
    whole = estimate(ema_decay=0.9, launch={"num_processes": 8})
    assert estimate(gradient_checkpointing=True).activations < 0.5 * whole.activations
    assert estimate(mixed_precision="bf16").activations < 0.75 * whole.activations
    divided = estimate(ema_decay=0.9, launch={"num_processes": 8, "use_fsdp": True})
    assert divided.moments == whole.moments // 8
    assert divided.weights < 0.3 * whole.weights


def test_what_is_frozen_has_no_gradient_and_no_moments_and_leaves_nothing_before_the_first_trained_layer():
    whole, head = estimate("nano", ema_decay=0.9), estimate("nano", ema_decay=0.9, freeze=["backbone"])
    model = build_model("nano", "cpu", 0)
    trained = sum(4 * p.numel() for p in model.classifier.parameters())
    assert (head.gradients, head.moments) == (trained, 2 * trained)
    assert (head.weights, head.average) == (whole.weights, whole.average)
    assert head.activations < 0.05 * whole.activations
    assert estimate("nano", freeze=["backbone"], launch={"num_processes": 8}).exchange == trained
    early, late = (estimate("nano", freeze=names) for names in (["stem", "stage1", "stage2"], ["stage4"]))
    assert early.activations < 0.6 * whole.activations < late.activations  # what is behind trained layers is kept


def test_gradients_of_earlier_batches_are_held_during_the_next():
    at_once, twice = (estimate("nano", gradient_accumulation_steps=n) for n in (1, 2))
    assert at_once.step < twice.step <= at_once.step + at_once.gradients


def test_a_storage_is_counted_once_and_until_it_is_freed():
    live = LiveStorages()
    with live:
        a = torch.empty(100)
        view = a[:10]
        b = a + 1
        del a
        assert live.now == 800  # the view holds the whole
        del view, b
    assert (live.now, live.most) == (0, 800)


@pytest.mark.parametrize(("optimizer", "moments"), [("adamw", 2), ("muon", 1.3)])
def test_the_command_takes_the_flags_of_train_and_prints_each_part(monkeypatch, capsys, optimizer, moments):
    monkeypatch.chdir(Path(__file__).parents[2])
    flags = ["--config", "scripts/recipes/nano_cpu.yaml", "--optim", optimizer]
    assert run(main, [*flags, "--num_processes", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "batches of 32 images, 96×96 pixels, 1 per step, on 2 processes, float32"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    figures = {row[0]: float(row[1]) for row in rows[2:]}
    assert 0 < figures["the optimizer's moments"] == pytest.approx(moments * figures["weights, float32"], abs=0.01)
    assert figures["**total**"] > figures["gradients, activations and temporaries, at their peak"]


def test_flags_of_kernels_and_channels_count(capsys):
    flags = ["--output_dir", "o", "--train_dir", "p", "--variant", "tiny", "--per_device_train_batch_size", "2"]
    printed = []
    for further in ([], ["--hidden_sizes", "32", "64", "96", "128"]):
        assert run(main, [*flags, *further]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] != printed[1]
    assert run(main, [*flags, "--depths", "1"]) == 2
    assert "expected --kernel_sizes, --depths and --hidden_sizes of a RepLKNet" in capsys.readouterr().err


RECIPES = {"replknet_31b": "31B", "replknet_31b_384": "31B", "replknet_31l_384": "31L", "replknet_xl_320": "XL"}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_figures_of_a_recipe_are_those_that_the_command_prints(name, monkeypatch, capsys):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    flags = ["--config", f"scripts/recipes/{name}.yaml", "--train_dir", "seedlings", "--variant", RECIPES[name]]
    eight = ["--num_processes", "8", "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1"]
    printed = []
    for further in ([], eight, [*eight, "--use_fsdp"]):
        assert run(main, [*flags, *further]) == 0
        figures = re.search(r"\*\*total\*\* \| ([\d.]+) \| ([\d.]+)", capsys.readouterr().out).groups()
        printed += [float(figure) for figure in figures]
    text = (root / "scripts" / "recipes" / f"{name}.yaml").read_text()
    written = [float(figure) for figure in re.findall(r"([\d.]+) GB", text)[:4]]
    one, one_checkpointed, all_reduced, _, divided, _ = printed
    assert written == pytest.approx([one, one_checkpointed, all_reduced, divided], abs=0.06)  # of one decimal


def test_another_network_than_a_replknet_is_refused(capsys):
    assert run(main, ["--output_dir", "o", "--train_dir", "p", "--timm_architecture", "resnet18"]) == 2
    assert "expected a RepLKNet, found resnet18" in capsys.readouterr().err
