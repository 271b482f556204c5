"""`pairwise`: the measured damage of single choices, and what two choices do together beyond their sum."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mpsearch.evaluate import FastEvaluator
from mpsearch.objectives._base import Passes, ScoringContext, require_positive
from mpsearch.objectives._local import first_images
from mpsearch.objectives.interacting._base import INTERACTING, Couplings, Interacting
from mpsearch.objectives.interacting._groups import Group, assignment, groups_of, raised, table_of
from mpsearch.problem import Assignment, Interaction

Matrix = NDArray[np.float64]
Measure = Callable[[Assignment], float]


@INTERACTING.register("pairwise")
@dataclass(frozen=True)
class Pairwise(Interacting):
    """G of CLADO: d_i = KL of one choice alone, d_ij of two together, all else float; damage = sum of d_i +
    sum of (d_ij - d_i - d_j).

    After CLADO, where G_ii = 2 d_i and half of x^T G x is the damage. Measured here against the float model
    instead of the loss at the labels, and by default only within blocks. Exact for one and two choices where
    nothing is repaired. CLADO also projects G to the nearest positive semidefinite matrix, which its solver
    needs; the solvers here take G as it is.

    References: Deng et al., CLADO, DAC 2025, arXiv:2307.05657.

    Args:
        scope: `blocks`: pairs of units of one block; `full`: all pairs, K^2 L (L - 1) / 2 measurements.
        images: Calibration images used.
        most_bits: Pairs of which a side has more weight bits than this are not measured and taken as 0: they
            hardly interact.
        memory_mb: Bound on the quantised weights that are kept at a time, in 10^6 bytes.
    """

    unit: ClassVar[str] = "nats"
    scope: Literal["blocks", "full"] = "blocks"
    images: int = 32
    most_bits: int = 8
    memory_mb: int = 256

    def __post_init__(self) -> None:
        require_positive("pairwise", images=self.images, most_bits=self.most_bits, memory_mb=self.memory_mb)

    def passes(self, context: ScoringContext) -> Passes:
        """One forward pass of the float model, one for every single choice and for every pair of choices."""
        groups = groups_of(context)
        pairs = sum(len(self._low(a)) * len(self._low(b)) for a, b in self._pairs(groups))
        return Passes(
            min(self.images, len(context.images)) * (1 + sum(group.integers for group in groups) + pairs)
        )

    def couple(self, context: ScoringContext) -> Couplings:
        """Rows and pairs, measured by the fast evaluator."""
        images = first_images(context, self.images)
        return self.measured(
            context,
            FastEvaluator(
                context.module,
                context.calibration,
                images,
                memory_limit_bytes=self.memory_mb * 10**6,
                task=context.task,
            ).measure,
        )

    def measured(self, context: ScoringContext, measure: Measure) -> Couplings:
        """The same by any measured loss that is 0 for the float model.

        Args:
            context: Units, candidates and ties.
            measure: Loss of an assignment of every calibrated unit.
        """
        groups = groups_of(context)
        pairs = self._pairs(groups)
        steps = len(groups) + len(pairs)
        singles, moved = {}, 0
        for done, group in enumerate(groups, start=1):
            alone = [
                0.0 if c.is_float else measure(assignment(context, [(group, k)]))
                for k, c in enumerate(group.candidates)
            ]
            singles[group.first], count = raised(np.array(alone), [group.candidates])
            moved += count
            context.on_step(done, steps)
        tables = {}
        for done, (a, b) in enumerate(pairs, start=len(groups) + 1):
            table, count = self._together(context, a, b, singles, measure)
            tables[a.first, b.first] = table
            moved += count
            context.on_step(done, steps)
        terms = tuple(
            Interaction(key, (len(table), table.shape[1]), tuple(table.ravel().tolist()))
            for key, table in tables.items()
        )
        return Couplings(table_of(context, {i: row.tolist() for i, row in singles.items()}), terms, moved)

    def _pairs(self, groups: Sequence[Group]) -> list[tuple[Group, Group]]:
        low = [group for group in groups if self._low(group)]
        return [
            (a, b) for a, b in itertools.combinations(low, 2) if self.scope == "full" or a.blocks & b.blocks
        ]

    def _low(self, group: Group) -> list[int]:
        """Choices that are measured in pairs."""
        return [
            k for k, c in enumerate(group.candidates) if not c.is_float and (c.w_bits or 0) <= self.most_bits
        ]

    def _together(
        self, context: ScoringContext, a: Group, b: Group, singles: dict[int, Matrix], measure: Measure
    ) -> tuple[Matrix, int]:
        """d_ij - d_i - d_j, `C_i x C_j`; 0 where it was not measured. Two choices do at least the damage of
        either, and no less with fewer bits.
        """
        apart = singles[a.first][:, None] + singles[b.first][None, :]
        low = np.ix_(self._low(a), self._low(b))
        joint = np.array(
            [[measure(assignment(context, [(a, k), (b, m)])) for m in self._low(b)] for k in self._low(a)]
        ).reshape(apart[low].shape)
        least = np.maximum(joint, np.maximum(singles[a.first][:, None], singles[b.first][None, :])[low])
        lifted, _ = raised(
            least, [[a.candidates[k] for k in self._low(a)], [b.candidates[m] for m in self._low(b)]]
        )
        beyond = np.zeros_like(apart)
        beyond[low] = lifted - apart[low]
        return beyond, int((lifted > joint * (1 + 1e-9)).sum())
