"""The number by which one judges a model, higher is better: the user's metric, else the score of the task."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from mpsearch.evaluate import UserMetric, predict
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.evaluation import Evaluation
from mpsearch.pipeline.steps.states import States, digest_of_states
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.problem import POINT, Drop, below
from mpsearch.quant import install
from mpsearch.quant.devices import CPU, on_device


@dataclass(frozen=True)
class Floor:
    """The least score that is allowed.

    Args:
        drop: As typed.
        name: Of the score.
        floats: The float model's, on the search images.
        least: What keeps the drop.
    """

    drop: Drop
    name: str
    floats: float
    least: float

    def kept(self, score: float) -> bool:
        """Whether a score keeps it; one that is not finite does not."""
        return score >= self.least

    def below(self, score: float) -> str:
        """For people: how far a score is below the float model's, in both ways to say it."""
        return below(self.name, self.floats, score)

    def to_json(self, score: float, images: int) -> dict[str, Any]:
        """Plain data of a score on the search images."""
        return {
            "text": self.drop.text,
            "score": self.name,
            "float": self.floats,
            "least": self.least,
            "search": score if math.isfinite(score) else None,
            "images": images,
            "kept": self.kept(score),
        }


@dataclass
class Scoring:
    """Measures scores, each once, and keeps them in the study.

    Args:
        subject: Model, images, and the metric if there is one.
        evaluation: Compares with the float model.
        study: Where scores are kept.
        progress: Where progress goes.
    """

    subject: Subject
    evaluation: Evaluation
    study: Study
    progress: Progress

    @property
    def metric(self) -> UserMetric | None:
        """The user's."""
        return self.subject.metric

    @functools.cached_property
    def name(self) -> str:
        """Of the score."""
        if self.metric is not None:
            return self.metric.name
        floats = self.evaluation.reference()["search"]
        return self._headline(floats, floats, "search")[0]

    def floor(self, drop: Drop) -> Floor:
        """The least score that keeps a drop on the search images."""
        floats = self.of_float("search")
        point = POINT if self.metric is None else 1.0
        return Floor(drop, self.name, floats, drop.floor(floats, point))

    def of_float(self, part: str) -> float:
        """Of the float model on `search` or `evaluation`. Raises OptionError where it is not finite."""

        def measure() -> float:
            if self.metric is None:
                floats = self.evaluation.reference()[part]
                return self._headline(floats, floats, part)[1]
            module = install(self.subject.placed.module, {})
            return self.metric.require(module, self._samples(part), part)

        return self.kept(part, "float", measure)

    def of(self, states: States, part: str) -> float:
        """Of quantised units on `search` or `evaluation`; -inf where it is not finite."""
        states = on_device(states, CPU)

        def measure() -> float:
            module = install(self.subject.placed.module, states)
            return self.of_module(module, part)

        return self.kept(part, digest_of_states(states), measure)

    def of_module(self, module: nn.Module, part: str) -> float:
        """Of a module that nobody else uses, measured now."""
        if self.metric is not None:
            return self.metric.measure(module, self._samples(part), part)
        return self._headline(predict(module, self._samples(part)), self.evaluation.reference()[part], part)[
            1
        ]

    def kept(self, part: str, what: Any, measure: Callable[[], float]) -> float:
        """A score from the study, or measured and kept; what it is of is told by `what`."""
        subject = self.subject
        by = subject.task_text if self.metric is None else ["metric", self.metric.digest]
        key = [subject.hashes["weights"], subject.hashes[part], by, what, *subject.arithmetic]

        def finite() -> float | None:
            score = measure()
            return score if math.isfinite(score) else None

        found = self.study.cached("score", key, finite)
        return -math.inf if found is None else float(found)

    def _samples(self, part: str) -> Any:
        return getattr(self.subject.placed, part)

    def _headline(self, outputs: Any, floats: Any, part: str) -> tuple[str, float]:
        task = self.subject.task
        return task.headline(task.compare(outputs, floats, self._samples(part).labels))
