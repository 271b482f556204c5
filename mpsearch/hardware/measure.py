"""Timing: process CPU time on one thread (a busy neighbour does not move it), wall clock on more."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Time of one call, from `repeats` samples.

    Args:
        median_us: Median.
        iqr_us: Distance of the quartiles.
        repeats: Samples.
        clock: `cpu` or `wall`.
        min_us: Least sample.
        passes_us: Medians of the passes that it was put together from, in order; empty for one pass.
    """

    median_us: float
    iqr_us: float
    repeats: int
    clock: str
    min_us: float = 0.0
    passes_us: tuple[float, ...] = ()

    @property
    def apart(self) -> float:
        """Distance of the passes as a share of the median: what measuring the same twice differs by. 0 for
        one pass.
        """
        return (max(self.passes_us) - min(self.passes_us)) / self.median_us if self.passes_us else 0.0


def time_callable(
    run: Callable[[], object], *, threads: int = 1, seconds: float = 0.25, least_repeats: int = 7
) -> Timing:
    """Time `run` after a warm-up, in samples of at least a millisecond, for about `seconds`.

    Args:
        run: Does the work once.
        threads: 1 takes process CPU time, more take the wall clock.
        seconds: Seconds of measuring; warm-up not included.
        least_repeats: Samples taken even if that takes longer.
    """
    return summary([_samples(run, threads, seconds, least_repeats)], threads)


def time_interleaved(
    runs: Sequence[Callable[[], object]],
    *,
    threads: int = 1,
    seconds: float = 0.25,
    rounds: int = 8,
    between: Callable[[], object] | None = None,
    seed: int = 0,
) -> list[Timing]:
    """Time several pieces of work in turns, each round in another order, so that a drift of the machine meets
    all alike.

    Odd and even rounds are two passes of the same: how far they lie apart is the A/A error of every
    comparison between the runs.

    Args:
        runs: Each does its work once.
        threads: 1 takes process CPU time, more take the wall clock.
        seconds: Seconds of measuring for each of them, over all rounds.
        rounds: Even, at least 2.
        between: Called before each round, such as a reading of the anchor.
        seed: Random seed of the orders.
    """
    if rounds < 2 or rounds % 2:
        raise ValueError(f"rounds is {rounds}; it must be even and at least 2.")
    held: list[tuple[list[float], list[float]]] = [([], []) for _ in runs]
    draw = np.random.default_rng(seed)
    for turn in range(rounds):
        if between is not None:
            between()
        for i in draw.permutation(len(runs)):
            held[i][turn % 2].extend(_samples(runs[i], threads, seconds / rounds, 3, warm=1))
    return [summary(passes, threads) for passes in held]


def summary(passes: Sequence[Sequence[float]], threads: int) -> Timing:
    """One timing from the samples, in microseconds, of one or more passes."""
    samples = np.concatenate([np.asarray(p, float) for p in passes])
    low, median, high = np.percentile(samples, (25, 50, 75))
    medians = tuple(float(np.median(p)) for p in passes) if len(passes) > 1 else ()
    return Timing(
        float(median),
        float(high - low),
        len(samples),
        "cpu" if threads == 1 else "wall",
        float(samples.min()),
        medians,
    )


def _samples(
    run: Callable[[], object], threads: int, seconds: float, least: int, warm: int = 3
) -> list[float]:
    """Microseconds of one call, again and again."""
    clock = time.process_time_ns if threads == 1 else time.perf_counter_ns
    for _ in range(warm):
        run()
    start = clock()
    run()
    once_ns = max(clock() - start, 1)
    inner = max(1, round(1e6 / once_ns))
    repeats = max(least, min(200, round(seconds * 1e9 / (inner * once_ns))))
    samples = []
    for _ in range(repeats):
        start = clock()
        for _ in range(inner):
            run()
        samples.append((clock() - start) / inner / 1e3)
    return samples
