"""What a model says of its own certainty, held against the truth."""

import numpy as np
import pytest

from seedling_hf.evaluation.metrics import wilson_interval
from seedling_hf.evaluation.trust import list_certainties, measure_trust
from seedling_hf.inference.judgement import Certainty

CONFIDENCE = np.array([0.9, 0.9, 0.5, 0.9, 0.4])
UNFAMILIARITY = np.array([0.1, 0.2, 0.3, 1.5, 1.5])
CORRECT = np.array([True, False, True, False, True])


def test_every_certainty_has_its_count_and_how_many_are_right():
    certainty = Certainty(0.6, True)
    said = list_certainties(certainty, CONFIDENCE, UNFAMILIARITY)
    assert said == ["sure", "sure", "not sure", "unfamiliar", "unfamiliar"]
    trust = measure_trust(certainty, said, CORRECT)
    assert {word: (a.count, a.share, a.correct, a.accuracy) for word, a in trust.rows} == {
        "sure": (2, 0.4, 1, 0.5), "not sure": (1, 0.2, 1, 1.0), "unfamiliar": (2, 0.4, 1, 0.5),
    }  # fmt: skip
    assert trust.sure.interval == list(wilson_interval(1, 2))
    assert trust.threshold == 0.6


@pytest.mark.parametrize(
    ("certainty", "counts"),
    [
        (Certainty(0.6), {"sure": 3, "not sure": 2}),
        (Certainty(None, True), {"unfamiliar": 2}),
        (Certainty(0.95, True), {"sure": 0, "not sure": 3, "unfamiliar": 2}),
    ],
)
def test_only_what_the_model_can_say_is_counted(certainty, counts):
    said = list_certainties(certainty, CONFIDENCE, UNFAMILIARITY if certainty.knows_familiar else None)
    trust = measure_trust(certainty, said, CORRECT)
    assert {word: answers.count for word, answers in trust.rows} == counts


def test_a_certainty_without_images_has_no_accuracy():
    trust = measure_trust(Certainty(0.6, True), ["sure"], np.array([True]))
    assert (trust.unfamiliar.accuracy, trust.unfamiliar.interval, trust.unfamiliar.share) == (None, None, 0.0)


def test_a_model_that_says_nothing_has_no_trust():
    assert measure_trust(Certainty(), [None], np.array([True])) is None
