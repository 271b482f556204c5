"""A front of damage over one resource whose conversions reach too far for the exact one: least damage under
limits spread over the reachable range (the epsilon-constraint method).

References: Haimes, Lasdon and Wismer, IEEE Trans. SMC 1(3), 1971.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpsearch.problem import Budget, Problem
from mpsearch.solvers.ask.pareto import non_dominated
from mpsearch.solvers.optimum import solve
from mpsearch.solvers.reach import reachable

_ABOVE = 1 + 1e-9


def swept_front(
    problem: Problem,
    objective: str,
    resource: str,
    steps: int = 24,
    also: Sequence[Sequence[int]] = (),
) -> list[tuple[float, float, tuple[int, ...]]]:
    """Points that no other one found is better than in damage and the resource.

    Args:
        problem: Layers, candidates and tables, as for `solve`.
        objective: Name of the score table.
        resource: Name of the cost table.
        steps: Limits, from what the least damage uses down to the least that can be reached.
        also: Assignments that are points too, if nothing found is better than they are.
    Returns: Cost, damage and choices, by cost.
    """
    found = [tuple(indices) for indices in also]
    low = reachable(problem)[resource][0] * _ABOVE
    best = solve(problem, objective, ())
    high = limit = max(low, getattr(best.cost, resource))
    found.append(best.indices)
    while limit > low:
        limit = max(low, min(limit - (high - low) / steps, getattr(best.cost, resource) / _ABOVE))
        best = solve(problem, objective, [Budget(resource, limit, "")])
        found.append(best.indices)
    points = [(float(getattr(problem.cost(i), resource)), problem.score(objective, i)) for i in found]
    kept = sorted({found[at]: points[at] for at in non_dominated(points)}.items(), key=lambda item: item[1])
    return [(cost, score, indices) for indices, (cost, score) in kept]
