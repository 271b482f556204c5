"""The multiple-choice knapsack that HiGHS is given: a binary variable for each choice that is still in play,
what two choices add together, and the assignments that are ruled out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpsearch.solvers.tables.groups import Row
from mpsearch.solvers.tables.pair_tables import Pair

if TYPE_CHECKING:  # scipy takes most of a second, and most problems never come here
    pass


@dataclass(frozen=True)
class Columns:
    """The (super-layer, candidate) pairs that are still in play, one binary variable each.

    Args:
        count: M, super-layers in all.
        layer: [N] super-layer of each.
        candidate: [N].
        scores: [N], the least of each super-layer taken off.
        costs: `B x N`, the least of each super-layer taken off.
        spare: [B] what each limit leaves above the sums of the least.
    """

    count: int
    layer: NDArray[np.intp]
    candidate: NDArray[np.intp]
    scores: Row
    costs: Row
    spare: Row

    @classmethod
    def of(
        cls,
        scores: Sequence[Row],
        costs: Sequence[Sequence[Row]],
        spare: Sequence[float],
        paired: Collection[int] = (),
    ) -> Columns:
        """Flatten M score rows and B x M cost rows; candidates that cannot fit or that another one dominates
        are left out.

        In the super-layers of `paired` nothing is dominated: what a candidate is worth depends on others.
        """
        layer = np.repeat(np.arange(len(scores)), [len(row) for row in scores])
        candidate = np.concatenate([np.arange(len(row)) for row in scores])
        flat = np.array([np.concatenate([row - row.min() for row in rows]) for rows in (scores, *costs)])
        found = cls(len(scores), layer, candidate, flat[0], flat[1:], np.array(spare))
        fits = (found.costs <= found.spare[:, None] + 1e-9 * np.abs(found.spare[:, None])).all(0)
        return found.only(fits & (~_dominated(layer, flat) | np.isin(layer, list(paired))))

    def only(self, mask: NDArray[np.bool_]) -> Columns:
        """Those of a mask."""
        return Columns(
            self.count,
            self.layer[mask],
            self.candidate[mask],
            self.scores[mask],
            self.costs[:, mask],
            self.spare,
        )


@dataclass(frozen=True)
class Link:
    """What two super-layers together add to the score and to each of the limited costs.

    Args:
        first: Position of a super-layer.
        second: Position of a later one.
        scores: `C_first x C_second`.
        costs: `B x C_first x C_second`.
    """

    first: int
    second: int
    scores: Row
    costs: Row

    @classmethod
    def all(cls, pairs: Sequence[Pair[Row]], costs: Sequence[Sequence[Pair[Row]]] = ()) -> list[Link]:
        """From the pairs of the score, and those of each of B costs; the least of each table is taken off."""
        by_place = [{(p.first, p.second): p.table - p.table.min() for p in part} for part in (pairs, *costs)]
        found = []
        for key in sorted(set().union(*by_place)):
            shape = next(tables[key].shape for tables in by_place if key in tables)
            score, *rest = (tables.get(key, np.zeros(shape)) for tables in by_place)
            found.append(cls(*key, score, np.array(rest).reshape(len(costs), *shape)))
        return found


@dataclass(frozen=True)
class Cut:
    """Assignments that are not allowed: those that agree too much with one.

    Args:
        agreement: For each of M super-layers and each of its choices, in how many layers it agrees.
        most: That an assignment may agree in.
    """

    agreement: tuple[Row, ...]
    most: int

    @classmethod
    def itself(cls, choices: Sequence[int], widths: Sequence[int]) -> Cut:
        """Forbids M choices and nothing else."""
        return cls(
            tuple((np.arange(width) == c).astype(float) for c, width in zip(choices, widths, strict=True)),
            len(choices) - 1,
        )

    def allows(self, choices: Sequence[int]) -> bool:
        """Whether M choices are not forbidden."""
        return sum(float(row[c]) for row, c in zip(self.agreement, choices, strict=True)) <= self.most


def _dominated(layer: NDArray[np.intp], values: Row) -> NDArray[np.bool_]:
    """Columns that another column of the same super-layer is no worse than in every row of `values`; of
    equals the first stays.
    """
    found = np.zeros(len(layer), bool)
    for m in range(int(layer.max()) + 1):
        at = np.flatnonzero(layer == m)
        own = values[:, at]
        no_worse = (own[:, :, None] <= own[:, None, :]).all(0)  # [i, j]: i is no worse than j
        equal = no_worse & no_worse.T
        found[at] = ((no_worse & ~equal) | np.triu(equal, 1)).any(0)
    return found
