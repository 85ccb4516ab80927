"""How long a step of training takes, as the benchmarks find out before they plan how many fit into some minutes."""

from types import SimpleNamespace

import pytest

from benchmarks import minutes
from codegrid.pipelines.train_prior import TrainPrior


@pytest.mark.parametrize(("fixed", "each"), [(0.0, 0.01), (0.1, 0.02), (0.5, 0.001), (0.05, 0.0)])
def test_a_step_is_timed_by_runs_that_differ_by_more_than_noise(monkeypatch, fixed, each):
    now, runs = 0.0, []

    def train(settings):
        nonlocal now
        noise = (-1) ** len(runs) * 0.04 * fixed  # so that the second run may seem to be the faster one
        now += fixed + noise + each * settings.steps
        runs.append(settings.steps)

    clocks = {"process_time": lambda: now * 60 * minutes.CORES, "perf_counter": lambda: now * 60}
    monkeypatch.setattr(minutes, "time", SimpleNamespace(**clocks))
    found = minutes.minutes_of_a_step(train, TrainPrior(codes="c", output="o"))
    assert runs[:3] == [1, minutes.TIMED, 2 * minutes.TIMED] and runs == sorted(set(runs))
    if each:
        assert found == pytest.approx(each, rel=0.4) and runs[-1] < 2000
    else:  # nothing to see even in the longest
        assert 0 < found < fixed / 1000 and runs[-1] == 2 * minutes.MOST
