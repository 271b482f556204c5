"""Losses by image on the evaluation images, which neither the objectives nor the search for the best known
assignment saw.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.evaluate import FastEvaluator, predict
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.jobs.score import Scored
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.validation.agreement import regret_with_error
from mpsearch.quant import install

Indices = tuple[int, ...]


class Unseen:
    """Each assignment is measured once, and kept on disk.

    Args:
        scored: Model, quantisers and images.
        study: Folder.
        key: What a loss depends on but for the images and the assignment.
        images: At most; the first of the evaluation images, whose order is random by the seed.
    """

    def __init__(self, scored: Scored, study: Study, key: list[Any], images: int) -> None:
        self._scored, self._study, self._key = (
            scored,
            study,
            [*key, scored.subject.hashes["evaluation"], images],
        )
        self._images = scored.subject.placed.evaluation.subset(
            range(min(images, len(scored.subject.splits.evaluation)))
        )
        self._held: dict[Indices, NDArray[np.float64]] = {}
        self._finished: dict[Indices, NDArray[np.float64]] = {}

    @functools.cached_property
    def _evaluator(self) -> FastEvaluator:
        subject, task = self._scored.subject, self._scored.subject.task
        return FastEvaluator(subject.placed.module, self._scored.calibration, self._images, task=task)

    def __len__(self) -> int:
        """Images."""
        return len(self._images)

    def measure(self, assignments: Iterable[Indices], progress: Progress) -> None:
        """Those of L choices each that are not known yet."""
        asked = list(dict.fromkeys(assignments))
        with progress.task("measure on unseen images") as advance:
            for done, indices in enumerate(asked, start=1):
                self._losses(indices)
                advance(done, len(asked))

    def finish(self, assignments: Iterable[Indices], progress: Progress) -> None:
        """Those of L choices each that were not finished yet, as a run would deliver them."""
        asked = list(dict.fromkeys(assignments))
        with progress.task("finish, and measure on unseen images") as advance:
            for done, indices in enumerate(asked, start=1):
                self._finished[indices] = self._kept(
                    "finished", indices, functools.partial(self._of_finished, indices)
                )
                advance(done, len(asked))

    def compare_finished(self, indices: Indices, among: Iterable[Indices]) -> dict[str, float | None]:
        """As `compare`, of a finished assignment, against the best of some finished ones."""
        best = min((self._finished[other] for other in among), key=lambda losses: float(losses.mean()))
        return _compared(self._finished[indices], best)

    def compare(self, indices: Indices, best: Indices) -> dict[str, float | None]:
        """Mean loss, regret against the best known, and its standard error; None for what is not finite."""
        return _compared(self._losses(indices), self._losses(best))

    def _losses(self, indices: Indices) -> NDArray[np.float64]:
        if indices not in self._held:
            self._held[indices] = self._kept(
                "unseen", indices, lambda: self._evaluator.losses(self._scored.problem.assignment(indices))
            )
        return self._held[indices]

    def _kept(self, step: str, indices: Indices, measure: Callable[[], Tensor]) -> NDArray[np.float64]:
        how = [self._scored.config.method, self._scored.config.steps] if step == "finished" else []
        key = [*self._key, list(indices), *how]
        found = self._study.cached(
            step, key, lambda: [v if math.isfinite(v) else None for v in measure().tolist()]
        )
        return np.array([math.inf if value is None else value for value in found])

    def _of_finished(self, indices: Indices) -> Tensor:
        scored, assignment = self._scored, self._scored.problem.assignment(indices)
        states = scored.workshop.reconstructed(assignment, "an optimum")
        outputs = predict(install(scored.subject.placed.module, states), self._images)
        return scored.subject.task.damage(outputs, self._evaluator.float_logits)


def _compared(losses: NDArray[np.float64], best: NDArray[np.float64]) -> dict[str, float | None]:
    regret, error = regret_with_error(losses, best)
    named = (("loss", float(losses.mean())), ("regret", regret), ("error", error))
    return {name: value if math.isfinite(value) else None for name, value in named}
