"""The least of a resource whose measured score keeps a floor: a walk along the exact front, by halving."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpsearch.errors import OptionError
from mpsearch.evaluate import FastEvaluator
from mpsearch.pipeline.steps.learned import states_digest
from mpsearch.pipeline.steps.scoring import Floor, Scoring
from mpsearch.problem import PEAKS, Budget, Problem
from mpsearch.reconstruct import Calibration
from mpsearch.solvers import least_within, problem_front, solve

_LIMITS = 4096
"""Limits that are bisected where other budgets leave no front to go along."""

Indices = tuple[int, ...]


@dataclass(frozen=True)
class Path:
    """The optima of an objective, from the least of a resource to the least damage.

    Args:
        at: The choices of one of them.
        count: How many.
    """

    at: Callable[[int], Indices]
    count: int

    @property
    def halvings(self) -> int:
        """Measurements of a walk, at most."""
        return math.ceil(math.log2(max(2, self.count))) + 1


def path_of(problem: Problem, objective: str, budgets: Sequence[Budget], resource: str) -> Path:
    """The optima within other budgets. Raises OptionError where the resource has no costs."""
    if resource not in problem.costs or resource in PEAKS:
        raise OptionError(
            f"The problem has no costs {resource}, so its least cannot be looked for. It has: "
            f"{', '.join(problem.costs)}."
        )
    if all(b.resource == resource for b in budgets):
        front = problem_front(problem, objective, resource, min((b.limit for b in budgets), default=None))
        return Path(front.indices, len(front))
    low, high = (
        least_within(problem, budgets)[resource],
        getattr(solve(problem, objective, budgets).cost, resource),
    )
    limits = np.linspace(low, high, _LIMITS)
    return Path(
        lambda k: solve(problem, objective, [*budgets, Budget(resource, float(limits[k]), "")]).indices,
        len(limits),
    )


@dataclass
class Judge:
    """Scores assignments with the states of a calibration; each is measured once, and kept in the study.

    Args:
        problem: Whose assignments.
        calibration: Their states.
        scoring: Measures.
    """

    problem: Problem
    calibration: Calibration
    scoring: Scoring
    _evaluators: dict[str, FastEvaluator] = field(default_factory=dict)
    _digest: list[str] = field(default_factory=list)

    def score(self, indices: Indices, part: str = "search") -> float:
        """On `search` or `evaluation`."""
        assignment = self.problem.assignment(indices)
        self._digest = self._digest or [
            str(self.calibration.weight_grids),
            str(self.calibration.input_observer),
            states_digest(self.calibration),
        ]

        def measure() -> float:
            if self.scoring.metric is not None:
                states = self.calibration.states(assignment)
                return self.scoring.of(states, part)
            subject = self.scoring.subject
            images = getattr(subject.placed, part)
            if part not in self._evaluators:
                self._evaluators[part] = FastEvaluator(
                    subject.placed.module, self.calibration, images, task=subject.task
                )
            here, task = self._evaluators[part], subject.task
            return task.headline(task.compare(here.logits(assignment), here.float_logits, images.labels))[1]

        return self.scoring.kept(part, [assignment.to_json(), *self._digest], measure)


@dataclass(frozen=True)
class Step:
    """A measured assignment.

    Args:
        indices: L choices.
        score: On the search images.
    """

    indices: Indices
    score: float

    def to_json(self, judge: Judge, floor: Floor) -> dict[str, Any]:
        """Plain data: what it costs, its score, and how far that is below the float model's."""
        finite = math.isfinite(self.score)
        return {
            "cost": judge.problem.cost(self.indices).to_json(),
            "score": self.score if finite else None,
            "drop": floor.floats - self.score if finite else None,
        }


def walk(
    path: Path,
    judge: Judge,
    kept: Callable[[float], bool],
    on_step: Callable[[int, int], None],
) -> tuple[Indices | None, list[Step]]:
    """Halve the path, from the least damage towards the least of the resource, by what is really measured.

    Scores need not fall evenly along it, so what is returned keeps the floor, as measured, but one that is
    cheaper and keeps it as well may exist.

    Args:
        path: Optima.
        judge: Measures.
        kept: Whether a score is enough.
        on_step: Called with the measurements done and those there are at most.
    Returns: The cheapest that was measured to keep it, None where the last of the path does not; and every
        step, in order.
    """
    trail: list[Step] = []

    def keeps(k: int) -> bool:
        indices = path.at(k)
        trail.append(Step(tuple(indices), judge.score(indices)))
        on_step(len(trail), path.halvings)
        return kept(trail[-1].score)

    if not keeps(path.count - 1):
        return None, trail
    low, high = -1, path.count - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return tuple(path.at(high)), trail
