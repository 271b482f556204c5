"""`solve`: the assignment of least predicted damage, whatever the objective and the costs are made of."""

from __future__ import annotations

from collections.abc import Sequence

from mpsearch.errors import InfeasibleError
from mpsearch.problem import Budget, Problem, Solution
from mpsearch.solvers.budgeted.milp import Found, solve_rows
from mpsearch.solvers.budgeted.quadratic import solve_pairs
from mpsearch.solvers.constraints import Constraints
from mpsearch.solvers.coupled import Coupled
from mpsearch.solvers.exact.chain_dp import Linked
from mpsearch.solvers.exact.highs import Cut
from mpsearch.solvers.reach import least_choices
from mpsearch.solvers.tables.integer_costs import WholeCosts

_DYNAMIC = "exact dynamic programme"


def solve(problem: Problem, objective: str, budgets: Sequence[Budget], time_limit_s: float = 60.0) -> Solution:
    """The assignment of least predicted damage that keeps every budget.

    An additive objective is solved exactly, and so is one whose interactions stay within small blocks. Interactions and conversions that reach further are
    solved exactly under one budget where few choices stay open at once, as on a chain, and elsewhere where the time allows; else the result is `feasible`
    and has a lower bound.

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
    if not coupled.pairs and not constraints.pairs:
        found = solve_rows(constraints, coupled.rows, time_limit_s, gap, node_limit, cuts)
        return found, found.by if len(constraints.rows) > 1 or cuts else _DYNAMIC
    along = None if cuts else _along_a_line(constraints, coupled)
    if along is not None:
        return along, _DYNAMIC
    return solve_pairs(constraints, coupled, time_limit_s, node_limit=node_limit, cuts=cuts)


def _along_a_line(constraints: Constraints, coupled: Coupled) -> Found | None:
    """The optimum of linked super-layers without a budget that binds, or under one; None where there are more, or too much is open at once."""
    layers = coupled.layers
    if Linked.of(layers, coupled.rows, coupled.pairs, WholeCosts([row.astype(int) * 0 for row in coupled.rows], 0, 0)) is not None:
        choices = least_choices(layers, coupled.rows, coupled.pairs)
        if constraints.fits(layers.expand(choices)):
            return Found(choices, True, coupled.score(choices))
    if len(constraints.rows) != 1:
        return None
    resource, *_ = constraints.rows
    linked = Linked.of(layers, coupled.rows, coupled.pairs, constraints.whole[resource])
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
    return Solution(indices, score, problem.cost(indices), "optimal" if found.proven else "feasible", bound, by)
