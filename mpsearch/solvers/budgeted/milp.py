"""The least damage under any number of budgets at once, and the proof that it is the least.

A Lagrangian bound and an assignment near it rule out most candidates, and the dynamic programme of
`label_setting` decides between the others; where too much is open for it, HiGHS does, on scaled rows. What
they return is checked in exact arithmetic; an assignment that only HiGHS's tolerance let through is cut off
by a row of its own and the problem is solved again, so the proof covers exactly the assignments that fit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mpsearch.errors import MpsearchError
from mpsearch.solvers.constraints import Constraints
from mpsearch.solvers.exact.dual import Dual, Picks, Ranks, maximise
from mpsearch.solvers.exact.highs import Outcome, minimise
from mpsearch.solvers.exact.knapsack import Columns, Cut, Link
from mpsearch.solvers.exact.label_setting import label
from mpsearch.solvers.tables.groups import Row

_ROUGH_GAP = 0.05
_OBJECTIVE_SCALE = 1e4  # scaled score of the optimum: HiGHS's absolute gap of 1e-6 is then 1e-10 of it
_ROUNDING = 1e-9
_MOST_CUTS = 20
_FEW_COLUMNS = 64  # below this HiGHS is done sooner than the bound
_TIGHTENED = 1e-6  # share of the room given up once cutting one by one has not helped
_FEW_LABELS, _MOST_LABELS = (
    2_000,
    50_000,
)  # partial assignments: for something near the optimum, and for the proof
_MOST_CHECKS = 200  # assignments at a limit that are checked exactly before HiGHS is asked


@dataclass(frozen=True)
class Found:
    """M choices, whether they are proven optimal, a lower bound of their score, and who decided where there
    were several budgets.
    """

    choices: tuple[int, ...]
    proven: bool
    bound: float
    by: str = "HiGHS"


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
    return _UnderMany(
        constraints, rows, base, Hunt(constraints, time.monotonic() + time_limit_s, node_limit, list(cuts))
    ).solve(gap)


@dataclass
class _UnderMany:
    """Several budgets, or cuts: M score rows, the sum of their least, and the hunt that solves."""

    constraints: Constraints
    rows: Sequence[Row]
    base: float
    hunt: Hunt

    def solve(self, gap: float) -> Found:
        """Something near the optimum first; then HiGHS on the candidates that it leaves, with scores in units
        of its own.
        """
        paired = (
            range(len(self.rows)) if self.hunt.cuts else ()
        )  # beside a cut a candidate may be worse than another and still be wanted
        columns = Columns.of(
            self.rows,
            list(self.constraints.rows.values()),
            [self.constraints.spare(r) for r in self.constraints.rows],
            paired,
        )
        known, priced, reduced = None, 0.0, np.zeros(len(columns.layer))
        if (
            len(set(columns.layer.tolist())) == columns.count
            and len(columns.spare)
            and len(columns.layer) >= _FEW_COLUMNS
        ):
            ranks = Ranks.of(columns)
            dual = maximise(ranks.oracle, columns.spare, float(columns.scores.max(initial=0.0)))
            start, priced, reduced = ranks.start(dual), dual.bound, ranks.reduced(dual.prices)
            known = None if start is None else self._choices(columns, start)
            if known is not None:
                known, proven = self._labelled(ranks, dual, known)
                if proven:
                    return Found(
                        known, True, self.base + _score(self.rows, known), "dynamic programme with bounds"
                    )
        known, rough = (known, 0.0) if known is not None else self._roughly(columns)
        upper = _score(self.rows, known)
        left = columns.only(
            reduced <= (upper - priced) + _ROUNDING * (upper + abs(priced))
        )  # taking any other, the prices alone say, is worse
        return self._decided(left, known, max(priced, rough, 0.0), gap)

    def _labelled(self, ranks: Ranks, dual: Dual, known: tuple[int, ...]) -> tuple[tuple[int, ...], bool]:
        """The best of the labels that fit, or what was known; and whether nothing can be better."""
        for most, thin in ((_FEW_LABELS, False), (_FEW_LABELS, True), (_MOST_LABELS, False)):
            labels = label(ranks, dual, _score(self.rows, known), most, thin=thin)
            if labels is None:
                continue
            found = next(
                (
                    c
                    for picked, _ in zip(labels, range(_MOST_CHECKS), strict=False)
                    if (c := self._choices(ranks.columns, picked)) is not None
                ),
                None,
            )
            if labels.complete and (found is not None or len(labels.scores) <= _MOST_CHECKS):
                return found or known, True
            known = found or known
        return known, False

    def _choices(self, columns: Columns, picked: Picks) -> tuple[int, ...] | None:
        """M choices of M columns; None where they pass a limit by a rounding, or are cut off."""
        choices = tuple(int(c) for c in columns.candidate[picked])
        allowed = self.constraints.fits(self.constraints.layers.expand(choices)) and all(
            cut.allows(choices) for cut in self.hunt.cuts
        )
        return choices if allowed else None

    def _roughly(self, columns: Columns) -> tuple[tuple[int, ...], float]:
        """HiGHS roughly, for something to go on from, and its bound; or the proof that there is nothing."""
        rough = self.hunt.find(columns, float(columns.scores.max(initial=0.0)), _ROUGH_GAP)
        if rough.choices is None:
            if rough.proven:
                raise self.constraints.joint_error()
            raise MpsearchError(
                "HiGHS found no assignment that keeps all budgets in the time it had, nor proved that "
                "there is none. Give it more time."
            )
        return rough.choices, rough.bound

    def _decided(self, columns: Columns, known: tuple[int, ...], bound: float, gap: float) -> Found:
        upper = _score(self.rows, known)
        if upper <= 0:
            return Found(known, True, self.base)
        exact = self.hunt.find(columns.only(columns.scores <= upper * (1 + _ROUNDING)), upper, gap)
        choices = (
            exact.choices
            if exact.choices is not None and _score(self.rows, exact.choices) <= upper
            else known
        )
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
            tightened = (
                attempt >= _MOST_CUTS
            )  # a swarm of assignments a rounding above a limit: give up the proof, not the limit
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
            if outcome.choices is None or self.constraints.fits(
                self.constraints.layers.expand(outcome.choices)
            ):
                return Outcome(outcome.choices, bound, outcome.proven and not tightened)
            self.cuts.append(Cut.itself(outcome.choices, self.constraints.layers.widths))
        return Outcome(None, bound, False)
