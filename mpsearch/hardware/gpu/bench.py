"""The bench of a GPU: CUDA graphs of rotating copies timed by events, energy by the card's own counter.

Clocks and heat are judged through NVML.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from mpsearch.errors import MpsearchError
from mpsearch.hardware.backend import Bench, Cell, Measured
from mpsearch.hardware.gpu import card as cards
from mpsearch.hardware.gpu.card import Card
from mpsearch.hardware.gpu.reading import Reading, read_cell
from mpsearch.hardware.measure import Timing


@dataclass
class CudaBench(Bench):
    """Times cells and whole models on one card.

    Args:
        card: The card with its instruments; the current CUDA device where it is left out.
    """

    method: ClassVar[str] = (
        "random data; a CUDA graph of calls on rotating copies of weights and input, together over twice "
        "the L2 cache, timed by events; two passes, the "
        "anchor (a product of 4096 x 4096 matrices) before and after; readings are taken again where the "
        "card was slowed down, its clock moved or they "
        "spread; energy by NVML's counter, whole board"
    )
    bytes_per_us: ClassVar[float] = 2e6
    bytes_per_mj: ClassVar[float | None] = 4e6  # at some 500 W
    predicts_rows: ClassVar[bool] = False
    card: Card = field(default_factory=lambda: cards.card())

    @property
    def counts_energy(self) -> bool:
        """Whether NVML counts this card's energy."""
        return self.card.monitor.energy_mj() is not None

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Nothing: clocks and power limits of the card are never set."""
        return contextlib.nullcontext()

    def measure(self, cell: Cell) -> Measured:
        """Time a cell once in two passes, the anchor on either side.

        Raises: ForeignProcessError: Somebody else computes on the card.
        """
        before = self._anchor()
        readings = [read_cell(cell, self.card.timer, self.card.monitor, self.card.settings) for _ in range(2)]
        return self._measured(readings, before)

    def measure_models(self, runs: Sequence[Callable[[], object]], seed: int = 0) -> list[Measured]:
        """Time whole models, one call in a graph, in two passes over random orders.

        A reading with trouble is taken again at once.

        Raises:
            ForeignProcessError: Somebody else computes on the card.
            MpsearchError: A model cannot be captured.
        """
        before = self._anchor()
        draw = np.random.default_rng(seed)
        readings: list[list[Reading]] = [[] for _ in runs]
        for _ in range(2):
            for i in draw.permutation(len(runs)):
                readings[i].append(self._steady(runs[i]))
        return [self._measured(found, before) for found in readings]

    def measure_whole(self, run: Callable[[], object], passes: int = 2) -> Measured:
        """Time one whole model in so many passes. Raises as `measure_models`."""
        before = self._anchor()
        return self._measured([self._steady(run) for _ in range(passes)], before)

    def _anchor(self) -> float:
        settings = replace(self.card.settings, energy_seconds=0.0)
        return read_cell(self.card.anchor, self.card.timer, self.card.monitor, settings).median_us

    def _measured(self, readings: Sequence[Reading], before_us: float) -> Measured:
        """Passes put together, after another look at the anchor."""
        after_us, limit = self._anchor(), self.card.settings.anchor_moved
        passes = tuple(r.median_us for r in readings)
        timing = Timing(
            sum(passes) / len(passes),
            max(r.iqr_us for r in readings),
            sum(r.repeats for r in readings),
            "gpu",
            min(r.min_us for r in readings),
            passes,
        )
        energies = tuple(r.energy_mj for r in readings if r.energy_mj is not None)
        trouble = list(dict.fromkeys(why for r in readings for why in r.trouble))
        if abs(after_us - before_us) > limit * before_us:
            trouble.append(f"anchor {before_us:.1f} to {after_us:.1f} us")
        return Measured(
            timing, after_us, not trouble, energies if len(energies) == len(readings) else (), tuple(trouble)
        )

    def _steady(self, run: Callable[[], object]) -> Reading:
        """The first reading without trouble, or the steadiest of `tries`.

        There is one call in the graph, so that its layers find the caches as they do in use.
        """
        cell = Cell(run, ("model",), True, 0.0, 1.0)
        found: list[Reading] = []
        for _ in range(self.card.settings.tries):
            try:
                found.append(
                    read_cell(cell, self.card.timer, self.card.monitor, replace(self.card.settings, copies=1))
                )
            except RuntimeError as error:  # what CUDA and torch raise
                said = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise MpsearchError(
                    f"The whole model could not be timed in a CUDA graph: {said}. Its forward must not "
                    "wait for the device, nor copy between host "
                    "and device, and must fit the card's memory. Change it, or run with --target packed."
                ) from error
            if not found[-1].trouble:
                return found[-1]
        return min(found, key=lambda r: r.iqr_us / r.median_us)
