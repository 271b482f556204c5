"""How long a file takes in a new process: what several say of the next."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

import mpsearch.hardware.new_process as module
from mpsearch.hardware.measure import Timing
from mpsearch.hardware.new_process import PROCESSES, SHARE, NewProcessTiming, time_in_new_processes


@pytest.fixture
def readings(monkeypatch):
    """`readings(values)`: what one process after the other measures; the files that were asked for."""

    def patch(values):
        asked, waiting = [], list(values)

        def run_fresh(path, inputs, *, threads, seconds, batch):
            asked.append((path, threads))
            return SimpleNamespace(timing=Timing(waiting.pop(0), 1.0, 10, "cpu"))

        monkeypatch.setattr(module, "run_fresh", run_fresh)
        return asked

    return patch


def test_the_bound_is_the_prediction_interval_of_the_logarithms():
    found = NewProcessTiming((90.0, 100.0, 104.0, 97.0), "cpu")
    logs = np.log(found.readings_us)
    _, high = scipy.stats.t.interval(2 * SHARE - 1, 3, logs.mean(), logs.std(ddof=1) * np.sqrt(1.25))
    assert found.high_us == pytest.approx(np.exp(high)) and found.high_us > 104.0
    assert found.median_us == 98.5 and found.iqr_us == pytest.approx(101.0 - 95.25)


def test_nothing_that_was_seen_is_above_the_bound():
    assert NewProcessTiming((100.0,) * 5 + (120.0,) * 2 + (150.0,), "cpu").high_us >= 150.0
    assert NewProcessTiming((100.0, 100.0), "cpu").high_us == pytest.approx(100.0)


def test_the_next_process_stays_below_the_bound_as_often_as_it_says():
    draws = np.exp(np.random.default_rng(0).normal(np.log(400), 0.04, (2000, PROCESSES + 1)))
    kept = np.mean([row[-1] <= NewProcessTiming(tuple(row[:-1]), "cpu").high_us for row in draws])
    assert SHARE - 0.015 < kept < 0.98


def test_a_reading_far_above_the_others_is_taken_once_more(readings, tmp_path):
    asked, told = readings([100.0, 160.0, 101.0, 99.0, 102.0, 98.0, 103.0]), []
    found = time_in_new_processes(
        tmp_path / "m.onnx",
        np.zeros((1, 2)),
        threads=2,
        on_process=lambda done, total: told.append((done, total)),
    )
    assert found.readings_us == (100.0, 103.0, 101.0, 99.0, 102.0, 98.0) and found.clock == "cpu"
    assert asked == [(tmp_path / "m.onnx", 2)] * (PROCESSES + 1) and told == [
        (i, PROCESSES) for i in range(1, PROCESSES + 1)
    ]


def test_a_file_that_is_slow_twice_is_slow(readings, tmp_path):
    readings([100.0, 160.0, 101.0, 170.0])
    assert time_in_new_processes(tmp_path / "m.onnx", np.zeros((1, 2)), processes=3).readings_us == (
        100.0,
        160.0,
        101.0,
    )


def test_one_process_tells_nothing_of_the_next(tmp_path):
    with pytest.raises(ValueError, match="at least 2"):
        time_in_new_processes(tmp_path / "m.onnx", np.zeros((1, 2)), processes=1)
