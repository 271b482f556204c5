"""Budgets hold for what is measured: the solver's limits are lowered by how far predictions were off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mpsearch.errors import InfeasibleError
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.results import Readings, Repair
from mpsearch.pipeline.steps.latency import timed
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import Budget, Cost, Problem
from mpsearch.solvers import solve
from mpsearch.units import format_pair, format_quantity

REPAIRS = 4
"""Rounds at most, before the search and with it."""


def proxy_of(config: RunConfig) -> str:
    """The objective that is solved."""
    return config.objectives[0].partition(":")[0]


def scouted(
    problem: Problem, budgets: tuple[Budget, ...], least: Mapping[str, float], workshop: Workshop
) -> tuple[tuple[Budget, ...], list[Repair]]:
    """Limits under which the proxy's optimum, rounded to nearest, keeps the budgets when it is measured:
    found before the search, which is what takes long.

    A latency is predicted as the machine was when its table was measured. How far it is from that now, and
    new processes from each other, is learned here.

    Args:
        problem: Predicts costs.
        budgets: That count when it is measured.
        least: Least reachable amount of each resource, as predicted.
        workshop: Measures.
    Returns: The limits, and the budgets that were broken on the way.
    Raises: InfeasibleError: As `lowered`.
    """
    repairs: list[Repair] = []
    if not timed(workshop.config) or workshop.config.deployment.elsewhere:
        return budgets, repairs
    proxy, limits = proxy_of(workshop.config), budgets
    for _ in range(REPAIRS):
        optimum = solve(problem, proxy, limits)
        with workshop.progress.task(f"measure the optimum of {proxy}") as advance:
            measured = workshop.measured(workshop.calibration.states(problem.assignment(optimum.indices)))
            advance(1, 1)
        repairs += broken(budgets, optimum.cost, measured)
        limits = lowered(budgets, limits, optimum.cost, measured, least)
        if all(b.kept(measured) for b in budgets):
            break
    for b, limit in zip(budgets, limits, strict=True):
        if limit.limit < b.limit:
            said = (
                f"Looking for {format_quantity(limit.limit, b.resource)} as predicted, so that "
                f"{b.text} is kept as measured"
            )
            workshop.progress.say(
                f"{said}: the optimum of {proxy} may take {b.limit / limit.limit:.3f} times what is "
                "predicted."
            )
    return limits, repairs


def broken(budgets: Sequence[Budget], predicted: Cost, measured: Readings) -> list[Repair]:
    """The budgets that are not kept as measured."""
    found = [(b, b.spent(measured)) for b in budgets if not b.kept(measured)]
    return [Repair(b.resource, b.limit, getattr(predicted, b.resource), got or 0.0) for b, got in found]


def told(repair: Repair) -> str:
    """For people: by how much a budget was broken."""
    got, limit = format_pair(repair.measured, repair.limit, repair.resource)
    said = format_quantity(repair.predicted, repair.resource)
    return f"measured {got} breaks the budget of {limit} (predicted {said})"


def lowered(
    budgets: tuple[Budget, ...],
    limits: tuple[Budget, ...],
    predicted: Cost,
    measured: Readings,
    least: Mapping[str, float],
) -> tuple[Budget, ...]:
    """Limits for the solver, by what an assignment was predicted to take and takes.

    Raises: InfeasibleError: It breaks a budget, and was found under a limit that nothing lower is predicted
        to keep.
    """
    for b, limit in zip(budgets, limits, strict=True):
        if not b.kept(measured) and limit.limit <= least.get(b.resource, 0.0):
            got = b.spent(measured) or 0.0
            said = format_quantity(getattr(predicted, b.resource), b.resource)
            raise InfeasibleError(
                f"The budget {b.text} is not kept by what is predicted to take the least, {said}: "
                f"as measured now it takes up to {format_quantity(got, b.resource)}. Raise the budget.",
                {b.resource: got},
            )
    pairs = zip(budgets, limits, strict=True)
    return tuple(_tightened(b, limit, predicted, measured, least.get(b.resource, 0.0)) for b, limit in pairs)


def _tightened(budget: Budget, limit: Budget, predicted: Cost, measured: Readings, least: float) -> Budget:
    """A limit for the solver that was wrong by as much as the last measurement was; not below what can be
    reached.
    """
    got, said = budget.spent(measured), getattr(predicted, budget.resource)
    if got is None or said is None:
        return limit
    if got <= budget.limit:
        return replace(limit, limit=min(limit.limit, budget.limit * min(1.0, said / got)))
    tightened = min(limit.limit, said) * budget.limit / got * 0.99
    return replace(limit, limit=max(tightened, least))
