"""Exact optima of tables under the budgets, and what of the proxy's exact front dominates most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mpsearch.errors import MpsearchError
from mpsearch.problem import Choices
from mpsearch.solvers.ask.lagrangian_front import most_improving, supported
from mpsearch.solvers.constraints import Constraints
from mpsearch.solvers.coupled import Coupled
from mpsearch.solvers.optimum import best_choices
from mpsearch.solvers.reach import reachable
from mpsearch.solvers.tables.groups import Row
from mpsearch.study.model.correction import positive

# for several budgets at once: a proposal needs no proof, but it must be the same on every run
_GAP, _NODES = 1e-3, 2000


@dataclass(frozen=True)
class Optima:
    """Asks the exact solvers, and remembers what they said of the proxy.

    Args:
        constraints: The budgets; the first that is no peak limits the resource that the front is drawn over.
        rows: M proxy rows.
        seed: Random seed; the same one gives the same result.
    """

    constraints: Constraints
    rows: list[Row]
    seed: int
    _proxy: dict[float, Choices] = field(default_factory=dict, kw_only=True, compare=False, repr=False)

    @property
    def resource(self) -> str:
        """The resource that the front is drawn over."""
        return next(iter(self.constraints.rows))

    @property
    def limit(self) -> float:
        """Budget of that resource."""
        return self.constraints.limits[self.resource]

    @property
    def least(self) -> float:
        """Least cost in it of any assignment."""
        return reachable(self.constraints.problem)[self.resource][0]

    @property
    def corner(self) -> float:
        """Beyond the costs of all that keeps the budget."""
        return self.limit + 1e-3 * max(self.limit - self.least, 1e-9 * abs(self.limit))

    def costs(self, choices: Sequence[Choices]) -> Row:
        """[P] cost of each in the resource of the front."""
        problem, layers = self.constraints.problem, self.constraints.layers
        return np.array([getattr(problem.cost(layers.expand(c)), self.resource) for c in choices])

    def proxy_front(self, count: int, held: Sequence[Choices] = ()) -> list[Choices]:
        """Up to `count` points of the exact front of the proxy that dominate most, in log damage, beside
        those held.
        """
        rows = positive(self.rows)
        pool = supported(self.constraints, rows, np.random.default_rng(self.seed))
        points, found = (np.column_stack([self.costs(c), np.log(sums(rows, c))]) for c in (pool, held))
        corner = (self.corner, float(points[:, 1].max()) + 1e-9) if len(points) else (0.0, 0.0)
        return [pool[i] for i in most_improving(points, found, corner, count)]

    def proxy_optimum(self, limit: float) -> Choices:
        """Least predicted damage with this limit on the first resource; where the other budgets forbid that,
        with the whole budget.
        """
        if limit not in self._proxy:
            at_budget = limit == self.limit
            found = (
                best_choices(self.constraints, self._coupled(self.rows))[0].choices
                if at_budget
                else self.optimum(self.rows, limit)
            )
            self._proxy[limit] = found
        return self._proxy[limit]

    def _coupled(self, rows: Sequence[Row]) -> Coupled:
        return Coupled(self.constraints.layers, list(rows), ())

    def optimum(self, rows: Sequence[Row], limit: float) -> Choices:
        """Least sum of M rows with this limit on the resource of the front; the proxy's optimum at the budget
        where none is found.
        """
        try:
            found, _ = best_choices(
                self.constraints.tightened(self.resource, limit),
                self._coupled(rows),
                gap=_GAP,
                node_limit=_NODES,
            )
            return found.choices
        except (
            MpsearchError
        ):  # other budgets forbid it, or the nodes ran out: the caller goes on from what fits
            return self.proxy_optimum(self.limit)


def sums(rows: Sequence[Row], choices: Sequence[Choices]) -> Row:
    """[P] sum of M rows at each of P choices."""
    taken = np.array(choices, dtype=np.intp).reshape(len(choices), len(rows))
    return np.asarray(sum((row[taken[:, m]] for m, row in enumerate(rows)), np.zeros(len(taken))))
