"""Pareto set and hypervolume against what they mean."""

from __future__ import annotations

import numpy as np
import pytest

from mpsearch.errors import UserError
from mpsearch.solvers import hypervolume, non_dominated


@pytest.mark.parametrize("dimensions", [2, 3])
def test_non_dominated_is_the_definition(dimensions):
    for seed in range(30):
        points = np.random.default_rng(seed).integers(0, 6, (25, dimensions))
        expected = [
            i
            for i, p in enumerate(points)
            if not any((q <= p).all() and (q < p).any() for q in points)
            and not any((points[k] == p).all() for k in range(i))
        ]
        assert non_dominated(points) == expected


def test_hypervolume_counts_cells():
    for seed in range(30):
        points = np.random.default_rng(seed).integers(0, 12, (8, 2))
        cells = sum(any(x >= p[0] and y >= p[1] for p in points) for x in range(10) for y in range(10))
        assert hypervolume([tuple(p) for p in points], (10, 10)) == cells
    assert hypervolume([], (1, 1)) == 0


def test_points_that_are_not_a_matrix():
    assert non_dominated([]) == []
    with pytest.raises(UserError, match="without NaN"):
        non_dominated([[0.0, np.nan]])
