"""The least damage under several limits by dynamic programming with bounds: partial assignments, layer by
layer, that no Lagrangian bound rules out.

Near the optimum few candidates stay open (those whose reduced damage is within the gap), and bounds at some
dozens of prices around the best ones leave a few hundred partial assignments a layer, where branch and bound
on the same problem takes seconds.

References: Morin and Marsten, Branch-and-bound strategies for dynamic programming, Operations Research 24(4),
    1976. The several prices are ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.solvers.exact.dual import Dual, Picks, Ranks
from mpsearch.solvers.tables.groups import Row

_DEARER = {
    2: (0.5, 0.8, 0.9, 0.96, 1.0, 1.04, 1.1, 1.25, 2.0),
    3: (0.5, 0.9, 1.0, 1.1, 2.0),
}  # for each limit, by their number
_FEWER = (0.5, 1.0, 2.0)
_MOST_PRICES = 256
_CELL = 0.05  # of the gap
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Labels:
    """Whole assignments whose bounds do not exceed a ceiling; iterating gives the positions of their M
    columns, least damage first.

    Args:
        complete: Whether every assignment of at most the ceiling's damage that keeps the limits is among
            them.
        scores: [S], ascending.
    """

    complete: bool
    scores: Row
    _best: Picks
    _layers: list[int]
    _columns: list[NDArray[np.intp]]
    _parents: list[NDArray[np.intp]]
    _taken: list[NDArray[np.intp]]
    _last: NDArray[np.intp]

    def __iter__(self) -> Iterator[Picks]:
        for state in self._last:
            picked, s = self._best.copy(), int(state)
            for i in range(len(self._layers) - 1, -1, -1):
                picked[self._layers[i]] = self._columns[i][self._taken[i][s]]
                s = int(self._parents[i][s])
            yield picked


def label(ranks: Ranks, dual: Dual, upper: float, most: int, *, thin: bool = False) -> Labels | None:
    """Sweep the open layers.

    Args:
        ranks: The columns; every super-layer has one.
        dual: Its prices and bound.
        upper: Damage that is not to be exceeded.
        most: Partial assignments that a layer may leave. Memory is about 200 bytes times the choices of a
            layer times this, and 16 bytes times the open layers times this.
        thin: Where there are more, go on with some of them, spread over what they leave of the limits, and
            not completely; else give up with None.
    """
    open_ = _Open.of(ranks, dual, upper + _ROUNDING * (upper + abs(dual.bound)))
    complete, score, use = True, np.array([open_.base]), np.zeros((len(open_.room), 1))
    parents, taken = [], []
    for i, (gain, more) in enumerate(zip(open_.gain, open_.more, strict=True)):
        count = len(score)
        score, use = (
            (score[None] + gain[:, None]).ravel(),
            (use[:, None, :] + more[:, :, None]).reshape(len(use), -1),
        )
        kept, bound = open_.possible(i + 1, score, use)
        if len(kept) > most:
            if not thin:
                return None
            complete, kept = (
                False,
                kept[_spread(bound, dual.prices[:, None] * use[:, kept], open_.ceiling - dual.bound, most)],
            )
        score, use = score[kept], use[:, kept]
        parents.append(kept % count)
        taken.append(kept // count)
    last = np.argsort(score, kind="stable")
    return Labels(complete, score[last], open_.best, open_.layers, open_.columns, parents, taken, last)


@dataclass(frozen=True)
class _Open:
    """The layers of which the bound leaves more than one candidate, and what the others cost.

    Args:
        ceiling: Upper bound of the damage.
        best: [M] positions of the columns that the bound's prices lead to; damage and costs below are
            measured from there.
        base: Their damage.
        room: [B] what they leave of the limits, negative where they do not fit, and a rounding.
        layers: L open ones, those first whose choice matters most.
        columns, gain, more: For each, positions of its C candidates, their damage ([C]) and costs (`B x C`).
        prices: `P x B` at which bounds are taken, the best first.
        least, fewest: `(L + 1) x P` and `(L + 1) x B`, the least of priced damage and of costs from a layer
            on.
    """

    ceiling: float
    best: Picks
    base: float
    room: Row
    layers: list[int]
    columns: list[NDArray[np.intp]]
    gain: list[Row]
    more: list[Row]
    prices: Row
    least: Row
    fewest: Row

    @classmethod
    def of(cls, ranks: Ranks, dual: Dual, ceiling: float) -> _Open:
        columns, reduced, (best, *_) = ranks.columns, ranks.reduced(dual.prices), ranks.oracle(dual.prices)
        left = [
            at[(at >= 0) & ((reduced[at] <= ceiling - dual.bound) | (at == best[m]))]
            for m, at in enumerate(ranks.at)
        ]
        more = [columns.costs[:, at] - columns.costs[:, [best[m]]] for m, at in enumerate(left)]
        weight = [float(np.abs(dual.prices @ table).max()) for table in more]
        layers = sorted((m for m, at in enumerate(left) if len(at) > 1), key=lambda m: -weight[m])
        gain = [columns.scores[left[m]] - columns.scores[best[m]] for m in layers]
        more = [more[m] for m in layers]
        prices = _around(dual.prices)
        loose = _ROUNDING * (np.abs(columns.spare) + np.abs(columns.costs[:, best]).sum(1))
        return cls(
            ceiling=ceiling,
            best=best,
            base=float(columns.scores[best].sum()),
            room=columns.spare - columns.costs[:, best].sum(1) + loose,
            layers=layers,
            columns=[left[m] for m in layers],
            gain=gain,
            more=more,
            prices=prices,
            least=_least_of_the_rest(
                [g + prices @ table for g, table in zip(gain, more, strict=True)], len(prices)
            ),
            fewest=_least_of_the_rest(more, len(columns.spare)),
        )

    def possible(self, done: int, score: Row, use: Row) -> tuple[NDArray[np.intp], Row]:
        """Positions of the partial assignments that may still keep the limits and the ceiling, and the
        greatest of their bounds.
        """
        kept = np.flatnonzero((use + self.fewest[done][:, None] <= self.room[:, None]).all(0))
        bound = np.full(len(kept), -np.inf)
        for part in (slice(0, 1), slice(1, None)):  # the best price alone rules out most
            spent = self.prices[part] @ (use[:, kept] - self.room[:, None]) + self.least[done][part][:, None]
            bound = np.maximum(bound, score[kept] + spent.max(0))
            kept, bound = kept[bound <= self.ceiling], bound[bound <= self.ceiling]
        return kept, bound


def _spread(bound: Row, priced: Row, gap: float, most: int) -> NDArray[np.intp]:
    """At most so many of S partial assignments: the least bound of each cell of priced use (`B x S`), and of
    those the least.
    """
    cell = np.round(priced / (_CELL * gap)).astype(np.int64)
    order = np.lexsort((bound, *cell))
    cell = cell[:, order]
    first: NDArray[np.intp] = order[np.append(True, (cell[:, 1:] != cell[:, :-1]).any(0))]
    return first if len(first) <= most else first[np.argpartition(bound[first], most)[:most]]


def _around(prices: Row) -> Row:
    """`P x B`: the prices, those with each dearer or cheaper by itself, and none at all."""
    factors = _DEARER.get(len(prices), _FEWER)
    near = sorted(
        itertools.product(factors, repeat=len(prices)), key=lambda f: float(np.abs(np.log(f)).sum())
    )[:_MOST_PRICES]
    return np.array(
        list(dict.fromkeys(map(tuple, [*(prices * np.array(near)).tolist(), [0.0] * len(prices)])))
    )


def _least_of_the_rest(tables: list[Row], rows: int) -> Row:
    """`(L + 1) x rows`: from each of L layers on, the sum of each layer's least."""
    least = np.array([table.min(1) for table in tables]).reshape(len(tables), rows)
    return np.vstack([np.cumsum(least[::-1], 0)[::-1], np.zeros((1, rows))])
