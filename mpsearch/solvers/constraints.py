"""Budgets against a problem: which can be kept, what is reachable, and whether an assignment keeps them,
exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mpsearch.errors import BudgetError, InfeasibleError
from mpsearch.problem import PEAKS, Budget, Problem
from mpsearch.solvers.reach import describe_least, reachable
from mpsearch.solvers.tables.groups import Row, SuperLayers
from mpsearch.solvers.tables.integer_costs import WholeCosts
from mpsearch.solvers.tables.pair_tables import Pair, spread
from mpsearch.units import format_pair

_ROUNDINGS = 8  # of float64, that the sums of a problem may differ by from ours


@dataclass(frozen=True)
class Constraints:
    """The budgets of a problem in the form that solvers use: one limit for each of B resources that add up.

    A peak only forbids choices: the super-layers have none that passes it.

    Args:
        problem: Where the costs come from.
        layers: Its ties, merged, and blocks that were joined.
        limits: Resource -> the tightest limit, in the order in which the budgets were given; peaks among
            them.
        rows: Resource -> M merged cost rows; peaks have none.
        whole: Resource -> the same, its pairs and the constant, in integers.
        pairs: Resource -> what two super-layers together add, where there are conversions.
    """

    problem: Problem
    layers: SuperLayers
    limits: dict[str, float]
    rows: dict[str, list[Row]]
    whole: dict[str, WholeCosts]
    pairs: dict[str, tuple[Pair[Row], ...]]

    @classmethod
    def of(
        cls, problem: Problem, budgets: Sequence[Budget], layers: SuperLayers | None = None
    ) -> Constraints:
        """Check and build.

        Args:
            problem: Where the costs come from.
            budgets: Absolute limits.
            layers: Super-layers that hold its ties, without the choices that pass a peak; None for the ties
                alone.

        Raises:
            BudgetError: A resource without a cost table, or a limit that is still relative or not a number.
            InfeasibleError: A budget is below the least reachable value of its resource.
        """
        limits = _limits(problem, budgets)
        layers = within_peaks(problem, budgets) if layers is None else layers
        found = cls(problem, layers, limits, {}, {}, {})
        for resource in (r for r in limits if r not in PEAKS):
            terms = problem.conversions.get(resource, ())
            rows, pairs = spread(
                layers,
                layers.merge(problem.costs[resource]),
                [(term, np.array(term.values)) for term in terms],
            )
            found.rows[resource], found.whole[resource] = (
                rows,
                WholeCosts.of(layers, problem.costs[resource], problem.constants.get(resource, 0.0), terms),
            )
            if pairs:
                found.pairs[resource] = pairs
        return found

    def fits(self, indices: Sequence[int]) -> bool:
        """Whether `L` choices keep every limit, by the problem's own sums: exact for whole numbers, rounded
        once or twice otherwise.
        """
        cost = self.problem.cost(indices)
        return all(getattr(cost, resource) <= limit for resource, limit in self.limits.items())

    def spare(self, resource: str) -> float:
        """What the limit leaves when every super-layer and pair takes its least cost; never too little by a
        rounding, if at times too much.
        """
        limit = self.limits[resource]
        least = [
            float(part.min())
            for part in (*self.rows[resource], *(pair.table for pair in self.pairs.get(resource, ())))
        ]
        left = math.fsum([limit, -self.problem.constants.get(resource, 0.0), *(-v for v in least)])
        return max(left, 0.0) + (_ROUNDINGS * math.ulp(limit) if self.whole[resource].power else 0.0)

    def tightened(self, resource: str, limit: float) -> Constraints:
        """The same with another limit on one resource."""
        return replace(self, limits={**self.limits, resource: limit})

    def joint_error(self) -> InfeasibleError:
        """Each budget can be kept alone, but not all together."""
        least = {r: low for r, (low, _) in reachable(self.problem).items()}
        pairs = {r: _shown(r, limit, least[r]) for r, limit in self.limits.items()}
        alone = "; ".join(
            f"{r.rsplit('_', 1)[0]} {limit} (least reachable {low})" for r, (limit, low) in pairs.items()
        )
        others = {r: low for r, low in least.items() if r not in self.limits}
        more = f" {describe_least(self.problem, others)}" if others else ""
        return InfeasibleError(
            (
                f"No assignment keeps all budgets together, though each alone can be kept: {alone}. Raise "
                f"one of them.{more}"
            ),
            least,
        )


def within_peaks(problem: Problem, budgets: Sequence[Budget]) -> SuperLayers:
    """Ties merged, and without the choices that alone pass a budget on a peak.

    Raises:
        BudgetError: A resource without a cost table, or a limit that is still relative or not a number.
        InfeasibleError: A budget is below the least reachable value of its resource.
    """
    limits = _limits(problem, budgets)
    layers = SuperLayers.of([len(c) for c in problem.candidates], problem.ties)
    _check_reachable(problem, limits)
    for resource in (r for r in limits if r in PEAKS):
        constant, limit = problem.constants.get(resource, 0.0), limits[resource]
        layers = layers.keeping(
            [
                [c for c, value in enumerate(row) if constant + value <= limit]
                for row in problem.costs[resource]
            ]
        )
    return layers


def _limits(problem: Problem, budgets: Sequence[Budget]) -> dict[str, float]:
    limits: dict[str, float] = {}
    for budget in budgets:
        _check(budget, problem)
        limits[budget.resource] = min(budget.limit, limits.get(budget.resource, math.inf))
    return limits


def _check_reachable(problem: Problem, limits: dict[str, float]) -> None:
    least = {r: low for r, (low, _) in reachable(problem).items()}
    below = [r for r, limit in limits.items() if least[r] > limit]
    if not below:
        return
    words = [
        (
            f"Budget {limit} is below the least reachable {low} (all {len(problem.layers)} layers at their "
            f"{'smallest' if r.endswith('_bytes') else 'cheapest'})."
        )
        for r, (limit, low) in ((r, _shown(r, limits[r], least[r])) for r in below)
    ]
    others = {r: low for r, low in least.items() if r not in below}
    more = f" {describe_least(problem, others)}" if others else ""
    raise InfeasibleError(" ".join(words) + " Raise it, or add cheaper candidates with --bits." + more, least)


def _shown(resource: str, limit: float, least: float) -> tuple[str, str]:
    shown, low = format_pair(limit, least, resource)
    return shown + (" peak" if resource == "memory_bytes" else ""), low


def _check(budget: Budget, problem: Problem) -> None:
    if budget.resource not in problem.costs:
        known = ", ".join(problem.costs) or "none"
        raise BudgetError(
            f"The budget {budget.text!r} limits {budget.resource}, which this problem has no costs for. "
            f"It has: {known}. "
            "Give a budget on one of these, or profile the resource first."
        )
    if budget.relative:
        raise BudgetError(
            f"The budget {budget.text!r} is a share of the float model; give `Budget.resolve` what the "
            "float model uses first."
        )
    if math.isnan(budget.limit):
        raise BudgetError(f"The budget {budget.text!r} has the limit NaN; it must be a number.")
