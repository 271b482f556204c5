"""Exact front and exact optimum under one limit where super-layers are linked by pairs, of damage, of cost or of both.

The dynamic programme of `front`, with one list of partial sums for each state of the line. For an optimum the lists are thinned as in `knapsack`, by the
Lagrangian bound, whose rest is here exact for each state.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import InfeasibleError
from mpsearch.solvers.exact.elimination_order import MOST_STATES, Line, total
from mpsearch.solvers.exact.front import Front, keep_non_dominated
from mpsearch.solvers.tables.groups import IntRow, Row, SuperLayers
from mpsearch.solvers.tables.integer_costs import WholeCosts
from mpsearch.solvers.tables.pair_tables import Pair

_ROUNDING = 1e-12  # share of the sums by which float64 may err here; the band is widened by it
_PRICES = 40
_State = tuple[int, ...]
_Part = tuple[IntRow, Row, NDArray[np.intp], NDArray[np.intp]]  # costs, scores, parents, choices


@dataclass(frozen=True)
class Linked:
    """Damage and one cost of M linked super-layers, as steps of a line.

    Args:
        layers: M super-layers.
        line: Their order and states.
        scores: M steps of damage.
        costs: M steps of cost, whole numbers.
        whole: The costs, for their unit and constant.
    """

    layers: SuperLayers
    line: Line
    scores: list[Row]
    costs: list[IntRow]
    whole: WholeCosts

    @classmethod
    def of(cls, layers: SuperLayers, rows: Sequence[Row], pairs: Sequence[Pair[Row]], whole: WholeCosts) -> Linked | None:
        """None where too many choices stay open at once."""
        line = Line.of(layers.widths, [*((p.first, p.second) for p in pairs), *((p.first, p.second) for p in whole.pairs)])
        if line.states > MOST_STATES:
            return None
        return cls(layers, line, line.steps(rows, pairs), line.steps(whole.rows, whole.pairs), whole)

    def front(self, limit: float = math.inf) -> Front:
        """The whole front up to a limit. Raises InfeasibleError where nothing costs that little."""
        return self._sweep(limit, [0.0] * (len(self.costs) + 1), 0.0, math.inf)

    def near_optimum(self, limit: float) -> Front:
        """Points around the optimum under `limit`, which is the last of them. Raises InfeasibleError."""
        price, upper = self._price(limit)
        rest = self.line.rest([score + price * self.whole.real(cost) for score, cost in zip(self.scores, self.costs, strict=True)])
        return self._sweep(limit, rest, price, upper)

    def _sweep(self, limit: float, bound: Sequence[Row | float], price: float, upper: float) -> Front:
        """Drops partial sums that cannot keep the limit, or whose Lagrangian bound is above `upper`."""
        ceiling, least = self.whole.ceiling(limit), self.line.rest(self.costs)
        if ceiling < self.whole.constant + int(least[0]):
            raise InfeasibleError(
                f"A limit of {limit:g} is below the least reachable cost {math.ldexp(self.whole.constant + int(least[0]), -self.whole.power):g}."
            )
        tops = self._tops(price, limit, upper)
        order = range(len(self.costs))
        held: dict[_State, tuple[IntRow, Row, int]] = {(): (np.array([self.whole.constant]), np.zeros(1), 0)}
        steps = []
        for m in order:
            arrived = self._arrivals(m, held)
            held, origins, offset = {}, [], 0
            for state in sorted(arrived):
                cost, score, parent, choice = (np.concatenate(parts) for parts in zip(*arrived[state], strict=True))
                ahead = bound[m + 1][state] if tops < math.inf else 0.0  # type: ignore[index]
                kept = _kept(cost, score, ceiling - int(least[m + 1][state]), tops - ahead, price, limit, self.whole)
                if len(kept):
                    held[state] = (cost[kept], score[kept], offset)
                    origins.append((parent[kept], choice[kept]))
                    offset += len(kept)
            steps.append((np.concatenate([o[0] for o in origins]).astype(np.uint32), np.concatenate([o[1] for o in origins]).astype(np.uint16)))
        cost, score, _ = held[()]
        return Front.of_last(self.whole, cost, score, True, self.layers, order, steps)

    def _arrivals(self, m: int, held: dict[_State, tuple[IntRow, Row, int]]) -> dict[_State, list[_Part]]:
        """Every list extended by every choice of super-layer m, by the state it leads to; parents count through all lists."""
        found: dict[_State, list[_Part]] = {}
        for (state, (cost, score, offset)), choice in itertools.product(held.items(), range(self.line.widths[m])):
            at = (*state, choice)
            part = (cost + self.costs[m][at], score + self.scores[m][at], offset + np.arange(len(cost)), np.full(len(cost), choice))
            found.setdefault(self.line.after(m, state, choice), []).append(part)
        return found

    def _tops(self, price: float, limit: float, upper: float) -> float:
        if upper == math.inf:
            return math.inf
        sizes = math.fsum(float(np.abs(step).max()) for step in self.scores)
        costs = abs(limit) + math.ldexp(abs(self.whole.constant) + sum(int(np.abs(step).max()) for step in self.costs), -self.whole.power)
        return upper + _ROUNDING * (abs(upper) + sizes + price * costs)

    def _price(self, limit: float) -> tuple[float, float]:
        """The price of a unit of cost at which the Lagrangian bound is greatest, and the damage of something that fits; infinite if nothing was met.

        The line between two assignments, one that fits and one that does not, is lowered until none lies below it.
        """
        real = [self.whole.real(step) for step in self.costs]
        room = limit - math.ldexp(self.whole.constant, -self.whole.power)
        above, below = self.line.best(self.scores), self.line.best(self.costs)
        slack = room * (1 - math.copysign(_ROUNDING, room))
        upper = math.inf
        if total(real, self.line, above) <= slack:
            return 0.0, total(self.scores, self.line, above)
        price = 0.0
        for _ in range(_PRICES):
            (s0, c0), (s1, c1) = ((total(self.scores, self.line, x), total(real, self.line, x)) for x in (above, below))
            upper = min([upper, *(s for s, c in ((s0, c0), (s1, c1)) if c <= slack)])
            if c0 <= c1 or s1 <= s0:
                break
            price = (s1 - s0) / (c0 - c1)
            found = self.line.best([score + price * cost for score, cost in zip(self.scores, real, strict=True)])
            if found in (above, below):
                break
            above, below = (above, found) if total(real, self.line, found) <= room else (found, below)
        return price, upper


def _kept(cost: IntRow, score: Row, cap: float, most: float, price: float, limit: float, whole: WholeCosts) -> NDArray[np.intp]:
    """Positions of what costs no more than `cap`: what no other dominates and whose bound is at most `most`."""
    order = np.argsort(cost, kind="stable")
    order = order[: np.searchsorted(cost, cap, side="right", sorter=order)] if cap < math.inf else order
    order = order[keep_non_dominated(cost[order], score[order])]
    if most < math.inf:
        order = order[score[order] + price * (whole.real(cost[order]) - limit) <= most]
    return order
