"""What an objective is, what it may look at, and how its table is checked and repaired."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from scipy.optimize import isotonic_regression
from torch import nn

from mpsearch.data import SampleSet
from mpsearch.errors import MpsearchError, OptionError
from mpsearch.evaluate import Classification, Task
from mpsearch.problem import Candidate, Layer
from mpsearch.reconstruct import Calibration
from mpsearch.registry import Registry

Progress = Callable[[int, int], None]
Rows = list[list[float]]
Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class ScoringContext:
    """What an objective may look at.

    Args:
        module: Float model in eval mode, batch norms folded; an objective leaves it as found.
        layers: L units.
        candidates: For each its C_l choices.
        calibration: Quantisers of each unit and candidate.
        images: Calibration images.
        seed: Random seed; the same one gives the same result.
        on_step: Progress: steps done, steps in all.
        task: What the model's outputs are.
        held_out: Images that no state was made from; None where there are none beside `images`.
    """

    module: nn.Module
    layers: tuple[Layer, ...]
    candidates: tuple[tuple[Candidate, ...], ...]
    calibration: Calibration
    images: SampleSet
    seed: int = 0
    on_step: Progress = field(default=lambda done, total: None, repr=False)
    task: Task = field(default_factory=Classification)
    held_out: SampleSet | None = None

    @property
    def unseen(self) -> SampleSet:
        """The held-out images, or the calibration images where there are no others."""
        return self.images if self.held_out is None else self.held_out


@dataclass(frozen=True)
class Passes:
    """The work of one scoring, counted in images: 128 images that go once through the model are 128 passes,
    whatever the batch.

    Args:
        forward: Through the whole model.
        backward: Through the whole model; a backward pass through a gradient counts twice.
        units: Forward passes of one unit alone.
    """

    forward: int = 0
    backward: int = 0
    units: int = 0


@dataclass(frozen=True)
class Parts:
    """A table with what it is made of.

    Args:
        total: `L x C_l` damage.
        weights: `L x C_l`: what the quantised weight alone does; None where the objective does not tell.
        activations: The same of the quantised input, or operands. The two add up to the total where the
            objective is a sum of both.
        notes: What a user should know of this very table, such as a trace that was negative.
    """

    total: Rows
    weights: Rows | None = None
    activations: Rows | None = None
    notes: tuple[str, ...] = ()


class Objective(ABC):
    """Scores every unit at every candidate; lower is better, 0 is what the float unit has.

    Class flags say what it is: `additive` (its `L x C` table is solved exactly), `needs_data` (whether it
    looks at images), `needs_classes` (whether it takes the outputs for logits of classes), `unit` (of one
    score). `revision` is raised when the same inputs give another table, so that none that a study has kept
    is taken for it.
    """

    name: ClassVar[str]
    additive: ClassVar[bool] = True
    needs_data: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False
    unit: ClassVar[str] = ""
    revision: ClassVar[int] = 0

    @abstractmethod
    def score(self, context: ScoringContext) -> Rows:
        """`L x C_l` damage; a float candidate and a unit that was not calibrated have 0."""

    def parts(self, context: ScoringContext) -> Parts:
        """The table with what weights and inputs contribute, for objectives that can tell; these define
        `score` by it.
        """
        return Parts(self.score(context))

    def passes(self, context: ScoringContext) -> Passes | None:
        """The work at most; None where an objective that looks at data does not state it."""
        return None if self.needs_data else Passes()


@dataclass(frozen=True)
class ScoreReport:
    """A finished table with what was done to it.

    Args:
        rows: `L x C_l`, finite, not negative, and not falling when bits fall.
        violations: Entries that isotonic regression had to move.
        seconds: Time of the scoring.
        weights: Damage of the weights, as in `Parts`, before any repair.
        activations: Damage of the inputs, as in `Parts`, before any repair.
        passes: Work at most; None where not stated.
        notes: Notes, as in `Parts`.
    """

    rows: Table
    violations: int
    seconds: float
    weights: Table | None = None
    activations: Table | None = None
    passes: Passes | None = None
    notes: tuple[str, ...] = ()


OBJECTIVES: Registry[Objective] = Registry("objective", "mpsearch.objectives")


def score(objective: Objective, context: ScoringContext) -> ScoreReport:
    """Score, check, and repair monotonicity in bits by isotonic regression, counting what was moved.

    Raises:
        MpsearchError: A score is NaN, infinite or negative; names the unit and the candidate.
        OptionError: The objective needs classes, and the task has none.
    """
    if objective.needs_classes and not context.task.classes:
        raise OptionError(
            f"The objective {objective.name!r} takes the outputs for logits of classes; the task is "
            f"{context.task.name!r}. Use output_mse, kl or weight_mse."
        )
    start = time.perf_counter()
    with torch.no_grad():
        parts = objective.parts(context)
    for layer, candidates, row in zip(context.layers, context.candidates, parts.total, strict=True):
        for candidate, value in zip(candidates, row, strict=True):
            if not math.isfinite(value) or value < 0:
                raise MpsearchError(
                    f"The objective {objective.name!r} gives {value} for {layer.name!r} at {candidate}. "
                    "Check the unit's weight and inputs."
                )
    repaired = [monotone(c, row) for c, row in zip(context.candidates, parts.total, strict=True)]
    return ScoreReport(
        tuple(tuple(row) for row, _ in repaired),
        sum(moved for _, moved in repaired),
        time.perf_counter() - start,
        _table(parts.weights),
        _table(parts.activations),
        objective.passes(context),
        parts.notes,
    )


def _table(rows: Rows | None) -> Table | None:
    return None if rows is None else tuple(tuple(row) for row in rows)


def require_positive(objective: str, **options: int) -> None:
    """Raises OptionError where an option that counts something is below 1."""
    for option, value in options.items():
        if value < 1:
            raise OptionError(f"The option {option!r} of {objective} is {value}; it must be at least 1.")


def monotone(candidates: Sequence[Candidate], row: Sequence[float]) -> tuple[list[float], int]:
    """The row made not to rise with weight bits among candidates of equal input bits and granularity, and how
    many entries moved.
    """
    fixed, moved = list(row), 0
    for kind in {(c.a_bits, c.w_granularity) for c in candidates if not c.is_float}:
        at = [i for i, c in enumerate(candidates) if not c.is_float and (c.a_bits, c.w_granularity) == kind]
        at.sort(key=lambda i: candidates[i].w_bits or 0)
        for i, value in zip(at, isotonic_regression([row[i] for i in at], increasing=False).x, strict=True):
            moved += int(not math.isclose(fixed[i], value, rel_tol=1e-9, abs_tol=0.0))
            fixed[i] = float(value)
    return fixed, moved
