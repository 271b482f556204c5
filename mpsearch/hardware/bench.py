"""The bench that CPU cells are timed on: pinned cores, an anchor that tells of drift, a gate that waits for
an idle machine.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import psutil

from mpsearch.errors import MpsearchError
from mpsearch.hardware.backend import Bench, Cell, Measured
from mpsearch.hardware.cost_model import BYTES_PER_US
from mpsearch.hardware.measure import Timing, summary, time_callable, time_interleaved

SPREAD, APART = 0.20, 0.06
"""Of a row that is taken at once: quartiles, or the medians of two passes, further apart than this are
measured again.
"""
DRIFT = 0.10
"""Of the anchor against the median of the session: beyond it the machine is in another state, and the row is
measured again.
"""
TRIES = 3
_BUSY = 0.10
_PASSES, _PAUSE_S = 3, 0.1


def anchor_work() -> Callable[[], object]:
    """A fixed piece of work on one core: a float32 product of 96 x 96 matrices in plain loops, and a copy of
    2 MiB.
    """
    draw = np.random.default_rng(0)
    a, b = (draw.standard_normal((96, 96)).astype(np.float32) for _ in range(2))
    source = draw.standard_normal(2**19).astype(np.float32)
    target = np.empty_like(source)

    def run() -> None:
        np.einsum("ij,jk->ik", a, b)  # not through BLAS, whose pool would be timed too
        np.copyto(target, source)

    return run


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[tuple[int, ...]]:
    """Keep this thread, and the pools that it starts meanwhile, on as many cores as the runtime has threads:
    the idlest ones.

    Where the system has no affinity (macOS) nothing is pinned, and the cores are empty.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    before = os.sched_getaffinity(0)
    busy = busy_shares(0.05)
    cores = tuple(sorted(sorted(before, key=lambda core: (busy.get(core, 0.0), core))[: max(1, threads)]))
    os.sched_setaffinity(0, cores)
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, before)


def busy_shares(seconds: float) -> dict[int, float]:
    """Core -> share of the next `seconds` in which it was not idle (waiting for a disk counts as idle)."""
    return {core: percent / 100 for core, percent in enumerate(psutil.cpu_percent(seconds, percpu=True))}


def wait_for_idle(
    threads: int, patience: float = 30.0, busy: Callable[[float], dict[int, float]] = busy_shares
) -> None:
    """More than one thread is timed by the wall clock, which a neighbour stretches: wait until there is none.

    Raises: MpsearchError: Cores that are needed stayed busy for `patience` seconds.
    """
    if threads == 1:
        return
    until = time.monotonic() + patience
    while True:
        shares = busy(0.25)
        worst = sum(shares.values())
        room = len(shares) - threads
        if not shares or worst <= max(_BUSY * len(shares), float(room)):
            return
        if time.monotonic() >= until:
            raise MpsearchError(
                f"Other processes keep {worst:.1f} of {len(shares)} cores busy, so {threads} threads "
                "cannot be timed. Wait until they are done, "
                "or measure one thread (--threads 1), whose CPU time a neighbour does not stretch."
            )


@dataclass
class CpuBench(Bench):
    """Times cells in two passes with the anchor around them, and whole models in turns.

    Args:
        threads: Threads of the runtime.
        seconds: Time of measuring for a cell or a model, both passes together.
        anchors_us: Readings of the anchor so far.
    """

    method: ClassVar[str] = (
        "random data; the anchor (matrix product and copy) before, between and after; two passes of 3 "
        "warm-ups and samples of at least 1 ms; median over "
        "both and interquartile range; on pinned cores; process CPU time at one thread, else wall clock "
        "on an idle machine"
    )
    bytes_per_us: ClassVar[float] = BYTES_PER_US
    threads: int = 1
    seconds: float = 0.25
    anchors_us: list[float] = field(default_factory=list)
    _anchor: Callable[[], object] = field(default_factory=anchor_work)

    def held(self) -> contextlib.AbstractContextManager[tuple[int, ...]]:
        """As many cores as there are threads, and nothing else."""
        return pinned(self.threads)

    def anchor(self) -> float:
        """Read the anchor once more, in microseconds."""
        self.anchors_us.append(time_callable(self._anchor, seconds=0.01, least_repeats=5).median_us)
        return self.anchors_us[-1]

    @property
    def drift(self) -> float:
        """How far the last readings are from the median of the session, as a share."""
        usual = float(np.median(self.anchors_us)) if self.anchors_us else 0.0
        return max(abs(reading / usual - 1) for reading in self.anchors_us[-3:]) if usual else 0.0

    def measure(self, cell: Cell) -> Measured:
        """Time a cell; it is steady where neither it nor the anchor moved. Raises MpsearchError as
        `wait_for_idle`.
        """
        wait_for_idle(self.threads)
        readings = [self.anchor()]
        passes = []
        for _ in range(2):
            passes.append(time_callable(cell.run, threads=self.threads, seconds=self.seconds / 2))
            readings.append(self.anchor())
        timing = _joined(passes, self.threads)
        return Measured(timing, float(np.median(readings)), held_still(timing) and self.drift <= DRIFT)

    def measure_models(self, runs: Sequence[Callable[[], object]], seed: int = 0) -> list[Measured]:
        """Time whole models in turns, the anchor before each. Raises MpsearchError as `wait_for_idle`."""
        wait_for_idle(self.threads)
        first = len(self.anchors_us)
        timings = time_interleaved(
            runs, threads=self.threads, seconds=self.seconds, between=self.anchor, seed=seed
        )
        anchor_us = float(np.median(self.anchors_us[first:]))
        return [Measured(timing, anchor_us, held_still(timing)) for timing in timings]


def time_apart(
    run: Callable[[], object], *, threads: int = 1, seconds: float = 0.5, rounds: int = 1
) -> Timing:
    """Time a call in passes that lie apart in time; the median pass counts.

    A neighbour on the same physical core, or a lower clock, slows everything for seconds at a stretch and
    leaves the spread within a pass small.

    Args:
        run: Does the work once.
        threads: Threads, as in `time_callable`.
        seconds: Seconds of measuring, over the passes of a round.
        rounds: Rounds of three passes each: another one follows where the quartiles of the passes so far are
            further apart than they should be.
    """
    passes: list[Timing] = []
    for _ in range(rounds):
        for _ in range(_PASSES):
            time.sleep(_PAUSE_S if passes else 0.0)
            passes.append(time_callable(run, threads=threads, seconds=seconds / _PASSES))
        low, middle, high = np.percentile([p.median_us for p in passes], [25, 50, 75]).tolist()
        if high - low <= APART * middle:
            break
    usual = sorted(passes, key=lambda p: p.median_us)[len(passes) // 2]
    medians, repeats = tuple(p.median_us for p in passes), sum(p.repeats for p in passes)
    return replace(
        usual,
        iqr_us=max(usual.iqr_us, high - low),
        repeats=repeats,
        min_us=min(p.min_us for p in passes),
        passes_us=medians,
    )


def held_still(timing: Timing) -> bool:
    """Whether neither the samples nor the passes of a timing lie too far apart."""
    return timing.iqr_us <= SPREAD * timing.median_us and timing.apart <= APART


def _joined(passes: list[Timing], threads: int) -> Timing:
    """Two passes as one: the mean of the medians, the wider of the spreads."""
    medians = [p.median_us for p in passes]
    middle = summary([medians], threads).median_us
    return Timing(
        middle,
        max(p.iqr_us for p in passes),
        sum(p.repeats for p in passes),
        passes[0].clock,
        min(p.min_us for p in passes),
        tuple(medians),
    )
