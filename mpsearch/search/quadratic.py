"""Least damage with pairs of layers that interact, under any number of budgets.

Three things in order: a bound and a start from an additive problem below this one; tabu search; and, where it is small enough to hope for, the
linearised problem through HiGHS, which proves the optimum or raises the bound.

References: Deng et al., CLADO, DAC 2025, arXiv:2307.05657, for the objective; it is solved there by Gurobi. Sherali and Adams, SIAM J. Discrete Math.
3(3), 1990, for the linearisation.
"""

from __future__ import annotations

import math
import time

from mpsearch.errors import MpsearchError
from mpsearch.search.constraints import Constraints
from mpsearch.search.coupled import Coupled
from mpsearch.search.highs import Columns
from mpsearch.search.milp import Found, Hunt, solve_rows
from mpsearch.search.superlayers import Row
from mpsearch.search.tabu import tabu_search

MOST_ENTRIES = 20_000
"""Entries of all pair tables up to which HiGHS is tried; above, its first relaxation alone can outlast the time limit."""

_ROUNDING = 1e-9  # share of the score by which HiGHS and the sums here may differ


def solve_pairs(constraints: Constraints, coupled: Coupled, time_limit_s: float = 60.0, most_entries: int = MOST_ENTRIES) -> tuple[Found, str]:
    """The best choices found, whether they are proven, a lower bound, and who found them.

    Args:
        constraints: On the super-layers of `coupled`.
        coupled: Rows and pairs.
        time_limit_s: Of HiGHS; the rest takes what its size makes it take.
        most_entries: HiGHS is left out above this many entries of pair tables.

    Raises:
        InfeasibleError: No assignment keeps the budgets.
    """
    below = solve_rows(constraints, lower_rows(coupled), time_limit_s)
    bound = below.bound if not below.proven else math.fsum(float(row[c]) for row, c in zip(lower_rows(coupled), below.choices, strict=True))
    starts = {below.choices, solve_rows(constraints, coupled.rows, time_limit_s).choices}
    choices = min((tabu_search(constraints, coupled, start) for start in sorted(starts)), key=coupled.score)
    found, by = Found(choices, False, bound), "tabu search"
    if sum(pair.table.size for pair in coupled.pairs) <= most_entries:
        found, by = _linearised(constraints, coupled, found, time_limit_s)
    return found, by


def lower_rows(coupled: Coupled) -> list[Row]:
    """M rows whose sum is never above the score: each entry of a pair is at least half the least of its row and half the least of its column."""
    rows = [row.copy() for row in coupled.rows]
    for pair in coupled.pairs:
        rows[pair.first] += pair.table.min(1) / 2
        rows[pair.second] += pair.table.min(0) / 2
    return rows


def _linearised(constraints: Constraints, coupled: Coupled, found: Found, time_limit_s: float) -> tuple[Found, str]:
    """HiGHS on the linearised problem; what it does not improve stays."""
    base = math.fsum([*(float(row.min()) for row in coupled.rows), *(float(pair.table.min()) for pair in coupled.pairs)])
    paired = {m for pair in coupled.pairs for m in (pair.first, pair.second)}
    columns = Columns.of(coupled.rows, list(constraints.rows.values()), [constraints.spare(r) for r in constraints.limits], paired)
    score = coupled.score(found.choices)
    room = max(score - base, 0.0)
    outcome = Hunt(constraints, time.monotonic() + time_limit_s, None, pairs=coupled.pairs).find(columns, room, 0.0)
    bound = max(found.bound, base + outcome.bound)
    if outcome.choices is None:
        if outcome.proven:
            raise MpsearchError("HiGHS says that nothing keeps the budgets, though an assignment that does is known. Report this with the problem.json.")
        return Found(found.choices, False, bound), "tabu search"
    theirs = coupled.score(outcome.choices)
    proven = outcome.proven and theirs <= score + _ROUNDING * room  # a proof of something worse than what is known is none
    if theirs <= score or proven:
        return Found(outcome.choices, proven, bound), "HiGHS, pairs linearised"
    return Found(found.choices, False, bound), "tabu search"
