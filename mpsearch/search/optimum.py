"""`solve`: the assignment of least predicted damage, whatever the objective and the costs are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from mpsearch.errors import InfeasibleError
from mpsearch.problem import Budget, Problem, Solution
from mpsearch.search.constraints import Constraints
from mpsearch.search.coupled import Coupled
from mpsearch.search.highs import Cut
from mpsearch.search.linked import Linked
from mpsearch.search.milp import Found, solve_rows, under_one
from mpsearch.search.quadratic import solve_pairs
from mpsearch.search.reach import least_choices
from mpsearch.search.whole import WholeCosts

_DYNAMIC = "exact dynamic programme"
_MEASURED, _NO_OTHER = "measured by the objective", "no other fits"


def solve(problem: Problem, objective: str, budgets: Sequence[Budget], time_limit_s: float = 60.0) -> Solution:
    """The assignment of least predicted damage that keeps every budget.

    An additive objective is solved exactly, and so is one whose interactions stay within small blocks. Interactions and conversions that reach further are
    solved exactly under one budget where few choices stay open at once, as on a chain, and elsewhere where the time allows; else the result is `feasible`
    and has a lower bound. Assignments that the objective has measured compete with what was measured, all others with their sum.

    Args:
        problem: Holds the score table and one cost table for each budgeted resource.
        objective: Name of the score table, and of its interactions.
        budgets: Absolute limits; several on one resource count as the tightest.
        time_limit_s: For the solver, wall clock; only several budgets or far interactions can need it.

    Raises:
        UnknownNameError: No such score table.
        BudgetError: A resource without a cost table, or a relative budget.
        InfeasibleError: No assignment fits; names the least reachable value of each resource.
        MpsearchError: The time ran out before any assignment was found.
    """
    coupled = Coupled.of(problem, objective, budgets=budgets)
    constraints = Constraints.of(problem, budgets, coupled.layers)
    found, by = best_choices(constraints, coupled, time_limit_s)
    return as_solution(constraints, objective, found, by)


def best_choices(
    constraints: Constraints, coupled: Coupled, time_limit_s: float = 60.0, gap: float = 0.0, node_limit: int | None = None, cuts: Sequence[Cut] = ()
) -> tuple[Found, str]:
    """The choices of least score that keep every budget, by the first method that is exact on the problem; and its name.

    Args:
        constraints: On the super-layers of `coupled`.
        coupled: Rows and pairs.
        time_limit_s: As in `solve`.
        gap: Above 0 the proof may be given up.
        node_limit: The same, at the same point on every run.
        cuts: Assignments that are not allowed.

    Raises:
        InfeasibleError: No assignment fits.
        MpsearchError: The time ran out before any assignment was found.
    """
    if coupled.known:
        return _beside_measured(constraints, coupled, time_limit_s, gap, node_limit, cuts)
    if not coupled.pairs and not constraints.pairs:
        found = solve_rows(constraints, coupled.rows, time_limit_s, gap, node_limit, cuts)
        return found, found.by if len(constraints.rows) > 1 or cuts else _DYNAMIC
    along = None if cuts else _along_a_line(constraints, coupled)
    if along is not None:
        return along, _DYNAMIC
    return solve_pairs(constraints, coupled, time_limit_s, node_limit=node_limit, cuts=cuts)


def _beside_measured(
    constraints: Constraints, coupled: Coupled, time_limit_s: float, gap: float, node_limit: int | None, cuts: Sequence[Cut]
) -> tuple[Found, str]:
    """The same where some assignments were measured: by a programme that tells them apart, or all others by cutting off those whose sums flatter them."""
    if not cuts and len(constraints.rows) == 1 and not coupled.pairs and not constraints.pairs:
        choices = under_one(constraints, coupled.rows, coupled.known)
        return Found(choices, True, coupled.score(choices)), _DYNAMIC
    along = None if cuts or not (coupled.pairs or constraints.pairs) else _along_a_line(constraints, coupled)
    if along is not None:
        return along, _DYNAMIC
    known = {c: v for c, v in coupled.known.items() if constraints.fits(constraints.layers.expand(c)) and all(cut.allows(c) for cut in cuts)}
    best, least = min(known.items(), key=lambda item: (item[1], item[0]), default=(None, math.inf))
    unknown = replace(coupled, known={})
    own = [Cut.itself(c, coupled.layers.widths) for c in known if unknown.score(c) < least]
    try:
        found, by = best_choices(constraints, unknown, time_limit_s, gap, node_limit, [*cuts, *own])
    except InfeasibleError:
        if best is None:
            raise
        return Found(best, True, least), _NO_OTHER
    if best is None or unknown.score(found.choices) < least:
        return found, by
    return Found(best, found.proven or found.bound >= least, min(found.bound, least)), by


def _along_a_line(constraints: Constraints, coupled: Coupled) -> Found | None:
    """The optimum of linked super-layers without a budget that binds, or under one; None where there are more, or too much is open at once."""
    layers = coupled.layers
    if not coupled.known and Linked.of(layers, coupled.rows, coupled.pairs, WholeCosts([row.astype(int) * 0 for row in coupled.rows], 0, 0)) is not None:
        choices = least_choices(layers, coupled.rows, coupled.pairs)
        if constraints.fits(layers.expand(choices)):
            return Found(choices, True, coupled.score(choices))
    if len(constraints.rows) != 1:
        return None
    resource, *_ = constraints.rows
    linked = Linked.of(layers, coupled.rows, coupled.pairs, constraints.whole[resource], coupled.known)
    if linked is None:
        return None
    try:
        front = linked.near_optimum(constraints.limits[resource])
    except InfeasibleError:  # a peak has taken the cheapest choices away
        raise constraints.joint_error() from None
    for p in range(len(front) - 1, -1, -1):  # with costs that are not whole, the last may pass the limit by a rounding
        choices = front.choices(p)
        if constraints.fits(layers.expand(choices)):
            return Found(choices, True, coupled.score(choices))
    raise constraints.joint_error()


def as_solution(constraints: Constraints, objective: str, found: Found, by: str) -> Solution:
    """What was found in the words of the problem."""
    problem, indices = constraints.problem, constraints.layers.expand(found.choices)
    score = problem.score(objective, indices)
    bound = score if found.proven else min(found.bound, score)
    by = f"{_MEASURED}, {by}" if indices in problem.measured.get(objective, {}) else by
    return Solution(indices, score, problem.cost(indices), "optimal" if found.proven else "feasible", bound, by)
