"""What `validation.json` holds: the best known at each budget, and how near each objective comes to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mpsearch.pipeline.jobs.score import Scored
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.validation.agreement import agreement, regret
from mpsearch.pipeline.validation.losses import Indices, LossBook
from mpsearch.pipeline.validation.scorecard import LOW_BITS
from mpsearch.pipeline.validation.unseen import Unseen
from mpsearch.problem import Budget, Problem, mean_bits

SCHEMA = 1


@dataclass(frozen=True)
class Found:
    """At one budget: L choices of each objective's optimum, whether it was proven, and of the widest uniform
    bits.
    """

    level: float
    budget: Budget
    optima: dict[str, tuple[Indices, str]]
    uniform: Indices | None

    @property
    def measured(self) -> list[Indices]:
        """Optima and uniform bits."""
        return [
            *(indices for indices, _ in self.optima.values()),
            *([] if self.uniform is None else [self.uniform]),
        ]


@dataclass(frozen=True)
class Outcome:
    """Everything that a validation measured.

    Args:
        scored: Model, images, tables of the objectives.
        samples: Assignments spread over the range of sizes.
        found: What was searched at each budget.
        book: Loss of each assignment on the search images.
        unseen: Losses on evaluation images.
    """

    scored: Scored
    samples: list[Indices]
    found: list[Found]
    book: LossBook
    unseen: Unseen

    @property
    def problem(self) -> Problem:
        """Layers, candidates, tables."""
        return self.scored.problem

    @cached_property
    def best(self) -> list[Indices]:
        """The best known assignment at each budget: the least loss of all that was measured and fits."""
        return [
            min((i for i in self.book.asked if self._size(i) <= one.budget.limit), key=self._loss)
            for one in self.found
        ]

    def to_json(self, progress: Progress) -> dict[str, Any]:
        """What is saved. Measures the best known, optima and uniform bits on the evaluation images first, and
        the last two once more as they are when they are finished.
        """
        pairs = list(zip(self.found, self.best, strict=True))
        self.unseen.measure([i for one, known in pairs for i in (known, *one.measured)], progress)
        self.unseen.finish([indices for one in self.found for indices in one.measured], progress)
        config, subject = self.scored.config, self.scored.subject
        images = {name: len(getattr(subject.splits, name)) for name in ("calibration", "search")}
        return {
            "schema": SCHEMA,
            "measure": subject.task.measure,
            "model": config.model or "the embedded default",
            "bits": list(config.bits),
            "a_bits": list(config.a_bits),
            "states": config.search_states,
            "method": config.method,
            "seed": config.seed,
            "images": {**images, "unseen": len(self.unseen)},
            "hashes": subject.hashes,
            "budgets": [self._budget(one, known) for one, known in pairs],
            "objectives": [self._objective(text) for text in self.problem.scores],
            "samples": [
                {
                    "indices": list(i),
                    "size_bytes": self._size(i),
                    "bits": self._bits(i),
                    "loss": _plain(self._loss(i)),
                }
                for i in self.samples
            ],
            "measured": len(self.book.asked),
            "seconds_for_each_loss": self.book.seconds_for_each,
        }

    def _budget(self, found: Found, best: Indices) -> dict[str, Any]:
        """The best known at a budget, and what uniform bits give."""
        loss, uniform = self.book.asked[best], None if found.uniform is None else self._loss(found.uniform)
        return {
            "bits": found.level,
            "limit_bytes": found.budget.limit,
            "best_loss": _plain(loss.value),
            "best_found_by": loss.found_by,
            "best": self.problem.assignment(best).to_json(),
            "best_unseen_loss": self.unseen.compare(best, best)["loss"],
            "uniform_loss": None if uniform is None else _plain(uniform),
            "uniform_regret": None if uniform is None else _plain(regret(uniform, loss.value)),
            "uniform_unseen": None if found.uniform is None else self.unseen.compare(found.uniform, best),
            "uniform_finished": None
            if found.uniform is None
            else self.unseen.compare_finished(found.uniform, found.measured),
        }

    def _objective(self, text: str) -> dict[str, Any]:
        """Agreement over all samples and over those of few bits, the optimum at each budget, seconds,
        violations.
        """
        low = [i for i in self.samples if self._bits(i) <= LOW_BITS]
        optima = [self._optimum(text, one, known) for one, known in zip(self.found, self.best, strict=True)]
        asked = [optimum for optimum in optima if optimum["bits"] >= LOW_BITS]
        return {
            "objective": text,
            "overall": self._agreement(text, self.samples),
            "low_bits": self._agreement(text, low),
            "optima": optima,
            "worst_regret": _worst([optimum["regret"] for optimum in asked]),
            "worst_unseen": _worst([optimum["unseen"]["regret"] for optimum in asked]),
            **self.scored.about[text],
        }

    def _agreement(self, text: str, chosen: list[Indices]) -> dict[str, Any]:
        predicted = [self.problem.score(text, i) for i in chosen]
        return agreement(
            predicted, [self._loss(i) for i in chosen], [self._size(i) for i in chosen]
        ).to_json()

    def _optimum(self, text: str, found: Found, best: Indices) -> dict[str, Any]:
        indices, status = found.optima[text]
        return {
            "bits": found.level,
            "status": status,
            "size_bytes": self.problem.cost(indices).size_bytes,
            "loss": _plain(self._loss(indices)),
            "regret": _plain(regret(self._loss(indices), self._loss(best))),
            "unseen": self.unseen.compare(indices, best),
            "finished": self.unseen.compare_finished(indices, found.measured),
            "assignment": self.problem.assignment(indices).to_json(),
        }

    def _loss(self, indices: Indices) -> float:
        return self.book.asked[indices].value

    def _size(self, indices: Indices) -> float:
        return self.problem.cost(indices).size_bytes or 0.0

    def _bits(self, indices: Indices) -> float:
        return mean_bits(self.problem.layers, self.problem.assignment(indices))


def _worst(regrets: list[float | None]) -> float | None:
    """None where there are none, or one is not finite."""
    finite = [value for value in regrets if value is not None]
    return max(finite) if finite and len(finite) == len(regrets) else None


def _plain(value: float) -> float | None:
    """None for infinity, which JSON lacks."""
    return value if math.isfinite(value) else None
