"""The next choice down and up of every super-layer: single notches in bits that really save something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpsearch.errors import UnknownNameError
from mpsearch.problem import Candidate, Problem
from mpsearch.solvers.tables.groups import Row, SuperLayers

_FLOAT_BITS = 32
_Quality = tuple[int, int, int]


@dataclass(frozen=True)
class Ladders:
    """M ladders over one resource, or over several together. A choice that costs no less than one that is at
    least as good in every respect is on none.

    Args:
        costs: M rows: of one resource its costs; of several the sum of their costs, each as a share of what
            the dearest choices take of it.
        qualities: For each choice that is on a ladder its weight bits, input bits and granularity; None for
            the others.
        down: For each choice, those one notch below: cheaper, worse, and none in between. Where all others
            are better in some respect, the next cheaper.
        up: The same upwards.
    """

    costs: list[Row]
    qualities: list[list[_Quality | None]]
    down: list[list[list[int]]]
    up: list[list[list[int]]]

    @classmethod
    def of(cls, problem: Problem, layers: SuperLayers, *resources: str) -> Ladders:
        """From a problem's candidates and their costs. Raises UnknownNameError where it has no such costs."""
        tables = []
        for resource in resources:
            if resource not in problem.costs:
                raise UnknownNameError("cost table", resource, problem.costs)
            tables.append(layers.merge(problem.costs[resource]))
        tops = [sum(float(row.max()) for row in table) if len(tables) > 1 else 1.0 for table in tables]
        weighed = [[row / (top or 1.0) for row in table] for table, top in zip(tables, tops, strict=True)]
        costs = [np.sum(rows, axis=0) for rows in zip(*weighed, strict=True)]
        qualities = [
            _on_ladder([problem.candidates[group[0]][pick[0]] for pick in picks], row)
            for group, picks, row in zip(layers.groups, layers.picks, costs, strict=True)
        ]
        down = [_notches(row, kept, 1) for row, kept in zip(costs, qualities, strict=True)]
        up = [_notches(row, kept, -1) for row, kept in zip(costs, qualities, strict=True)]
        return cls(costs, qualities, down, up)

    def end(self, sign: int) -> tuple[int, ...]:
        """The most costly choice of every ladder (1) or the cheapest (-1); of equals the first."""
        return tuple(
            max((c for c, q in enumerate(kept) if q), key=lambda c: (sign * row[c], -c))
            for row, kept in zip(self.costs, self.qualities, strict=True)
        )

    @property
    def most_steps(self) -> int:
        """No walk from one end to the other has more steps than this."""
        return sum(len(kept) - kept.count(None) - 1 for kept in self.qualities)


def _on_ladder(candidates: Sequence[Candidate], costs: Row) -> list[_Quality | None]:
    found = [
        (c.w_bits or _FLOAT_BITS, c.a_bits or _FLOAT_BITS, int(c.is_float or c.w_granularity == "channel"))
        for c in candidates
    ]

    def beaten(i: int) -> bool:
        return any(
            costs[j] <= costs[i]
            and _no_worse(found[j], found[i])
            and (costs[j] < costs[i] or found[j] != found[i] or j < i)
            for j in range(len(found))
            if j != i
        )

    return [None if beaten(i) else quality for i, quality in enumerate(found)]


def _no_worse(quality: _Quality, other: _Quality) -> bool:
    return all(a >= b for a, b in zip(quality, other, strict=True))


def _notches(costs: Row, kept: Sequence[_Quality | None], sign: int) -> list[list[int]]:
    """For each choice the next ones in the direction of `sign` (1 is down)."""
    on = [(c, q) for c, q in enumerate(kept) if q is not None]
    found: list[list[int]] = []
    for c, quality in enumerate(kept):
        if quality is None:
            found.append([])
            continue
        beyond = [
            (x, q) for x, q in on if x != c and (_no_worse(quality, q) if sign > 0 else _no_worse(q, quality))
        ]
        between = [
            x
            for x, q in beyond
            if any(y != x and (_no_worse(r, q) if sign > 0 else _no_worse(q, r)) for y, r in beyond)
        ]
        cheaper = sorted((sign * (costs[c] - costs[x]), x) for x, _ in on if sign * (costs[c] - costs[x]) > 0)
        found.append([x for x, _ in beyond if x not in between] or [x for _, x in cheaper[:1]])
    return found
