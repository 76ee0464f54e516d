import json
import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, precision_score, recall_score

from seedling_hf.errors import InputError
from seedling_hf.evaluation.metrics import (
    classification_metrics,
    expected_calibration_error,
    reliability_bins,
    wilson_interval,
)

NAMES = ["Black-grass", "Charlock", "Fat Hen", "Maize"]


def test_every_figure_equals_that_of_scikit_learn(probabilities, labels):
    found = classification_metrics(probabilities, labels, NAMES)
    predictions = probabilities.argmax(1)
    assert found["accuracy"] == accuracy_score(labels, predictions)
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predictions, average="macro"), rel=1e-12)
    assert found["confusion_matrix"] == confusion_matrix(labels, predictions).tolist()
    assert found["loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-12)
    per_class = list(found["per_class"].values())
    assert [c["precision"] for c in per_class] == precision_score(labels, predictions, average=None).tolist()
    assert [c["recall"] for c in per_class] == recall_score(labels, predictions, average=None).tolist()
    assert [c["f1"] for c in per_class] == f1_score(labels, predictions, average=None).tolist()
    assert [c["support"] for c in per_class] == np.bincount(labels).tolist()


def test_rows_of_the_confusion_matrix_are_the_truth():
    found = classification_metrics(np.array([[0.1, 0.9], [0.2, 0.8]]), np.array([0, 1]))
    assert found["confusion_matrix"] == [[0, 1], [0, 1]]


def test_a_class_that_never_occurs_does_not_lower_macro_f1():
    found = classification_metrics(np.eye(3)[[0, 1, 1]], np.array([0, 1, 1]), ["a", "b", "c"])
    assert found["macro_f1"] == 1.0
    assert found["per_class"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


def test_the_figures_survive_json(probabilities, labels):
    found = classification_metrics(probabilities, labels, NAMES)
    assert json.loads(json.dumps(found)) == found


def test_the_interval_of_81_successes_in_263_trials_is_that_of_newcombe():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3: printed to four places.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_the_interval_keeps_its_width_when_all_is_right():
    low, high = wilson_interval(10, 10)
    assert high == pytest.approx(1.0, abs=1e-12)
    assert low < 0.75


def test_bins_include_their_upper_edge_and_empty_ones_are_skipped():
    bins = reliability_bins(np.array([0.2, 0.4, 0.41, 1.0]), np.array([True, False, True, True]), 5)
    assert [(row["high"], row["count"]) for row in bins] == [(0.2, 1), (0.4, 1), (0.6, 1), (1.0, 1)]


def test_the_calibration_error_of_a_case_computed_by_hand():
    # One bin: (0.9 + 0.92) / 2 confident, half right: off by 0.41. Another: 0.6 confident, all right: off by 0.4.
    confidence, correct = np.array([0.9, 0.92, 0.6, 0.6]), np.array([True, False, True, True])
    assert expected_calibration_error(reliability_bins(confidence, correct, 10)) == pytest.approx(
        (abs(1 - 0.9) + abs(0 - 0.92) + 2 * 0.4) / 4, abs=1e-12
    ), "0.9 is the upper edge of its own bin"
    assert expected_calibration_error(reliability_bins(confidence, correct, 5)) == pytest.approx(
        (2 * 0.41 + 2 * 0.4) / 4
    )


def test_a_probability_of_one_is_in_the_last_bin_and_zero_in_the_first():
    assert expected_calibration_error(reliability_bins(np.array([1.0, 0.0]), np.array([True, False]))) == 0.0


def test_a_true_class_of_probability_zero_gives_a_large_but_finite_loss():
    loss = classification_metrics(np.array([[1.0, 0.0]]), np.array([1]))["loss"]
    assert 700 < loss < math.inf


@pytest.mark.parametrize(
    ("probabilities", "labels", "names", "message"),
    [
        (np.ones((3, 2)) / 2, np.zeros(2, int), None, "found (3, 2) and (2,)"),
        (np.ones((0, 2)), np.zeros(0, int), None, "N ≥ 1"),
        (np.ones((1, 2)) / 2, np.array([2]), None, "from 0 to 1, found int64 from 2 to 2"),
        (np.ones((1, 2)) / 2, np.array([0.5]), None, "whole numbers"),
        (np.array([[3.0, -2.0]]), np.array([0]), None, "softmax"),
        (np.full((1, 2), np.nan), np.array([0]), None, "NaN"),
        (np.ones((1, 2)) / 2, np.array([0]), ["a", "a"], "2 different class names"),
    ],
)
def test_what_is_not_a_classification_is_refused(probabilities, labels, names, message):
    with pytest.raises(InputError, match="expected") as refusal:
        classification_metrics(probabilities, labels, names)
    assert message in str(refusal.value)
