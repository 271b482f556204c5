"""Exact size-damage front of an additive problem: list dynamic programming over non-dominated partial sums.

Layer by layer, every kept (cost, score) is extended by every candidate; the lists are merged by one sort and swept by a running
minimum. Nothing is sampled and nothing rounded to a grid, so each point is the true optimum at its cost.

References: Nemhauser and Ullmann, Discrete dynamic programming and capital allocation, Management Science 15(9), 1969.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import InfeasibleError, UserError
from mpsearch.solvers.tables.groups import IntRow, Row, SuperLayers
from mpsearch.solvers.tables.integer_costs import WholeCosts

Keep = Callable[[int, Row, Row], NDArray[np.bool_]]
"""Which partial sums may still lead to something wanted, from the number of layers done, their costs and their scores."""
_Step = tuple[NDArray[np.uint32], NDArray[np.uint16]]  # parent point, choice


@dataclass(frozen=True)
class Front:
    """P non-dominated points, cost strictly increasing and score strictly decreasing.

    Args:
        costs: [P]; int64 where every cost is whole, else float64.
        scores: [P].
        exact: False where points were dropped by `epsilon`.
    """

    costs: NDArray[np.int64] | NDArray[np.float64]
    scores: NDArray[np.float64]
    exact: bool
    _layers: SuperLayers
    _order: tuple[int, ...]
    _last: NDArray[np.intp]
    _steps: tuple[_Step, ...]

    @classmethod
    def of_last(cls, costs: WholeCosts, total: IntRow, score: Row, exact: bool, layers: SuperLayers, order: Sequence[int], steps: Sequence[_Step]) -> Front:
        """Of the points of the last step, in any order."""
        found = np.lexsort((score, total))
        found = found[keep_non_dominated(total[found], score[found])]
        values = costs.real(total[found]) if costs.power else total[found]
        single = np.append(values[1:] > values[:-1], True)  # costs that only the integers told apart are one point
        return cls(values[single], score[found[single]], exact, layers, tuple(order), found[single], tuple(steps))

    def __len__(self) -> int:
        """P."""
        return len(self.scores)

    def choices(self, p: int) -> tuple[int, ...]:
        """The choice of each super-layer at point p, found by following the back-pointers."""
        choices, at = [0] * len(self._order), int(self._last[p])
        for layer, (parent, choice) in zip(reversed(self._order), reversed(self._steps), strict=True):
            choices[layer], at = int(choice[at]), int(parent[at])
        return tuple(choices)

    def indices(self, p: int) -> tuple[int, ...]:
        """`L` choices of point p."""
        return self._layers.expand(self.choices(p))

    def best_under(self, limit: float) -> int:
        """The point of least score whose cost is at most `limit`. Raises InfeasibleError if there is none."""
        p = int(np.searchsorted(self.costs, limit, side="right")) - 1
        if p < 0:
            raise InfeasibleError(f"A limit of {limit:g} is below the least cost {self.costs[0]:g} of the front. Raise it.", {"cost": float(self.costs[0])})
        return p


def exact_front(
    scores: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    groups: Sequence[Sequence[int]] | None = None,
    *,
    limit: float | None = None,
    constant: float = 0.0,
    epsilon: float = 0.0,
) -> Front:
    """The whole front of an additive problem.

    Args:
        scores: `L x C_l`, lower is better.
        costs: `L x C_l`; whole numbers are added in exact integers.
        groups: Ties, such as `Problem.ties`; None where every layer is free.
        limit: Drops what cannot fit.
        constant: Cost of everything that is not a layer; part of every cost of the front.
        epsilon: Above 0 the result is INEXACT: of the partial sums within a bucket of this share of the cost range only the best is
            kept at each layer, and the cheapest of all. For problems whose exact front does not fit in memory.

    Raises:
        UserError: Tables of other shapes, values that are not finite, or ties that cannot be merged.
        InfeasibleError: No assignment costs `limit` or less.
    """
    if [len(row) for row in scores] != [len(row) for row in costs]:
        raise UserError("Scores and costs do not have the same number of candidates for each layer.")
    check_epsilon(epsilon)
    layers = SuperLayers.of([len(row) for row in costs], groups)
    gains = layers.merge(scores)
    if not all(np.isfinite(row).all() for row in gains):
        raise UserError("A score is NaN or infinite; every score must be a finite number.")
    return sweep(layers, gains, WholeCosts.of(layers, costs, constant), math.inf if limit is None else limit, epsilon)


def check_epsilon(epsilon: float) -> None:
    """Refuse what is no share. Raises UserError."""
    if not 0 <= epsilon < 1:
        raise UserError(f"epsilon is {epsilon}; it is a share of the cost range: 0 (exact) or a small number such as 1e-5.")


def sweep(
    layers: SuperLayers,
    scores: Sequence[Row],
    costs: WholeCosts,
    limit: float,
    epsilon: float = 0.0,
    keep: Keep | None = None,
) -> Front:
    """The dynamic programme on M merged rows; `keep` thins the partial sums of each step."""
    ceiling, rest = costs.ceiling(limit), costs.least
    if ceiling < rest:
        raise InfeasibleError(f"A limit of {limit:g} is below the least reachable cost {math.ldexp(rest, -costs.power):g}. Raise it.")
    rest -= costs.constant
    bucket = int(epsilon * sum(int(np.ptp(row)) for row in costs.rows))
    order, steps = by_range(costs), []
    total, score = np.array([costs.constant]), np.zeros(1)
    for done, m in enumerate(order, start=1):
        rest -= int(costs.rows[m].min())
        total, score, parent, choice = _extend(total, score, costs.rows[m], scores[m], ceiling - rest, bucket)
        if keep is not None:
            kept = keep(done, costs.real(total), score)
            total, score, parent, choice = total[kept], score[kept], parent[kept], choice[kept]
        steps.append((parent, choice))
    return Front.of_last(costs, total, score, bucket == 0, layers, order, steps)


def by_range(costs: WholeCosts) -> tuple[int, ...]:
    """The order in which layers are merged: least range of cost first, which keeps the early lists short."""
    return tuple(int(m) for m in np.argsort([int(np.ptp(row)) for row in costs.rows], kind="stable"))


def _extend(total: IntRow, score: Row, row_cost: IntRow, row_score: Row, cap: float, bucket: int) -> tuple[IntRow, Row, NDArray[np.uint32], NDArray[np.uint16]]:
    """One layer more: P points x C candidates, merged, dominated ones dropped."""
    choices = _useful(row_cost, row_score)
    costs = (row_cost[choices, None] + total[None, :]).ravel()
    scores = (row_score[choices, None] + score[None, :]).ravel()
    order = np.argsort(costs, kind="stable")
    if cap < math.inf:
        order = order[: np.searchsorted(costs, int(cap), side="right", sorter=order)]
    kept = keep_non_dominated(costs[order], scores[order])
    if bucket > 1:
        cells = costs[order[kept]] // bucket
        last = np.append(cells[1:] > cells[:-1], True)
        last[:1] = True  # the cheapest stays, or a tight limit would leave nothing
        kept = kept[last]
    origin = order[kept]
    return costs[origin], scores[origin], (origin % len(total)).astype(np.uint32), choices[origin // len(total)].astype(np.uint16)


def _useful(costs: IntRow, scores: Row) -> NDArray[np.intp]:
    """Candidates that no other candidate of the layer dominates; the first of equals."""
    order = np.lexsort((scores, costs))
    kept: NDArray[np.intp] = order[keep_non_dominated(costs[order], scores[order])]
    return kept


def keep_non_dominated(costs: IntRow, scores: Row) -> NDArray[np.intp]:
    """Positions, in points sorted by cost, of those that no other dominates."""
    if not len(costs):
        return np.zeros(0, np.intp)
    before = np.minimum.accumulate(scores)
    better = np.flatnonzero(np.append(True, scores[1:] < before[:-1]))
    last: NDArray[np.bool_] = np.append(costs[better][1:] > costs[better][:-1], True)
    return better[last]
