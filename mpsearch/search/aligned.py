"""A table whose exact optima are as good as the best that was measured, along a whole range of budgets.

No sum over layers equals a measured loss, but one whose optima are near the best known may still exist, and it answers every budget in milliseconds.
`search_along` measures: at budget after budget the optima of some tables, and exchanges around the best. Its best, a `shortlist`, may be measured again by
something better. `align` then moves one of them. Where its optimum at
a budget is clearly worse than the best known there, the sum of the best has to be below that of the optimum, by the more the worse it is: an
inequality between two sums, in which equal choices cancel. The table that meets them at the least squared relative change is a ranking support vector machine
with the given table in place of zero. Its new optima are measured in turn and bring new inequalities, until none is clearly worse; those that no table meets
together are missed at a price.

References: ours. Joachims, Optimizing search engines using clickthrough data, KDD 2002 (ranking SVM); Tsochantaridis et al., JMLR 6, 2005 (cutting
planes from the optima of the model itself, margins by loss). Learning a solver's costs from its solutions is inverse optimisation: Ahuja and
Orlin, Operations Research 49(5), 2001.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

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
_ROUNDS = 12
_MARGIN, _SHARE = 1e-3, 0.3
"""How far the sum of the best has to lie below an optimum's, as a share of it: so much, and this part of the gap between the logarithms of their losses."""
_WIDEST = 1.0
"""Gaps count as at most this."""
_PRICE = 30.0
"""Of missing an inequality by a share of a sum, for a gap of 1; the price of a change is half its square."""
_LEAST_FACTOR = 0.2
_LEAST = 1e-12


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
    for constraints in _Field.of(problem, limits).constraints:
        fitting = [indices for indices, loss in losses.items() if math.isfinite(loss) and constraints.fits(indices)]
        found |= dict.fromkeys(sorted(fitting, key=lambda indices: (losses[indices], indices))[:count])
    return list(found)


@dataclass(frozen=True)
class Aligned:
    """What `align` found.

    Args:
        rows: M rows.
        missed: Inequalities that the table does not meet beside the others.
        regrets: At each limit: the loss of the table's optimum above the best known, as a share of it; none where not all were measured.
    """

    rows: list[Row]
    missed: int = 0
    regrets: tuple[float, ...] = ()

    @property
    def regret(self) -> float:
        """The greatest; infinite where they are not known."""
        return max(self.regrets, default=math.inf)

    @property
    def _root_mean_square(self) -> float:
        return math.sqrt(math.fsum(regret**2 for regret in self.regrets) / len(self.regrets)) if self.regrets else math.inf


def align(
    problem: Problem,
    rows: Sequence[Row],
    losses: dict[Indices, float],
    limits: Sequence[float],
    measure: Measure,
    evaluations: int,
    tolerance: float = 0.02,
    order: Order = (),
    on_step: Callable[[], None] = lambda: None,
) -> Aligned:
    """Move a table, by little, so that its optimum at each limit comes within `tolerance` of the best known there.

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
        Of the tables that were tried, the one of the least root mean square of regrets.
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
        current = Aligned(*_moved(start.rows, pairs, order))
    judged = [replace(table, regrets=field.regrets(losses, optima)) for table, optima in tried]
    return min(judged, key=lambda table: table._root_mean_square, default=start)


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

    def regrets(self, losses: Mapping[Indices, float], optima: Sequence[Indices]) -> tuple[float, ...]:
        """At each limit."""
        return tuple(_worse(losses[optimum], losses[best]) - 1 for _, best, optimum in self._beside_the_best(losses, optima))

    def _beside_the_best(self, losses: Mapping[Indices, float], optima: Sequence[Indices]) -> Iterator[tuple[Constraints, Indices, Indices]]:
        for constraints, optimum in zip(self.constraints, optima, strict=True):
            fitting = [indices for indices, loss in losses.items() if math.isfinite(loss) and constraints.fits(indices)]
            if fitting:  # else nothing is known to be better than an optimum without a loss
                yield constraints, min(fitting, key=lambda indices: (losses[indices], indices)), optimum


def _moved(rows: Sequence[Row], pairs: Mapping[tuple[Choices, Choices], float], order: Order) -> tuple[list[Row], int]:
    """The rows nearest to `rows` whose sum over the first of each pair is below that over the second, as far as there are such; and how many pairs are missed.

    With x the relative change of every entry: least |x|^2 / 2 + sum of price x shortfall, subject to the order and to x >= `_LEAST_FACTOR` - 1. Solved in
    its dual, where each inequality has a multiplier from 0 to its price, or without an upper end.
    """
    start = np.concatenate(rows)
    first = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    gaps = np.minimum(list(pairs.values()), _WIDEST)
    ranked = np.array([_ranking(start, first, good, bad) for good, bad in pairs])
    steps = np.zeros((len(order), len(start)))
    for step, (m, worse, better) in zip(steps, order, strict=True):
        step[[first[m] + worse, first[m] + better]] = start[first[m] + worse], -start[first[m] + better]
    steps /= np.abs(steps).max(axis=1, keepdims=True)
    slopes = np.concatenate([ranked, steps, np.eye(len(start))])
    levels = np.concatenate([_MARGIN + _SHARE * gaps - ranked.sum(1), -steps.sum(1), np.full(len(start), _LEAST_FACTOR - 1)])
    change = np.maximum(_nearest(slopes, levels, np.concatenate([_PRICE * gaps, np.full(len(steps) + len(start), np.inf)])), _LEAST_FACTOR - 1)
    moved = np.split(start * (1 + change), first[1:-1])
    for m, worse, better in order:
        moved[m][better] = min(moved[m][better], moved[m][worse])
    short = [_total(moved, good) >= _total(moved, bad) for good, bad in pairs]
    return moved, sum(short)


def _ranking(start: Row, first: NDArray[np.intp], good: Choices, bad: Choices) -> Row:
    """What a relative change of each entry adds to the sum over `bad` less that over `good`, as a share of the latter."""
    slope = np.zeros(len(start))
    plus, minus = (first[:-1] + np.array(choices) for choices in (bad, good))
    slope[plus] += start[plus]
    slope[minus] -= start[minus]
    return slope / float(start[minus].sum())


def _nearest(slopes: Row, levels: Row, prices: Row) -> Row:
    """[N] x of least |x|^2 / 2 + sum of prices x what `slopes` @ x falls short of `levels`, for J x N slopes; an infinite price is a constraint."""
    products = slopes @ slopes.T

    def dual(multipliers: Row) -> tuple[float, Row]:
        pull = products @ multipliers
        return float(multipliers @ pull / 2 - levels @ multipliers), pull - levels

    bounds = scipy.optimize.Bounds(0.0, prices)
    options = {"maxiter": 3000, "maxfun": 6000, "maxcor": 30, "ftol": 1e-14, "gtol": 1e-7}
    return np.asarray(slopes.T @ scipy.optimize.minimize(dual, np.zeros(len(levels)), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x)


def _total(rows: Sequence[Row], choices: Choices) -> float:
    return math.fsum(row[c] for row, c in zip(rows, choices, strict=True))


def _budget(problem: Problem, limit: float) -> Budget:
    return Budget(next(iter(problem.costs)), limit, f"{limit:g}")


def _worse(loss: float, best: float) -> float:
    """How many times a loss is the best; infinite where it is not finite. Both count as at least the least that is told from none."""
    return max(loss, _LEAST) / max(best, _LEAST) if math.isfinite(loss) else math.inf
