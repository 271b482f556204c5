"""The least of each resource that is reachable while budgets are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mpsearch.errors import InfeasibleError
from mpsearch.problem import PEAKS, Budget, Problem
from mpsearch.solvers.optimum import solve


def least_within(problem: Problem, budgets: Sequence[Budget], time_limit_s: float = 60.0) -> dict[str, float]:
    """Resource -> the least total cost of any assignment that keeps every budget.

    Args:
        problem: Its scores are not looked at.
        budgets: Absolute limits.
        time_limit_s: For each resource; only several budgets, or far conversions, can need it.

    Raises:
        InfeasibleError: No assignment keeps the budgets.
    """
    return {
        r: _least_peak(problem, r, budgets) if r in PEAKS else _least_sum(problem, r, budgets, time_limit_s)
        for r in problem.costs
    }


def _least_sum(problem: Problem, resource: str, budgets: Sequence[Budget], time_limit_s: float) -> float:
    terms = {resource: problem.conversions[resource]} if resource in problem.conversions else {}
    found = solve(
        replace(problem, scores={resource: problem.costs[resource]}, interactions=terms),
        resource,
        budgets,
        time_limit_s,
    )
    return float(getattr(found.cost, resource))


def _least_peak(problem: Problem, resource: str, budgets: Sequence[Budget]) -> float:
    """The least row value under which something is left: found by halving."""
    anything = replace(
        problem, scores={"": tuple((0.0,) * len(row) for row in problem.candidates)}, interactions={}
    )
    constant = problem.constants.get(resource, 0.0)
    values = sorted({constant + v for row in problem.costs[resource] for v in row} or {constant})
    solve(anything, "", budgets)
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        try:
            solve(anything, "", [*budgets, Budget(resource, values[middle], "")])
            high = middle
        except InfeasibleError:
            low = middle + 1
    return values[low]
