"""One reading of a cell on a GPU, with what tells whether it can be trusted.

A cell is timed by events around a CUDA graph that holds many calls, because one call is shorter than its
launch. Cold: each call has weights and input of its own, together more than twice the L2 cache, as layers
have in a model; hot: always the same. Around it the card is asked for clocks, temperature, power and what
slows it down; a reading taken while it was slowed down, while its clock moved, or that spreads, is no latency
but a reason to try again. Energy is the difference of the card's own counter (whole board, idle power
included) over a stretch of calls, for one call.

CUDA and NVML stand behind two small protocols: what decides about a reading is tested without either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from mpsearch.errors import MpsearchError
from mpsearch.hardware.backend import Cell

SLOWED = frozenset({"sw_power_cap", "hw_slowdown", "sw_thermal", "hw_thermal", "power_brake"})
"""Reasons of NVML for a lower clock that make a reading worthless; `idle` and clocks that somebody set are
none.
"""


_STEP_SECONDS, _LONGEST_STEPS = 0.01, 100
"""Between two looks at the counter of energy, and looks before it is said to stand still."""


class ForeignProcessError(MpsearchError):
    """Another process computes on the card."""


@dataclass(frozen=True)
class CardState:
    """What the card says of itself at a moment.

    Args:
        sm_mhz: Clock of the processors. memory_mhz: Of the memory.
        temperature_c: Degrees Celsius. power_w: Drawn by the board.
        reasons: Why the clock is not higher, such as `sw_power_cap`.
    """

    sm_mhz: int
    memory_mhz: int
    temperature_c: int
    power_w: float
    reasons: tuple[str, ...] = ()


class Monitor(Protocol):
    """The card's own instruments: NVML, or a fake in a test."""

    def state(self) -> CardState:
        """Clocks, temperature, power, reasons."""

    def energy_mj(self) -> float | None:
        """The counter of the energy drawn, in millijoules; None where the card has none."""

    def foreign_processes(self) -> tuple[int, ...]:
        """Process ids that compute on the card and are not this one's."""


class GraphTimer(Protocol):
    """CUDA graphs and events, or a fake in a test."""

    @property
    def l2_bytes(self) -> int:
        """Bytes of the level-2 cache."""

    def capture(self, runs: Sequence[Callable[[], object]]) -> Callable[[], None]:
        """Warm up, then one graph of all `runs`, in order; calling it launches the graph."""

    def times_us(self, launch: Callable[[], None], repeats: int) -> list[float]:
        """Each launch timed by events."""

    def run_for(self, launch: Callable[[], None], seconds: float) -> int:
        """Launch without a pause for about so long, and wait for the end; how often."""


@dataclass(frozen=True)
class GpuSettings:
    """How a cell is measured.

    Args:
        copies: Least calls in a graph.
        most_copies: Most copies of a unit; a unit so small that these fit in the cache is timed with what
            they are, and its row says so.
        repeats: Timed launches of a graph.
        warm_seconds: Work before the first look at the card, so that its clocks are those of sustained load.
        energy_seconds: Least stretch over which energy is taken; it starts and ends where the counter moves,
            which it does about every 100 ms. 0 leaves it out.
        spread: Largest IQR over median of a good reading.
        clock_moved: Largest change of a clock over a good reading, as a share.
        tries: Readings before a whole model is called unstable.
        anchor_moved: Largest change of the anchor; beyond it what was measured in between is measured again.
    """

    copies: int = 20
    most_copies: int = 1024
    repeats: int = 30
    warm_seconds: float = 0.5
    energy_seconds: float = 1.0
    spread: float = 0.05
    clock_moved: float = 0.02
    tries: int = 3
    anchor_moved: float = 0.03


@dataclass(frozen=True)
class Reading:
    """One cell, measured once.

    Args:
        median_us: Median time of a call with cold caches, over `repeats` launches.
        iqr_us: Distance of the quartiles. min_us: Least.
        repeats: Launches. copies: Calls in a launch.
        rotated_bytes: What the copies hold together; below twice the L2 the caches were not cold.
        hot_us: Median of a call that finds its data in the cache. hot_iqr_us: Its spread.
        energy_mj: Energy of a call, cold; None where the card has no counter or it was left out.
        before: State of the card. after: State behind it.
        trouble: Why the reading is no good; empty if it is.
    """

    median_us: float
    iqr_us: float
    min_us: float
    repeats: int
    copies: int
    rotated_bytes: int
    hot_us: float
    hot_iqr_us: float
    energy_mj: float | None
    before: CardState
    after: CardState
    trouble: tuple[str, ...] = ()


def read_cell(cell: Cell, timer: GraphTimer, monitor: Monitor, settings: GpuSettings) -> Reading:
    """Measure a cell once, and judge the reading.

    Raises: ForeignProcessError: Another process computes on the card; what is measured beside it is worth
        nothing.
    """
    _alone(monitor)
    runs = _copies(cell, timer.l2_bytes, settings)
    cold, hot = timer.capture(runs), timer.capture([cell.run] * len(runs))
    timer.run_for(cold, settings.warm_seconds)
    before = monitor.state()
    cold_us, hot_us = (
        np.asarray(timer.times_us(launch, settings.repeats)) / len(runs) for launch in (cold, hot)
    )
    energy = _energy(cold, len(runs), timer, monitor, settings.energy_seconds)
    after = monitor.state()
    _alone(monitor)
    low, median, high = np.percentile(cold_us, (25, 50, 75))
    hot_low, hot_median, hot_high = np.percentile(hot_us, (25, 50, 75))
    numbers = (
        float(median),
        float(high - low),
        float(cold_us.min()),
        settings.repeats,
        len(runs),
        len(runs) * cell.bytes_touched,
    )
    reading = Reading(*numbers, float(hot_median), float(hot_high - hot_low), energy, before, after)
    return replace(reading, trouble=_trouble(reading, settings))


def _copies(cell: Cell, l2_bytes: int, settings: GpuSettings) -> list[Callable[[], object]]:
    if cell.another is None or not cell.bytes_touched:
        return [cell.run] * settings.copies
    wanted = math.ceil(2 * l2_bytes / cell.bytes_touched) + 1
    most = min(settings.most_copies, cell.most_copies or settings.most_copies)
    return [cell.run, *(cell.another() for _ in range(min(max(wanted, settings.copies), most) - 1))]


def _energy(
    launch: Callable[[], None], calls: int, timer: GraphTimer, monitor: Monitor, seconds: float
) -> float | None:
    start = monitor.energy_mj() if seconds else None
    if start is None:
        return None
    _, start = _until_moved(launch, timer, monitor, start)
    if start is None:
        return None
    launches = timer.run_for(launch, seconds)
    held = monitor.energy_mj()
    if held is None:
        return None
    more, end = _until_moved(launch, timer, monitor, held)
    return None if end is None else (end - start) / ((launches + more) * calls)


def _until_moved(
    launch: Callable[[], None], timer: GraphTimer, monitor: Monitor, held: float
) -> tuple[int, float | None]:
    """Launch until the counter of energy moves. Returns how often, and what it shows then; None where it
    stands still.
    """
    launches = 0
    for _ in range(_LONGEST_STEPS):
        launches += timer.run_for(launch, _STEP_SECONDS)
        now = monitor.energy_mj()
        if now is None or now != held:
            return launches, now
    return launches, None


def _alone(monitor: Monitor) -> None:
    foreign = monitor.foreign_processes()
    if foreign:
        raise ForeignProcessError(
            f"The processes {', '.join(map(str, foreign))} compute on this GPU. Times taken beside them "
            "are theirs too: end them, or take a free card."
        )


def _trouble(reading: Reading, settings: GpuSettings) -> tuple[str, ...]:
    found = sorted(SLOWED & {*reading.before.reasons, *reading.after.reasons})
    for what, old, new in (
        ("processor", reading.before.sm_mhz, reading.after.sm_mhz),
        ("memory", reading.before.memory_mhz, reading.after.memory_mhz),
    ):
        if abs(new - old) > settings.clock_moved * old:
            found.append(f"{what} clock {old} to {new} MHz")
    if reading.iqr_us > settings.spread * reading.median_us:
        found.append(f"spread {reading.iqr_us / reading.median_us:.1%}")
    return tuple(found)
