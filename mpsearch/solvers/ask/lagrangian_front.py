"""Exact optima of an additive table for many multipliers at once, and which of them would add most to a
front.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpsearch.problem import Choices
from mpsearch.solvers.constraints import Constraints
from mpsearch.solvers.tables.groups import Row

_MULTIPLIERS = {1: 256, 2: 24}  # for each resource, on a grid; beyond two resources they are drawn
_DRAWN = 1024


def supported(constraints: Constraints, rows: Sequence[Row], rng: np.random.Generator) -> list[Choices]:
    """Assignments that keep every budget and of which each is the true optimum of the table at its own costs,
    for some price of each resource.

    These are the corners of the convex hull of the exact front; what lies between two of them is left out.

    Args:
        constraints: The budgets; one price for each of their resources.
        rows: M score rows.
        rng: Draws the prices where there are more than two resources.
    """
    costs = list(constraints.rows.values())
    grids = [np.geomspace(*price_range(rows, cost), _MULTIPLIERS.get(len(costs), 2)) for cost in costs]
    if len(costs) > 2:
        prices = np.exp(
            np.column_stack([rng.uniform(np.log(grid[0]), np.log(grid[-1]), _DRAWN) for grid in grids])
        )
    else:
        prices = np.stack(np.meshgrid(*grids, indexing="ij"), axis=-1).reshape(-1, len(costs))
    best = np.column_stack(
        [(row + prices @ np.array([cost[m] for cost in costs])).argmin(axis=1) for m, row in enumerate(rows)]
    )
    found = dict.fromkeys(tuple(map(int, line)) for line in best)
    return [choices for choices in found if constraints.fits(constraints.layers.expand(choices))]


def price_range(rows: Sequence[Row], costs: Sequence[Row]) -> tuple[float, float]:
    """Prices between which every candidate that is on the hull of its row becomes the best."""
    slopes = np.concatenate([_slopes(row, cost) for row, cost in zip(rows, costs, strict=True)])
    return (float(slopes.min()) / 2, float(slopes.max()) * 2) if len(slopes) else (0.5, 2.0)


def _slopes(row: Row, cost: Row) -> Row:
    """Damage saved for each unit of cost more, over all pairs of candidates."""
    more = cost[:, None] - cost[None, :]
    less = row[None, :] - row[:, None]
    useful = (more > 0) & (less > 0)
    return np.asarray(less[useful] / more[useful])


def improvements(points: Row, found: Row, corner: tuple[float, float]) -> Row:
    """[P] area that each of P points would add to what F others dominate, below a corner; both objectives are
    minimised.

    Args:
        points: `P x 2`.
        found: `F x 2`; need not be a front.
        corner: What lies beyond adds nothing.
    """
    inside = found[(found < corner).all(axis=1)]
    inside = inside[np.lexsort(inside.T[::-1])]
    edges = np.append(inside[:, 0], corner[0])
    heights = np.append(corner[1], np.minimum.accumulate(inside[:, 1]))
    starts = np.append(-np.inf, edges[:-1])
    wide = np.clip(edges[None, :] - np.maximum(starts[None, :], points[:, :1]), 0, None)
    high = np.clip(heights[None, :] - points[:, 1:], 0, None)
    return np.asarray((wide * high).sum(axis=1))


def most_improving(points: Row, found: Row, corner: tuple[float, float], count: int) -> list[int]:
    """Positions of up to `count` points, each chosen to add most to those before it; none that would add
    nothing.
    """
    chosen: list[int] = []
    for _ in range(count):
        gains = improvements(points, np.vstack([found, points[chosen]]), corner)
        best = int(gains.argmax()) if len(gains) else -1
        if best < 0 or gains[best] <= 0:
            break
        chosen.append(best)
    return chosen
