"""The exact front of a problem over one resource, by whichever dynamic programme its interactions and conversions need."""

from __future__ import annotations

import math

from mpsearch.errors import UnknownNameError, UserError
from mpsearch.problem import PEAKS, Problem
from mpsearch.solvers.coupled import Coupled
from mpsearch.solvers.exact.chain_dp import Linked
from mpsearch.solvers.exact.front import Front, check_epsilon, exact_front, sweep
from mpsearch.solvers.tables.integer_costs import WholeCosts


def problem_front(problem: Problem, objective: str, resource: str = "size_bytes", limit: float | None = None, epsilon: float = 0.0) -> Front:
    """`exact_front` of a problem, its constant cost, interactions and conversions included.

    Raises:
        UnknownNameError: It has no such table.
        UserError: Its interactions or conversions reach too far, or the resource is a peak.
    """
    if objective not in problem.scores:
        raise UnknownNameError("score table", objective, problem.scores)
    if resource not in problem.costs:
        raise UnknownNameError("cost table", resource, problem.costs)
    if resource in PEAKS:
        raise UserError(f"{resource} is a peak, and damage is no front over the greatest of all rows. Give a budget on it instead.")
    constant, conversions = problem.constants.get(resource, 0.0), problem.conversions.get(resource, ())
    if not problem.interactions.get(objective) and not conversions:
        return exact_front(problem.scores[objective], problem.costs[resource], problem.ties, limit=limit, constant=constant, epsilon=epsilon)
    coupled = Coupled.of(problem, objective)
    whole = WholeCosts.of(coupled.layers, problem.costs[resource], constant, conversions)
    check_epsilon(epsilon)
    top = math.inf if limit is None else limit
    if not coupled.pairs and not whole.pairs:
        return sweep(coupled.layers, coupled.rows, whole, top, epsilon)
    linked = Linked.of(coupled.layers, coupled.rows, coupled.pairs, whole)
    if linked is None:
        what = f"interactions of {objective!r}" if coupled.pairs else f"conversions of {resource}"
        raise UserError(f"The {what} link too many layers for an exact front. Keep them between neighbours or within blocks, or use `solve` budget by budget.")
    return linked.front(top)
