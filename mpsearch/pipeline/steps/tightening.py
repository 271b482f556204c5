"""Budgets hold for what is measured: the solver's limits are lowered by how far predictions were off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mpsearch.errors import InfeasibleError
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.steps.finalists import Workshop
from mpsearch.pipeline.steps.latency import timed
from mpsearch.problem import Budget, Problem
from mpsearch.solvers import solve
from mpsearch.units import format_quantity

REPAIRS = 4
"""Rounds at most, before the search and with it."""


def proxy_of(config: RunConfig) -> str:
    """The objective that is solved."""
    return config.objectives[0].partition(":")[0]


def scouted(problem: Problem, budgets: tuple[Budget, ...], least: Mapping[str, float], workshop: Workshop, repairs: list[dict[str, Any]]) -> tuple[Budget, ...]:
    """Limits under which the proxy's optimum, rounded to nearest, keeps the budgets when it is measured: found before the search, which is what takes long.

    A latency is predicted as the machine was when its table was measured. How far it is from that now, and new processes from each other, is learned here.
    Raises: InfeasibleError: As `lowered`.
    """
    if not timed(workshop.config):
        return budgets
    proxy, limits = proxy_of(workshop.config), budgets
    for _ in range(REPAIRS):
        optimum = solve(problem, proxy, limits)
        with workshop.progress.task(f"measure the optimum of {proxy}") as advance:
            measured = workshop.measured(workshop.calibration.states(problem.assignment(optimum.indices)))
            advance(1, 1)
        row = {"measured": measured, "predicted": optimum.cost.to_json()}
        repairs += [repair(b, row) for b in budgets if not b.kept(measured)]
        limits = lowered(budgets, limits, row, least)
        if all(b.kept(measured) for b in budgets):
            break
    for b, limit in zip(budgets, limits, strict=True):
        if limit.limit < b.limit:
            said = f"Looking for {format_quantity(limit.limit, b.resource)} as predicted, so that {b.text} is kept as measured"
            workshop.progress.say(f"{said}: the optimum of {proxy} may take {b.limit / limit.limit:.3f} times what is predicted.")
    return limits


def repair(budget: Budget, row: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a row that broke a budget."""
    return {"resource": budget.resource, "limit": budget.limit, "predicted": row["predicted"][budget.resource], "measured": budget.spent(row["measured"])}


def lowered(budgets: tuple[Budget, ...], limits: tuple[Budget, ...], row: dict[str, Any], least: Mapping[str, float]) -> tuple[Budget, ...]:
    """Limits for the solver, by what a row was predicted to take and takes.

    Raises: InfeasibleError: It breaks a budget, and was found under a limit that nothing lower is predicted to keep.
    """
    for b, limit in zip(budgets, limits, strict=True):
        if not b.kept(row["measured"]) and limit.limit <= least.get(b.resource, 0.0):
            got = b.spent(row["measured"]) or 0.0
            raise InfeasibleError(
                f"The budget {b.text} is not kept by what is predicted to take the least, {format_quantity(row['predicted'][b.resource], b.resource)}: "
                f"as measured now it takes up to {format_quantity(got, b.resource)}. Raise the budget.",
                {b.resource: got},
            )
    return tuple(_tightened(b, limit, row, least.get(b.resource, 0.0)) for b, limit in zip(budgets, limits, strict=True))


def _tightened(budget: Budget, limit: Budget, row: dict[str, Any], least: float) -> Budget:
    """A limit for the solver that was wrong by as much as the last measurement was; not below what can be reached."""
    got, predicted = budget.spent(row["measured"]), row["predicted"].get(budget.resource)
    if got is None or predicted is None:
        return limit
    if got <= budget.limit:
        return replace(limit, limit=min(limit.limit, budget.limit * min(1.0, predicted / got)))
    tightened = min(limit.limit, predicted) * budget.limit / got * 0.99
    return replace(limit, limit=max(tightened, least))
