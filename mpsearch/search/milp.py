"""The least damage under any number of budgets at once, and the proof that it is the least.

No budget: each layer's best. One budget: the dynamic programme of `knapsack`, exact by itself. Several: HiGHS, on scaled rows.
What HiGHS returns is checked in exact arithmetic; an assignment that only its tolerance let through is cut off by a row of its own
and the problem is solved again, so the proof covers exactly the assignments that fit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mpsearch.errors import MpsearchError
from mpsearch.search.constraints import Constraints
from mpsearch.search.coupled import Pair
from mpsearch.search.highs import Columns, Outcome, minimise
from mpsearch.search.knapsack import near_optimum
from mpsearch.search.superlayers import Row

_ROUGH_GAP = 0.05
_OBJECTIVE_SCALE = 1e4  # scaled score of the optimum: HiGHS's absolute gap of 1e-6 is then 1e-10 of it
_ROUNDING = 1e-9
_MOST_CUTS = 20
_TIGHTENED = 1e-6  # share of the room given up once cutting one by one has not helped


@dataclass(frozen=True)
class Found:
    """M choices, whether they are proven optimal, and a lower bound of their score."""

    choices: tuple[int, ...]
    proven: bool
    bound: float


def solve_rows(constraints: Constraints, rows: Sequence[Row], time_limit_s: float = 60.0, gap: float = 0.0, node_limit: int | None = None) -> Found:
    """The choices of least score that keep every budget.

    Args:
        constraints: The budgets.
        rows: M merged score rows.
        time_limit_s: For the solver, wall clock; only several budgets can need it.
        gap: Above 0 the proof is given up.
        node_limit: The same, at the same point on every run.

    Raises:
        InfeasibleError: No assignment fits; names the least reachable value of each resource.
        MpsearchError: The time ran out before any assignment was found.
    """
    base = math.fsum(float(row.min()) for row in rows)
    free = tuple(int(row.argmin()) for row in rows)
    if constraints.fits(constraints.layers.expand(free)):
        return Found(free, True, base)
    if len(constraints.limits) == 1:
        return Found(_under_one(constraints, rows), True, base)
    return _under_many(constraints, rows, base, time_limit_s, gap, node_limit)


def _under_one(constraints: Constraints, rows: Sequence[Row]) -> tuple[int, ...]:
    (resource, limit), *_ = constraints.limits.items()
    front = near_optimum(constraints.layers, rows, constraints.whole[resource], limit)
    for p in range(len(front) - 1, -1, -1):  # with costs that are not whole, the last may pass the limit by a rounding
        choices = front.choices(p)
        if constraints.fits(constraints.layers.expand(choices)):
            return choices
    raise constraints.joint_error()


def _under_many(constraints: Constraints, rows: Sequence[Row], base: float, time_limit_s: float, gap: float, node_limit: int | None) -> Found:
    """Twice through HiGHS: roughly, for an upper bound; then on the candidates that it leaves, with scores in units of that bound."""
    columns = Columns.of(rows, list(constraints.rows.values()), [constraints.spare(r) for r in constraints.limits])
    hunt = Hunt(constraints, time.monotonic() + time_limit_s, node_limit)
    rough = hunt.find(columns, float(columns.scores.max(initial=0.0)), _ROUGH_GAP)
    if rough.choices is None:
        if rough.proven:
            raise constraints.joint_error()
        raise MpsearchError(f"HiGHS found no assignment that keeps all budgets within {time_limit_s:g} s, nor proved that there is none. Give it more time.")
    upper = _score(rows, rough.choices)
    if upper <= 0:
        return Found(rough.choices, True, base)
    exact = hunt.find(columns.only(columns.scores <= upper * (1 + _ROUNDING)), upper, gap)
    choices = exact.choices if exact.choices is not None and _score(rows, exact.choices) <= upper else rough.choices
    proven = exact.proven and exact.choices is not None and gap == 0
    return Found(choices, proven, base + max(rough.bound, exact.bound))


def _score(rows: Sequence[Row], choices: Sequence[int]) -> float:
    return math.fsum(float(row[c] - row.min()) for row, c in zip(rows, choices, strict=True))


@dataclass
class Hunt:
    """Solves until what HiGHS returns really fits, cutting off what only its tolerance let through."""

    constraints: Constraints
    deadline: float
    node_limit: int | None
    cuts: list[tuple[int, ...]] = field(default_factory=list)
    pairs: Sequence[Pair] = ()

    def find(self, columns: Columns, scale: float, gap: float) -> Outcome:
        """One problem, solved as often as it takes; `scale` is the score that the optimum may have."""
        unit = (scale or 1.0) / _OBJECTIVE_SCALE
        bound = 0.0
        for attempt in range(2 * _MOST_CUTS):
            tightened = attempt >= _MOST_CUTS  # a swarm of assignments a rounding above a limit: give up the proof, not the limit
            outcome = minimise(
                replace(columns, spare=columns.spare * (1 - _TIGHTENED)) if tightened else columns,
                self.cuts,
                unit,
                gap,
                max(0.1, self.deadline - time.monotonic()),
                self.node_limit,
                self.pairs,
            )
            bound = bound if tightened else max(bound, outcome.bound)
            if outcome.choices is None or self.constraints.fits(self.constraints.layers.expand(outcome.choices)):
                return Outcome(outcome.choices, bound, outcome.proven and not tightened)
            self.cuts.append(outcome.choices)
        return Outcome(None, bound, False)
