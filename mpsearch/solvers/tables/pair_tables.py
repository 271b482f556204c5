"""Tables over the choices of several layers in the form that solvers use: rows of super-layers, and pairs
between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import Interaction
from mpsearch.solvers.tables.groups import IntRow, Row, SuperLayers

T = TypeVar("T", Row, IntRow)


@dataclass(frozen=True)
class Pair(Generic[T]):
    """What two super-layers do to each other.

    Args:
        first: Position of a super-layer.
        second: Position of a later one.
        table: `C_first x C_second`.
    """

    first: int
    second: int
    table: T


def spread(
    layers: SuperLayers, rows: Sequence[T], tables: Sequence[tuple[Interaction, T]]
) -> tuple[list[T], tuple[Pair[T], ...]]:
    """M rows, to which each table within one super-layer is added, and at most one pair for any two
    super-layers.

    Args:
        layers: M super-layers; no table may reach over more than two of them.
        rows: M.
        tables: Which layers each is about, and its values in a row.
    """
    rows, pairs = list(rows), dict[tuple[int, int], T]()
    for term, values in tables:
        homes, table = _by_choice(layers, term, values)
        if len(homes) == 1:
            rows[homes[0]] = rows[homes[0]] + table
        else:
            key = (homes[0], homes[1])
            pairs[key] = pairs[key] + table if key in pairs else table
    return rows, tuple(
        Pair(first, second, table)
        for (first, second), table in sorted(pairs.items(), key=lambda item: item[0])
    )


def _by_choice(layers: SuperLayers, term: Interaction, values: T) -> tuple[list[int], T]:
    """The super-layers that a table is about, in order, and its values over their choices."""
    home = {i: m for m, group in enumerate(layers.groups) for i in group}
    steps = np.append(np.cumprod(term.shape[:0:-1])[::-1], 1).astype(np.intp)  # of the flat index
    homes = sorted({home[i] for i in term.layers})
    at: NDArray[np.intp] = np.zeros((1,) * len(homes), np.intp)
    for axis, m in enumerate(homes):
        picks = np.array(layers.picks[m], dtype=np.intp)
        part = sum(
            step * picks[:, layers.groups[m].index(i)]
            for i, step in zip(term.layers, steps, strict=True)
            if home[i] == m
        )
        shape = [1] * len(homes)
        shape[axis] = -1
        at = at + np.reshape(part, shape)
    return homes, values[at]


def connected(count: int, links: Iterable[Sequence[int]]) -> list[list[int]]:
    """Positions 0 to `count` - 1 by connected component, in the order of first members; a link joins all
    positions that it names.
    """
    above = list(range(count))

    def root(position: int) -> int:
        while above[position] != position:
            above[position] = position = above[above[position]]
        return position

    for link in links:
        for member in link[1:]:
            above[root(int(member))] = root(int(link[0]))
    found: dict[int, list[int]] = {}
    for position in range(count):
        found.setdefault(root(position), []).append(position)
    return list(found.values())
