"""Assignments one or two changes away that keep the budgets, and random ones: the local half of the
search.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import Choices
from mpsearch.solvers.constraints import Constraints
from mpsearch.solvers.tables.groups import Row

_MOST_MOVES = 500  # single changes that are paired with each other
_MOST_TRIED = 4000
_MOST_ENUMERATED = 4096


def best_neighbour(
    constraints: Constraints, rows: Sequence[Row], start: Choices, seen: Collection[Choices]
) -> Choices | None:
    """The unseen assignment of least score within two changes of `start`; None if there is none among the
    most promising.
    """
    fitting = (
        found
        for found in _neighbours(constraints, rows, start)
        if found not in seen and constraints.fits(constraints.layers.expand(found))
    )
    return next(fitting, None)


def best_neighbours(
    constraints: Constraints, rows: Sequence[Row], start: Choices, seen: Collection[Choices], count: int
) -> list[Choices]:
    """Up to `count` unseen assignments within two changes of `start`, of least score, in its order.

    They keep the budgets but for a rounding of the sums: see that one `fits` before it is used.
    """
    return list(
        itertools.islice(
            (found for found in _neighbours(constraints, rows, start) if found not in seen), count
        )
    )


def _neighbours(constraints: Constraints, rows: Sequence[Row], start: Choices) -> Iterator[Choices]:
    layer, candidate, gain, use = _moves(constraints, rows, start)
    left = _left(constraints, start)
    few = _promising(gain, use)
    first, second = (few[i] for i in np.triu_indices(len(few), 1))
    apart = layer[first] != layer[second]
    first, second = (
        np.append(np.arange(len(gain)), first[apart]),
        np.append(np.full(len(gain), -1), second[apart]),
    )
    padded_gain, padded_use = (
        np.append(gain, 0.0),
        np.column_stack([use, np.zeros(len(use))]),
    )  # index -1 is no change
    total = padded_gain[first] + padded_gain[second]
    fitting = np.flatnonzero((padded_use[:, first] + padded_use[:, second] <= left[:, None]).all(0))
    for i in fitting[np.argsort(total[fitting], kind="stable")[:_MOST_TRIED]]:
        changed = list(start)
        for move in (first[i], second[i]):
            if move >= 0:
                changed[layer[move]] = int(candidate[move])
        yield tuple(changed)


def random_unseen(
    constraints: Constraints, start: Choices, seen: Collection[Choices], rng: np.random.Generator
) -> Choices | None:
    """An unseen assignment that keeps the budgets, by random walks from `start`; None only once a small space
    is exhausted or many walks failed.
    """
    widths = constraints.layers.widths
    for _ in range(50):
        found = list(start)
        for m in rng.permutation(len(widths)):
            found[m] = int(rng.integers(widths[m]))
            if not constraints.fits(constraints.layers.expand(found)):
                found[m] = start[m]
        if tuple(found) not in seen and constraints.fits(constraints.layers.expand(found)):
            return tuple(found)
    return next(_small_space(constraints, seen), None)


def _small_space(constraints: Constraints, seen: Collection[Choices]) -> Iterator[Choices]:
    if math.prod(constraints.layers.widths) <= _MOST_ENUMERATED:
        for found in itertools.product(*map(range, constraints.layers.widths)):
            if found not in seen and constraints.fits(constraints.layers.expand(found)):
                yield found


def _moves(
    constraints: Constraints, rows: Sequence[Row], start: Choices
) -> tuple[NDArray[np.intp], NDArray[np.intp], Row, Row]:
    """All single changes: super-layer, candidate, change of score, and `B x N` change of each budgeted
    cost.
    """
    pairs = [(m, c) for m, row in enumerate(rows) for c in range(len(row)) if c != start[m]]
    layer, candidate = (np.array([p[k] for p in pairs], dtype=np.intp) for k in (0, 1))
    gain = np.array([rows[m][c] - rows[m][start[m]] for m, c in pairs])
    use = np.array(
        [[row[m][c] - row[m][start[m]] for m, c in pairs] for row in constraints.rows.values()]
    ).reshape(len(constraints.rows), len(pairs))
    return layer, candidate, gain, use


def _left(constraints: Constraints, start: Choices) -> Row:
    """[B] what each limit leaves, a rounding more: the exact check comes later."""
    cost = constraints.problem.cost(constraints.layers.expand(start))
    return np.array(
        [
            limit - getattr(cost, r) + 1e-9 * abs(limit)
            for r, limit in constraints.limits.items()
            if r in constraints.rows
        ]
    )


def _promising(gain: Row, use: Row) -> NDArray[np.intp]:
    """Positions of the changes worth pairing: the best by score, and the best of those that free room."""
    if len(gain) <= _MOST_MOVES:
        return np.arange(len(gain))
    order = np.argsort(gain, kind="stable")
    frees = order[(use[:, order] < 0).any(0)]
    return np.unique(np.append(order[: _MOST_MOVES // 2], frees[: _MOST_MOVES // 2]))
