"""The least and the greatest that a problem's assignments can use of each resource."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mpsearch.problem import PEAKS, Problem
from mpsearch.solvers.exact.elimination_order import MOST_STATES, Line
from mpsearch.solvers.exact.highs import minimise
from mpsearch.solvers.exact.knapsack import Columns, Link
from mpsearch.solvers.tables.groups import Row, SuperLayers
from mpsearch.solvers.tables.pair_tables import Pair, spread
from mpsearch.units import format_quantity

_TIME_LIMIT_S = 60.0


def reachable(problem: Problem) -> dict[str, tuple[float, float]]:
    """Resource -> (least, greatest) total cost of any assignment, constants and conversions included and ties
    kept.
    """
    layers = SuperLayers.of([len(c) for c in problem.candidates], problem.ties)
    found = {}
    for resource in problem.costs:
        low, high = (
            getattr(problem.cost(layers.expand(_end(problem, layers, resource, sign))), resource)
            for sign in (1, -1)
        )
        found[resource] = (low, high)
    return found


def describe_least(problem: Problem, least: dict[str, float]) -> str:
    """Print it, as `Least reachable: size 11.30 MB (10.78 MiB), latency 2.000 ms`."""
    words = ", ".join(f"{r.rsplit('_', 1)[0]} {format_quantity(v, r)}" for r, v in least.items())
    estimated = "latency_us" in problem.estimated and "latency_us" in least
    return f"Least reachable: {words}{' (latency estimated)' if estimated else ''}."


def _end(problem: Problem, layers: SuperLayers, resource: str, sign: int) -> tuple[int, ...]:
    """The choices that use the least (1) or the most (-1) of a resource."""
    table = problem.costs[resource]
    if resource in PEAKS:
        peaks = [
            [max(table[i][c] for i, c in zip(group, pick, strict=True)) for pick in picks]
            for group, picks in zip(layers.groups, layers.picks, strict=True)
        ]
        return tuple(int(np.argmin(sign * np.array(row))) for row in peaks)
    terms = problem.conversions.get(resource, ())
    rows, pairs = spread(
        layers,
        [sign * row for row in layers.merge(table)],
        [(term, sign * np.array(term.values)) for term in terms],
    )
    return least_choices(layers, rows, pairs)


def least_choices(layers: SuperLayers, rows: Sequence[Row], pairs: Sequence[Pair[Row]]) -> tuple[int, ...]:
    """M choices of the least sum; exact where the pairs reach no further than a line's states, and else as
    good as HiGHS finds in a minute.
    """
    if not pairs:
        return tuple(int(row.argmin()) for row in rows)
    line = Line.of(layers.widths, [(p.first, p.second) for p in pairs])
    if line.states <= MOST_STATES:
        return line.best(line.steps(rows, pairs))
    columns = Columns.of(rows, [], [], paired=range(len(rows)))
    unit = math.fsum(float(np.ptp(row)) for row in rows) + math.fsum(float(np.ptp(p.table)) for p in pairs)
    outcome = minimise(columns, [], (unit or 1.0) / 1e6, 0.0, _TIME_LIMIT_S, None, Link.all(pairs))
    return outcome.choices if outcome.choices is not None else tuple(int(row.argmin()) for row in rows)
