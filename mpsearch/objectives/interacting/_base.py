"""What an objective with interactions is, and what it gives."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch

from mpsearch.errors import MpsearchError
from mpsearch.objectives._base import Passes, ScoringContext, Table
from mpsearch.problem import Interaction, Problem
from mpsearch.registry import Registry


@dataclass(frozen=True)
class Couplings:
    """Rows and interactions, which add up to the predicted damage of an assignment.

    Of layers that share a choice the first stands for all: its row and its interactions are those of the tie,
    the others have zeros.

    Args:
        rows: `L x C_l`.
        interactions: Between layers of the same problem.
        violations: Measured entries that were raised, since fewer bits seemed to do less damage.
        seconds: Time of the scoring.
        passes: Work at most, counted in images; a pass through one block counts as one of a unit.
    """

    rows: Table
    interactions: tuple[Interaction, ...]
    violations: int
    seconds: float = 0.0
    passes: Passes | None = None

    def put_into(self, problem: Problem, name: str) -> Problem:
        """The problem with this objective beside its others."""
        return replace(
            problem,
            scores={**problem.scores, name: self.rows},
            interactions={**problem.interactions, name: self.interactions},
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        return {**asdict(self), "interactions": [term.to_json() for term in self.interactions]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Couplings:
        """Inverse of `to_json`."""
        rows, terms = (
            tuple(tuple(row) for row in data["rows"]),
            tuple(Interaction.from_json(d) for d in data["interactions"]),
        )
        passes = None if data["passes"] is None else Passes(**data["passes"])
        return cls(rows, terms, data["violations"], data["seconds"], passes)


class Interacting(ABC):
    """Scores choices of several layers together; lower is better, 0 is what the float model has. Flags as
    those of `Objective`.
    """

    name: ClassVar[str]
    additive: ClassVar[bool] = False
    needs_data: ClassVar[bool] = True
    unit: ClassVar[str] = ""
    revision: ClassVar[int] = 0

    @abstractmethod
    def couple(self, context: ScoringContext) -> Couplings:
        """Rows and interactions; a float candidate and a unit that was not calibrated have none."""

    @abstractmethod
    def passes(self, context: ScoringContext) -> Passes:
        """The work at most."""


INTERACTING: Registry[Interacting] = Registry(
    "objective with interactions", "mpsearch.objectives.interacting"
)


def couple(objective: Interacting, context: ScoringContext) -> Couplings:
    """Score and check. Raises MpsearchError where a number is NaN or infinite."""
    start = time.perf_counter()
    with torch.no_grad():
        found = objective.couple(context)
    bad = [
        layer.name
        for layer, row in zip(context.layers, found.rows, strict=True)
        if not all(map(math.isfinite, row))
    ]
    if bad:
        raise MpsearchError(
            f"The objective {objective.name!r} gives NaN or infinity for {bad[0]!r}. Check the unit's "
            "weight and inputs."
        )
    return replace(found, seconds=time.perf_counter() - start, passes=objective.passes(context))
