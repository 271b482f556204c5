"""Prices of several limited resources at which the Lagrangian bound is greatest, what the bound rules out,
and an assignment to start from.

The dual is maximised by cutting planes over a few prices; its oracle is whatever finds the least of damage
plus priced costs.

References: Fisher, The Lagrangian relaxation method for solving integer programming problems, Management
Science 27(1), 1981. Kelley, The cutting-plane method for solving convex programs, J. SIAM 8(4), 1960.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.solvers.exact.knapsack import Columns
from mpsearch.solvers.tables.groups import Row

Picks = NDArray[np.intp]
Oracle = Callable[[Row], tuple[Picks, float, Row]]
"""B prices -> choices of least damage plus priced costs, their damage and their B costs."""
_STEPS = 60
_ENOUGH = 1e-6  # share of the damage by which the bound may still rise
_STEEPEST = 1e4
_PAIRED = 500  # columns whose changes are tried two at a time
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Dual:
    """The greatest bound that was found.

    Args:
        prices: [B], at least 0.
        bound: No assignment that keeps the limits has less damage.
        met: Choices that the oracle gave on the way.
    """

    prices: Row
    bound: float
    met: list[Picks]


def maximise(oracle: Oracle, spare: Row, scale: float) -> Dual:
    """Cutting planes.

    Args:
        oracle: See `Oracle`; its costs and `spare` are measured from the same point.
        spare: [B] limits.
        scale: Scale of the damage.
    """
    import scipy.optimize  # most of a second, and most problems have one budget

    room, unit = np.where(spare > 0, spare, 1.0), scale or 1.0
    cuts, values, met = [], [], []
    prices, best, held = np.zeros(len(spare)), -np.inf, np.zeros(len(spare))
    for _ in range(_STEPS):
        choices, score, use = oracle(prices)
        met.append(choices)
        over = use - spare
        value = score + float(prices @ over)
        if value > best:
            best, held = value, prices
        cuts.append(
            np.append(-over / room, 1.0)
        )  # prices in units of unit / room, damage in units of its own: HiGHS drops small numbers
        values.append(score / unit)
        master = scipy.optimize.linprog(
            np.append(np.zeros(len(spare)), -1.0),
            A_ub=np.array(cuts),
            b_ub=np.array(values),
            bounds=[(0, _STEEPEST)] * len(spare) + [(None, None)],
        )
        if master.x is None or -master.fun * unit - best <= _ENOUGH * max(abs(best), _ROUNDING * scale):
            break
        prices = master.x[:-1] * unit / room
    return Dual(held, best, met)


@dataclass(frozen=True)
class Ranks:
    """The columns of a problem without links as `M x C` tables, missing ones infinite."""

    columns: Columns
    at: NDArray[np.intp]

    @classmethod
    def of(cls, columns: Columns) -> Ranks:
        """Every super-layer must have a column."""
        place = np.arange(len(columns.layer)) - np.searchsorted(columns.layer, columns.layer)
        at = np.full((columns.count, int(place.max()) + 1), -1, np.intp)
        at[columns.layer, place] = np.arange(len(columns.layer))
        return cls(columns, at)

    def oracle(self, prices: Row) -> tuple[Picks, float, Row]:
        """Positions of M columns of least damage plus priced cost."""
        value = np.append(self.columns.scores + prices @ self.columns.costs, np.inf)[self.at]
        picked = self.at[np.arange(len(self.at)), value.argmin(1)]
        return picked, float(self.columns.scores[picked].sum()), self.columns.costs[:, picked].sum(1)

    def reduced(self, prices: Row) -> Row:
        """[N] by how much the bound rises if a column must be taken."""
        value = self.columns.scores + prices @ self.columns.costs
        least = np.append(value, np.inf)[self.at].min(1)
        above: Row = value - least[self.columns.layer]
        return above

    def start(self, dual: Dual) -> Picks | None:
        """Columns that keep the limits: what the bound's prices, or dearer ones, lead to, improved by
        exchanges.
        """
        for dearer in (1.0, 1.001, 1.003, 1.01, 1.03, 1.1, 1.3, 2.0, 5.0, 30.0, 1e3):
            picked, _, use = self.oracle(dual.prices * dearer)
            if (use <= self.columns.spare).all():
                return self._exchanged(picked, self.reduced(dual.prices))
        return None

    def _exchanged(self, picked: Picks, reduced: Row) -> Picks:
        """One and two changes at a time, among the columns that the bound hardly rules out, as long as the
        damage falls.
        """
        columns, picked = self.columns, picked.copy()
        few = np.argsort(reduced, kind="stable")[:_PAIRED]
        layer, apart = columns.layer[few], columns.layer[few][:, None] != columns.layer[few][None, :]
        for _ in range(4 * columns.count):
            own = picked[layer]
            gain = columns.scores[few] - columns.scores[own]
            more = columns.costs[:, few] - columns.costs[:, own]
            room = columns.spare - columns.costs[:, picked].sum(1)
            both = gain[:, None] + gain[None, :]
            fits = apart | np.eye(len(few), dtype=bool)
            for b in range(len(room)):
                fits &= (
                    more[b][:, None] + np.where(np.eye(len(few), dtype=bool), 0.0, more[b][None, :])
                    <= room[b]
                )
            both[np.diag_indices(len(few))] = gain
            both[~fits] = np.inf
            first, second = divmod(int(both.argmin()), len(few))
            if not both[first, second] < -_ROUNDING * float(columns.scores[picked].sum()):
                break
            picked[layer[[first, second]]] = few[[first, second]]
        return picked
