"""What a model says of its own certainty, held against the truth: how often it is sure, and how often right then."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seedling_hf.evaluation.metrics import wilson_interval
from seedling_hf.inference.answers import NOT_SURE, SURE, UNFAMILIAR
from seedling_hf.inference.judgement import Certainty


@dataclass(frozen=True)
class Answers:
    """The answers of one certainty: how many there are, their share of all, and how many of them are right.

    `accuracy` with its 95% `interval` (Wilson) is None where there are none.
    """

    count: int
    share: float
    correct: int
    accuracy: float | None
    interval: list[float] | None


@dataclass(frozen=True)
class Trust:
    """How many answers are sure (from the probability `threshold` on), not sure and unfamiliar.

    None stands for what the model does not say: the first three without a threshold, the last without familiarity.
    """

    threshold: float | None
    sure: Answers | None
    not_sure: Answers | None
    unfamiliar: Answers | None

    @property
    def rows(self) -> list[tuple[str, Answers]]:
        """The certainties that the model knows, with their answers."""
        rows = ((SURE, self.sure), (NOT_SURE, self.not_sure), (UNFAMILIAR, self.unfamiliar))
        return [(word, answers) for word, answers in rows if answers is not None]


def list_certainties(
    certainty: Certainty, confidence: np.ndarray, unfamiliarity: np.ndarray | None
) -> list[str | None]:
    """The word for each of the predictions with probabilities (N,) and, where it is known, unfamiliarity (N,)."""
    values = [None] * len(confidence) if unfamiliarity is None else unfamiliarity.tolist()
    return [certainty.of(probability, value) for probability, value in zip(confidence.tolist(), values, strict=True)]


def measure_trust(certainty: Certainty, said: Sequence[str | None], correct: np.ndarray) -> Trust | None:
    """How the words for N predictions fit with which of them are right, (N,); None where nothing is said."""
    if not certainty.words:
        return None
    said = np.array(said, dtype=object)

    def count(word: str) -> Answers | None:
        if word not in certainty.words:
            return None
        chosen = correct[said == word]
        right, total = int(chosen.sum()), len(chosen)
        if not total:
            return Answers(0, 0.0, 0, None, None)
        return Answers(total, total / len(said), right, right / total, list(wilson_interval(right, total)))

    return Trust(certainty.threshold, *map(count, (SURE, NOT_SURE, UNFAMILIAR)))
