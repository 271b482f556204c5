"""What the next byte, or the next microsecond, buys: the convex hull of the exact front as a list of
prices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpsearch.errors import OptionError
from mpsearch.solvers.exact.front import Front


@dataclass(frozen=True)
class Price:
    """A step up in cost.

    Args:
        cost: Before the step.
        more: That the step costs.
        score: Damage before the step.
        saved: Damage that the step saves.
        indices: `L` choices after the step.
        changed: Layers that take another choice than before it.
    """

    cost: float
    more: float
    score: float
    saved: float
    indices: tuple[int, ...]
    changed: tuple[int, ...]

    @property
    def rate(self) -> float:
        """Damage saved for one unit of cost."""
        return self.saved / self.more


def marginal_prices(front: Front, most: int | None = None) -> list[Price]:
    """Steps from the least cost to the greatest, each saving no more for its cost than the one before.

    Steps lead from corner to corner of the convex hull of the exact front, so nothing between two corners
    lies below the line that joins them.

    Args:
        front: Exact.
        most: Steps; neighbouring ones of the least savings are joined until there are no more than this. None
            for all.

    Raises:
        OptionError: Fewer than one step.
    """
    if most is not None and most < 1:
        raise OptionError(f"A list of {most} prices was asked for; it must have at least 1.")
    corners = hull(front)
    while most is not None and len(corners) > most + 1:
        scores = front.scores[corners]
        corners.pop(1 + int(np.argmin(scores[:-2] - scores[2:])))
    points = [front.indices(p) for p in corners]
    return [
        Price(
            float(front.costs[a]),
            float(front.costs[b] - front.costs[a]),
            float(front.scores[a]),
            float(front.scores[a] - front.scores[b]),
            after,
            tuple(i for i, (x, y) in enumerate(zip(before, after, strict=True)) if x != y),
        )
        for a, b, before, after in zip(corners[:-1], corners[1:], points[:-1], points[1:], strict=True)
    ]


def hull(front: Front) -> list[int]:
    """Positions of the corners of the lower convex hull, ends included."""
    kept: list[int] = []
    costs, scores = np.asarray(front.costs, float), front.scores
    for p in range(len(front)):
        while len(kept) > 1:
            a, b = kept[-2:]
            if (scores[a] - scores[b]) * (costs[p] - costs[b]) > (scores[b] - scores[p]) * (
                costs[b] - costs[a]
            ):
                break
            kept.pop()
        kept.append(p)
    return kept
