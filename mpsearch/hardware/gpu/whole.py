"""Whole models on a GPU: one call in a CUDA graph, its time by events and its energy by the card's own counter, in passes that lie apart."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from mpsearch.errors import MpsearchError
from mpsearch.hardware.backends import Cell
from mpsearch.hardware.gpu.card import Card
from mpsearch.hardware.gpu.measure import Reading, read_cell
from mpsearch.hardware.measure import Timing
from mpsearch.hardware.rows import ModelRun
from mpsearch.hardware.whole import GROUP, Kernels, WholeModel


@dataclass(frozen=True)
class WholeReading:
    """A whole model, measured.

    Args:
        timing: Of one call; `gpu` is its clock.
        energy_mj: Of one call, whole board, idle power included; None where the card has no counter.
        trouble: Why a pass is no good, after every try; empty if all are.
    """

    timing: Timing
    energy_mj: float | None
    trouble: tuple[str, ...] = ()


def measure_whole(run: Callable[[], object], card: Card, rounds: int = 2) -> WholeReading:
    """Medians over `rounds` readings of one call, each taken again where the card did not hold still.

    Raises: ForeignProcessError: Somebody else computes on the card.
    """
    readings = [_steady(run, card) for _ in range(rounds)]
    passes = tuple(r.median_us for r in readings)
    energies = [r.energy_mj for r in readings if r.energy_mj is not None]
    iqr, repeats, least = max(r.iqr_us for r in readings), sum(r.repeats for r in readings), min(r.min_us for r in readings)
    timing = Timing(statistics.median(passes), iqr, repeats, "gpu", least, passes if rounds > 1 else ())
    trouble = tuple(dict.fromkeys(why for r in readings for why in r.trouble))
    return WholeReading(timing, statistics.median(energies) if len(energies) == rounds else None, trouble)


def measure_models(model: str, wanted: Sequence[Kernels], build: Callable[[Kernels], WholeModel], card: Card, *, seed: int = 0) -> Iterator[ModelRun]:
    """Measure whole models at batch 1, each in two passes over random orders; a group that is done is yielded at once.

    Args:
        model: `model_key` of the architecture.
        wanted: Kernels of each model.
        build: Makes one of them ready to run.
        card: Where.
        seed: Of the orders.
    Raises: ForeignProcessError: Somebody else computes on the card.
    """
    for start in range(0, len(wanted), GROUP):
        asked = wanted[start : start + GROUP]
        built = [build(kernels) for kernels in asked]
        anchor_us = read_cell(card.anchor, card.timer, card.monitor, replace(card.settings, energy_seconds=0.0)).median_us
        draw = np.random.default_rng(seed + start)
        readings: list[list[Reading]] = [[] for _ in asked]
        for _ in range(2):
            for i in draw.permutation(len(asked)):
                readings[i].append(_steady(built[i].run, card))
        for kernels, whole, found in zip(asked, built, readings, strict=True):
            status = "fallback" if not whole.as_asked else "unstable" if any(r.trouble for r in found) else "ok"
            energies = tuple(r.energy_mj for r in found if r.energy_mj is not None)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            passes, iqr = tuple(r.median_us for r in found), max(r.iqr_us for r in found)
            yield ModelRun(model, 1, kernels, passes, iqr, anchor_us, status, "gpu", now, energies if len(energies) == len(found) else ())


def _steady(run: Callable[[], object], card: Card) -> Reading:
    """The first reading without trouble, or the steadiest of `tries`. One call in a graph: its layers find the caches as they do when it is used.

    Raises: MpsearchError: The model cannot be captured; or as `measure_whole`.
    """
    cell = Cell(run, ("model",), True, 0.0, 1.0)
    found: list[Reading] = []
    for _ in range(card.settings.tries):
        try:
            found.append(read_cell(cell, card.timer, card.monitor, replace(card.settings, copies=1)))
        except RuntimeError as error:  # what CUDA and torch raise
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MpsearchError(
                f"The whole model could not be timed in a CUDA graph: {said}. Its forward must not wait for the device, nor copy between host and device, and "
                "must fit the card's memory. Change it, or run with --target packed."
            ) from error
        if not found[-1].trouble:
            return found[-1]
    return min(found, key=lambda r: r.iqr_us / r.median_us)
