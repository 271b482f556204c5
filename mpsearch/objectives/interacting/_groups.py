"""Ties as the units of measuring, and tables that do not fall when bits fall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.objectives._base import ScoringContext, Table
from mpsearch.problem import FLOAT, Assignment, Candidate

_MOVED = 1e-9  # share by which an entry that a repair moved must differ


@dataclass(frozen=True)
class Group:
    """Calibrated units that share a choice.

    Args:
        layers: Positions in the context; the first stands for all.
        names: Names of the units.
        candidates: Candidates of each.
        blocks: That they are in.
    """

    layers: tuple[int, ...]
    names: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    blocks: frozenset[str]

    @property
    def first(self) -> int:
        """The layer whose row and interactions are those of the group."""
        return self.layers[0]

    @property
    def integers(self) -> int:
        """How many candidates are not float."""
        return sum(not c.is_float for c in self.candidates)


def calibrated(context: ScoringContext) -> set[str]:
    """Units that have quantisers."""
    return {*context.calibration.weights, *context.calibration.products}


def groups_of(context: ScoringContext) -> list[Group]:
    """Every tie with a unit that can be quantised, in the order of first members."""
    known, found = calibrated(context), dict[object, list[int]]()
    for i, layer in enumerate(context.layers):
        if layer.name in known and not all(c.is_float for c in context.candidates[i]):
            found.setdefault(("tie", layer.tie) if layer.tie is not None else ("free", i), []).append(i)
    return [
        Group(
            tuple(at),
            tuple(context.layers[i].name for i in at),
            context.candidates[at[0]],
            frozenset(context.layers[i].block for i in at),
        )
        for at in found.values()
    ]


def assignment(context: ScoringContext, chosen: Sequence[tuple[Group, int]]) -> Assignment:
    """Groups at choices, everything else float."""
    taken = {name: group.candidates[c] for group, c in chosen for name in group.names}
    return Assignment(tuple((unit, taken.get(unit, FLOAT)) for unit in sorted(calibrated(context))))


def table_of(context: ScoringContext, rows: dict[int, Sequence[float]]) -> Table:
    """`L x C_l` with the given rows, zeros elsewhere."""
    return tuple(
        tuple(map(float, rows[i])) if i in rows else (0.0,) * len(c) for i, c in enumerate(context.candidates)
    )


def raised(
    table: NDArray[np.float64], axes: Sequence[Sequence[Candidate]]
) -> tuple[NDArray[np.float64], int]:
    """The least table that is no lower and does not fall where any axis gives up bits, and how many entries
    moved.

    An entry becomes the largest of those that have at least its bits on every axis (a running maximum from
    high to low bits), so that an optimum without a budget never prefers fewer bits for noise.
    """
    found = table
    for axis, candidates in enumerate(axes):
        above = np.array([[_no_worse(other, c) for other in candidates] for c in candidates])  # [c, other]
        turned = np.moveaxis(found, axis, 0)
        found = np.moveaxis(np.stack([turned[mask].max(0) for mask in above]), 0, axis)
    return found, int((found > table + _MOVED * np.abs(table)).sum())


def _no_worse(candidate: Candidate, other: Candidate) -> bool:
    return all(a >= b for a, b in zip(_quality(candidate), _quality(other), strict=True))


def _quality(candidate: Candidate) -> tuple[int, int, int]:
    granularity = int(candidate.is_float or candidate.w_granularity == "channel")
    return candidate.w_bits or 32, candidate.a_bits or 32, granularity
