"""Who measured what: the losses of a validation in the order in which they were asked for, each kept on disk
once it is known.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from mpsearch.study.losses import Losses

Indices = tuple[int, ...]


@dataclass(frozen=True)
class Loss:
    """A measured assignment.

    Args:
        value: KL to float in nats; infinite where the quantised model's output was not finite.
        found_by: Who asked for it first.
    """

    value: float
    found_by: str


class LossBook:
    """Measures an assignment once, whoever asks, and however often the process dies.

    Args:
        held: What is known already; takes what is new.
        measure: True loss of L choices.
    """

    def __init__(self, held: Losses, measure: Callable[[Indices], float]) -> None:
        self._held, self._measure = held, measure
        self._seconds: list[float] = []
        self.asked: dict[Indices, Loss] = {}
        """All that was asked for, in order: the same on a first and on a resumed run."""

    def loss(self, indices: Indices, found_by: str) -> float:
        """The loss of an assignment, measured now if it is not held."""
        if indices not in self.asked:
            value = self._held.get(indices)
            self.asked[indices] = Loss(self._measured(indices) if value is None else value, found_by)
        return self.asked[indices].value

    @property
    def seconds_for_each(self) -> float | None:
        """Mean seconds of those measured in this process; None if all were held."""
        return sum(self._seconds) / len(self._seconds) if self._seconds else None

    def _measured(self, indices: Indices) -> float:
        start = time.perf_counter()
        value = self._measure(indices)
        self._seconds.append(time.perf_counter() - start)
        value = math.inf if math.isnan(value) else value
        self._held[indices] = value
        return value
