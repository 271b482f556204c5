"""An objective with interactions in the form that solvers use: rows, and tables between pairs of super-layers.

Layers that interact are joined into one super-layer wherever its tuples of choices can be listed, so that what is left inside it is a row:
interactions within blocks become an additive problem, which the exact solvers take as it is. Only what is too large stays a pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import UnknownNameError, UserError
from mpsearch.problem import Interaction, Problem
from mpsearch.search.superlayers import Row, SuperLayers

MOST_TUPLES = 4096
"""Choices of a joined super-layer."""


@dataclass(frozen=True)
class Pair:
    """What two super-layers do to each other.

    Args:
        first: Position of a super-layer.
        second: Position of a later one.
        table: `C_first x C_second`.
    """

    first: int
    second: int
    table: Row


@dataclass(frozen=True)
class Coupled:
    """Score of M choices: the sum of the rows and of the pairs.

    Args:
        layers: M super-layers, ties and joined blocks.
        rows: M.
        pairs: Each two super-layers at most once.
    """

    layers: SuperLayers
    rows: list[Row]
    pairs: tuple[Pair, ...]

    @classmethod
    def of(cls, problem: Problem, objective: str, most_tuples: int = MOST_TUPLES) -> Coupled:
        """Join, and add up.

        Args:
            problem: Holds the score table.
            objective: Its name.
            most_tuples: Layers that interact are joined up to this many tuples.

        Raises:
            UnknownNameError: No such score table.
            UserError: Interactions of three or more layers overlap so that their tuples are too many.
        """
        if objective not in problem.scores:
            raise UnknownNameError("score table", objective, problem.scores)
        terms = problem.interactions.get(objective, ())
        layers = SuperLayers.of([len(c) for c in problem.candidates], problem.ties)
        if terms:
            layers = layers.joined(_blocks(layers, terms, most_tuples))
        rows, tables = layers.merge(problem.scores[objective]), dict[tuple[int, int], Row]()
        for term in terms:
            homes, table = _table(layers, term)
            if len(homes) == 1:
                rows[homes[0]] = rows[homes[0]] + table
            else:
                key = (homes[0], homes[1])
                tables[key] = tables[key] + table if key in tables else table
        return cls(layers, rows, tuple(Pair(first, second, table) for (first, second), table in sorted(tables.items(), key=lambda item: item[0])))

    def score(self, choices: Sequence[int]) -> float:
        """Of M choices."""
        return math.fsum(
            [*(float(row[c]) for row, c in zip(self.rows, choices, strict=True)), *(float(p.table[choices[p.first], choices[p.second]]) for p in self.pairs)]
        )


def _blocks(layers: SuperLayers, terms: Sequence[Interaction], most: int) -> list[list[int]]:
    """Which groups to join: all that interact, where their tuples are few enough; else those of one table of three or more."""
    home = {i: m for m, group in enumerate(layers.groups) for i in group}
    linked = [sorted({home[i] for i in term.layers}) for term in terms]
    found: list[list[int]] = []
    for block in _components(len(layers.groups), linked):
        if _tuples(layers, block) <= most:
            found.append(block)
            continue
        within = set(block)
        for part in _components(len(layers.groups), [link for link in linked if len(link) > 2 and link[0] in within]):
            if not within.issuperset(part):
                continue
            if len(part) > 1 and _tuples(layers, part) > most:
                members = [i for m in part for i in layers.groups[m]]
                raise UserError(
                    f"Tables of three or more layers tie the layers {members} together, which have {_tuples(layers, part)} tuples of choices; "
                    f"at most {most} can be listed. Give them fewer candidates, or score them in pairs."
                )
            found.append(part)
    return sorted(found)


def _tuples(layers: SuperLayers, block: Sequence[int]) -> int:
    return math.prod(layers.widths[m] for m in block)


def _components(count: int, linked: Iterable[Sequence[int]]) -> list[list[int]]:
    """Positions 0 to `count` - 1 by connected component, in the order of first members."""
    root = list(range(count))

    def find(m: int) -> int:
        while root[m] != m:
            root[m] = root[root[m]]
            m = root[m]
        return m

    for link in linked:
        for m in link[1:]:
            low, high = sorted((find(link[0]), find(m)))
            root[high] = low
    found: dict[int, list[int]] = {}
    for m in range(count):
        found.setdefault(find(m), []).append(m)
    return list(found.values())


def _table(layers: SuperLayers, term: Interaction) -> tuple[list[int], Row]:
    """The super-layers that a table is about, in order, and its values over their choices."""
    home = {i: m for m, group in enumerate(layers.groups) for i in group}
    steps = np.append(np.cumprod(term.shape[:0:-1])[::-1], 1).astype(np.intp)  # of the flat index
    homes = sorted({home[i] for i in term.layers})
    at: NDArray[np.intp] = np.zeros((1,) * len(homes), np.intp)
    for axis, m in enumerate(homes):
        picks = np.array(layers.picks[m], dtype=np.intp)
        part = sum(step * picks[:, layers.groups[m].index(i)] for i, step in zip(term.layers, steps, strict=True) if home[i] == m)
        shape = [1] * len(homes)
        shape[axis] = -1
        at = at + np.reshape(part, shape)
    return homes, np.array(term.values)[at]
