"""A table whose exact optima are about as good as the best that was measured, along a whole range of budgets.

No sum over layers equals a measured loss, but one that is nearly right at its own optima may still exist, and it answers every budget in milliseconds.
`search_along` measures: at budget after budget the optima of some tables, and exchanges around the best. Its best, a `shortlist`, may be measured again by
something better. `align` then fits the table to all of it: every entry has a factor near 1, and what all assignments of a size have in common is left to an
offset. Its new optima are measured in turn, at other budgets each time, for those beside a good optimum can be bad, and it is fitted anew.
What no sum says of an assignment that was measured is kept beside the table (`damages`).

References: ours. Learning a solver's costs from its solutions is inverse optimisation: Ahuja and Orlin, Operations Research 49(5), 2001; to train a
model on what it chooses itself is dataset aggregation: Ross, Gordon and Bagnell, AISTATS 2011.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import scipy.optimize
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from mpsearch.problem import Budget, Problem
from mpsearch.search.constraints import Constraints
from mpsearch.search.correction import straightened
from mpsearch.search.coupled import Coupled
from mpsearch.search.optimum import best_choices, solve
from mpsearch.search.polish import polish
from mpsearch.search.study import Trial
from mpsearch.search.superlayers import Row, SuperLayers

Indices = tuple[int, ...]
Measure = Callable[[Indices], float]
"""Loss of L choices; NaN where there is none."""
Order = Sequence[tuple[int, int, int]]
"""Super-layer, choice and choice: the first may not have less damage than the second."""
_ROUNDS, _IDLE = 24, 3
"""Fits at most, and how many in a row may bring no new optimum before the last."""
LAST = 3
"""Fits at most to the optima at the limits themselves, when all others are done."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_FACTOR_SD = 0.2
"""Of the logarithm of an entry's factor. Wider ones explain the measurements better, and have worse optima."""
_NOISE_SD = 0.05
"""Of what a table cannot say, in log loss."""
_KNOTS, _KNOT_SD, _OFFSET_SD = 10, 0.3, 1.0
"""Of the offset: sizes between which it is linear, and the standard deviations of its change from one to the next and of itself."""
_BEYOND = 10.0
"""An assignment without a loss counts as one of so many times the greatest, one of loss zero as this part of the least above it."""


def search_along(
    problem: Problem, objectives: Sequence[str], limits: Sequence[float], measure: Measure, exchanges: int, on_step: Callable[[], None] = lambda: None
) -> dict[Indices, float]:
    """Measure the optimum of each table at each limit, and polish the best there by up to `exchanges` more.

    Args:
        problem: With the tables and costs of one resource.
        objectives: Names of the tables; the first one guides the exchanges.
        limits: Of that resource.
        measure: Of each assignment once.
        exchanges: At each limit.
        on_step: Called after each measurement that was made or not needed.

    Returns:
        Loss of every assignment that was measured.
    """
    losses: dict[Indices, float] = {}
    trials: list[Trial] = []
    for limit in sorted(limits, reverse=True):
        budget = _budget(problem, limit)
        for objective in objectives:
            optimum = solve(problem, objective, [budget]).indices
            if optimum not in losses:
                losses[optimum] = measure(optimum)
                if math.isfinite(losses[optimum]):
                    trials.append(Trial(len(trials), optimum, losses[optimum], problem.cost(optimum), True, f"exact front of {objective}"))
            on_step()
        if any(getattr(t.cost, budget.resource) <= limit for t in trials):
            trials += polish(problem, objectives[0], [budget], measure, trials, exchanges, losses, lambda *_: on_step())
    return losses


def shortlist(problem: Problem, losses: Mapping[Indices, float], limits: Sequence[float], count: int) -> list[Indices]:
    """At each limit up to `count` of those that keep it, of the least losses; each assignment once."""
    found: dict[Indices, None] = {}
    for limit in limits:
        constraints = Constraints.of(problem, [_budget(problem, limit)])
        fitting = [indices for indices, loss in losses.items() if math.isfinite(loss) and constraints.fits(indices)]
        found |= dict.fromkeys(sorted(fitting, key=lambda indices: (losses[indices], indices))[:count])
    return list(found)


def align(
    problem: Problem,
    rows: Sequence[Row],
    losses: dict[Indices, float],
    limits: Sequence[float],
    measure: Measure,
    evaluations: int,
    before: Mapping[Indices, float] = MappingProxyType({}),
    order: Order = (),
    on_step: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Fit a table to what was measured and to its own optima, until `evaluations` are used up or it has no new ones.

    The optima of a fit at `limits` are measured; those of the next ones at limits between them, in other places each time; and at last those at `limits`
    again, `LAST` times at most.

    Args:
        problem: With costs of one resource.
        rows: M positive rows, for the super-layers of `problem.ties`, that keep `order`.
        losses: What is known; new measurements are added.
        limits: Of the resource, rising and evenly spaced.
        measure: Of what is not known.
        evaluations: New measurements at most, but for the last.
        before: Losses by another measure, brought in line with `losses` by the mean ratio of those that are in both.
        order: Kept by the table that is returned.
        on_step: Called after each new measurement.

    Returns:
        M rows; where nothing is known and nothing may be measured, those given.
    """
    most, step, idle = len(losses) + evaluations, (limits[-1] - limits[0]) / max(len(limits) - 1, 1), 0
    found = _fitted(problem, rows, losses, before, order)

    def fitted_to_optima(shift: float, most: int) -> bool:
        """Whether there were new ones."""
        nonlocal found
        optima = _optima(problem, found, [max(limit + shift, limits[0]) for limit in limits])
        new = [indices for indices in dict.fromkeys(optima) if indices not in losses][:most]
        for indices in new:
            losses[indices] = measure(indices)
            on_step()
        if new:
            found = _fitted(problem, rows, losses, before, order)
        return bool(new)

    for number in range(_ROUNDS):
        idle = 0 if fitted_to_optima(step * (number * _GOLDEN % 1 - 0.5) if number else 0.0, most - len(losses)) else idle + 1
        if idle == _IDLE or len(losses) >= most:
            break
    for _ in range(LAST if evaluations else 0):
        if not fitted_to_optima(0.0, len(limits)):
            break
    return found


def damages(problem: Problem, rows: Sequence[Row], losses: Mapping[Indices, float]) -> dict[Indices, float]:
    """What was measured on the scale of a table's sums, which order assignments but are not their losses.

    Of two the one of less loss has less damage, whatever their sizes. A damage is the sum on average over losses like its own (`straightened`), less the
    standard deviation of what is left: one that was not measured is taken where its sum is better by more than sums err.

    Args:
        problem: With the candidates and ties of the table.
        rows: M rows of the table, for the super-layers.
        losses: Of L choices; of those without a finite one the damage is that of a loss far above all others.
    """
    logs = _finite_logs(losses)
    if not logs:
        return {}
    layers, measured = SuperLayers.of([len(row) for row in problem.candidates], problem.ties), np.array(list(logs.values()))
    sums = np.log([sum(float(row[c]) for row, c in zip(rows, layers.contract(indices), strict=True)) for indices in logs])
    found = straightened(sums, measured - np.median(measured - sums))
    lost = np.array([not math.isfinite(losses[indices]) for indices in logs])
    error = np.std((found - sums)[~lost]) if not lost.all() else 0.0
    return dict(zip(logs, np.exp(found - error).tolist(), strict=True))


def _optima(problem: Problem, rows: Sequence[Row], limits: Sequence[float]) -> list[Indices]:
    """Of a table, at each limit."""
    found = []
    for limit in limits:
        constraints = Constraints.of(problem, [_budget(problem, limit)])
        best, _ = best_choices(constraints, Coupled(constraints.layers, list(rows), ()))
        found.append(constraints.layers.expand(best.choices))
    return found


def _fitted(problem: Problem, rows: Sequence[Row], losses: Mapping[Indices, float], before: Mapping[Indices, float], order: Order) -> list[Row]:
    """The most likely rows: the log of each measured loss is that of its sum, an offset and noise, all normal.

    With `z` the logs of the factors and `h` the offset at the knots: least |(log sum(rows * exp z) + h(size) - log loss) / _NOISE_SD|^2 + |z / _FACTOR_SD|^2 +
    |diff h / _KNOT_SD|^2 + |h / _OFFSET_SD|^2. `search.correction` fits like factors, with widths by evidence and a straight line for the offset; that explains
    losses better, and its optima here are worse.
    """
    logs = _logs(losses, before)
    if not logs:
        return list(rows)
    layers, resource = SuperLayers.of([len(row) for row in problem.candidates], problem.ties), next(iter(problem.costs))
    start, ends = np.concatenate(rows), np.cumsum([len(row) for row in rows])
    entries = np.array([layers.contract(indices) for indices in logs]) + np.concatenate([[0], ends[:-1]])
    target = np.array(list(logs.values()))
    target -= np.median(target - np.log(start[entries].sum(1)))
    offset = _interpolation(np.array([getattr(problem.cost(indices), resource) for indices in logs]))

    def energy(at: Row) -> tuple[float, Row]:
        factors, knots = np.split(at, [len(start)])
        taken = (start * np.exp(factors))[entries]
        sums = taken.sum(1)
        errors = (np.log(sums) + offset @ knots - target) / _NOISE_SD
        bends = np.diff(knots) / _KNOT_SD
        pulls = np.bincount(entries.ravel(), ((errors / sums)[:, None] * taken).ravel(), len(start)) / _NOISE_SD + factors / _FACTOR_SD**2
        slopes = offset.T @ errors / _NOISE_SD + knots / _OFFSET_SD**2 - np.diff(bends, prepend=0.0, append=0.0) / _KNOT_SD
        priors = np.sum((factors / _FACTOR_SD) ** 2) + np.sum(bends**2) + np.sum((knots / _OFFSET_SD) ** 2)
        return float(np.sum(errors**2) + priors) / 2, np.concatenate([pulls, slopes])

    with threadpool_limits(1, user_api="blas"):  # small matrices: threads would round differently
        options = {"maxiter": 3000, "maxfun": 6000}
        found = scipy.optimize.minimize(energy, np.zeros(len(start) + _KNOTS), jac=True, method="L-BFGS-B", options=options).x
    moved = np.split(start * np.exp(found[: len(start)]), ends[:-1])
    for m, worse, better in order:
        moved[m][better] = min(moved[m][better], moved[m][worse])
    return moved


def _logs(losses: Mapping[Indices, float], before: Mapping[Indices, float]) -> dict[Indices, float]:
    """Log loss of every assignment that was measured by either."""
    found, earlier = _finite_logs(losses), _finite_logs(before)
    both = [found[indices] - earlier[indices] for indices in found if indices in earlier]
    ratio = float(np.mean(both)) if both else 0.0
    return {indices: value + ratio for indices, value in earlier.items()} | found


def _finite_logs(losses: Mapping[Indices, float]) -> dict[Indices, float]:
    known = [loss for loss in losses.values() if math.isfinite(loss) and loss > 0] or [1.0]
    lost, none = _BEYOND * max(known), min(known) / _BEYOND
    return {indices: math.log(max(loss, none) if math.isfinite(loss) else lost) for indices, loss in losses.items()}


def _interpolation(sizes: Row) -> Row:
    """`N x K`: what each of K evenly spaced knots weighs at N sizes."""
    knots = np.linspace(sizes.min(), max(sizes.max(), sizes.min() + 1.0), _KNOTS)
    return np.column_stack([np.interp(sizes, knots, knot) for knot in np.eye(_KNOTS)])


def _budget(problem: Problem, limit: float) -> Budget:
    return Budget(next(iter(problem.costs)), limit, f"{limit:g}")
