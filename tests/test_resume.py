"""A run that was killed, at any moment, ends as if nothing had happened: every file the same, to the last bit.

A random number of seconds after its start each run is killed by SIGKILL, and resumed, again and again.
"""

import itertools
import random
import time

import pytest
from training_runs import NUM_STEPS, Run, kill


def killed_again_and_again(make_run, kills: int, seed: int) -> list[int]:
    """Kills and resumes runs until `kills` have died; each that reaches its end must equal one never killed.

    Returns:
        The steps at which runs were resumed.
    """
    reference = make_run("reference")
    started = time.monotonic()
    reference.finish()
    duration = time.monotonic() - started
    expected = reference.contents()
    assert f"checkpoints/step-{NUM_STEPS:08d}/ema.safetensors" in expected
    moments, resumed_steps = random.Random(seed), []
    for attempt in itertools.count():
        run = make_run(f"attempt-{attempt}")
        while kills > 0:
            processes = run.start()
            # Few in the imports, most in the steps, evaluations and saves, a few in the report.
            time.sleep(moments.uniform(0.2, 0.7) * duration)
            if not kill(processes):
                break
            kills -= 1
        run.finish()
        assert run.contents() == expected
        resumed_steps += run.resumed_steps
        if kills == 0:
            return resumed_steps


SETTINGS = {
    "one process": {},
    "one process, two workers": {"num_workers": 2},
    "two processes": {"num_processes": 2},
    "two processes, two workers": {"num_processes": 2, "num_workers": 2},
}


@pytest.mark.parametrize("name", [
    "one process", pytest.param("one process, two workers", marks=pytest.mark.slow),
    pytest.param("two processes", marks=pytest.mark.slow), "two processes, two workers",
])  # fmt: skip
def test_a_run_killed_a_few_times_ends_as_if_nothing_had_happened(tmp_path, pictures, name):
    assert killed_again_and_again(lambda folder: Run(tmp_path / folder, pictures, **SETTINGS[name]), kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_killed_at_thirty_moments_ends_as_if_nothing_had_happened(tmp_path, pictures, name):
    steps = killed_again_and_again(lambda folder: Run(tmp_path / folder, pictures, **SETTINGS[name]), kills=30, seed=1)
    print(sorted(steps))
    assert len({*steps}) > 5  # the kills were spread
