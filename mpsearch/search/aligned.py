"""A table whose exact optima are as good as the best that was measured, along a whole range of budgets.

No sum over layers equals a measured loss, but one whose optima are near the best known may still exist, and it answers every budget in milliseconds.
`search_along` measures: at budget after budget the optimum of the table, and exchanges around the best. `align` then moves a table. Where its optimum at a
budget is clearly worse than the best known there, the sum of the best has to be below that of the optimum: one inequality between two sums, in
which equal choices cancel. All of them together are met by the least change of the table's logarithms, found by projecting on one after the other (as
the passive-aggressive algorithm does), and the new optima are measured in turn, until none is clearly worse. Inequalities that no table meets
together are given up, those of the least differences first.

References: ours. Crammer et al., Online passive-aggressive algorithms, JMLR 7, 2006. Learning a solver's costs from its solutions is
inverse optimisation: Ahuja and Orlin, Operations Research 49(5), 2001.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpsearch.problem import Budget, Problem
from mpsearch.search.constraints import Constraints
from mpsearch.search.coupled import Coupled
from mpsearch.search.neighbours import Choices
from mpsearch.search.optimum import best_choices
from mpsearch.search.study import _planner
from mpsearch.search.superlayers import Row, SuperLayers

Measure = Callable[[Choices], float]
Order = Sequence[tuple[int, int, int]]
"""Super-layer, choice and choice: the first may not have less damage than the second."""
_ROUNDS, _CYCLES = 12, 150
_MARGIN = 1e-3
"""How far a sum has to lie below another's, as a share of it."""
_CLOSE = 1e-4
"""By how much of a sum an inequality may still be missed once the projections have ended."""
_LONGEST_STEP = 0.05
_WIDER = 1.5
"""Factor on the tolerance where no table was found that meets it."""


def search_along(
    problem: Problem, objective: str, limits: Sequence[float], measure: Measure, exchanges: int, on_step: Callable[[], None] = lambda: None
) -> dict[Choices, float]:
    """Measure the table's optimum at each limit and up to `exchanges` assignments around the best there, as `polish` chooses them.

    Args:
        problem: With the table `objective` and costs of one resource.
        objective: Its name.
        limits: Of that resource.
        measure: Loss of M choices, one for each super-layer of `problem.ties`; NaN where there is none.
        exchanges: At each limit.
        on_step: Called after each measurement that was made or not needed.

    Returns:
        Loss of every assignment that was measured; infinite where there is none.
    """
    losses: dict[Choices, float] = {}
    for limit in sorted(limits, reverse=True):
        planner = _planner(problem, objective, [_budget(problem, limit)], 0, (), 1)
        best = planner.proxy_optimum(limit)
        losses.setdefault(best, _finite(measure(best)))
        on_step()
        for _ in range(exchanges):
            fitting = any(math.isfinite(loss) and planner.constraints.fits(planner.constraints.layers.expand(c)) for c, loss in losses.items())
            choices = planner.most_promising(losses) if fitting else None
            if choices is not None:
                losses[choices] = _finite(measure(choices))
            on_step()
    return losses


@dataclass(frozen=True)
class Aligned:
    """What `align` found.

    Args:
        rows: M rows.
        regret: Greatest of all limits: the loss of the table's optimum above the best known, as a share of it.
        given_up: Inequalities that no table meets beside the others.
    """

    rows: list[Row]
    regret: float
    given_up: int


def align(
    problem: Problem,
    rows: Sequence[Row],
    losses: dict[Choices, float],
    limits: Sequence[float],
    measure: Measure,
    evaluations: int,
    tolerance: float = 0.08,
    order: Order = (),
    on_step: Callable[[], None] = lambda: None,
) -> Aligned:
    """Move a table as little as is needed for its optimum at each limit to be within `tolerance` of the best known there.

    Args:
        problem: With costs of one resource.
        rows: M positive rows, for the super-layers of `problem.ties`.
        losses: What is known; new measurements are added.
        limits: Of the resource.
        measure: As in `search_along`.
        evaluations: New measurements at most.
        tolerance: Share of a loss.
        order: Kept by the table that is returned.
        on_step: Called after each new measurement.

    Returns:
        Of the tables that were tried, the one of least regret.
    """
    field = _Field.of(problem, limits)
    best = Aligned([np.array(row) for row in rows], math.inf, 0)
    tried: list[tuple[Aligned, list[Choices]]] = []
    pairs: dict[tuple[Choices, Choices], float] = {}
    current, left, given_up = best.rows, evaluations, 0
    for _ in range(_ROUNDS):
        optima = [field.optimum(current, limit) for limit in limits]
        for choices in dict.fromkeys(optima):
            if choices not in losses and left > 0:
                losses[choices] = _finite(measure(choices))
                left -= 1
                on_step()
        if any(choices not in losses for choices in optima):
            break
        tried.append((Aligned(current, math.inf, given_up), optima))
        before = len(pairs)
        for limit, choices in zip(limits, optima, strict=True):
            known = field.best(losses, limit)
            if losses[choices] > (1 + tolerance) * losses[known]:
                pairs[known, choices] = math.log(losses[choices] / losses[known]) if math.isfinite(losses[choices]) else math.inf
        if len(pairs) == before:
            break
        current, given_up = _moved(best.rows, pairs, tolerance, order)
    judged = [(max(losses[c] / losses[field.best(losses, limit)] for c, limit in zip(optima, limits, strict=True)) - 1, a) for a, optima in tried]
    if not judged:
        return best
    regret, found = min(judged, key=lambda pair: pair[0])
    return Aligned(found.rows, regret, found.given_up)


@dataclass(frozen=True)
class _Field:
    """The problem at each limit, and what fits.

    Args:
        constraints: Limit -> constraints.
        sizes: Cost of each assignment that was asked for.
    """

    constraints: dict[float, Constraints]
    sizes: dict[Choices, float]

    @classmethod
    def of(cls, problem: Problem, limits: Sequence[float]) -> _Field:
        return cls({limit: Constraints.of(problem, [_budget(problem, limit)]) for limit in limits}, {})

    @property
    def layers(self) -> SuperLayers:
        return next(iter(self.constraints.values())).layers

    def optimum(self, rows: Sequence[Row], limit: float) -> Choices:
        return best_choices(self.constraints[limit], Coupled(self.layers, list(rows), ()))[0].choices

    def best(self, losses: Mapping[Choices, float], limit: float) -> Choices:
        """Of those that keep the limit; there is one, as the optimum of a table was measured at each."""
        constraints = self.constraints[limit]
        return min((c for c in losses if constraints.fits(self.layers.expand(c))), key=lambda c: (losses[c], c))


def _moved(rows: Sequence[Row], pairs: Mapping[tuple[Choices, Choices], float], tolerance: float, order: Order) -> tuple[list[Row], int]:
    """The rows nearest to `rows` whose sum over the first of each pair is below that over the second; and how many pairs had to be given up."""
    for asked in _widening(tolerance, max(pairs.values())):
        kept = [pair for pair, gap in pairs.items() if gap > math.log1p(asked)]
        logs = _projected(rows, kept, order)
        if logs is not None:
            return [np.exp(row) for row in logs], len(pairs) - len(kept)
    raise AssertionError("no inequality at all was left, and that was not met")


def _widening(tolerance: float, most: float) -> Iterator[float]:
    """Tolerances up to one that asks for nothing."""
    while math.log1p(tolerance) < min(most, math.log(1e6)):
        yield tolerance
        tolerance *= _WIDER
    yield math.inf


def _projected(rows: Sequence[Row], pairs: Sequence[tuple[Choices, Choices]], order: Order) -> list[Row] | None:
    """Logarithms of the rows, projected on all inequalities; None where they do not seem to have anything in common."""
    logs = [np.log(row) for row in rows]
    for _ in range(_CYCLES):
        missed = 0.0
        for good, bad in pairs:
            at = [m for m, (g, b) in enumerate(zip(good, bad, strict=True)) if g != b]
            total = math.fsum(math.exp(logs[m][good[m]]) for m in range(len(good)) if good[m] == bad[m])
            falling, rising = (np.array([math.exp(logs[m][choices[m]]) for m in at]) for choices in (good, bad))
            short = (total + falling.sum()) * (1 + _MARGIN) - (total + rising.sum())
            if short <= 0:
                continue
            missed = max(missed, short / (total + falling.sum()))
            step = min(short / float(falling @ falling + rising @ rising), _LONGEST_STEP / float(max(falling.max(), rising.max())))
            for m, down, up in zip(at, falling, rising, strict=True):
                logs[m][good[m]] -= step * down
                logs[m][bad[m]] += step * up
        for m, worse, better in order:
            if logs[m][better] > logs[m][worse]:
                missed = max(missed, float(logs[m][better] - logs[m][worse]))
                logs[m][[worse, better]] = (logs[m][worse] + logs[m][better]) / 2
        if missed < _CLOSE:
            return logs
    return None


def _budget(problem: Problem, limit: float) -> Budget:
    return Budget(next(iter(problem.costs)), limit, f"{limit:g}")


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
