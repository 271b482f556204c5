"""Losses by image on the evaluation images, which neither the objectives nor the search for the best known assignment saw."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.evaluate import TASKS, FastEvaluator
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.jobs.score import Scored
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.validation.agreement import regret_with_error

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
        self._scored, self._study, self._key = scored, study, [*key, scored.subject.hashes["evaluation"], images]
        self._images = scored.subject.splits.evaluation.subset(range(min(images, len(scored.subject.splits.evaluation))))
        self._held: dict[Indices, NDArray[np.float64]] = {}

    @functools.cached_property
    def _evaluator(self) -> FastEvaluator:
        subject, task = self._scored.subject, TASKS.create(self._scored.config.task)
        return FastEvaluator(subject.module, self._scored.calibration, self._images, task=task)

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

    def compare(self, indices: Indices, best: Indices) -> dict[str, float | None]:
        """Mean loss, regret against the best known, and its standard error; None for what is not finite."""
        losses = self._losses(indices)
        regret, error = regret_with_error(losses, self._losses(best))
        return {name: value if math.isfinite(value) else None for name, value in (("loss", float(losses.mean())), ("regret", regret), ("error", error))}

    def _losses(self, indices: Indices) -> NDArray[np.float64]:
        if indices not in self._held:
            found = self._study.cached("unseen", [*self._key, list(indices)], lambda: self._measured(indices))
            self._held[indices] = np.array([math.inf if value is None else value for value in found])
        return self._held[indices]

    def _measured(self, indices: Indices) -> list[float | None]:
        losses = self._evaluator.losses(self._scored.problem.assignment(indices)).tolist()
        return [value if math.isfinite(value) else None for value in losses]
