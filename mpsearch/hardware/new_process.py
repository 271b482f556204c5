"""How long a model file takes in a new process: several are asked, because no two of them lay out their
memory alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from mpsearch.hardware.fresh import Arrays, Program, run_fresh
from mpsearch.hardware.measure import Timing

PROCESSES = 6
"""That are asked: readings of one file differ by 3 to 5 % (standard deviation) from process to process, where
a process repeats itself to 1 %.
"""
SHARE = 0.95
"""Share of new processes that stay below what is promised."""
_DISTURBED = 1.25
"""Times the median: a reading beyond it is taken once more, as a neighbour's burst is more likely than such a
layout; the lesser counts.
"""


@dataclass(frozen=True)
class NewProcessTiming:
    """Latency of one call, as several new processes measured it.

    Args:
        readings_us: Median of each process.
        clock: `cpu` or `wall`.
    """

    readings_us: tuple[float, ...]
    clock: str

    @property
    def median_us(self) -> float:
        """Over the processes."""
        return float(np.median(self.readings_us))

    @property
    def iqr_us(self) -> float:
        """Distance of the quartiles of the processes."""
        low, high = np.percentile(self.readings_us, (25, 75))
        return float(high - low)

    @property
    def high_us(self) -> float:
        """What the next process stays below with probability `SHARE`: the one-sided prediction bound of
        log-normal readings, and no less than the greatest.

        exp(m + t s sqrt(1 + 1 / n)) of the mean m and the standard deviation s of the logarithms of n
        readings, t of n - 1 degrees of freedom.
        """
        logs, n = np.log(self.readings_us), len(self.readings_us)
        bound = np.exp(logs.mean() + stdtrit(n - 1, SHARE) * logs.std(ddof=1) * np.sqrt(1 + 1 / n))
        return float(max(bound, *self.readings_us))


def time_in_new_processes(
    program: Program | Path,
    image: Arrays,
    *,
    threads: int = 1,
    seconds: float = 0.5,
    processes: int = PROCESSES,
    batch: int = 1,
    on_process: Callable[[int, int], None] | None = None,
) -> NewProcessTiming:
    """Time a file in new processes, one after the other.

    Args:
        program: Command, as in `run_fresh`.
        image: 1 x ..., as there.
        threads: Threads of the runtime's pool.
        seconds: Seconds of measuring in each process.
        processes: At least 2.
        batch: Samples in a call, as there.
        on_process: Called with how many are done, and of how many.

    Raises:
        ValueError: Fewer than two processes tell nothing of the next.
        MpsearchError: As `run_fresh`.
    """
    if processes < 2:
        raise ValueError(f"processes is {processes}; it must be at least 2.")

    def reading() -> Timing:
        return run_fresh(program, image, threads=threads, seconds=seconds, batch=batch).timing

    timings = []
    for done in range(1, processes + 1):
        timings.append(reading())
        if on_process is not None:
            on_process(done, processes)
    readings = [t.median_us for t in timings]
    high = _DISTURBED * float(np.median(readings))
    kept = [r if r <= high else min(r, reading().median_us) for r in readings]
    return NewProcessTiming(tuple(kept), timings[0].clock)
