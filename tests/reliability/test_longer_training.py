"""A run is resumed with other flags: its schedule is placed at the resumed step, and what changes is said."""

import json
import math
import re
from pathlib import Path

import pytest
from faults import assert_sentence, assert_well, command, contents

PEAK = 1e-3


def train(folder: Path, images: Path, *flags: object):
    words = [
        "train", "--train_dir", images, "--output_dir", folder / "run", "--variant", "tiny", "--image_size", 32,
        "--per_device_train_batch_size", 8, "--no_duplicate_check", "--logging_steps", 1, "--save_total_limit", 9,
    ]  # fmt: skip
    return command([*words, *flags], folder)


@pytest.fixture
def run(images, tmp_path):
    """Two epochs of four steps, with a checkpoint after each."""
    assert_well(train(tmp_path, images, "--num_train_epochs", 2, "--save_steps", 4))
    return tmp_path


def logged(folder: Path) -> dict[int, float]:
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}


def scheduled(step: int, num_steps: int, kind: str = "cosine", warmup: int = 0, peak: float = PEAK) -> float:
    """The learning rate of a step, counted from 1."""
    done = step - 1
    if done < warmup:
        return peak * (done + 1) / (warmup + 1)
    progress = (done - warmup) / (num_steps - warmup)
    factors = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
    return peak * factors[kind]


CHANGES = {
    "longer": (("--num_train_epochs", 4), 16, {}),
    "longer by steps": (("--max_steps", 12), 12, {}),
    "other peak": (("--num_train_epochs", 4, "--learning_rate", 3e-4), 16, {"peak": 3e-4}),
    "linear": (("--num_train_epochs", 4, "--lr_scheduler_type", "linear"), 16, {"kind": "linear"}),
    "constant": (("--num_train_epochs", 4, "--lr_scheduler_type", "constant"), 16, {"kind": "constant"}),
    "warm-up": (("--num_train_epochs", 4, "--warmup_steps", 12), 16, {"warmup": 12}),
    "warm-up as a fraction": (("--num_train_epochs", 4, "--warmup_ratio", 0.25), 16, {"warmup": 4}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_schedule_of_the_new_flags_begins_at_the_resumed_step(run, images, name):
    flags, num_steps, schedule = CHANGES[name]
    former = logged(run)
    outcome = train(run, images, *flags, "--resume_from_checkpoint", "latest", "--allow_changed_arguments")
    assert_well(outcome)
    rates = logged(run)
    assert {step: rates[step] for step in range(1, 9)} == former
    for step in range(9, num_steps + 1):
        assert rates[step] == pytest.approx(scheduled(step, num_steps, **schedule), rel=1e-9), step
    assert max(rates) == num_steps
    said = re.findall(r"the learning rate goes from (\S+) to (\S+): from step (\d+) on", outcome.stderr)
    assert len(said) == 1
    assert (float(said[0][0]), int(said[0][2])) == (0.0, 9)
    assert float(said[0][1]) == pytest.approx(rates[9], rel=1e-3)


@pytest.mark.parametrize(
    "flags, num_steps, schedule",
    [
        (("--num_train_epochs", 1.5), 6, {}),
        (("--num_train_epochs", 2, "--learning_rate", 1e-2), 8, {"peak": 1e-2}),
        (("--num_train_epochs", 2, "--lr_scheduler_type", "constant"), 8, {"kind": "constant"}),
        (("--num_train_epochs", 2, "--warmup_steps", 7), 8, {"warmup": 7}),
    ],
    ids=str,
)
def test_a_run_that_was_not_finished_goes_on_by_the_new_schedule(run, images, flags, num_steps, schedule):
    first = run / "run" / "checkpoints" / "step-00000004"
    outcome = train(run, images, *flags, "--resume_from_checkpoint", first, "--allow_changed_arguments")
    assert_well(outcome)
    rates = logged(run)
    for step in range(5, num_steps + 1):
        assert rates[step] == pytest.approx(scheduled(step, num_steps, **schedule), rel=1e-9), step
    assert "the learning rate goes from" in outcome.stderr


def test_other_settings_of_the_optimizer_are_used(run, images):
    first = run / "run" / "checkpoints" / "step-00000004"
    flags = ("--num_train_epochs", 2, "--weight_decay", 900, "--resume_from_checkpoint", first)
    digests = []
    for more in ((), ("--allow_changed_arguments",)):
        outcome = train(run, images, *(flags if more else ("--num_train_epochs", 2, *flags[4:])), *more)
        assert_well(outcome)
        assert "the learning rate goes" not in outcome.stderr
        digests.append(contents(run / "run" / "checkpoints" / "step-00000008")["model.safetensors"])
    assert digests[0] != digests[1]


def test_the_same_flags_go_on_as_before(run, images):
    reference = contents(run / "run" / "checkpoints" / "step-00000008")
    rates, first = logged(run), run / "run" / "checkpoints" / "step-00000004"
    for more in ((), ("--allow_changed_arguments",)):
        outcome = train(run, images, "--num_train_epochs", 2, "--resume_from_checkpoint", first, *more)
        assert_well(outcome)
        assert "the learning rate goes" not in outcome.stderr
        assert logged(run) == rates
        again = contents(run / "run" / "checkpoints" / "step-00000008")
        assert again["model.safetensors"] == reference["model.safetensors"]


@pytest.mark.parametrize("flags", [("--num_train_epochs", 4), ("--max_steps", 30)], ids=str)
def test_the_refusal_says_how_to_go_on_for_longer(run, images, flags):
    before = contents(run / "run")
    outcome = train(run, images, *flags, "--resume_from_checkpoint", "latest")
    assert_sentence(outcome, "--allow_changed_arguments", "longer", "--model_name_or_path")
    assert contents(run / "run") == before


@pytest.mark.parametrize("flags", [("--num_train_epochs", 1), ("--max_steps", 3)], ids=str)
def test_fewer_steps_than_are_done_are_refused(run, images, flags):
    before = contents(run / "run")
    outcome = train(run, images, *flags, "--resume_from_checkpoint", "latest", "--allow_changed_arguments")
    assert_sentence(outcome, "8 steps", "--num_train_epochs")
    assert contents(run / "run") == before


@pytest.mark.parametrize(
    "flags", [("--optim", "muon"), ("--layer_decay", 0.7), ("--kernel_sizes", 7), ("--ema_decay", 0.9)], ids=str
)  # fmt: skip
def test_what_the_state_does_not_fit_is_refused_by_name(run, images, flags):
    before = contents(run / "run")
    words = ("--num_train_epochs", 4, *flags, "--resume_from_checkpoint", "latest", "--allow_changed_arguments")
    assert_sentence(train(run, images, *words), flags[0].removeprefix("--"), "--model_name_or_path")
    assert contents(run / "run") == before


def test_a_longer_run_can_start_from_the_model(run, images):
    words = [
        "train", "--train_dir", images, "--output_dir", run / "more", "--model_name_or_path", run / "run",
        "--num_train_epochs", 1, "--per_device_train_batch_size", 8, "--no_duplicate_check",
    ]  # fmt: skip
    assert_well(command(words, run))
