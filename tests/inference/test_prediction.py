import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from processes import start
from torch import nn
from torch.utils.data import DataLoader

from seedling_hf.errors import InputError
from seedling_hf.inference.prediction import EightSymmetries, build_accelerator, predict, predict_batches

ROOT = Path(__file__).resolve().parents[2]


class Echo(nn.Module):
    """Its logits are the example's number, and whether the module is in training mode."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, pixel_values):
        number = pixel_values[:, 0, 0, :1] * self.scale
        return SimpleNamespace(logits=torch.cat([number, torch.full_like(number, float(self.training))], dim=1))


def examples(numbers) -> list[dict]:
    return [{"pixel_values": torch.full((3, 2, 2), float(n)), "index": torch.tensor(n)} for n in numbers]


@pytest.fixture
def accelerator() -> Accelerator:
    return build_accelerator("no")


def test_logits_come_in_the_order_of_the_example_numbers(accelerator):
    loader = accelerator.prepare(DataLoader(examples([4, 0, 3, 1, 2]), batch_size=2))
    logits, index = predict(Echo().to(accelerator.device), loader, accelerator)
    assert index.tolist() == [0, 1, 2, 3, 4]
    assert logits[:, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_refused(accelerator, value):
    rows = [{"pixel_values": torch.full((3, 2, 2), v), "index": torch.tensor(i)} for i, v in enumerate([0.0, value])]
    with pytest.raises(InputError, match="expected finite logits of the model, found NaN or infinity"):
        predict(Echo().to(accelerator.device), accelerator.prepare(DataLoader(rows, batch_size=2)), accelerator)


def test_a_probability_of_zero_has_a_finite_logit_over_the_symmetries():
    class Sure(torch.nn.Module):
        def forward(self, pixel_values):
            return SimpleNamespace(logits=torch.tensor([[0.0, 1e6]]))

    logits = EightSymmetries(Sure())(torch.zeros(1, 3, 2, 2)).logits
    assert logits.isfinite().all()
    assert logits.softmax(-1).tolist() == [[pytest.approx(0, abs=1e-300), 1]]


def test_the_model_predicts_in_evaluation_mode_and_returns_to_training_mode(accelerator):
    loader, model = accelerator.prepare(DataLoader(examples(range(3)), batch_size=2)), Echo().to(accelerator.device)
    model.train()
    logits, _ = predict(model, loader, accelerator)
    assert not logits[:, 1].any()
    assert model.training


def test_an_interrupted_prediction_restores_the_mode_too(accelerator):
    loader, model = accelerator.prepare(DataLoader(examples(range(5)), batch_size=2)), Echo().to(accelerator.device)
    batches = predict_batches(model, loader, accelerator)
    next(batches)
    batches.close()
    assert model.training


def test_gradients_are_still_recorded_between_two_batches(accelerator):
    loader = accelerator.prepare(DataLoader(examples(range(4)), batch_size=2))
    for _ in predict_batches(Echo().to(accelerator.device), loader, accelerator):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_a_repeated_example_is_an_error(accelerator):
    loader = accelerator.prepare(DataLoader(examples([0, 1, 1]), batch_size=2))
    with pytest.raises(RuntimeError, match="each of 3 examples once, found 3 answers for 2 different examples from 1"):
        predict(Echo().to(accelerator.device), loader, accelerator)


def test_a_missing_example_is_an_error(accelerator):
    loader = accelerator.prepare(DataLoader(examples(range(5)), batch_size=2, drop_last=True))
    with pytest.raises(RuntimeError, match="each of 5 examples once, found 4 answers"):
        predict(Echo().to(accelerator.device), loader, accelerator)


def test_no_examples_are_refused(accelerator):
    loader = accelerator.prepare(DataLoader([], batch_size=2))
    with pytest.raises(RuntimeError, match="at least one"):
        predict(Echo().to(accelerator.device), loader, accelerator)


def test_logits_of_bfloat16_come_in_float32(unsettled_precision):
    class Linear(Echo):
        def forward(self, pixel_values):
            logits = super().forward(pixel_values).logits @ torch.eye(2, device=pixel_values.device)
            assert logits.dtype == torch.bfloat16
            return SimpleNamespace(logits=logits)

    accelerator = build_accelerator("bf16")
    loader = accelerator.prepare(DataLoader(examples(range(3)), batch_size=2))
    assert predict(Linear().to(accelerator.device), loader, accelerator)[0].dtype == torch.float32


@pytest.mark.skipif(torch.accelerator.is_available(), reason="fp16 works on a GPU")
def test_fp16_without_a_gpu_is_refused(unsettled_precision):
    with pytest.raises(InputError, match="expected a GPU for --mixed_precision fp16"):
        build_accelerator("fp16")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="on a GPU the processor's instructions do not matter")
@pytest.mark.parametrize(
    ("precision", "capabilities", "warns"),
    [
        ("bf16", {"avx512_bf16": False, "amx_bf16": False, "avx2": True}, True),
        ("bf16", {"avx512_bf16": True}, False),
        ("no", {"avx512_bf16": False}, False),
    ],
)
def test_bf16_is_said_to_be_slow_on_cpus_without_its_instructions(
    unsettled_precision, monkeypatch, caplog, precision, capabilities, warns
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    build_accelerator(precision)
    assert ("use --mixed_precision no" in caplog.text) == warns


def predict_on_this_rank(rank: int, folder: Path) -> None:
    accelerator = build_accelerator("no")
    answers = []
    for count, batch_size in [(11, 2), (8, 2), (1, 4), (3, 4)]:
        loader = accelerator.prepare(DataLoader(examples(range(count)), batch_size=batch_size))
        logits, index = predict(Echo().to(accelerator.device), loader, accelerator)
        answers.append([index.tolist(), logits[:, 0].tolist()])
    (folder / f"{rank}.json").write_text(json.dumps([accelerator.num_processes, answers]))


def test_two_processes_predict_eleven_examples_once_each_and_agree(tmp_path):
    processes = start(predict_on_this_rank, tmp_path, num_processes=2)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second == [2, [[list(range(n)), list(range(n))] for n in (11, 8, 1, 3)]]
