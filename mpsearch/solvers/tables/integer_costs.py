"""Costs as integers: sums that do not depend on the order of adding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpsearch.errors import UserError
from mpsearch.problem import Interaction
from mpsearch.solvers.tables.groups import IntRow, Row, SuperLayers
from mpsearch.solvers.tables.pair_tables import Pair, spread

_HEADROOM_BITS = 61  # sums of all rows stay below 2**61 in int64


@dataclass(frozen=True)
class WholeCosts:
    """Costs as integers, so that the order of adding does not matter and equal sums are equal.

    Whole numbers stay as they are (power 0). Others are rounded at 2**-61 of the largest sum, 2**8 times
    finer than a float64 of that sum, so that a comparison errs by less than a float64 could show.

    Args:
        rows: M merged rows; every sum is exact in int64.
        constant: Cost beside the layers.
        power: Power of two that the costs were multiplied by.
        pairs: Between super-layers.
    """

    rows: list[IntRow]
    constant: int
    power: int
    pairs: tuple[Pair[IntRow], ...] = ()

    @classmethod
    def of(
        cls,
        layers: SuperLayers,
        table: Sequence[Sequence[float]],
        constant: float = 0.0,
        conversions: Sequence[Interaction] = (),
    ) -> WholeCosts:
        """From an `L x C_l` table and what pairs of layers add to it. Raises UserError where a cost is not
        finite, or the largest sum is 2**61 or more.
        """
        flat = np.array(
            [constant, *(v for row in table for v in row), *(v for term in conversions for v in term.values)],
            dtype=np.float64,
        )
        if not np.isfinite(flat).all():
            raise UserError("A cost is NaN or infinite; every cost must be a finite number.")
        largest = abs(constant) + math.fsum(
            max(map(abs, row)) for row in (*table, *(term.values for term in conversions))
        )
        if largest >= 2.0**_HEADROOM_BITS:
            raise UserError(
                f"The largest total cost is {largest:g}; it must stay below 2^{_HEADROOM_BITS}. Use a "
                "larger unit."
            )
        power = 0 if (flat == np.floor(flat)).all() else _HEADROOM_BITS - math.frexp(largest)[1]
        whole = [[round(math.ldexp(v, power)) for v in row] for row in table]
        rows = [
            np.array(
                [sum(whole[i][c] for i, c in zip(group, pick, strict=True)) for pick in picks], dtype=np.int64
            )
            for group, picks in zip(layers.groups, layers.picks, strict=True)
        ]
        between = [
            (term, np.array([round(math.ldexp(v, power)) for v in term.values], dtype=np.int64))
            for term in conversions
        ]
        rows, pairs = spread(layers, rows, between)
        return cls(rows, round(math.ldexp(constant, power)), power, pairs)

    @property
    def least(self) -> int:
        """No total is less, in integer units; where there are no pairs, one is that."""
        return self.constant + sum(
            int(part.min()) for part in (*self.rows, *(pair.table for pair in self.pairs))
        )

    def ceiling(self, limit: float) -> float:
        """The limit in integer units; above it by what sums of float64 may have been rounded down, where
        costs are not whole.
        """
        return (
            limit
            if math.isinf(limit)
            else math.floor(math.ldexp(limit + (2 * math.ulp(limit) if self.power else 0.0), self.power))
        )

    def real(self, units: IntRow) -> Row:
        """Back to the unit of the table."""
        return np.ldexp(units.astype(np.float64), -self.power)
