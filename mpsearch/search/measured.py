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
    places = [(group, {pick: c for c, pick in enumerate(picks)}) for group, picks in zip(layers.groups, layers.picks, strict=True)]
    found = {}
    for indices, value in problem.measured.get(objective, {}).items():
        choices = [at.get(tuple(indices[i] for i in group), OUTSIDE) for group, at in places]
        if OUTSIDE not in choices:
            found[tuple(choices)] = value
    return found


@dataclass(frozen=True)
class Tree:
    """Measured assignments by what they begin with, in the order in which a programme takes its super-layers.

    A partial assignment within the tree may be extended to one whose sum does not count, so it dominates nothing, and nothing dominates it: there are no more
    of these at a step than measured assignments.

    Args:
        steps: For each of M super-layers in that order `(N + 1) x C`: the node that a choice leads to from each of N; the last row is that of `OUTSIDE`.
        scores: [N] damage of the assignments at the last nodes, one each.
    """

    steps: tuple[NDArray[np.intp], ...]
    scores: Row

    @classmethod
    def of(cls, known: Mapping[Choices, float], widths: Sequence[int], order: Sequence[int]) -> Tree:
        """From M choices -> damage, [M] numbers of choices, and the positions of super-layers in order."""
        if not known:
            return cls(tuple(np.full((1, widths[m]), OUTSIDE, np.intp) for m in order), np.zeros(0))
        choices = np.array(list(known), np.intp)[:, list(order)]
        rank = np.lexsort(choices.T[::-1])
        choices, scores = choices[rank], np.array(list(known.values()))[rank]
        begins = np.cumsum(choices[1:] != choices[:-1], axis=1) > 0  # unlike the assignment before it, up to each step
        nodes = np.cumsum(np.vstack([np.zeros((1, len(order)), bool), begins]), axis=0)
        steps = []
        for done, m in enumerate(order):
            before = nodes[:, done - 1] if done else np.zeros(len(nodes), np.intp)
            table = np.full((before[-1] + 2, widths[m]), OUTSIDE, np.intp)
            table[before, choices[:, done]] = nodes[:, done]
            steps.append(table)
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
