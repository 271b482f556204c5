"""Non-dominated points and the exact area they dominate; both objectives are minimised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from mpsearch.errors import UserError


def non_dominated(points: ArrayLike) -> list[int]:
    """Positions of the points that no other point dominates, in their own order; of equal points only the
    first.

    Args:
        points: `N x D`, lower is better in each of the D objectives.

    Raises:
        UserError: Not a matrix, or NaN in it.
    """
    values = np.asarray(points, dtype=np.float64)
    if values.size == 0:
        return []
    if values.ndim != 2 or np.isnan(values).any():
        raise UserError(f"Points must be an N x D matrix without NaN; this one has the shape {values.shape}.")
    kept: list[int] = []
    for i in np.lexsort(values.T[::-1]):  # a point can only be dominated by one that sorts before it
        if not any((values[k] <= values[i]).all() for k in kept):
            kept.append(int(i))
    return sorted(kept)


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area between N points of two objectives and a reference point; what lies beyond the reference adds
    nothing. Exact.

    Args:
        points: `N x 2`, lower is better.
        reference: The corner that bounds the area: worse than every point of interest.
    """
    inside = [p for p in points if p[0] < reference[0] and p[1] < reference[1]]
    area, ceiling = 0.0, reference[1]
    for x, y in sorted(inside[i] for i in non_dominated(inside)):
        area += (reference[0] - x) * (ceiling - y)
        ceiling = y
    return area
