"""Least damage with pairs of layers that interact, in damage or in costs, under any number of budgets.

Three things in order: a bound and a start from an additive problem below this one; tabu search; and, where it
is small enough to hope for, the linearised problem through HiGHS, which proves the optimum or raises the
bound.

References: Deng et al., CLADO, DAC 2025, arXiv:2307.05657, for the objective; it is solved there by Gurobi.
Sherali and Adams, SIAM J. Discrete Math. 3(3), 1990, for the linearisation.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence

import numpy as np

from mpsearch.errors import MpsearchError
from mpsearch.problem import Choices
from mpsearch.solvers.budgeted.milp import Found, Hunt, solve_rows
from mpsearch.solvers.budgeted.tabu import tabu_search
from mpsearch.solvers.constraints import Constraints
from mpsearch.solvers.coupled import Coupled
from mpsearch.solvers.exact.dual import Picks, maximise
from mpsearch.solvers.exact.elimination_order import MOST_STATES, Line, total
from mpsearch.solvers.exact.knapsack import Columns, Cut, Link
from mpsearch.solvers.tables.groups import Row
from mpsearch.solvers.tables.pair_tables import Pair

MOST_ENTRIES = 20_000
"""Entries of all pair tables up to which HiGHS is tried; above, its first relaxation alone can outlast the
time limit.
"""

_ROUGH_GAP = 0.05
_ROUNDING = 1e-9  # share of the score by which HiGHS and the sums here may differ


def solve_pairs(
    constraints: Constraints,
    coupled: Coupled,
    time_limit_s: float = 60.0,
    most_entries: int = MOST_ENTRIES,
    node_limit: int | None = None,
    cuts: Sequence[Cut] = (),
) -> tuple[Found, str]:
    """The best choices found, whether they are proven, a lower bound, and who found them.

    Args:
        constraints: On the super-layers of `coupled`.
        coupled: Rows and pairs.
        time_limit_s: Time limit of HiGHS; the rest takes what its size makes it take.
        most_entries: HiGHS is left out above this many entries of pair tables, where something is known
            without it.
        node_limit: Limit on the nodes of HiGHS, which stops at the same point on every run.
        cuts: Assignments that are not allowed.

    Raises:
        InfeasibleError: No assignment keeps the budgets.
        MpsearchError: The time ran out before any assignment was found.
    """
    starts, bound = _starts_and_bound(constraints, coupled, time_limit_s, cuts)
    links = Link.all(coupled.pairs, [constraints.pairs.get(r, ()) for r in constraints.rows])
    hunt = Hunt(constraints, time.monotonic() + time_limit_s, node_limit, list(cuts), links)
    few = sum(link.scores.size for link in links) <= most_entries
    if (
        few and constraints.pairs
    ):  # the prices' bound and start are so near that HiGHS is done before tabu search would be
        found, by = _linearised(constraints, coupled, _best(coupled, starts, cuts, bound), bound, hunt)
        if found.proven:
            return found, by
        starts, bound = [found.choices, *starts], max(bound, found.bound)
    known = _best(
        coupled, [*(tabu_search(constraints, coupled, start) for start in starts), *starts], cuts, bound
    )
    if known is None or (few and not constraints.pairs):
        return _linearised(constraints, coupled, known, bound, hunt)
    return known, "tabu search"


def _best(coupled: Coupled, tried: Sequence[Choices], cuts: Sequence[Cut], bound: float) -> Found | None:
    choices = min((x for x in tried if all(cut.allows(x) for cut in cuts)), key=coupled.score, default=None)
    return None if choices is None else Found(choices, False, bound)


def _starts_and_bound(
    constraints: Constraints, coupled: Coupled, time_limit_s: float, cuts: Sequence[Cut]
) -> tuple[list[Choices], float]:
    """Choices that keep the budgets, as far as they are met on the way, and a lower bound of the score."""
    below = lower_rows(coupled.rows, coupled.pairs)
    if not constraints.pairs and not cuts:
        found = solve_rows(constraints, below, time_limit_s)
        bound = (
            found.bound
            if not found.proven
            else math.fsum(float(row[c]) for row, c in zip(below, found.choices, strict=True))
        )
        return sorted({found.choices, solve_rows(constraints, coupled.rows, time_limit_s).choices}), bound
    line = Line.of(
        coupled.layers.widths,
        [
            (p.first, p.second)
            for p in (*coupled.pairs, *itertools.chain.from_iterable(constraints.pairs.values()))
        ],
    )
    if line.states > MOST_STATES:
        return [], math.fsum(float(row.min()) for row in below)
    return _priced(constraints, coupled, line)


def _priced(constraints: Constraints, coupled: Coupled, line: Line) -> tuple[list[Choices], float]:
    """The Lagrangian bound over all prices, exact for each along the line, and the best that it met which
    keeps the budgets.
    """
    scores = line.steps(coupled.rows, coupled.pairs)
    costs = [line.steps(rows, constraints.pairs.get(r, ())) for r, rows in constraints.rows.items()]
    limits = np.array(
        [constraints.limits[r] - constraints.problem.constants.get(r, 0.0) for r in constraints.rows]
    )
    base = math.fsum(float(step.min()) for step in scores)

    def oracle(prices: Row) -> tuple[Picks, float, Row]:
        priced = [
            score + sum((p * use for p, use in zip(prices, uses, strict=True)), np.zeros(()))
            for score, *uses in zip(scores, *costs, strict=True)
        ]
        choices = line.best(priced)
        return (
            np.array(choices),
            total(scores, line, choices) - base,
            np.array([total(steps, line, choices) for steps in costs]),
        )

    dual = maximise(oracle, limits, math.fsum(float(np.ptp(step)) for step in scores))
    met = {tuple(int(c) for c in choices) for choices in dual.met}
    fitting = [x for x in sorted(met) if constraints.fits(constraints.layers.expand(x))]
    rounding = _ROUNDING * (abs(dual.bound) + float(dual.prices @ np.abs(limits)))
    return sorted(fitting, key=coupled.score)[:2], base + dual.bound - rounding


def lower_rows(rows: Sequence[Row], pairs: Sequence[Pair[Row]]) -> list[Row]:
    """M rows whose sum is never above that with the pairs: each entry of a pair is at least half the least of
    its row and half the least of its column.
    """
    rows = [row.copy() for row in rows]
    for pair in pairs:
        rows[pair.first] += pair.table.min(1) / 2
        rows[pair.second] += pair.table.min(0) / 2
    return rows


def _linearised(
    constraints: Constraints, coupled: Coupled, found: Found | None, bound: float, hunt: Hunt
) -> tuple[Found, str]:
    """HiGHS on the linearised problem; what it does not improve stays."""
    base = math.fsum(
        [*(float(row.min()) for row in coupled.rows), *(float(pair.table.min()) for pair in coupled.pairs)]
    )
    paired = (
        range(len(coupled.rows))
        if hunt.cuts
        else {m for link in hunt.links for m in (link.first, link.second)}
    )
    columns = Columns.of(
        coupled.rows,
        list(constraints.rows.values()),
        [constraints.spare(r) for r in constraints.rows],
        paired,
    )
    if found is None:
        found = _rough(constraints, coupled, columns, bound, hunt)
    score = coupled.score(found.choices)
    room = score - base
    if room <= 0:
        return Found(found.choices, True, score), "tabu search"
    outcome = hunt.find(columns, room, 0.0)
    bound = max(bound, found.bound, base + outcome.bound)
    if outcome.choices is None:
        if outcome.proven:
            raise MpsearchError(
                "HiGHS says that nothing keeps the budgets, though an assignment that does is known. "
                "Report this with the problem.json."
            )
        return Found(found.choices, False, bound), "tabu search"
    theirs = coupled.score(outcome.choices)
    proven = (
        outcome.proven and theirs <= score + _ROUNDING * room
    )  # a proof of something worse than what is known is none
    if theirs <= score or proven:
        return Found(outcome.choices, proven, bound), "HiGHS, pairs linearised"
    return Found(found.choices, False, bound), "tabu search"


def _rough(constraints: Constraints, coupled: Coupled, columns: Columns, bound: float, hunt: Hunt) -> Found:
    """Something that keeps the budgets, or the proof that nothing does."""
    scale = math.fsum(
        [
            *(float(np.ptp(row)) for row in coupled.rows),
            *(float(np.ptp(pair.table)) for pair in coupled.pairs),
        ]
    )
    rough = hunt.find(columns, scale, _ROUGH_GAP)
    if rough.choices is not None:
        return Found(rough.choices, False, bound)
    if rough.proven:
        raise constraints.joint_error()
    raise MpsearchError(
        "HiGHS found no assignment that keeps all budgets in the time it had, nor proved that there is "
        "none. Give it more time."
    )
