"""The exact front of damage over one cost: points, and how each was reached.

It is what a dynamic programme over non-dominated partial sums (`chain_dp`) leaves at its end. Nothing is
sampled and nothing rounded to a grid, so each point is the true optimum at its cost.

References: Nemhauser and Ullmann, Discrete dynamic programming and capital allocation, Management Science
    15(9), 1969.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import InfeasibleError
from mpsearch.solvers.tables.groups import IntRow, Row, SuperLayers
from mpsearch.solvers.tables.integer_costs import WholeCosts

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
    def of_last(
        cls,
        costs: WholeCosts,
        total: IntRow,
        score: Row,
        exact: bool,
        layers: SuperLayers,
        order: Sequence[int],
        steps: Sequence[_Step],
    ) -> Front:
        """Of the points of the last step, in any order."""
        found = np.lexsort((score, total))
        found = found[keep_non_dominated(total[found], score[found])]
        values = costs.real(total[found]) if costs.power else total[found]
        single = np.append(
            values[1:] > values[:-1], True
        )  # costs that only the integers told apart are one point
        return cls(
            values[single], score[found[single]], exact, layers, tuple(order), found[single], tuple(steps)
        )

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
            raise InfeasibleError(
                f"A limit of {limit:g} is below the least cost {self.costs[0]:g} of the front. Raise it.",
                {"cost": float(self.costs[0])},
            )
        return p


def useful(costs: IntRow, scores: Row) -> NDArray[np.intp]:
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
