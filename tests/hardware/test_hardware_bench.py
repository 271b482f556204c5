"""The bench: pinned cores, the anchor that tells of drift, the gate before more than one thread, and
measuring in turns.
"""

import os
import subprocess
import sys
import time

import pytest

from mpsearch.errors import MpsearchError
from mpsearch.hardware import Cell, Timing, time_interleaved
from mpsearch.hardware import bench as bench_module
from mpsearch.hardware.bench import CpuBench, busy_shares, held_still, pinned, time_apart, wait_for_idle
from mpsearch.hardware.measure import summary

CELL = Cell(lambda: None, ("Op",), True, 0.0, 0.1)


def test_pinning_is_undone_even_after_an_error():
    before = os.sched_getaffinity(0)
    with pytest.raises(ZeroDivisionError), pinned(1) as cores:
        assert os.sched_getaffinity(0) == set(cores) and len(cores) == 1 and set(cores) <= before
        raise ZeroDivisionError
    assert os.sched_getaffinity(0) == before


def test_the_idlest_core_is_taken(monkeypatch):
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.setattr(
        "mpsearch.hardware.bench.busy_shares",
        lambda seconds: {c: 0.0 if c == cores[-1] else 0.9 for c in cores},
    )
    with pinned(1) as taken:
        assert taken == (cores[-1],)


def test_busy_shares_are_those_of_each_core(monkeypatch):
    monkeypatch.setattr(
        "psutil.cpu_percent",
        lambda seconds, percpu: [75.0, 0.0] if (seconds, percpu) == (0.1, True) else None,
    )
    assert busy_shares(0.1) == {0: 0.75, 1: 0.0}


def test_a_core_that_computes_is_seen_busy():
    ends = time.monotonic() + 30
    working = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        while max(busy_shares(0.2).values()) < 0.5 and time.monotonic() < ends:
            pass
        assert max(busy_shares(0.2).values()) > 0.5
    finally:
        working.kill()
        working.wait()


def test_one_thread_needs_no_idle_machine():
    wait_for_idle(1, 0.0, lambda s: {0: 1.0, 1: 1.0})


def test_more_threads_wait_for_the_machine_to_be_idle():
    looks = [{0: 1.0, 1: 0.9}, {0: 0.5, 1: 0.0}, {0: 0.02, 1: 0.03}, {0: 1.0, 1: 1.0}]
    wait_for_idle(2, 30.0, lambda s: looks.pop(0))
    assert len(looks) == 1


def test_a_machine_that_stays_busy_is_refused():
    with pytest.raises(MpsearchError, match=r"1\.5 of 2 cores busy.*--threads 1"):
        wait_for_idle(2, 0.0, lambda s: {0: 1.0, 1: 0.5})


def test_cores_that_are_left_over_may_be_busy():
    wait_for_idle(2, 0.0, lambda s: {0: 1.0, 1: 0.0, 2: 0.0, 3: 0.9})


def test_the_anchor_tells_of_drift():
    bench = CpuBench()
    bench.anchors_us = [100.0, 101.0, 99.0, 100.0]
    assert bench.drift == pytest.approx(0.01)
    bench.anchors_us.append(130.0)
    assert bench.drift == pytest.approx(0.3)


def test_a_cell_is_timed_in_two_passes_between_anchors(monkeypatch):
    times = iter([100.0, 20.0, 101.0, 30.0, 99.0])
    monkeypatch.setattr(
        "mpsearch.hardware.bench.time_callable",
        lambda run, **options: Timing(next(times), 0.5, 9, "cpu", 15.0),
    )
    found = CpuBench().measure(CELL)
    timing = found.timing
    assert (timing.median_us, timing.passes_us, timing.repeats, found.anchor_us) == (
        25.0,
        (20.0, 30.0),
        18,
        100.0,
    )
    assert timing.apart == pytest.approx(0.4) and not found.steady and found.energy_mj is None


def test_a_cell_beside_a_drifting_anchor_is_not_steady(monkeypatch):
    found = iter([100.0, 20.0, 140.0, 20.1, 100.0])
    monkeypatch.setattr(
        "mpsearch.hardware.bench.time_callable",
        lambda run, **options: Timing(next(found), 0.5, 9, "cpu", 15.0),
    )
    assert not CpuBench().measure(CELL).steady


def test_runs_in_turns_meet_a_drift_alike(monkeypatch):
    """A machine that slows down steadily: in turns, the same work twice takes the same; one after the other
    it would not.
    """
    clock = {"ns": 0.0, "factor": 1.0}

    def work():
        clock["ns"] += 2e6 * clock["factor"]
        clock["factor"] *= 1.002

    monkeypatch.setattr("mpsearch.hardware.measure.time.process_time_ns", lambda: int(clock["ns"]))
    same = time_interleaved([work, work], seconds=0.1, rounds=8)
    assert same[0].median_us == pytest.approx(same[1].median_us, rel=0.05)
    assert len(same[0].passes_us) == 2 and clock["factor"] > 1.2


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_passes_need_an_even_number_of_rounds(rounds):
    with pytest.raises(ValueError, match="even"):
        time_interleaved([lambda: None], rounds=rounds)


def test_a_summary_is_of_all_samples():
    timing = summary([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]], 2)
    assert (timing.median_us, timing.min_us, timing.passes_us, timing.clock, timing.repeats) == (
        2.5,
        1.0,
        (2.0, 3.0),
        "wall",
        6,
    )
    assert timing.apart == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("timing", "still"),
    [
        ((100.0, 19.0, (99.0, 101.0)), True),
        ((100.0, 21.0, (99.0, 101.0)), False),
        ((100.0, 5.0, (95.0, 105.0)), False),
    ],
)
def test_held_still(timing, still):
    median, iqr, passes = timing
    assert held_still(Timing(median, iqr, 9, "cpu", 90.0, passes)) is still


_SPELL = [15, 15.1, 10, 10, 10, 9.9, 10, 10.1, 10]


@pytest.mark.parametrize(
    ("medians", "rounds", "expected", "took"),
    [([9, 10, 10.1], 1, 10, 3), (_SPELL, 3, 10, 9), ([15, 15, 10], 1, 15, 3)],
)
def test_a_slow_spell_is_outvoted_by_passes_apart(monkeypatch, medians, rounds, expected, took):
    left = iter(medians)
    monkeypatch.setattr(
        bench_module, "time_callable", lambda run, **about: Timing(next(left), 0.1, 7, "cpu", 8.0)
    )
    monkeypatch.setattr(bench_module, "_PAUSE_S", 0.0)
    timing = time_apart(lambda: None, rounds=rounds)
    assert timing.median_us == expected
    assert timing.passes_us == tuple(medians[:took]) and timing.repeats == 7 * took
    assert timing.iqr_us >= 0.1
