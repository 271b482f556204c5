"""The least damage under any number of budgets at once, and the proof that it is the least.

No budget: each layer's best. One budget: the dynamic programme of `knapsack`, exact by itself. Several: a Lagrangian bound and an assignment
near it rule out most candidates, and HiGHS decides between the others, on scaled rows. What HiGHS returns is checked in exact arithmetic; an
assignment that only its tolerance let through is cut off by a row of its own and the problem is solved again, so the proof covers exactly the
assignments that fit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mpsearch.errors import InfeasibleError, MpsearchError
from mpsearch.search.constraints import Constraints
from mpsearch.search.dual import Picks, Ranks, maximise
from mpsearch.search.highs import Columns, Cut, Link, Outcome, minimise
from mpsearch.search.knapsack import near_optimum
from mpsearch.search.superlayers import Row

_ROUGH_GAP = 0.05
_OBJECTIVE_SCALE = 1e4  # scaled score of the optimum: HiGHS's absolute gap of 1e-6 is then 1e-10 of it
_ROUNDING = 1e-9
_MOST_CUTS = 20
_FEW_COLUMNS = 64  # below this HiGHS is done sooner than the bound
_TIGHTENED = 1e-6  # share of the room given up once cutting one by one has not helped


@dataclass(frozen=True)
class Found:
    """M choices, whether they are proven optimal, and a lower bound of their score."""

    choices: tuple[int, ...]
    proven: bool
    bound: float


def solve_rows(
    constraints: Constraints,
    rows: Sequence[Row],
    time_limit_s: float = 60.0,
    gap: float = 0.0,
    node_limit: int | None = None,
    cuts: Sequence[Cut] = (),
) -> Found:
    """The choices of least score that keep every budget.

    Args:
        constraints: The budgets; no pairs.
        rows: M merged score rows.
        time_limit_s: For the solver, wall clock; only several budgets can need it.
        gap: Above 0 the proof is given up.
        node_limit: The same, at the same point on every run.
        cuts: Assignments that are not allowed.

    Raises:
        InfeasibleError: No assignment fits; names the least reachable value of each resource.
        MpsearchError: The time ran out before any assignment was found.
    """
    base = math.fsum(float(row.min()) for row in rows)
    free = tuple(int(row.argmin()) for row in rows)
    if constraints.fits(constraints.layers.expand(free)) and all(cut.allows(free) for cut in cuts):
        return Found(free, True, base)
    if len(constraints.rows) == 1 and not cuts:
        return Found(_under_one(constraints, rows), True, base)
    return _UnderMany(constraints, rows, base, Hunt(constraints, time.monotonic() + time_limit_s, node_limit, list(cuts))).solve(gap)


def _under_one(constraints: Constraints, rows: Sequence[Row]) -> tuple[int, ...]:
    resource, *_ = constraints.rows
    try:
        front = near_optimum(constraints.layers, rows, constraints.whole[resource], constraints.limits[resource])
    except InfeasibleError:  # a peak has taken the cheapest choices away
        raise constraints.joint_error() from None
    for p in range(len(front) - 1, -1, -1):  # with costs that are not whole, the last may pass the limit by a rounding
        choices = front.choices(p)
        if constraints.fits(constraints.layers.expand(choices)):
            return choices
    raise constraints.joint_error()


@dataclass
class _UnderMany:
    """Several budgets, or cuts: M score rows, the sum of their least, and the hunt that solves."""

    constraints: Constraints
    rows: Sequence[Row]
    base: float
    hunt: Hunt

    def solve(self, gap: float) -> Found:
        """Something near the optimum first; then HiGHS on the candidates that it leaves, with scores in units of its own."""
        paired = range(len(self.rows)) if self.hunt.cuts else ()  # beside a cut a candidate may be worse than another and still be wanted
        columns = Columns.of(self.rows, list(self.constraints.rows.values()), [self.constraints.spare(r) for r in self.constraints.rows], paired)
        columns, known, bound = self._near(columns)
        if known is None:
            return self._from_nothing(columns, gap)
        return self._decided(columns, known, bound, gap)

    def _near(self, columns: Columns) -> tuple[Columns, tuple[int, ...] | None, float]:
        """The columns that the Lagrangian bound does not rule out, an assignment that it was held against, and the bound itself."""
        if len(set(columns.layer.tolist())) < columns.count or not len(columns.spare) or len(columns.layer) < _FEW_COLUMNS:
            return columns, None, 0.0
        ranks = Ranks.of(columns)
        dual = maximise(ranks.oracle, columns.spare, float(columns.scores.max(initial=0.0)))
        start = ranks.start(dual)
        known = None if start is None else self._choices(columns, start)
        if known is None:
            return columns, None, max(dual.bound, 0.0)
        upper = _score(self.rows, known)
        return columns.only(ranks.reduced(dual.prices) <= (upper - dual.bound) + _ROUNDING * (upper + abs(dual.bound))), known, max(dual.bound, 0.0)

    def _choices(self, columns: Columns, picked: Picks) -> tuple[int, ...] | None:
        """M choices of M columns; None where they pass a limit by a rounding, or are cut off."""
        choices = tuple(int(c) for c in columns.candidate[picked])
        allowed = self.constraints.fits(self.constraints.layers.expand(choices)) and all(cut.allows(choices) for cut in self.hunt.cuts)
        return choices if allowed else None

    def _from_nothing(self, columns: Columns, gap: float) -> Found:
        """HiGHS roughly, for something to go on from; or the proof that there is nothing."""
        rough = self.hunt.find(columns, float(columns.scores.max(initial=0.0)), _ROUGH_GAP)
        if rough.choices is None:
            if rough.proven:
                raise self.constraints.joint_error()
            raise MpsearchError("HiGHS found no assignment that keeps all budgets in the time it had, nor proved that there is none. Give it more time.")
        return self._decided(columns, rough.choices, rough.bound, gap)

    def _decided(self, columns: Columns, known: tuple[int, ...], bound: float, gap: float) -> Found:
        upper = _score(self.rows, known)
        if upper <= 0:
            return Found(known, True, self.base)
        exact = self.hunt.find(columns.only(columns.scores <= upper * (1 + _ROUNDING)), upper, gap)
        choices = exact.choices if exact.choices is not None and _score(self.rows, exact.choices) <= upper else known
        proven = exact.proven and exact.choices is not None and gap == 0
        return Found(choices, proven, self.base + min(max(bound, exact.bound), upper))


def _score(rows: Sequence[Row], choices: Sequence[int]) -> float:
    return math.fsum(float(row[c] - row.min()) for row, c in zip(rows, choices, strict=True))


@dataclass
class Hunt:
    """Solves until what HiGHS returns really fits, cutting off what only its tolerance let through."""

    constraints: Constraints
    deadline: float
    node_limit: int | None
    cuts: list[Cut] = field(default_factory=list)
    links: Sequence[Link] = ()

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
                self.links,
            )
            bound = bound if tightened else max(bound, outcome.bound)
            if outcome.choices is None or self.constraints.fits(self.constraints.layers.expand(outcome.choices)):
                return Outcome(outcome.choices, bound, outcome.proven and not tightened)
            self.cuts.append(Cut.itself(outcome.choices, self.constraints.layers.widths))
        return Outcome(None, bound, False)
