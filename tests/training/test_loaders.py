"""Loaders report how long a run waits for them."""

import time

import pytest

from seedling_hf.training.loaders import TimedLoader
from seedling_hf.training.run_log import Timing


def test_the_waiting_time_is_that_of_the_loader_and_its_start():
    class Slow:
        dataset = range(2)

        def __iter__(self):
            time.sleep(0.2)
            for batch in self.dataset:
                time.sleep(0.1)
                yield batch

    timing = Timing(evaluation_wait=1.0)
    batches = []
    for batch in TimedLoader(Slow(), timing):
        time.sleep(0.5)
        batches.append(batch)
    assert batches == [0, 1]
    assert timing.evaluation_wait == pytest.approx(1.4, abs=0.09)  # without the 0.5 of the consumer
