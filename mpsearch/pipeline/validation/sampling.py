"""Assignments spread over the whole range of sizes: what objectives are tried on. Plain numbers and seeds."""

from __future__ import annotations

import numpy as np

from mpsearch.problem import Problem
from mpsearch.solvers.tables.groups import SuperLayers

Indices = tuple[int, ...]


def spread_assignments(problem: Problem, count: int, seed: int) -> list[Indices]:
    """`count` assignments, one in each of `count` equal parts of the range of sizes, which uniformly random
    bits would leave nearly empty at both ends.

    Each starts from uniformly random choices; then random super-layers move by one candidate towards a random
    size within its part, until that is passed. Ties are kept. The last of two on either side of the size is
    taken, whichever is nearer.

    Args:
        problem: Has a `size_bytes` table.
        count: How many.
        seed: Same seed, same assignments; the first of more are not the same as fewer.
    Returns: In rising order of the size aimed at; repetitions, which only small problems have, left out.
    """
    layers = SuperLayers.of([len(c) for c in problem.candidates], problem.ties)
    sizes = layers.merge(problem.costs["size_bytes"])
    orders = [np.argsort(row, kind="stable") for row in sizes]
    rng = np.random.default_rng([seed, 0x5C0E])
    low, high = (sum(float(pick(row)) for row in sizes) for pick in (np.min, np.max))
    found = []
    for part in range(count):
        target = low + (part + rng.random()) / count * (high - low)
        ranks = _towards(target, [np.sort(row) for row in sizes], rng)
        found.append(layers.expand([int(order[r]) for order, r in zip(orders, ranks, strict=True)]))
    return list(dict.fromkeys(found))


def _towards(target: float, sizes: list[np.ndarray], rng: np.random.Generator) -> list[int]:
    """Ranks in the rows of sorted sizes, whose sum is near the target."""
    ranks = [int(rng.integers(len(row))) for row in sizes]
    total = sum(float(row[r]) for row, r in zip(sizes, ranks, strict=True))
    step = 1 if total < target else -1
    while True:
        free = [m for m, row in enumerate(sizes) if 0 <= ranks[m] + step < len(row)]
        if not free:
            return ranks
        m = free[int(rng.integers(len(free)))]
        after = total + float(sizes[m][ranks[m] + step] - sizes[m][ranks[m]])
        if (after - target) * step >= 0:
            ranks[m] += step if abs(after - target) < abs(total - target) else 0
            return ranks
        ranks[m] += step
        total = after


def nudged(
    problem: Problem, layers: SuperLayers, start: Indices, limit: float, rng: np.random.Generator
) -> Indices | None:
    """One super-layer a candidate larger, then random others a candidate smaller until the size is within
    `limit` again; None if that fails.

    Args:
        problem: Has a `size_bytes` table.
        layers: Its ties, merged.
        start: L choices.
        limit: Limit of the size in bytes.
        rng: Draws.
    Returns: L choices.
    """
    sizes = layers.merge(problem.costs["size_bytes"])
    orders = [list(np.argsort(row, kind="stable")) for row in sizes]
    ranks = [order.index(c) for order, c in zip(orders, layers.contract(start), strict=True)]
    up = [m for m, order in enumerate(orders) if ranks[m] + 1 < len(order)]
    if not up:
        return None
    raised = up[int(rng.integers(len(up)))]
    ranks[raised] += 1
    while True:
        indices = layers.expand([int(order[r]) for order, r in zip(orders, ranks, strict=True)])
        if (problem.cost(indices).size_bytes or 0.0) <= limit:
            return indices
        down = [m for m in range(len(orders)) if m != raised and ranks[m] > 0]
        if not down:
            return None
        ranks[down[int(rng.integers(len(down)))]] -= 1
