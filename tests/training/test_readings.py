"""Between two lines of the log no step waits for the device or for other processes, and a bad one is found and undone.

On a CPU nothing shows that a GPU would have been waited for. So every way in which numbers come out of tensors is
watched while a real run trains.
"""

import json
import math
import os
import re
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import Run

from seedling_hf.data.loading import Loader
from seedling_hf.inference.waiting import WaitingTogether
from seedling_hf.training.learner import Learner
from seedling_hf.training.loop import Training
from seedling_hf.training.readings import MOST_UNREAD, NonFiniteLossError, Readings, Step

# What looks into a tensor, by its name in Python or as an operator.
LOOKING = {
    "item", "tolist", "numpy", "cpu", "cuda", "__bool__", "__int__", "__float__", "__index__", "__array__",
    "nonzero", "equal", "allclose", "unique", "masked_select", "is_nonzero", "_local_scalar_dense",
}  # fmt: skip
SELDOM = {"max_steps": 6, "logging_steps": 3, "eval_steps": 6, "save_steps": 6}
HOST = {"_guarded", "agree"}  # images, and signals: numbers that are never on a GPU
BAD_STEP = 5
FINITE = r"\d+\.\d+"


class Watch:
    """Notes who looks into a tensor, or talks to other processes, after which step and within what."""

    def __init__(self) -> None:
        self.within, self.events = [], []

    def note(self, name: str) -> None:
        self.events.append([self.training.counters["step"], self.within[-1] if self.within else "", name])

    def around(self, owner: type, name: str) -> None:
        """Has events during a method noted as within it."""
        method = getattr(owner, name)

        def watched(*args, **kwargs):
            self.within.append(name)
            try:
                return method(*args, **kwargs)
            finally:
                self.within.pop()

        setattr(owner, name, watched)


class Functions(TorchFunctionMode):
    """Calls of Python, such as `tolist`, of which the operators show nothing."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in LOOKING:
            self.watch.note(function.__name__)
        return function(*args, **kwargs or {})


class Operators(TorchDispatchMode):
    """Operators, also within autograd and the optimizer, and what travels between processes."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if name in LOOKING or operator.namespace == "c10d":
            self.watch.note(name)
        return operator(*args, **kwargs or {})


def behave_as_on_a_gpu() -> None:
    """Reading is not free."""
    Readings.are_due = property(lambda self: len(self.unread) >= MOST_UNREAD)


def watch_the_run() -> None:
    behave_as_on_a_gpu()
    watch, train = Watch(), Training._train
    watch.around(Readings, "read")
    watch.around(Training, "evaluate")
    watch.around(Training, "save_checkpoint")
    watch.around(Learner, "accumulate_gradients")  # where DDP exchanges gradients
    watch.around(Loader, "_guarded")  # images are decoded in it
    watch.around(WaitingTogether, "agree")  # on signals, by numbers of the host

    def train_and_note(self, progress) -> None:
        watch.training = self
        with Functions(watch), Operators(watch):
            train(self, progress)
        Path(f"events-{self.accelerator.process_index}.json").write_text(json.dumps(watch.events))

    Training._train = train_and_note


@pytest.mark.parametrize("num_processes", [1, 2])
def test_nothing_waits_for_the_device_between_two_lines_of_the_log(tmp_path, images, num_processes):
    run = Run(tmp_path / "run", images, num_processes=num_processes, **SELDOM)
    run.finish(before=watch_the_run)
    for rank in range(num_processes):
        events = json.loads((run.folder / f"events-{rank}.json").read_text())
        places = {place for _, place, _ in events} - HOST
        assert {"read", "evaluate"} <= places <= {"read", "evaluate", "save_checkpoint", "accumulate_gradients"}
        of_steps = {name for _, place, name in events if place == "accumulate_gradients"}
        assert of_steps == ({"allreduce_", "broadcast_"} if num_processes > 1 else set())  # DDP's, which a GPU does
        assert {step for step, place, _ in events if place == "read"} == {3, 6}
        assert {step for step, place, _ in events if place in ("evaluate", "save_checkpoint")} == {6}


def spoil_an_image(value: float, *, as_on_a_gpu: bool = False, then_stop: bool = False) -> None:
    """At `BAD_STEP` an image of the last process has this value, and perhaps a signal comes."""
    if as_on_a_gpu:
        behave_as_on_a_gpu()
    step = Training.optimization_step

    def step_on_bad_image(self, batches) -> None:
        number, rank = self.counters["step"] + 1, self.accelerator.process_index
        if number == BAD_STEP:
            names = self.batches.list_images([batch["index"] for batch in batches])
            Path("names.json").write_text(json.dumps(names))
            if rank == self.accelerator.num_processes - 1:
                batches[0]["pixel_values"][1] = value
            if then_stop:
                os.kill(os.getpid(), signal.SIGTERM)
        Path(f"steps-{rank}.txt").write_text(str(number))
        step(self, batches)

    Training.optimization_step = step_on_bad_image


@pytest.mark.parametrize(
    ("as_on_a_gpu", "num_processes", "save_steps", "value", "found_at"),
    [
        (False, 1, 3, math.nan, BAD_STEP),
        (True, 1, 3, math.nan, 6),  # before the checkpoint of that step is written
        (True, 1, 1000, math.inf, 10),  # with the next line of the log
        (False, 2, 3, math.nan, 6),
    ],
)
def test_an_image_that_is_not_finite_is_named_and_nothing_of_its_step_is_saved(
    tmp_path, images, as_on_a_gpu, num_processes, save_steps, value, found_at
):
    run = Run(
        tmp_path / "run", images, num_processes=num_processes,
        logging_steps=10, eval_steps=save_steps, save_steps=save_steps,
    )  # fmt: skip
    run.finish(before=partial(spoil_an_image, value, as_on_a_gpu=as_on_a_gpu), expected=2)
    names = json.loads((run.folder / "names.json").read_text())
    assert len(names) == 8
    losses = rf"\[({FINITE}, )?nan\]"
    message = rf"error: expected a finite loss, found {losses} at step {BAD_STEP} on the images (.*); look at"
    (found,) = re.findall(message, run.output)  # several processes say it once
    assert found[1].split(", ") == names and bool(found[0]) == (num_processes == 2)
    assert "Traceback" not in run.output
    reached = [int((run.folder / f"steps-{rank}.txt").read_text()) for rank in range(num_processes)]
    assert reached == [found_at] * num_processes
    saved = [3] if save_steps == 3 else []
    assert [path.name for path in (run.folder / "run").glob("checkpoints/step-*")] == [f"step-{n:08d}" for n in saved]
    assert (run.folder / "run" / "model.safetensors").exists() == bool(saved)
    for path in (run.folder / "run").rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())
    metrics = run.folder / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    assert [json.loads(line)["step"] for line in lines] == saved


def test_a_signal_after_a_bad_step_saves_nothing(tmp_path, images):
    run = Run(tmp_path / "run", images, logging_steps=10, eval_steps=1000, save_steps=1000)
    run.finish(before=partial(spoil_an_image, math.nan, as_on_a_gpu=True, then_stop=True), expected=2)
    assert f"found [nan] at step {BAD_STEP}" in run.output
    assert not list((run.folder / "run").glob("checkpoints/step-*"))


def readings(*, device: str = "cpu", scaler: object = None) -> Readings:
    accelerator = SimpleNamespace(
        device=torch.device(device), num_processes=1, scaler=scaler, gather=lambda tensor: tensor
    )
    return Readings(accelerator, lambda index: [f"{i}.png" for batch in index for i in batch.tolist()])


def step(number: int, loss: float, grad_norm: float) -> Step:
    return Step(number, torch.tensor(loss), torch.tensor(grad_norm), [torch.tensor([10 * number, 10 * number + 1])])


def test_the_last_step_is_read_and_the_first_bad_one_is_named_again_and_again():
    found = readings()
    found.read()
    assert found.loss is None
    found.add(step(1, 2.0, 3.0))
    found.add(step(2, 1.5, 4.0))
    found.read()
    assert (found.loss, found.grad_norm, found.unread) == (1.5, 4.0, [])
    for number, loss in enumerate([1.0, math.inf, math.nan], start=3):
        found.add(step(number, loss, 1.0))
    for _ in range(2):  # so nothing can be saved later either
        with pytest.raises(
            NonFiniteLossError, match=r"a finite loss, found \[inf\] at step 4 on the images 40.png, 41.png;"
        ):
            found.read()


def test_a_gradient_that_is_not_finite_is_an_error_unless_a_scaler_deals_with_it():
    found = readings()
    found.add(step(7, 1.0, math.inf))
    with pytest.raises(
        NonFiniteLossError, match="expected finite gradients, found their norm inf at step 7 on the images"
    ):
        found.read()
    found = readings(scaler=object())
    found.add(step(7, 1.0, math.inf))
    found.read()
    assert (found.loss, found.grad_norm) == (1.0, math.inf)


def test_reading_is_due_where_it_is_free_and_after_many_steps():
    assert readings().are_due
    found = readings(device="cuda")
    for number in range(1, MOST_UNREAD):
        found.add(step(number, 1.0, 1.0))
    assert not found.are_due
    found.add(step(MOST_UNREAD, 1.0, 1.0))
    assert found.are_due
