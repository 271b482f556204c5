"""Assignments whose damage was measured as a whole, for solvers: it stands in place of the sum, and a dynamic programme must tell them from all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import Problem
from mpsearch.search.superlayers import IntRow, Row, SuperLayers

Choices = tuple[int, ...]
OUTSIDE = -1
"""Node of a partial assignment that leads to none that was measured."""


def measured_choices(problem: Problem, objective: str, layers: SuperLayers) -> dict[Choices, float]:
    """M choices -> damage, of the measured assignments that the super-layers still have."""
    held = [set(picks) for picks in layers.picks]
    return {
        layers.contract(indices): value
        for indices, value in problem.measured.get(objective, {}).items()
        if all(tuple(indices[i] for i in group) in picks for group, picks in zip(layers.groups, held, strict=True))
    }


@dataclass(frozen=True)
class Tree:
    """Measured assignments by what they begin with, in the order in which a programme takes its super-layers.

    A partial assignment within the tree may be extended to one whose sum does not count, so it dominates nothing, and nothing dominates it: there are no more
    of these at a step than measured assignments.

    Args:
        steps: For each of M super-layers in that order `(N + 1) x C`: the node that a choice leads to from each of N; the last row is that of `OUTSIDE`.
        scores: [N] damage of the assignments at the last nodes.
    """

    steps: tuple[NDArray[np.intp], ...]
    scores: Row

    @classmethod
    def of(cls, known: Mapping[Choices, float], widths: Sequence[int], order: Sequence[int]) -> Tree:
        """From M choices -> damage, [M] numbers of choices, and the positions of super-layers in order."""
        nodes: dict[Choices, int] = {(): 0} if known else {}
        steps = []
        for done, m in enumerate(order, start=1):
            table = np.full((len(nodes) + 1, widths[m]), OUTSIDE, np.intp)
            after: dict[Choices, int] = {}
            for choices in known:
                begun = tuple(choices[k] for k in order[:done])
                table[nodes[begun[:-1]], begun[-1]] = after.setdefault(begun, len(after))
            nodes = after
            steps.append(table)
        scores = np.zeros(len(nodes))
        for choices, value in known.items():
            scores[nodes[tuple(choices[k] for k in order)]] = value
        return cls(tuple(steps), scores)

    @property
    def root(self) -> int:
        """Node of the empty assignment."""
        return 0 if len(self.scores) else OUTSIDE

    def final(self, scores: Row, nodes: NDArray[np.intp]) -> Row:
        """Sums of whole assignments, with what was measured in its place."""
        return np.where(nodes == OUTSIDE, scores, np.append(self.scores, 0.0)[nodes])


def least_that_fits(known: Mapping[Choices, float], rows: Sequence[Row] | Sequence[IntRow], room: float) -> float:
    """The least damage among the measured whose M costs add up to at most `room`; infinite where there is none."""
    return min((value for choices, value in known.items() if sum(row[c] for row, c in zip(rows, choices, strict=True)) <= room), default=np.inf)
