"""Budgets against a problem: which can be kept, what is reachable, and whether an assignment keeps them, exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mpsearch.errors import BudgetError, InfeasibleError
from mpsearch.problem import Budget, Problem
from mpsearch.search.superlayers import Row, SuperLayers, WholeCosts
from mpsearch.units import format_quantity

_ROUNDINGS = 8  # of float64, that the sums of a problem may differ by from ours


@dataclass(frozen=True)
class Constraints:
    """The budgets of a problem in the form that solvers use: one limit for each of B resources.

    Args:
        problem: Where the costs come from.
        layers: Its ties, merged, and blocks that were joined.
        limits: Resource -> the tightest limit, in the order in which the budgets were given.
        rows: Resource -> M merged cost rows.
        whole: Resource -> the same and the constant, in integers.
    """

    problem: Problem
    layers: SuperLayers
    limits: dict[str, float]
    rows: dict[str, list[Row]]
    whole: dict[str, WholeCosts]

    @classmethod
    def of(cls, problem: Problem, budgets: Sequence[Budget], layers: SuperLayers | None = None) -> Constraints:
        """Check and build.

        Args:
            problem: Where the costs come from.
            budgets: Absolute limits.
            layers: Super-layers that hold its ties; None for the ties alone.

        Raises:
            BudgetError: A resource without a cost table, or a limit that is still relative or not a number.
            InfeasibleError: A budget is below the least reachable value of its resource.
        """
        limits: dict[str, float] = {}
        for budget in budgets:
            _check(budget, problem)
            limits[budget.resource] = min(budget.limit, limits.get(budget.resource, math.inf))
        layers = SuperLayers.of([len(c) for c in problem.candidates], problem.ties) if layers is None else layers
        whole = {r: WholeCosts.of(layers, problem.costs[r], problem.constants.get(r, 0.0)) for r in limits}
        found = cls(problem, layers, limits, {r: layers.merge(problem.costs[r]) for r in limits}, whole)
        found._check_reachable()
        return found

    def fits(self, indices: Sequence[int]) -> bool:
        """Whether `L` choices keep every limit, by the problem's own sums: exact for whole numbers, rounded once or twice otherwise."""
        cost = self.problem.cost(indices)
        return all(getattr(cost, resource) <= limit for resource, limit in self.limits.items())

    def spare(self, resource: str) -> float:
        """What the limit leaves when every super-layer takes its least cost; never too little by a rounding, if at times too much."""
        limit = self.limits[resource]
        least = [float(row.min()) for row in self.rows[resource]]
        left = math.fsum([limit, -self.problem.constants.get(resource, 0.0), *(-v for v in least)])
        return max(left, 0.0) + (_ROUNDINGS * math.ulp(limit) if self.whole[resource].power else 0.0)

    def tightened(self, resource: str, limit: float) -> Constraints:
        """The same with another limit on one resource."""
        return replace(self, limits={**self.limits, resource: limit})

    def joint_error(self) -> InfeasibleError:
        """Each budget can be kept alone, but not all together."""
        least = _least(self.problem, self.limits)
        alone = "; ".join(f"{r.rsplit('_', 1)[0]} {_shown(r, limit)} (least reachable {format_quantity(least[r], r)})" for r, limit in self.limits.items())
        return InfeasibleError(f"No assignment keeps all budgets together, though each alone can be kept: {alone}. Raise one of them.", least)

    def _check_reachable(self) -> None:
        least = _least(self.problem, self.limits)
        below = [r for r, limit in self.limits.items() if least[r] > limit]
        if below:
            words = [
                f"Budget {_shown(r, self.limits[r])} is below the least reachable {format_quantity(least[r], r)} "
                f"(all {len(self.problem.layers)} layers at their {'smallest' if r.endswith('_bytes') else 'cheapest'})."
                for r in below
            ]
            raise InfeasibleError(" ".join(words) + " Raise it, or add cheaper candidates with --bits.", least)


def reachable(problem: Problem) -> dict[str, tuple[float, float]]:
    """Resource -> (least, greatest) total cost of any assignment, constants included and ties kept."""
    layers = SuperLayers.of([len(c) for c in problem.candidates], problem.ties)
    found = {}
    for resource, table in problem.costs.items():
        rows = layers.merge(table)
        ends = [layers.expand([int(pick(row)) for row in rows]) for pick in (np.argmin, np.argmax)]
        low, high = (getattr(problem.cost(indices), resource) for indices in ends)
        found[resource] = (low, high)
    return found


def _least(problem: Problem, resources: dict[str, float]) -> dict[str, float]:
    return {r: least for r, (least, _) in reachable(problem).items() if r in resources}


def _shown(resource: str, limit: float) -> str:
    return format_quantity(limit, resource) + (" peak" if resource == "memory_bytes" else "")


def _check(budget: Budget, problem: Problem) -> None:
    if budget.resource not in problem.costs:
        known = ", ".join(problem.costs) or "none"
        raise BudgetError(
            f"The budget {budget.text!r} limits {budget.resource}, which this problem has no costs for. It has: {known}. "
            "Give a budget on one of these, or profile the resource first."
        )
    if budget.relative:
        raise BudgetError(f"The budget {budget.text!r} is a share of the float model; give `Budget.resolve` what the float model uses first.")
    if math.isnan(budget.limit):
        raise BudgetError(f"The budget {budget.text!r} has the limit NaN; it must be a number.")
