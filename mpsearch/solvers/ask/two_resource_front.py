"""Three objectives: least damage under limits on two resources, swept over both (the epsilon-constraint
method).

References: Haimes, Lasdon and Wismer, IEEE Trans. SMC 1(3), 1971.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mpsearch.errors import InfeasibleError, OptionError
from mpsearch.problem import Budget, Problem, Solution
from mpsearch.solvers.ask.pareto import non_dominated
from mpsearch.solvers.optimum import solve
from mpsearch.solvers.reach import reachable


def front_of_three(
    problem: Problem,
    objective: str,
    resources: tuple[str, str] = ("size_bytes", "latency_us"),
    budgets: Sequence[Budget] = (),
    steps: int = 12,
    on_solve: Callable[[int, int], None] | None = None,
) -> list[Solution]:
    """Assignments that no other one found is better than in damage and both resources, each the least damage
    under some pair of limits.

    The limits are `steps` x `steps` ones, evenly spread over the reachable ranges below the budgets. A pair
    is not solved where a looser one already has its answer. The whole front may have millions of points; this
    is as fine as its steps.

    Args:
        problem: Layers, candidates and tables, as for `solve`.
        objective: Name of the score table.
        resources: Two.
        budgets: Absolute limits that every point keeps, on any resources.
        steps: At least 2.
        on_solve: Called after each pair of limits with how many are done, and how many there are.
    Returns: Sorted by the first resource, then the second.

    Raises:
        OptionError: Fewer than two steps, or not two resources.
        InfeasibleError: Nothing keeps the budgets.
    """
    if steps < 2 or len(set(resources)) != 2:
        raise OptionError(
            f"A front of three objectives needs at least 2 steps and two resources, not {steps} and "
            f"{', '.join(resources)}."
        )
    best = solve(problem, objective, budgets)
    grid = [
        (a, b)
        for a in _limits(problem, resources[0], best, steps)
        for b in _limits(problem, resources[1], best, steps)
    ]
    found, out_of_reach = [(grid[0], best)], list[tuple[float, float]]()
    for done, limits in enumerate(grid, start=1):
        if not any(_no_looser(limits, far) for far in out_of_reach) and not any(
            _answers(s, under, limits, resources) for under, s in found
        ):
            try:
                found.append(
                    (
                        limits,
                        solve(
                            problem,
                            objective,
                            [*budgets, *(Budget(r, v, "") for r, v in zip(resources, limits, strict=True))],
                        ),
                    )
                )
            except InfeasibleError:
                out_of_reach.append(limits)
        if on_solve is not None:
            on_solve(done, len(grid))
    points = [(s.score, *_uses(s, resources)) for _, s in found]
    return sorted((found[i][1] for i in non_dominated(points)), key=lambda s: _uses(s, resources))


def _uses(solution: Solution, resources: tuple[str, str]) -> tuple[float, float]:
    return getattr(solution.cost, resources[0]), getattr(solution.cost, resources[1])


def _no_looser(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] <= b[1]


def _answers(
    known: Solution, under: tuple[float, float], limits: tuple[float, float], resources: tuple[str, str]
) -> bool:
    """Whether what is proven the best under limits that are no tighter keeps these."""
    return (
        known.status == "optimal"
        and _no_looser(limits, under)
        and _no_looser(_uses(known, resources), limits)
    )


def _limits(problem: Problem, resource: str, best: Solution, steps: int) -> list[float]:
    """From what the best assignment uses down to the least that is reachable."""
    low, high = reachable(problem)[resource][0], getattr(best.cost, resource)
    return [float(v) for v in np.linspace(high, low, steps)]
