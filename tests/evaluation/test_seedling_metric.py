import os
import subprocess
import sys

import numpy as np
import torch

from seedling_hf.evaluation.metrics import classification_metrics

NAMES = ["Black-grass", "Charlock", "Fat Hen", "Maize"]
# What a training run has imported before its first evaluation, and then the metric.
FIRST_FIGURES = """
import random, sys
import numpy as np, torch, sklearn.metrics, seedling_hf.training.loop
from seedling_hf.evaluation.evaluator import compute_metrics

assert "evaluate" not in sys.modules

def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

for seeded in (random.seed, np.random.seed, torch.manual_seed):
    seeded(0)
before = states()
compute_metrics(np.eye(2), np.arange(2), ["a", "b"])
assert "evaluate" in sys.modules
assert states() == before
"""


def test_the_metric_of_evaluate_gives_the_same_figures_from_batches(probabilities, labels):
    from seedling_hf.evaluation.seedling_metric import SeedlingMetric

    expected = classification_metrics(probabilities, labels, NAMES)
    metric = SeedlingMetric()
    assert metric.compute(predictions=probabilities, references=labels, class_names=NAMES) == expected
    for rows in np.array_split(np.arange(200), 3):
        metric.add_batch(predictions=torch.tensor(probabilities[rows]), references=torch.tensor(labels[rows]))
    assert metric.compute(class_names=NAMES) == expected


def test_two_metrics_at_once_do_not_disturb_each_other(probabilities, labels):
    from seedling_hf.evaluation.seedling_metric import SeedlingMetric

    first, second = SeedlingMetric(), SeedlingMetric()
    first.add_batch(predictions=probabilities[:50], references=labels[:50])
    second.add_batch(predictions=probabilities[50:], references=labels[50:])
    assert first.compute()["num_examples"] == 50
    assert second.compute()["num_examples"] == 150


def test_the_first_figures_of_a_run_draw_no_random_numbers_and_write_no_files(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    command = [sys.executable, "-c", FIRST_FIGURES]
    subprocess.run(command, env=environment | {"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}, check=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_plain_function_and_the_start_of_predict_do_not_import_evaluate():
    code = (
        "import sys, seedling_hf.evaluation.metrics as m; m.classification_metrics([[1.0, 0.0]], [0])\n"
        "import seedling_hf.inference.prediction, seedling_hf.evaluation.report_files, seedling_hf.commands.predict\n"
        "print('evaluate' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
