"""Super-layers taken one after the other, with the choices that later ones are still linked to: the states of
a dynamic programme.

On a chain the state is the last choice; where a branch stays open beside it, the choice before that branch as
well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpsearch.solvers.tables.groups import IntRow, Row
from mpsearch.solvers.tables.pair_tables import Pair, T

MOST_STATES = 50_000
"""States times choices of one step up to which the programme is tried."""


@dataclass(frozen=True)
class Line:
    """M super-layers in order.

    Args:
        widths: [M] choices of each.
        open: For each of M + 1 points between them, the earlier ones that later ones are linked to, in order.
    """

    widths: tuple[int, ...]
    open: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, widths: Sequence[int], links: Sequence[tuple[int, int]]) -> Line:
        """From the positions of linked super-layers, the lower first."""
        last = list(range(len(widths)))
        for first, second in links:
            last[first] = max(last[first], second)
        return cls(
            tuple(widths), tuple(tuple(k for k in range(m) if last[k] >= m) for m in range(len(widths) + 1))
        )

    @property
    def states(self) -> int:
        """The most states times choices of any step."""
        return max(
            (self.shape(m)[-1] * math.prod(self.shape(m)[:-1]) for m in range(len(self.widths))), default=1
        )

    def alone(self, m: int) -> bool:
        """Whether nothing is open before super-layer m, nor behind it."""
        return not self.open[m] and not self.open[m + 1]

    def shape(self, m: int) -> tuple[int, ...]:
        """Widths of what is open before super-layer m, and its own."""
        return (*(self.widths[k] for k in self.open[m]), self.widths[m])

    def steps(self, rows: Sequence[T], pairs: Sequence[Pair[T]]) -> list[T]:
        """For each super-layer what its choice adds, given what is open: M tables of the shapes
        `shape(m)`.
        """
        found = []
        for m, row in enumerate(rows):
            table = np.broadcast_to(row, self.shape(m))
            for pair in pairs:
                if pair.second == m:
                    axis = self.open[m].index(pair.first)
                    table = table + pair.table.reshape(
                        [-1 if k == axis else 1 for k in range(len(self.open[m]))] + [self.widths[m]]
                    )
            found.append(table)
        return found

    def rest(self, steps: Sequence[T]) -> list[T]:
        """For each of M + 1 points the least that the steps behind it add up to, by what is open there."""
        found: list[T] = [np.zeros((), steps[0].dtype if steps else np.float64)]
        for m in range(len(self.widths) - 1, -1, -1):
            found.append(
                found[-1] + steps[m].min()
                if self.alone(m)
                else (steps[m] + self._ahead(m, found[-1])).min(-1)
            )
        return found[::-1]

    def best(self, steps: Sequence[T]) -> tuple[int, ...]:
        """M choices whose steps add up to the least."""
        rest, choices = self.rest(steps), list[int]()
        for m, step in enumerate(steps):
            if self.alone(m):
                choices.append(int(step.argmin()))
                continue
            at = tuple(choices[k] for k in self.open[m])
            choices.append(int((step + self._ahead(m, rest[m + 1]))[at].argmin()))
        return tuple(choices)

    def after(self, m: int, state: tuple[int, ...], choice: int) -> tuple[int, ...]:
        """What is open behind super-layer m."""
        held = dict(zip((*self.open[m], m), (*state, choice), strict=True))
        return tuple(held[k] for k in self.open[m + 1])

    def _ahead(self, m: int, table: T) -> T:
        """A table over what is open behind m, over the axes of the step m."""
        axes = (*self.open[m], m)
        return table.reshape([self.widths[k] if k in self.open[m + 1] else 1 for k in axes])


def total(steps: Sequence[Row] | Sequence[IntRow], line: Line, choices: Sequence[int]) -> float:
    """Sum of the steps of M choices."""
    return math.fsum(
        float(step[(*(choices[k] for k in line.open[m]), choices[m])]) for m, step in enumerate(steps)
    )
