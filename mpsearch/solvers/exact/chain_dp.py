"""Exact front and exact optimum under one limit, of super-layers that are free or linked by pairs: of damage,
of cost or of both.

Layer by layer, every kept (cost, damage) is extended by every choice, in one list for each state of the line
(one list in all, where nothing is linked); a list is sorted by cost and swept by a running minimum. For an
optimum the lists are thinned by a Lagrangian bound, whose rest is exact for each state: only a narrow band
around the optimum is carried, and the result is exact all the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import InfeasibleError
from mpsearch.problem import Choices
from mpsearch.solvers.exact.elimination_order import MOST_STATES, Line, total
from mpsearch.solvers.exact.front import Front, keep_non_dominated, useful
from mpsearch.solvers.tables.groups import IntRow, Row, SuperLayers
from mpsearch.solvers.tables.integer_costs import WholeCosts
from mpsearch.solvers.tables.pair_tables import Pair, T

_ROUNDING = 1e-12  # share of the sums by which float64 may err here; the band is widened by it
_PRICES = 40
_State = tuple[int, ...]
_Part = tuple[
    IntRow, Row, int, NDArray[np.intp]
]  # C x P costs and scores, number of the first of P parents, C choices


@dataclass(frozen=True)
class Linked:
    """Damage and one cost of M linked super-layers, as steps of a line.

    Args:
        layers: M super-layers.
        order: Positions of super-layers in the order in which they are taken.
        line: Their states, in that order.
        scores: M steps of damage.
        costs: M steps of cost, whole numbers.
        whole: The costs, for their unit and constant.
    """

    layers: SuperLayers
    order: tuple[int, ...]
    line: Line
    scores: list[Row]
    costs: list[IntRow]
    whole: WholeCosts

    @classmethod
    def of(
        cls, layers: SuperLayers, rows: Sequence[Row], pairs: Sequence[Pair[Row]], whole: WholeCosts
    ) -> Linked | None:
        """None where too many choices stay open at once; never where nothing is linked."""
        links = [*((p.first, p.second) for p in pairs), *((p.first, p.second) for p in whole.pairs)]
        order = by_range(whole.rows) if not links else tuple(range(len(rows)))
        line = Line.of([layers.widths[m] for m in order], links)
        if links and line.states > MOST_STATES:
            return None
        scores, costs = (
            line.steps([rows[m] for m in order], pairs),
            line.steps([whole.rows[m] for m in order], whole.pairs),
        )
        return cls(layers, order, line, scores, costs, whole)

    def front(self, limit: float = math.inf, epsilon: float = 0.0) -> Front:
        """The whole front up to a limit.

        Args:
            limit: On constant and layers together.
            epsilon: Above 0 the result is INEXACT: of the partial sums within a bucket of this share of the
                cost range only the best is kept at each layer and state, and the cheapest of all. For
                problems whose exact front does not fit in memory.

        Raises:
            InfeasibleError: Nothing costs that little.
        """
        bucket = int(epsilon * sum(int(np.ptp(step)) for step in self.costs))
        return self._sweep(limit, [0.0] * (len(self.costs) + 1), 0.0, math.inf, bucket)

    def near_optimum(self, limit: float) -> Front:
        """Points around the optimum under `limit`, which is the last of them. Raises InfeasibleError."""
        price, upper = self._price(limit)
        rest = self.line.rest(
            [
                score + price * self.whole.real(cost)
                for score, cost in zip(self.scores, self.costs, strict=True)
            ]
        )
        return self._sweep(limit, rest, price, upper)

    def _sweep(
        self, limit: float, bound: Sequence[Row | float], price: float, upper: float, bucket: int = 0
    ) -> Front:
        """Drops partial sums that cannot keep the limit, or whose Lagrangian bound is above `upper`."""
        ceiling, least = self.whole.ceiling(limit), self.line.rest(self.costs)
        if ceiling < self.whole.constant + int(least[0]):
            reachable = math.ldexp(self.whole.constant + int(least[0]), -self.whole.power)
            raise InfeasibleError(
                f"A limit of {limit:g} is below the least reachable cost {reachable:g}. Raise it."
            )
        tops = self._tops(price, limit, upper)
        held: dict[_State, tuple[IntRow, Row, int]] = {(): (np.array([self.whole.constant]), np.zeros(1), 0)}
        steps = []
        for m in range(len(self.costs)):
            arrived = self._arrivals(m, held)
            held, origins, offset = {}, [], 0
            for state in sorted(arrived):
                cost, score = (
                    _flat([part[0] for part in arrived[state]]),
                    _flat([part[1] for part in arrived[state]]),
                )
                ahead = bound[m + 1][state] if tops < math.inf else 0.0  # type: ignore[index]
                kept = _kept(
                    cost, score, ceiling - int(least[m + 1][state]), tops - ahead, price, limit, self.whole
                )
                kept = kept if bucket < 2 else kept[_best_of_buckets(cost[kept], bucket)]
                if len(kept):
                    held[state] = (cost[kept], score[kept], offset)
                    origins.append(_origins(arrived[state], kept))
                    offset += len(kept)
            steps.append((np.concatenate([o[0] for o in origins]), np.concatenate([o[1] for o in origins])))
        cost, score, _ = held[()]
        return Front.of_last(self.whole, cost, score, bucket == 0, self.layers, self.order, steps)

    def _arrivals(self, m: int, held: dict[_State, tuple[IntRow, Row, int]]) -> dict[_State, list[_Part]]:
        """Every list extended by every choice of super-layer m, by the state it leads to; parents count
        through all lists.
        """
        found: dict[_State, list[_Part]] = {}
        for state, (cost, score, offset) in held.items():
            more, worse = self.costs[m][state], self.scores[m][state]
            if m in self.line.open[m + 1]:
                leads = [
                    (self.line.after(m, state, choice), np.array([choice]))
                    for choice in range(self.line.widths[m])
                ]
            else:
                leads = [(self.line.after(m, state, 0), useful(more, worse))]
            for after, choices in leads:
                costs, scores = more[choices, None] + cost, worse[choices, None] + score
                found.setdefault(after, []).append((costs, scores, offset, choices))
        return found

    def _tops(self, price: float, limit: float, upper: float) -> float:
        if upper == math.inf:
            return math.inf
        sizes = math.fsum(float(np.abs(step).max()) for step in self.scores)
        return upper + _ROUNDING * (abs(upper) + sizes + price * self._most(limit))

    def _most(self, limit: float) -> float:
        """No sum of costs and limit that is formed on the way is greater."""
        return abs(limit) + math.ldexp(
            abs(self.whole.constant) + sum(int(np.abs(step).max()) for step in self.costs), -self.whole.power
        )

    def _price(self, limit: float) -> tuple[float, float]:
        """The price of a unit of cost at which the Lagrangian bound is greatest, and the damage of something
        that fits; infinite if nothing was met.

        The line between two assignments, one that fits and one that does not, is lowered until none lies
        below it.
        """
        real = [self.whole.real(step) for step in self.costs]
        room = limit - math.ldexp(self.whole.constant, -self.whole.power)
        slack, upper, price = room - _ROUNDING * self._most(limit), math.inf, 0.0

        def met(choices: Choices) -> tuple[float, float, Choices]:
            """With its damage and its cost."""
            nonlocal upper
            score, cost = total(self.scores, self.line, choices), total(real, self.line, choices)
            upper = min(upper, score) if cost <= slack else upper
            return score, cost, choices

        above, below = met(self.line.best(self.scores)), met(self.line.best(self.costs))
        if above[1] <= slack:
            return 0.0, above[0]
        for _ in range(_PRICES):
            if above[1] <= below[1] or below[0] <= above[0]:
                break
            price = (below[0] - above[0]) / (above[1] - below[1])
            found = met(
                self.line.best([score + price * cost for score, cost in zip(self.scores, real, strict=True)])
            )
            if found[2] in (above[2], below[2]):
                break
            above, below = (above, found) if found[1] <= room else (found, below)
        return price, min(upper, self._filled(below[2], real, slack))

    def _filled(self, choices: Choices, real: Sequence[Row], room: float) -> float:
        """The damage of choices once the room that they leave is used up by single changes, best gain first;
        infinite where they do not fit.

        Only super-layers that are linked to no other are changed.
        """
        room -= total(real, self.line, choices)
        damage = total(self.scores, self.line, choices)
        alone = [m for m in range(len(choices)) if self.line.alone(m)]
        if room < 0 or not alone:
            return damage if room >= 0 else math.inf
        width = max(self.line.widths[m] for m in alone)
        gain, more = np.full((len(alone), width), -np.inf), np.full((len(alone), width), np.inf)
        for k, m in enumerate(alone):
            gain[k, : self.line.widths[m]] = self.scores[m][choices[m]] - self.scores[m]
            more[k, : self.line.widths[m]] = real[m] - real[m][choices[m]]
        for _ in range(4 * len(alone)):
            k, c = divmod(int(np.where(more <= room, gain, -np.inf).argmax()), width)
            if not (more[k, c] <= room and gain[k, c] > 0):
                break
            room, damage = room - float(more[k, c]), damage - float(gain[k, c])
            gain[k], more[k] = gain[k] - gain[k, c], more[k] - more[k, c]
        return damage


def _kept(
    cost: IntRow, score: Row, cap: float, most: float, price: float, limit: float, whole: WholeCosts
) -> NDArray[np.intp]:
    """Positions of what costs no more than `cap`: what no other dominates and whose bound is at most
    `most`.
    """
    left = np.arange(len(cost))
    if cap < math.inf:
        left = left[cost <= cap]
    if most < math.inf:  # first: what is dominated has no lower bound than what dominates it
        left = left[score[left] + price * (whole.real(cost[left]) - limit) <= most]
    left = left[np.argsort(cost[left], kind="stable")]
    return left[keep_non_dominated(cost[left], score[left])]


def _best_of_buckets(cost: IntRow, bucket: int) -> NDArray[np.bool_]:
    """Of rising costs with falling damage the last of each bucket, and the first: without it a tight limit
    would leave nothing.
    """
    cells = cost // bucket
    last: NDArray[np.bool_] = np.append(cells[1:] > cells[:-1], True)[: len(cost)]
    last[:1] = True
    return last


def _flat(parts: Sequence[T]) -> T:
    return parts[0].ravel() if len(parts) == 1 else np.concatenate([part.ravel() for part in parts])


def _origins(parts: Sequence[_Part], kept: NDArray[np.intp]) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Parent and choice of positions in the parts, one after the other."""
    if len(parts) == 1:
        ((_, score, first_parent, taken),) = parts
        row, parent = np.divmod(kept, score.shape[1])
        return (first_parent + parent).astype(np.uint32), taken[row].astype(np.uint16)
    starts = np.cumsum([0, *(part[0].size for part in parts)])
    first = np.cumsum([0, *(len(part[3]) for part in parts)])
    at = np.searchsorted(starts, kept, side="right") - 1
    count, offset = np.array([part[0].shape[1] for part in parts]), np.array([part[2] for part in parts])
    row, parent = np.divmod(kept - starts[at], count[at])
    choices = np.concatenate([part[3] for part in parts])
    return (offset[at] + parent).astype(np.uint32), choices[first[at] + row].astype(np.uint16)


def by_range(rows: Sequence[IntRow]) -> tuple[int, ...]:
    """Positions of rows of least range first: early lists stay short."""
    return tuple(int(m) for m in np.argsort([int(np.ptp(row)) for row in rows], kind="stable"))
