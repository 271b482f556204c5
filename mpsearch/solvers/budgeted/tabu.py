"""Tabu search with one and two changes at a time on rows and pairs, within the budgets: the same result on
every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import UserError
from mpsearch.problem import Choices
from mpsearch.solvers.constraints import Constraints
from mpsearch.solvers.coupled import Coupled
from mpsearch.solvers.tables.groups import Row
from mpsearch.solvers.tables.pair_tables import Pair

_MOST_COLUMNS = 8192  # of the dense matrix of pairs
_WORK = 3e7  # entries of two-change tables looked at in all
_FEWEST, _MOST = 60, 1500  # iterations
_TENURE = (
    6  # iterations for which a candidate that was given up is not taken again, and as many more at random
)
_ROUNDING = 1e-9


@dataclass(frozen=True)
class _Matrix:
    """The problem as one vector and one matrix over its N (super-layer, candidate) columns.

    Args:
        layer: [N].
        start: [M] first column of each super-layer.
        scores: [N].
        pairs: `N x N`, symmetric; 0 within a super-layer.
        use: `B x N` cost.
        shared: For each of B costs what pairs add, like `pairs`; None where nothing.
        limits: [B] on the sums of `use`.
    """

    layer: NDArray[np.intp]
    start: NDArray[np.intp]
    scores: Row
    pairs: Row
    use: Row
    shared: tuple[Row | None, ...]
    limits: Row

    @classmethod
    def of(cls, constraints: Constraints, coupled: Coupled) -> _Matrix:
        widths = [len(row) for row in coupled.rows]
        start = np.append(0, np.cumsum(widths))[:-1].astype(np.intp)
        count = sum(widths)
        if count > _MOST_COLUMNS:
            raise UserError(
                f"{count} choices interact; tabu search takes at most {_MOST_COLUMNS}. Keep the "
                "interactions within blocks, or use fewer candidates."
            )
        use = np.array([np.concatenate(rows) for rows in constraints.rows.values()]).reshape(
            len(constraints.rows), count
        )
        problem = constraints.problem
        limits = np.array(
            [
                limit - problem.constants.get(r, 0.0) + _ROUNDING * abs(limit)
                for r, limit in constraints.limits.items()
                if r in constraints.rows
            ]
        )
        shared = tuple(
            _symmetric(start, count, constraints.pairs[r]) if r in constraints.pairs else None
            for r in constraints.rows
        )
        pairs = _symmetric(start, count, coupled.pairs)
        return cls(
            np.repeat(np.arange(len(widths)), widths),
            start,
            np.concatenate(coupled.rows),
            pairs,
            use,
            shared,
            limits,
        )

    def changes(self, on: NDArray[np.intp]) -> tuple[Row, Row]:
        """Change of the score by taking column a ([N]) or a and b (`N x N`); infinite where that is no change
        or passes a limit.
        """
        taken = on[self.layer]
        single, both, _ = _differences(self.scores, self.pairs, on, taken)
        stays = np.arange(len(taken)) == taken
        forbidden, passing = self.layer[:, None] == self.layer[None, :], stays.copy()
        for use, shared, limit in zip(self.use, self.shared, self.limits, strict=True):
            more, more_both, used = _differences(use, shared, on, taken)
            passing |= more > limit - used
            forbidden |= more_both > limit - used
        both[forbidden] = np.inf
        both[stays] = both[:, stays] = np.inf
        return np.where(passing, np.inf, single), both


def _symmetric(start: NDArray[np.intp], count: int, pairs: Sequence[Pair[Row]]) -> Row:
    """`N x N` values of all pairs."""
    found = np.zeros((count, count))
    for pair in pairs:
        at, other = (
            slice(start[m], start[m] + width)
            for m, width in zip((pair.first, pair.second), pair.table.shape, strict=True)
        )
        found[at, other], found[other, at] = pair.table, pair.table.T
    return found


def _differences(
    single: Row, pairs: Row | None, on: NDArray[np.intp], taken: NDArray[np.intp]
) -> tuple[Row, Row, float]:
    """Change of a sum of [N] and `N x N` values by taking one column ([N]) or two (`N x N`), and the sum now;
    of `taken` is what each column would replace.
    """
    field = single if pairs is None else single + pairs[:, on].sum(1)
    one = field - field[taken]
    both = one[:, None] + one[None, :]
    if pairs is not None:
        both = both + pairs - pairs[:, taken] - pairs[taken, :] + pairs[np.ix_(taken, taken)]
    return one, both, float(single[on].sum() if pairs is None else (single[on] + field[on]).sum() / 2)


def tabu_search(constraints: Constraints, coupled: Coupled, start: Choices, seed: int = 0) -> Choices:
    """The best of the assignments that keep the budgets on a walk from `start`, each step the best that is
    not forbidden.

    Args:
        constraints: On the super-layers of `coupled`.
        coupled: Rows and pairs.
        start: M choices that keep the budgets.
        seed: Random seed of how long a candidate is forbidden.
    """
    matrix, rng = _Matrix.of(constraints, coupled), np.random.default_rng(seed)
    on = matrix.start + np.array(start, dtype=np.intp)
    best, least = start, coupled.score(start)
    forbidden_until = np.zeros(len(matrix.scores), np.intp)
    for step in range(int(np.clip(_WORK / len(matrix.scores) ** 2, _FEWEST, _MOST))):
        move = _best_move(
            *matrix.changes(on), forbidden_until > step, least - coupled.score(_choices(matrix, on))
        )
        if move is None:
            break
        for column in move:
            left = on[matrix.layer[column]]
            forbidden_until[left] = step + 1 + _TENURE + int(rng.integers(_TENURE))
            on[matrix.layer[column]] = column
        choices = _choices(matrix, on)
        if (score := coupled.score(choices)) < least and constraints.fits(constraints.layers.expand(choices)):
            best, least = choices, score
    return best


def _choices(matrix: _Matrix, on: NDArray[np.intp]) -> Choices:
    return tuple(int(c) for c in on - matrix.start)


def _best_move(single: Row, both: Row, forbidden: NDArray[np.bool_], wanted: float) -> tuple[int, ...] | None:
    """The change of least score that takes nothing forbidden, or that reaches a new best (`wanted` below the
    present score) all the same.
    """
    single = np.where(forbidden & (single >= wanted), np.inf, single)
    both = np.where((forbidden[:, None] | forbidden[None, :]) & (both >= wanted), np.inf, both)
    one, two = int(single.argmin()), int(both.argmin())
    if not np.isfinite([single[one], both.flat[two]]).any():
        return None
    return (one,) if single[one] <= both.flat[two] else tuple(int(i) for i in divmod(two, len(single)))
