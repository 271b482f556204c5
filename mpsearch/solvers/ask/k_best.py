"""The best assignments that differ from each other, one after the other, each proven."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from mpsearch.errors import InfeasibleError, OptionError
from mpsearch.problem import Budget, Problem, Solution
from mpsearch.solvers.constraints import Constraints
from mpsearch.solvers.coupled import Coupled
from mpsearch.solvers.exact.knapsack import Cut
from mpsearch.solvers.optimum import as_solution, best_choices
from mpsearch.solvers.tables.groups import SuperLayers


def solve_best(
    problem: Problem,
    objective: str,
    budgets: Sequence[Budget],
    count: int,
    distance: int = 1,
    time_limit_s: float = 60.0,
) -> list[Solution]:
    """Up to `count` assignments that keep the budgets, least damage first; fewer where there are no more.

    Each is the best of those that differ from every earlier one in at least `distance` layers, members of a
    tie counted one by one. With a distance of 1 these are the `count` best there are.

    Args:
        problem: Layers, candidates and tables, as for `solve`.
        objective: Name of the score table.
        budgets: Absolute limits.
        count: At least 1.
        distance: At least 1.
        time_limit_s: For all together.

    Raises:
        OptionError: A count or a distance below 1, or a distance of more layers than have a choice.
        InfeasibleError: Not even one assignment fits.
        MpsearchError: As `solve`.
    """
    coupled = Coupled.of(problem, objective, budgets=budgets)
    _check(problem, count, distance)
    constraints = Constraints.of(problem, budgets, coupled.layers)
    deadline, found, cuts = time.monotonic() + time_limit_s, list[Solution](), list[Cut]()
    while len(found) < count:
        try:
            best, by = best_choices(constraints, coupled, max(1.0, deadline - time.monotonic()), cuts=cuts)
        except InfeasibleError:
            if not found:
                raise
            break
        found.append(as_solution(constraints, objective, best, by))
        cuts.append(_cut(coupled.layers, best.choices, distance))
    # of those that HiGHS cannot tell apart (1e-9 of the damage) the better may come later
    return (
        sorted(found, key=lambda s: s.score)
        if distance == 1 and all(s.status == "optimal" for s in found)
        else found
    )


def apart(a: Solution, b: Solution) -> int:
    """In how many layers two assignments differ."""
    return sum(x != y for x, y in zip(a.indices, b.indices, strict=True))


def _cut(layers: SuperLayers, choices: Sequence[int], distance: int) -> Cut:
    """Forbids what differs from M choices in fewer than `distance` layers."""
    taken = layers.expand(choices)
    agreement = tuple(
        np.array([float(sum(c == taken[i] for i, c in zip(group, pick, strict=True))) for pick in picks])
        for group, picks in zip(layers.groups, layers.picks, strict=True)
    )
    return Cut(agreement, len(taken) - distance)


def _check(problem: Problem, count: int, distance: int) -> None:
    free = sum(len(row) > 1 for row in problem.candidates)
    if count < 1 or distance < 1:
        raise OptionError(
            f"{count} assignments at a distance of {distance} were asked for; both must be at least 1."
        )
    if count > 1 and distance > max(free, 1):
        raise OptionError(
            f"No two assignments differ in {distance} layers; {free} layers have more than one "
            f"candidate. Ask for a distance of at most {free}."
        )
