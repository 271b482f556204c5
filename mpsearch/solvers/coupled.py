"""An objective with interactions in the form that solvers use: rows, and tables between pairs of
super-layers.

Layers that interact are joined into one super-layer wherever its tuples of choices can be listed, so that
what is left inside it is a row: interactions within blocks become an additive problem, which the exact
solvers take as it is. Only what is too large stays a pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpsearch.errors import UnknownNameError, UserError
from mpsearch.problem import Budget, Choices, Interaction, Problem
from mpsearch.solvers.constraints import within_peaks
from mpsearch.solvers.tables.groups import Row, SuperLayers
from mpsearch.solvers.tables.pair_tables import Pair, connected, spread

MOST_TUPLES = 4096
"""Choices of a joined super-layer."""


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
    pairs: tuple[Pair[Row], ...]

    @classmethod
    def of(
        cls, problem: Problem, objective: str, most_tuples: int = MOST_TUPLES, budgets: Sequence[Budget] = ()
    ) -> Coupled:
        """Join, and add up.

        Args:
            problem: Holds the score table.
            objective: Its name.
            most_tuples: Layers that interact are joined up to this many tuples.
            budgets: Choices that need more than a peak allows are left out.

        Raises:
            InfeasibleError: A layer has no other choice.
            UnknownNameError: No such score table.
            UserError: Interactions of three or more layers overlap so that their tuples are too many.
        """
        if objective not in problem.scores:
            raise UnknownNameError("score table", objective, problem.scores)
        terms = problem.interactions.get(objective, ())
        layers = within_peaks(problem, budgets)
        if terms:
            layers = layers.joined(_blocks(layers, terms, most_tuples))
        rows, pairs = spread(
            layers, layers.merge(problem.scores[objective]), [(term, np.array(term.values)) for term in terms]
        )
        return cls(layers, rows, pairs)

    def score(self, choices: Choices) -> float:
        """Of M choices."""
        return math.fsum(
            [
                *(float(row[c]) for row, c in zip(self.rows, choices, strict=True)),
                *(float(p.table[choices[p.first], choices[p.second]]) for p in self.pairs),
            ]
        )


def _blocks(layers: SuperLayers, terms: Sequence[Interaction], most: int) -> list[list[int]]:
    """Which groups to join: all that interact, where their tuples are few enough; else those of one table of
    three or more.
    """
    home = {i: m for m, group in enumerate(layers.groups) for i in group}
    linked = [sorted({home[i] for i in term.layers}) for term in terms]
    found: list[list[int]] = []
    for block in connected(len(layers.groups), linked):
        if _tuples(layers, block) <= most:
            found.append(block)
            continue
        within = set(block)
        for part in connected(
            len(layers.groups), [link for link in linked if len(link) > 2 and link[0] in within]
        ):
            if not within.issuperset(part):
                continue
            if len(part) > 1 and _tuples(layers, part) > most:
                members = [i for m in part for i in layers.groups[m]]
                raise UserError(
                    f"Tables of three or more layers tie the layers {members} together, which have "
                    f"{_tuples(layers, part)} tuples of choices; "
                    f"at most {most} can be listed. Give them fewer candidates, or score them in pairs."
                )
            found.append(part)
    return sorted(found)


def _tuples(layers: SuperLayers, block: Sequence[int]) -> int:
    return math.prod(layers.widths[m] for m in block)
