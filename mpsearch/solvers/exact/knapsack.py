"""Exact optimum under one limit: the dynamic programme of the front, thinned by a Lagrangian bound.

A partial sum is dropped when even the Lagrangian relaxation of its rest cannot beat an assignment already in hand, so only a narrow
band around the optimum is carried: milliseconds where the whole front takes a second, and exact all the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import Choices
from mpsearch.solvers.exact.front import Front, Keep, by_range, sweep
from mpsearch.solvers.tables.groups import Row, SuperLayers
from mpsearch.solvers.tables.integer_costs import WholeCosts

_BISECTIONS = 60
_ROUNDING = 1e-12  # share of the sums by which float64 may err here; the band is widened by it


def near_optimum(layers: SuperLayers, scores: Sequence[Row], costs: WholeCosts, limit: float) -> Front:
    """Points around the optimum under `limit`, which is the last of them: part of the front near the limit, not the whole of it.

    Args:
        layers: M super-layers.
        scores: M rows; the scores of the result have the least of each row taken off.
        costs: M rows and the constant.
        limit: Limit on constant and layers together.

    Raises:
        InfeasibleError: No assignment costs `limit` or less.
    """
    shifted = [row - row.min() for row in scores]
    real = _padded([costs.real(row) for row in costs.rows], np.inf)
    band = _band(_padded(shifted, np.inf), real, by_range(costs), math.ldexp(costs.constant, -costs.power), limit)
    return sweep(layers, shifted, costs, limit, keep=band)


def _padded(rows: Sequence[Row], value: float) -> Row:
    width = max(map(len, rows))
    return np.array([np.pad(row, (0, width - len(row)), constant_values=value) for row in rows])


def _band(scores: Row, costs: Row, order: tuple[int, ...], constant: float, limit: float) -> Keep:
    """Keeps the partial sums whose Lagrangian bound does not exceed the score of an assignment that fits."""
    scale = abs(limit) + abs(constant) + float(np.abs(costs, where=np.isfinite(costs), out=np.zeros_like(costs)).max(1).sum())
    room = limit - constant - _ROUNDING * scale
    price, picked = _price(scores, costs, room)
    filled = _fill(scores, costs, picked, room)
    upper = np.inf if filled is None else float(scores[np.arange(len(scores)), filled].sum())
    relaxed = _relaxed(scores, costs, price).min(1)[list(order)]
    rest = np.append(np.cumsum(relaxed[::-1])[::-1], 0.0)
    ceiling = upper + _ROUNDING * (upper + price * scale) if upper < np.inf else np.inf

    def keep(done: int, total: Row, score: Row) -> NDArray[np.bool_]:
        kept: NDArray[np.bool_] = score + price * (total - limit) + rest[done] <= ceiling
        return kept

    return keep


def _relaxed(scores: Row, costs: Row, price: float) -> Row:
    return np.where(np.isfinite(costs), scores + price * np.where(np.isfinite(costs), costs, 0.0), np.inf)


def _price(scores: Row, costs: Row, room: float) -> tuple[float, NDArray[np.intp]]:
    """The least price of a unit of cost at which the relaxed choice fits into `room`, and that choice."""
    rows = np.arange(len(scores))

    def choose(price: float) -> NDArray[np.intp]:
        return np.lexsort((costs, _relaxed(scores, costs, price)), axis=1)[:, 0] if price == 0 else _relaxed(scores, costs, price).argmin(1)

    finite = np.isfinite(costs)
    low, high = 0.0, max(float(scores[finite].max()), 1e-300) / max(float(np.ptp(costs[finite])), 1e-300) or 1.0
    if costs[rows, choose(0.0)].sum() <= room or not np.ptp(costs[finite]):
        return 0.0, choose(0.0)
    for _ in range(200):
        if costs[rows, choose(high)].sum() <= room:
            break
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if costs[rows, choose(middle)].sum() <= room else (middle, high)
    return high, choose(high)


def _fill(scores: Row, costs: Row, picked: NDArray[np.intp], room: float) -> Choices | None:
    """The assignment once the room that is left is used up, best gain first; None if it does not fit at all."""
    rows, picked = np.arange(len(scores)), picked.copy()
    room -= float(costs[rows, picked].sum())
    if room < 0:
        return None
    for _ in range(4 * len(scores)):
        gain = np.where(costs - costs[rows, picked, None] <= room, scores[rows, picked, None] - scores, -np.inf)
        m, c = divmod(int(gain.argmax()), scores.shape[1])
        if gain[m, c] <= 0:
            break
        room -= float(costs[m, c] - costs[m, picked[m]])
        picked[m] = c
    return tuple(picked.tolist())
