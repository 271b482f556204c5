"""Exact k-means of numbers: the optimum by dynamic programming, with nothing random and no start to
choose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import UserError


def cluster(values: Sequence[float], k: int) -> list[int]:
    """The cluster of each value, 0 to k - 1 in ascending order of the clusters, so that the sum of squares
    about the clusters' means is least.

    Clusters of numbers are intervals, so the best split of the first j sorted values into i clusters follows
    from those into i - 1: k * D^2 steps for D distinct values. Equal values stay together. Of equally good
    splits, the one with the larger last cluster is taken.

    References: Fisher, On grouping for maximum homogeneity, JASA 53, 1958; Wang and Song, Ckmeans.1d.dp, R
        Journal 3(2), 2011.

    Args:
        values: N finite numbers.
        k: Number of clusters; as many as there are distinct values where those are fewer.
    Raises: UserError: `k` is below 1, or a value is NaN or infinite.
    """
    if k < 1 or not np.isfinite(values).all():
        raise UserError(
            f"Cannot cluster {len(values)} values into {k}: k must be at least 1, and every value a "
            "finite number."
        )
    distinct, place, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    if not len(distinct):
        return []
    starts = _starts(distinct, counts, min(k, len(distinct)))
    return [int(c) for c in np.searchsorted(starts, place, side="right") - 1]


def _starts(x: NDArray[np.float64], counts: NDArray[np.intp], k: int) -> list[int]:
    """The first of D ascending distinct values of each of k clusters."""
    spread = _spreads(x, counts)
    best = spread[0].copy()  # of the values 0..j in one cluster
    came: list[NDArray[np.intp]] = []
    for clusters in range(1, k):
        whole = np.full((len(x), len(x)), np.inf)  # [start of the last cluster, j]
        whole[clusters:] = best[clusters - 1 : -1, None] + spread[clusters:]
        came.append(whole.argmin(0))
        best = whole.min(0)
    starts, end = [], len(x) - 1
    for origin in reversed(came):
        starts.append(int(origin[end]))
        end = starts[-1] - 1
    return [0, *reversed(starts)]


def _spreads(x: NDArray[np.float64], counts: NDArray[np.intp]) -> NDArray[np.float64]:
    """`D x D`: sum of squares of the values i..j about their mean, in units of the squared range; infinite
    where j < i.
    """
    y = (x - x.mean()) / max(float(np.ptp(x)), np.finfo(float).tiny)
    upper = np.triu(np.ones((len(x), len(x)), bool))
    n, s, q = (
        np.where(upper, ends[None, 1:] - ends[:-1, None], 1.0)
        for ends in (np.append(0.0, np.cumsum(counts * y**p)) for p in range(3))
    )
    spread: NDArray[np.float64] = np.where(upper, np.maximum(q - s**2 / n, 0.0), np.inf)
    return spread
