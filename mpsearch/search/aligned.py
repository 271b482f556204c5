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
from dataclasses import dataclass, replace

import numpy as np

from mpsearch.problem import Budget, Problem
from mpsearch.search.constraints import Constraints
from mpsearch.search.coupled import Coupled
from mpsearch.search.neighbours import Choices
from mpsearch.search.optimum import best_choices, solve
from mpsearch.search.polish import polish
from mpsearch.search.study import Trial
from mpsearch.search.superlayers import Row

Indices = tuple[int, ...]
Measure = Callable[[Indices], float]
"""Loss of L choices; NaN where there is none."""
Order = Sequence[tuple[int, int, int]]
"""Super-layer, choice and choice: the first may not have less damage than the second."""
_ROUNDS, _CYCLES = 12, 150
_MARGIN = 1e-3
"""How far a sum has to lie below another's, as a share of it."""
_CLOSE = 1e-4
"""By how much of a sum an inequality may still be missed once the projections have ended."""
_LONGEST_STEP = 0.05
_LEAST = 1e-12
_WIDER = 1.5
"""Factor on the tolerance where no table was found that meets it."""


def search_along(
    problem: Problem, objective: str, limits: Sequence[float], measure: Measure, exchanges: int, on_step: Callable[[], None] = lambda: None
) -> dict[Indices, float]:
    """Measure the table's optimum at each limit, and polish the best there by up to `exchanges` more.

    Args:
        problem: With the table `objective` and costs of one resource.
        objective: Its name.
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
        optimum = solve(problem, objective, [budget]).indices
        if optimum not in losses:
            losses[optimum] = measure(optimum)
            if math.isfinite(losses[optimum]):
                trials.append(Trial(len(trials), optimum, losses[optimum], problem.cost(optimum), True, "exact front"))
        on_step()
        if any(getattr(t.cost, budget.resource) <= limit for t in trials):
            trials += polish(problem, objective, [budget], measure, trials, exchanges, losses, lambda *_: on_step())
    return losses


@dataclass(frozen=True)
class Aligned:
    """What `align` found.

    Args:
        rows: M rows.
        given_up: Inequalities that no table meets beside the others.
        regret: Greatest of all limits: the loss of the table's optimum above the best known, as a share of it; infinite where not all were measured.
    """

    rows: list[Row]
    given_up: int = 0
    regret: float = math.inf


def align(
    problem: Problem,
    rows: Sequence[Row],
    losses: dict[Indices, float],
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
        rows: M positive rows, for the super-layers of `problem.ties`, that keep `order`.
        losses: What is known; new measurements are added.
        limits: Of the resource.
        measure: Of what is not known.
        evaluations: New measurements at most.
        tolerance: Share of a loss.
        order: Kept by the table that is returned.
        on_step: Called after each new measurement.

    Returns:
        Of the tables that were tried, the one of least regret.
    """
    field = _Field.of(problem, limits)
    current = start = Aligned([np.array(row) for row in rows])
    tried, pairs = list[tuple[Aligned, list[Indices]]](), dict[tuple[Choices, Choices], float]()
    most = len(losses) + evaluations
    for _ in range(_ROUNDS):
        optima = field.optima(current.rows)
        for indices in dict.fromkeys(optima):
            if indices not in losses and len(losses) < most:
                losses[indices] = measure(indices)
                on_step()
        if any(indices not in losses for indices in optima):
            break
        tried.append((current, optima))
        before = len(pairs)
        pairs |= field.missed(losses, optima, tolerance)
        if len(pairs) == before:
            break
        current = Aligned(*_moved(start.rows, pairs, tolerance, order))
    judged = [replace(table, regret=field.regret(losses, optima)) for table, optima in tried]
    return min(judged, key=lambda table: table.regret, default=start)


@dataclass(frozen=True)
class _Field:
    """The problem at each limit: what is best there, by a table and as far as is known."""

    constraints: list[Constraints]

    @classmethod
    def of(cls, problem: Problem, limits: Sequence[float]) -> _Field:
        return cls([Constraints.of(problem, [_budget(problem, limit)]) for limit in limits])

    def optima(self, rows: Sequence[Row]) -> list[Indices]:
        """Of the table, at each limit."""
        found = []
        for constraints in self.constraints:
            best, _ = best_choices(constraints, Coupled(constraints.layers, list(rows), ()))
            found.append(constraints.layers.expand(best.choices))
        return found

    def missed(self, losses: Mapping[Indices, float], optima: Sequence[Indices], tolerance: float) -> dict[tuple[Choices, Choices], float]:
        """What is best known where an optimum is clearly worse, and that optimum; by how much in log loss."""
        found = {}
        for constraints, best, optimum in self._beside_the_best(losses, optima):
            worse = _worse(losses[optimum], losses[best])
            if worse > 1 + tolerance:
                found[constraints.layers.contract(best), constraints.layers.contract(optimum)] = math.log(worse)
        return found

    def regret(self, losses: Mapping[Indices, float], optima: Sequence[Indices]) -> float:
        """The greatest of all limits."""
        return max((_worse(losses[optimum], losses[best]) for _, best, optimum in self._beside_the_best(losses, optima)), default=math.inf) - 1

    def _beside_the_best(self, losses: Mapping[Indices, float], optima: Sequence[Indices]) -> Iterator[tuple[Constraints, Indices, Indices]]:
        for constraints, optimum in zip(self.constraints, optima, strict=True):
            fitting = [indices for indices, loss in losses.items() if math.isfinite(loss) and constraints.fits(indices)]
            if fitting:  # else nothing is known to be better than an optimum without a loss
                yield constraints, min(fitting, key=lambda indices: (losses[indices], indices)), optimum


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


def _worse(loss: float, best: float) -> float:
    """How many times a loss is the best; infinite where it is not finite. Both count as at least the least that is told from none."""
    return max(loss, _LEAST) / max(best, _LEAST) if math.isfinite(loss) else math.inf
