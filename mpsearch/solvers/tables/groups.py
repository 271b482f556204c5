"""Super-layers: layers that share a choice (a tie) or whose tuples of choices are taken as one choice (a
block).

Their rows are added, which is exact, smaller than equality rows, and turns interactions inside a block into a
row like any other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import UserError

Row = NDArray[np.float64]
IntRow = NDArray[np.int64]


@dataclass(frozen=True)
class SuperLayers:
    """M groups of layers; a group takes one choice, which says what each of its members takes.

    Args:
        groups: Layer indices of each group; every layer in exactly one.
        picks: For each group and each of its choices, the candidate index of every member. In a tie these are
            all the same.
    """

    groups: tuple[tuple[int, ...], ...]
    picks: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """[M] number of choices of each group."""
        return tuple(map(len, self.picks))

    @classmethod
    def of(cls, widths: Sequence[int], groups: Sequence[Sequence[int]] | None = None) -> SuperLayers:
        """Check and build.

        Args:
            widths: Number of candidates of each of L layers.
            groups: Ties; None where every layer is free.

        Raises:
            UserError: A layer has no candidate, is in no group or in two, or the members of a tie have
                unequally many candidates.
        """
        groups = [[i] for i in range(len(widths))] if groups is None else groups
        if sorted(i for group in groups for i in group) != list(range(len(widths))) or not all(groups):
            raise UserError(
                f"The ties name the layers {groups}; each of the {len(widths)} layers must be in exactly "
                "one group."
            )
        for group in groups:
            counts = [widths[i] for i in group]
            if min(counts) < 1:
                raise UserError(
                    f"Layer {group[counts.index(min(counts))]} has no candidates; each layer needs at "
                    "least one."
                )
            if len(set(counts)) > 1:
                raise UserError(
                    f"The tied layers {list(group)} have {counts} candidates; layers of one tie share a "
                    "choice and must have equally many. "
                    "Give them the same candidates or remove the tie."
                )
        return cls(
            tuple(tuple(g) for g in groups),
            tuple(tuple((c,) * len(g) for c in range(widths[g[0]])) for g in groups),
        )

    def joined(self, blocks: Sequence[Sequence[int]]) -> SuperLayers:
        """Fewer, wider groups: those of a block become one whose choices are the tuples of theirs, the last
        changing fastest.

        Args:
            blocks: Positions of groups; every one of the M in exactly one block.
        """
        if sorted(m for block in blocks for m in block) != list(range(len(self.groups))):
            raise ValueError(f"The blocks {blocks} do not hold each of the {len(self.groups)} groups once.")
        groups = tuple(tuple(i for m in block for i in self.groups[m]) for block in blocks)
        picks = (
            tuple(
                tuple(itertools.chain.from_iterable(parts))
                for parts in itertools.product(*(self.picks[m] for m in block))
            )
            for block in blocks
        )
        return SuperLayers(groups, tuple(picks))

    def keeping(self, allowed: Sequence[Sequence[int]]) -> SuperLayers:
        """The same groups with the choices alone that give each of L layers a candidate that it is
        allowed.
        """
        held = [set(row) for row in allowed]
        picks = (
            tuple(pick for pick in picks if all(c in held[i] for i, c in zip(group, pick, strict=True)))
            for group, picks in zip(self.groups, self.picks, strict=True)
        )
        return SuperLayers(self.groups, tuple(picks))

    def merge(self, table: Sequence[Sequence[float]]) -> list[Row]:
        """Rows of M groups from an `L x C_l` table: member rows added with one rounding."""
        return [
            np.array(
                [
                    table[group[0]][pick[0]]
                    if len(group) == 1
                    else math.fsum(table[i][c] for i, c in zip(group, pick, strict=True))
                    for pick in picks
                ],
                float,
            )
            for group, picks in zip(self.groups, self.picks, strict=True)
        ]

    def expand(self, choices: Sequence[int]) -> tuple[int, ...]:
        """M choices -> L choices."""
        found = [0] * sum(map(len, self.groups))
        for group, picks, choice in zip(self.groups, self.picks, choices, strict=True):
            for i, c in zip(group, picks[int(choice)], strict=True):
                found[i] = c
        return tuple(found)

    def contract(self, indices: Sequence[int]) -> tuple[int, ...]:
        """L choices -> M choices. Raises UserError where an index is out of range or a tie is broken."""
        if len(indices) != sum(map(len, self.groups)):
            raise UserError(
                f"An assignment has {len(indices)} choices; the problem has {sum(map(len, self.groups))} "
                "layers."
            )
        return tuple(self._choice(m, indices) for m in range(len(self.groups)))

    def _choice(self, m: int, indices: Sequence[int]) -> int:
        group, picks = self.groups[m], self.picks[m]
        taken = tuple(int(indices[i]) for i in group)
        if taken in picks:
            return picks.index(taken)
        for i, c, known in zip(group, taken, zip(*picks, strict=True), strict=True):
            if c not in known:
                held = sorted(set(known))
                shown = f"0 to {held[-1]}" if held == list(range(len(held))) else ", ".join(map(str, held))
                raise UserError(f"Layer {i} takes choice {c}; it has the choices {shown}.")
        raise UserError(
            f"The tied layers {list(group)} take the choices {sorted(set(taken))}; layers of one tie "
            "must take the same."
        )
