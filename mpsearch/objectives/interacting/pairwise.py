"""`pairwise`: the measured damage of single choices, and what two choices do together beyond their sum."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from mpsearch.evaluate import FastEvaluator
from mpsearch.objectives._base import Passes, ScoringContext, require_positive
from mpsearch.objectives._local import first_images
from mpsearch.objectives.interacting._base import INTERACTING, Couplings, Interacting
from mpsearch.objectives.interacting._groups import Group, assignment, groups_of, raised, table_of
from mpsearch.objectives.interacting._projection import Matrix, Projection, nearest_convex
from mpsearch.problem import Assignment, Interaction
from mpsearch.solvers.tables.pair_tables import connected

Measure = Callable[[Assignment], float]


@INTERACTING.register("pairwise")
@dataclass(frozen=True)
class Pairwise(Interacting):
    """G of CLADO: d_i = KL of one choice alone, d_ij of two together, all else float; damage = sum of d_i + sum of (d_ij - d_i - d_j).

    After CLADO, where G_ii = 2 d_i and half of x^T G x is the damage. Measured here against the float model instead of the loss at the labels, and by default
    only within blocks. Exact for one and two choices where nothing is repaired or projected.

    References: Deng et al., CLADO, DAC 2025, arXiv:2307.05657.

    Args:
        scope: `blocks`: pairs of units of one block; `full`: all pairs, K^2 L (L - 1) / 2 measurements.
        images: Calibration images used.
        convex: Whether G is projected to the nearest positive semidefinite matrix, as CLADO's solver needs. The solvers here do not, and what it changes
            is reported.
        most_bits: Pairs of which a side has more weight bits than this are not measured and taken as 0: they hardly interact.
        memory_mb: Bound on the quantised weights that are kept at a time, in 10^6 bytes.
    """

    unit: ClassVar[str] = "nats"
    scope: Literal["blocks", "full"] = "blocks"
    images: int = 32
    convex: bool = False
    most_bits: int = 8
    memory_mb: int = 256

    def __post_init__(self) -> None:
        require_positive("pairwise", images=self.images, most_bits=self.most_bits, memory_mb=self.memory_mb)

    def passes(self, context: ScoringContext) -> Passes:
        """One forward pass of the float model, one for every single choice and for every pair of choices."""
        groups = groups_of(context)
        pairs = sum(len(self._low(a)) * len(self._low(b)) for a, b in self._pairs(groups))
        return Passes(min(self.images, len(context.images)) * (1 + sum(group.integers for group in groups) + pairs))

    def couple(self, context: ScoringContext) -> Couplings:
        """Rows and pairs, measured by the fast evaluator."""
        images = first_images(context, self.images)
        return self.measured(
            context, FastEvaluator(context.module, context.calibration, images, memory_limit_bytes=self.memory_mb * 10**6, task=context.task).measure
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
            alone = [0.0 if c.is_float else measure(assignment(context, [(group, k)])) for k, c in enumerate(group.candidates)]
            singles[group.first], count = raised(np.array(alone), [group.candidates])
            moved += count
            context.on_step(done, steps)
        tables = {}
        for done, (a, b) in enumerate(pairs, start=len(groups) + 1):
            table, count = self._together(context, a, b, singles, measure)
            tables[a.first, b.first] = table
            moved += count
            context.on_step(done, steps)
        projection = project(singles, tables) if self.convex else None
        terms = tuple(Interaction(key, (len(table), table.shape[1]), tuple(table.ravel().tolist())) for key, table in tables.items())
        return Couplings(table_of(context, {i: row.tolist() for i, row in singles.items()}), terms, moved, projection)

    def _pairs(self, groups: Sequence[Group]) -> list[tuple[Group, Group]]:
        low = [group for group in groups if self._low(group)]
        return [(a, b) for a, b in itertools.combinations(low, 2) if self.scope == "full" or a.blocks & b.blocks]

    def _low(self, group: Group) -> list[int]:
        """Choices that are measured in pairs."""
        return [k for k, c in enumerate(group.candidates) if not c.is_float and (c.w_bits or 0) <= self.most_bits]

    def _together(self, context: ScoringContext, a: Group, b: Group, singles: dict[int, Matrix], measure: Measure) -> tuple[Matrix, int]:
        """d_ij - d_i - d_j, `C_i x C_j`; 0 where it was not measured. Two choices do at least the damage of either, and no less with fewer bits."""
        apart = singles[a.first][:, None] + singles[b.first][None, :]
        low = np.ix_(self._low(a), self._low(b))
        joint = np.array([[measure(assignment(context, [(a, k), (b, m)])) for m in self._low(b)] for k in self._low(a)]).reshape(apart[low].shape)
        least = np.maximum(joint, np.maximum(singles[a.first][:, None], singles[b.first][None, :])[low])
        lifted, _ = raised(least, [[a.candidates[k] for k in self._low(a)], [b.candidates[m] for m in self._low(b)]])
        beyond = np.zeros_like(apart)
        beyond[low] = lifted - apart[low]
        return beyond, int((lifted > joint * (1 + 1e-9)).sum())


def project(singles: dict[int, Matrix], tables: dict[tuple[int, int], Matrix]) -> Projection:
    """Replace rows and tables, in place, by those of the nearest convex form; G is taken apart where nothing links its parts.

    Args:
        singles: Layer -> [C_i] damage.
        tables: Two layers -> `C_i x C_j`.
    """
    clipped, least, change, norm, most = 0, 0.0, 0.0, 0.0, 0.0
    layers = sorted(singles)
    for positions in connected(len(layers), [(layers.index(i), layers.index(j)) for i, j in tables]):
        part = [layers[k] for k in positions]
        ends = np.cumsum([0, *(len(singles[i]) for i in part)])
        at = {i: slice(low, high) for i, low, high in zip(part, ends, ends[1:], strict=False)}
        gram = np.diag(2 * np.concatenate([singles[i] for i in part]))
        inside = [key for key in tables if key[0] in at]
        for i, j in inside:
            gram[at[i], at[j]], gram[at[j], at[i]] = tables[i, j], tables[i, j].T
        found, values = nearest_convex(gram)
        before = _damages(singles, tables, part, inside)
        for i in part:
            singles[i] = np.diag(found)[at[i]] / 2
        for i, j in inside:
            tables[i, j] = found[at[i], at[j]].copy()
        most = max(most, *(float(np.abs(x - y).max()) for x, y in zip(before, _damages(singles, tables, part, inside), strict=True)))
        changed = found is not gram
        clipped += int((values < 0).sum()) if changed else 0
        least = min(least, float(values[0]))
        change += float(np.square(found - gram).sum())
        norm += float(np.square(gram).sum())
    return Projection(clipped, least, float(np.sqrt(change / norm)) if norm else 0.0, most)


def _damages(singles: dict[int, Matrix], tables: dict[tuple[int, int], Matrix], part: Sequence[int], inside: Sequence[tuple[int, int]]) -> list[Matrix]:
    """Of every single choice and of every pair."""
    return [*(singles[i].copy() for i in part), *(singles[i][:, None] + singles[j][None, :] + tables[i, j] for i, j in inside)]
