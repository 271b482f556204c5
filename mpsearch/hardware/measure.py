"""Timing: process CPU time on one thread (a busy neighbour does not move it), wall clock on more."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Of one call, from `repeats` samples.

    Args:
        median_us: Median.
        iqr_us: Distance of the quartiles.
        repeats: Samples.
        clock: `cpu` or `wall`.
    """

    median_us: float
    iqr_us: float
    repeats: int
    clock: str


def time_callable(run: Callable[[], object], *, threads: int = 1, seconds: float = 0.25, least_repeats: int = 7) -> Timing:
    """Time `run` after a warm-up, in samples of at least a millisecond, for about `seconds`.

    Args:
        run: Does the work once.
        threads: 1 takes process CPU time, more take the wall clock.
        seconds: Of measuring; warm-up not included.
        least_repeats: Samples taken even if that takes longer.
    """
    clock = time.process_time_ns if threads == 1 else time.perf_counter_ns
    for _ in range(3):
        run()
    start = clock()
    run()
    once_ns = max(clock() - start, 1)
    inner = max(1, round(1e6 / once_ns))
    repeats = max(least_repeats, min(200, round(seconds * 1e9 / (inner * once_ns))))
    samples = np.empty(repeats)
    for i in range(repeats):
        start = clock()
        for _ in range(inner):
            run()
        samples[i] = (clock() - start) / inner / 1e3
    low, median, high = np.percentile(samples, (25, 50, 75))
    return Timing(float(median), float(high - low), repeats, "cpu" if threads == 1 else "wall")
