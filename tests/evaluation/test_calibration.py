import numpy as np
import pytest

from seedling_hf.evaluation.calibration import (
    NotSure,
    area_under_risk,
    bootstrap_intervals,
    calibrate,
    coverage_risk,
    cross_fit,
    cross_fit_not_sure,
    fit_temperature,
    halves,
    not_sure_threshold,
    scale_probabilities,
    sure_threshold,
    thin_curve,
)
from seedling_hf.evaluation.metrics import expected_calibration_error, reliability_bins


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def overconfident() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits three times too large, and labels drawn from the probabilities of the true ones."""
    generator = np.random.default_rng(0)
    logits = 2 * generator.standard_normal((4000, 5))
    labels = np.array([generator.choice(5, p=row) for row in softmax(logits)])
    return 3 * logits, softmax(3 * logits), labels


def test_scaling_divides_the_logits(overconfident):
    logits, probabilities, _ = overconfident
    np.testing.assert_allclose(scale_probabilities(probabilities, 2.5), softmax(logits / 2.5), rtol=1e-9)


def test_the_temperature_of_logits_that_are_three_times_too_large_is_three(overconfident):
    _, probabilities, labels = overconfident
    # 4,000 random labels: a standard error of about 0.06.
    assert fit_temperature(probabilities, labels) == pytest.approx(3, abs=0.2)


def test_scaling_reduces_the_calibration_error_and_changes_no_prediction(overconfident):
    _, probabilities, labels = overconfident
    found = calibrate(probabilities, labels, seed=1, fitted_on="these")
    assert found.before.expected_calibration_error > 0.2
    assert found.after.expected_calibration_error < 0.03
    assert (cross_fit(probabilities, labels, 1).argmax(1) == probabilities.argmax(1)).all()


def test_a_zero_probability_is_scaled_to_a_number():
    scaled = scale_probabilities(np.array([[1.0, 0.0], [0.5, 0.5]]), 0.5)
    assert np.isfinite(scaled).all()
    np.testing.assert_allclose(scaled.sum(1), 1)


def test_no_image_affects_its_own_temperature(overconfident):
    """The temperature of an image stays where its own label changes, and moves where one of the other half does."""
    _, probabilities, labels = (part[:40] for part in overconfident)
    first, second = halves(40, seed=5)
    before = cross_fit(probabilities, labels, 5)
    changed = labels.copy()
    changed[first[0]] = (labels[first[0]] + 1) % 5
    after = cross_fit(probabilities, changed, 5)
    np.testing.assert_array_equal(after[first], before[first])
    assert not np.allclose(after[second], before[second])


def test_the_halves_hold_every_example_once():
    first, second = halves(7, seed=0)
    assert sorted([*first, *second]) == list(range(7))
    assert abs(len(first) - len(second)) == 1


def test_the_temperature_of_other_images_scales_these(overconfident):
    _, probabilities, labels = overconfident
    found = calibrate(
        probabilities[:50], labels[:50], seed=0, fitted_on="others", fitted=(probabilities[50:], labels[50:])
    )
    temperature = fit_temperature(probabilities[50:], labels[50:])
    scaled = scale_probabilities(probabilities[:50], temperature)
    assert found.temperature == temperature
    assert found.num_fitted == 3950
    assert not found.cross_fitted
    expected = expected_calibration_error(reliability_bins(scaled.max(1), scaled.argmax(1) == labels[:50]))
    assert found.after.expected_calibration_error == pytest.approx(expected)


def test_predictions_of_equal_confidence_are_kept_or_withheld_together():
    curve = coverage_risk(np.array([0.9, 0.5, 0.5, 0.3]), np.array([True, True, False, False]))
    assert curve["threshold"].tolist() == [0.9, 0.5, 0.3]
    assert curve["coverage"].tolist() == [0.25, 0.75, 1.0]
    assert curve["risk"].tolist() == [0, 1 / 3, 0.5]


def test_the_area_is_the_mean_over_all_orders_of_predictions_of_equal_confidence():
    confidence, correct = np.array([0.9, 0.5, 0.5]), np.array([True, True, False])
    assert area_under_risk(confidence, correct) == pytest.approx((0 + 1 / 3 + 1 / 3) / 3)


def test_the_lowest_threshold_is_found_below_one_that_is_not_enough():
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    correct = np.array([True, False, True, True, False])
    found = not_sure_threshold(confidence, correct, 0.75)
    assert found == NotSure(0.75, threshold=0.6, coverage=0.8, accuracy=0.75)


def test_there_is_no_threshold_if_none_is_enough():
    found = not_sure_threshold(np.array([0.9, 0.8]), np.array([False, True]), 0.95)
    assert found == NotSure(0.95, threshold=None, coverage=None, accuracy=None)


def test_a_threshold_of_one_half_is_judged_on_the_other():
    generator = np.random.default_rng(3)
    confidence = generator.random(20_000)
    correct = generator.random(20_000) < confidence
    found = cross_fit_not_sure(confidence, correct, 0.9, seed=0)
    # Calibrated predictions above t are right (1 + t) / 2 of the time: t = 0.8 keeps a fifth. Random: to 0.02.
    assert found.accuracy == pytest.approx(0.9, abs=0.02)
    assert found.coverage == pytest.approx(0.2, abs=0.04)


def test_the_bootstrap_is_the_same_for_the_same_seed_and_another_for_another():
    matrix = [[30, 10, 0], [5, 20, 5], [0, 2, 18]]
    assert bootstrap_intervals(matrix, 1) == bootstrap_intervals(matrix, 1)
    assert bootstrap_intervals(matrix, 1) != bootstrap_intervals(matrix, 2)


def test_the_bootstrap_interval_of_many_images_is_the_normal_one():
    matrix = np.array([[450, 50], [50, 450]])
    half = 1.96 * np.sqrt(0.9 * 0.1 / 1000)
    # 2,000 resamples: the ends have a standard error of about 0.0006.
    assert bootstrap_intervals(matrix, 0).accuracy == pytest.approx([0.9 - half, 0.9 + half], abs=0.003)


def test_the_interval_has_no_width_if_every_prediction_is_right():
    found = bootstrap_intervals([[5, 0], [0, 5]], 0)
    assert (found.accuracy, found.macro_f1) == ([1.0, 1.0], [1.0, 1.0])


def test_a_long_curve_keeps_its_ends():
    generator = np.random.default_rng(0)
    curve = coverage_risk(generator.random(5000), generator.random(5000) < 0.7)
    points = thin_curve(curve)
    assert len(points) == 101
    assert points[0]["coverage"] == 1 / 5000
    assert points[-1]["coverage"] == 1


def test_the_temperature_of_a_few_images_that_are_all_right_stays_near_1():
    probabilities = np.tile([0.7, 0.2, 0.1], (18, 1))
    assert 0.2 < fit_temperature(probabilities, np.zeros(18, dtype=int)) < 1


def test_of_many_images_the_prior_changes_nothing():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(5000, 4)) * 2
    labels = np.array([generator.choice(4, p=row) for row in softmax(logits / 3)])
    assert fit_temperature(softmax(logits), labels) == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize(
    ("correct", "familiar", "expected"),
    [
        ([1] * 10, [1] * 10, 0.1),  # all are right: every answer is sure
        ([0] * 5 + [1] * 5, [1] * 10, 0.6),  # 95% of those above are right
        ([0] * 10, [1] * 10, 1),  # none is ever right
        ([1] * 10, [0] * 10, 1),  # nothing is familiar
        ([0] * 5 + [1] * 5, [0] * 5 + [1] * 5, 0.6),  # the wrong ones are unfamiliar
    ],
)
def test_an_answer_is_sure_from_where_sure_answers_are_right(correct, familiar, expected):
    confidence = np.arange(1, 11) / 10
    assert sure_threshold(confidence, np.array(correct, bool), np.array(familiar, bool)) == pytest.approx(expected)


def test_where_nearly_all_answers_are_right_the_least_confident_are_not_sure():
    confidence = np.arange(1, 101) / 100
    correct = confidence != 0.03
    assert sure_threshold(confidence, correct, np.ones(100, bool)) == pytest.approx(0.06)  # 95 of 100 remain
