"""`solve`: the assignment of least predicted damage, whatever the objective is made of."""

from __future__ import annotations

from collections.abc import Sequence

from mpsearch.problem import Budget, Problem, Solution
from mpsearch.search.constraints import Constraints
from mpsearch.search.coupled import Coupled
from mpsearch.search.milp import Found, solve_rows
from mpsearch.search.quadratic import solve_pairs


def solve(problem: Problem, objective: str, budgets: Sequence[Budget], time_limit_s: float = 60.0) -> Solution:
    """The assignment of least predicted damage that keeps every budget.

    An additive objective is solved exactly, and so is one whose interactions stay within small blocks. Interactions that reach further are
    solved exactly where the time allows; else the result is `feasible` and has a lower bound.

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
    coupled = Coupled.of(problem, objective)
    constraints = Constraints.of(problem, budgets, coupled.layers)
    if coupled.pairs:
        found, by = solve_pairs(constraints, coupled, time_limit_s)
    else:
        found = solve_rows(constraints, coupled.rows, time_limit_s)
        by = "HiGHS" if len(constraints.limits) > 1 else "exact dynamic programme"
    return _solution(constraints, objective, found, by)


def _solution(constraints: Constraints, objective: str, found: Found, by: str) -> Solution:
    problem, indices = constraints.problem, constraints.layers.expand(found.choices)
    score = problem.score(objective, indices)
    bound = score if found.proven else min(found.bound, score)
    return Solution(indices, score, problem.cost(indices), "optimal" if found.proven else "feasible", bound, by)
