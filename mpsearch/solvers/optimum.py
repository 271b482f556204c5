"""`solve` and `problem_front`: the least predicted damage under budgets, or at every cost, whatever objective
and costs are made of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mpsearch.errors import InfeasibleError, UnknownNameError, UserError
from mpsearch.problem import PEAKS, Budget, Problem, Solution
from mpsearch.solvers.budgeted.milp import Found, solve_rows
from mpsearch.solvers.budgeted.quadratic import solve_pairs
from mpsearch.solvers.constraints import Constraints
from mpsearch.solvers.coupled import Coupled
from mpsearch.solvers.exact.chain_dp import Linked
from mpsearch.solvers.exact.elimination_order import MOST_STATES, Line
from mpsearch.solvers.exact.front import Front
from mpsearch.solvers.exact.knapsack import Cut
from mpsearch.solvers.reach import least_choices
from mpsearch.solvers.tables.integer_costs import WholeCosts

_DYNAMIC = "exact dynamic programme"


def solve(
    problem: Problem, objective: str, budgets: Sequence[Budget], time_limit_s: float = 60.0
) -> Solution:
    """The assignment of least predicted damage that keeps every budget.

    An additive objective is solved exactly, and so is one whose interactions stay within small blocks.
    Interactions and conversions that reach further are solved exactly under one budget where few choices stay
    open at once, as on a chain, and elsewhere where the time allows; else the result is `feasible` and has a
    lower bound.

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

    Examples:
        Two layers at 4 or 8 bits. Both at 8 take 1,200 bytes; of the two at 1,000 bytes, the one that
        spares the second layer does less damage.

        >>> from mpsearch.problem import Candidate, Layer, Problem
        >>> layers = [Layer(name, "linear", (1, 1), ((1, 1),), (1, 1), 1, name) for name in ("a", "b")]
        >>> choices = (Candidate(4, 8), Candidate(8, 8))
        >>> problem = Problem(
        ...     tuple(layers),
        ...     (choices, choices),
        ...     scores={"proxy": ((0.3, 0.0), (0.9, 0.0))},
        ...     costs={"size_bytes": ((200.0, 400.0), (400.0, 800.0))},
        ... )
        >>> best = solve(problem, "proxy", [Budget.parse("1000B")])
        >>> [str(candidate) for candidate in problem.assignment(best.indices).values()]
        ['W4A8', 'W8A8']
        >>> best.status, best.cost.size_bytes
        ('optimal', 1000.0)
    """
    coupled = Coupled.of(problem, objective, budgets=budgets)
    constraints = Constraints.of(problem, budgets, coupled.layers)
    found, by = best_choices(constraints, coupled, time_limit_s)
    return as_solution(constraints, objective, found, by)


def best_choices(
    constraints: Constraints,
    coupled: Coupled,
    time_limit_s: float = 60.0,
    gap: float = 0.0,
    node_limit: int | None = None,
    cuts: Sequence[Cut] = (),
) -> tuple[Found, str]:
    """The choices of least score that keep every budget, by the first method that is exact on the problem;
    and its name.

    Args:
        constraints: On the super-layers of `coupled`.
        coupled: Rows and pairs.
        time_limit_s: Time limit, as in `solve`.
        gap: Above 0 the proof may be given up.
        node_limit: The same, at the same point on every run.
        cuts: Assignments that are not allowed.

    Raises:
        InfeasibleError: No assignment fits.
        MpsearchError: The time ran out before any assignment was found.
    """
    along = None if cuts else _along_a_line(constraints, coupled)
    if along is not None:
        return along, _DYNAMIC
    if not coupled.pairs and not constraints.pairs:
        found = solve_rows(constraints, coupled.rows, time_limit_s, gap, node_limit, cuts)
        return found, found.by
    return solve_pairs(constraints, coupled, time_limit_s, node_limit=node_limit, cuts=cuts)


def _along_a_line(constraints: Constraints, coupled: Coupled) -> Found | None:
    """The optimum without a budget that binds, or under one; None where there are more, or too much is open
    at once.
    """
    layers = coupled.layers
    if (
        not coupled.pairs
        or Line.of(layers.widths, [(p.first, p.second) for p in coupled.pairs]).states <= MOST_STATES
    ):
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
    for p in range(
        len(front) - 1, -1, -1
    ):  # with costs that are not whole, the last may pass the limit by a rounding
        choices = front.choices(p)
        if constraints.fits(layers.expand(choices)):
            return Found(choices, True, coupled.score(choices))
    raise constraints.joint_error()


def problem_front(
    problem: Problem,
    objective: str,
    resource: str = "size_bytes",
    limit: float | None = None,
    epsilon: float = 0.0,
) -> Front:
    """The exact front of an objective over one resource, constant cost, interactions and conversions
    included.

    Args:
        problem: Holds the score table and the cost table; ties are kept.
        objective: Name of the score table, and of its interactions.
        resource: One that adds up, no peak.
        limit: Drops what cannot fit, in the resource's unit.
        epsilon: Above 0 the front is INEXACT and says so: of the partial sums within a bucket of this share
            of the cost range only the best is kept. For problems whose exact front does not fit in memory.

    Raises:
        UnknownNameError: The problem has no such table.
        UserError: Its interactions or conversions reach too far, the resource is a peak, or epsilon is no
            share.
        InfeasibleError: No assignment costs `limit` or less.
    """
    if resource not in problem.costs:
        raise UnknownNameError("cost table", resource, problem.costs)
    if resource in PEAKS:
        raise UserError(
            f"{resource} is a peak, and damage is no front over the greatest of all rows. Give a budget "
            "on it instead."
        )
    if not 0 <= epsilon < 1:
        raise UserError(
            f"epsilon is {epsilon}; it is a share of the cost range: 0 (exact) or a small number such as "
            "1e-5."
        )
    coupled, conversions = Coupled.of(problem, objective), problem.conversions.get(resource, ())
    whole = WholeCosts.of(
        coupled.layers, problem.costs[resource], problem.constants.get(resource, 0.0), conversions
    )
    linked = Linked.of(coupled.layers, coupled.rows, coupled.pairs, whole)
    if linked is None:
        what = f"interactions of {objective!r}" if coupled.pairs else f"conversions of {resource}"
        raise UserError(
            f"The {what} link too many layers for an exact front. Keep them between neighbours or within "
            "blocks, or use `solve` budget by budget."
        )
    return linked.front(math.inf if limit is None else limit, epsilon)


def as_solution(constraints: Constraints, objective: str, found: Found, by: str) -> Solution:
    """What was found in the words of the problem."""
    problem, indices = constraints.problem, constraints.layers.expand(found.choices)
    score = problem.score(objective, indices)
    bound = score if found.proven else min(found.bound, score)
    return Solution(
        indices, score, problem.cost(indices), "optimal" if found.proven else "feasible", bound, by
    )
