"""What an objective is, what it may look at, and how its table is checked and repaired."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression
from torch import nn

from mpsearch.data import ImageSet
from mpsearch.errors import MpsearchError
from mpsearch.problem import Candidate, Layer
from mpsearch.reconstruct import Calibration
from mpsearch.registry import Registry

Progress = Callable[[int, int], None]
Rows = list[list[float]]


@dataclass(frozen=True)
class ScoringContext:
    """What an objective may look at.

    Args:
        module: Float model in eval mode, batch norms folded; an objective leaves it as found.
        layers: L units.
        candidates: For each its C_l choices.
        calibration: Quantisers of each unit and candidate.
        images: Calibration images.
        seed: Of everything random.
        on_step: Progress: steps done, steps in all.
    """

    module: nn.Module
    layers: tuple[Layer, ...]
    candidates: tuple[tuple[Candidate, ...], ...]
    calibration: Calibration
    images: ImageSet
    seed: int = 0
    on_step: Progress = field(default=lambda done, total: None, repr=False)


class Objective(ABC):
    """Scores every unit at every candidate; lower is better, 0 is what the float unit has.

    Class flags say what it is: `additive` (its `L x C` table is solved exactly), `needs_data` (whether it looks at images),
    `unit` (of one score).
    """

    name: ClassVar[str]
    additive: ClassVar[bool] = True
    needs_data: ClassVar[bool] = False
    unit: ClassVar[str] = ""

    @abstractmethod
    def score(self, context: ScoringContext) -> Rows:
        """`L x C_l` damage; a float candidate and a unit without a weight have 0."""


@dataclass(frozen=True)
class ScoreReport:
    """A finished table with what was done to it.

    Args:
        rows: `L x C_l`, finite, not negative, and not falling when bits fall.
        violations: Entries that isotonic regression had to move.
        seconds: Time of the scoring.
    """

    rows: tuple[tuple[float, ...], ...]
    violations: int
    seconds: float


OBJECTIVES: Registry[Objective] = Registry("objective", "mpsearch.objectives")


def score(objective: Objective, context: ScoringContext) -> ScoreReport:
    """Score, check, and repair monotonicity in bits by isotonic regression, counting what was moved.

    Raises: MpsearchError: A score is NaN, infinite or negative; names the unit and the candidate.
    """
    start = time.perf_counter()
    with torch.no_grad():
        rows = objective.score(context)
    for layer, candidates, row in zip(context.layers, context.candidates, rows, strict=True):
        for candidate, value in zip(candidates, row, strict=True):
            if not math.isfinite(value) or value < 0:
                raise MpsearchError(f"The objective {objective.name!r} gives {value} for {layer.name!r} at {candidate}. Check the unit's weight and inputs.")
    repaired = [monotone(c, row) for c, row in zip(context.candidates, rows, strict=True)]
    return ScoreReport(tuple(tuple(row) for row, _ in repaired), sum(moved for _, moved in repaired), time.perf_counter() - start)


def monotone(candidates: Sequence[Candidate], row: Sequence[float]) -> tuple[list[float], int]:
    """The row made not to rise with weight bits among candidates of equal input bits and granularity, and how many entries moved."""
    fixed, moved = list(row), 0
    for kind in {(c.a_bits, c.w_granularity) for c in candidates if not c.is_float}:
        at = [i for i, c in enumerate(candidates) if not c.is_float and (c.a_bits, c.w_granularity) == kind]
        bits = [candidates[i].w_bits or 0 for i in at]
        values = [row[i] for i in at]
        if len(at) < 2 or all(
            v >= w for (_, v), (_, w) in zip(sorted(zip(bits, values, strict=True)), sorted(zip(bits, values, strict=True))[1:], strict=False)
        ):
            continue
        fitted = IsotonicRegression(increasing=False).fit_transform(np.array(bits, float), np.array(values))
        for i, value in zip(at, fitted, strict=True):
            moved += int(not math.isclose(fixed[i], value, rel_tol=1e-9, abs_tol=0.0))
            fixed[i] = float(value)
    return fixed, moved
