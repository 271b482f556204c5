"""How good quantised models are: damage on the search images, metrics on the evaluation images, and what a
pass over these takes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from torch import Tensor

from mpsearch.data import SampleSet
from mpsearch.evaluate import Metrics, Task, predict
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.states import States, digest_of_states
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.quant import install

FEW = 640
"""Evaluation images, at most, on which all is evaluated that is neither a finalist nor the artifact."""
KEPT = 4
"""Finalists whose outputs are kept for the artifact."""
KEPT_BYTES = 2**28
"""Outputs that take more are not."""


@dataclass
class Evaluation:
    """Compares quantised models with the float one, which goes over each image once.

    Args:
        subject: Model and images.
        task: How outputs are compared.
        progress: Where progress goes.
    """

    subject: Subject
    task: Task
    progress: Progress
    _reference: dict[str, Tensor] | None = None
    _losses: dict[str, Tensor] = field(default_factory=dict)
    _outputs: dict[str, Tensor] = field(default_factory=dict)
    _floats: tuple[Metrics, Metrics] | None = None
    _seconds: float = 0.0

    def reference(self) -> dict[str, Tensor]:
        """The float model's outputs on the search and evaluation images."""
        if self._reference is None:
            with self.progress.task("evaluate the float model") as advance:
                search = self._timed(self.subject.placed.module)
                advance(1, 2)
                self.tell("The float model")
                self._reference = {
                    "search": search,
                    "evaluation": predict(self.subject.placed.module, self.subject.placed.evaluation),
                }
                advance(2, 2)
        return self._reference

    def search_losses(self, states: States) -> Tensor:
        """Damage to each search image, KL to the float model for classification; kept, as a few numbers, for
        the next who asks.
        """
        key = digest_of_states(states)
        if key not in self._losses:
            floats = self.reference()["search"]
            self._losses[key] = self.task.damage(
                self._timed(install(self.subject.placed.module, states)), floats
            )
        return self._losses[key]

    def images(self, whole: bool) -> SampleSet:
        """All evaluation images, or the first of them, on the device; their order is random by the seed."""
        images = self.subject.placed.evaluation
        return images if whole or len(images) <= FEW else images.subset(range(FEW))

    def metrics(self, states: States, whole: bool) -> Metrics:
        """Of quantised units, on all evaluation images; or on the first of them, from whose accuracy what the
        float model has on these is taken, and what it has on all is added: so rows of both kinds compare.
        """
        images, floats = self.images(whole), self.reference()["evaluation"]
        outputs = (
            self.outputs(states) if whole else predict(install(self.subject.placed.module, states), images)
        )
        found = self.task.compare(outputs, floats[: len(images)], images.labels)
        return found if len(images) == len(floats) else self._as_of_all(found)

    def _as_of_all(self, found: Metrics) -> Metrics:
        """What was measured on the first images, shifted by what the float model has on all less what it has
        on these.
        """
        if self._floats is None:
            floats, few, all_images = self.reference()["evaluation"], self.images(False), self.images(True)
            first = floats[: len(few)]
            self._floats = (
                self.task.compare(first, first, few.labels),
                self.task.compare(floats, floats, all_images.labels),
            )
        here, there = self._floats

        def moved(name: str) -> float | None:
            values = [getattr(each, name) for each in (found, here, there)]
            return None if None in values else values[0] - values[1] + values[2]

        top1 = moved("top1")
        return replace(
            found,
            top1=None if top1 is None else min(max(top1, 0.0), 1.0),
            loss=moved("loss"),
            scores={
                k: v - here.scores.get(k, 0.0) + there.scores.get(k, 0.0) for k, v in found.scores.items()
            },
        )

    def keeps(self, states: States) -> bool:
        """Whether outputs are there already."""
        return digest_of_states(states) in self._outputs

    def outputs(self, states: States) -> Tensor:
        """Of quantised units on all evaluation images; kept, where they are small, for the next who asks."""
        key = digest_of_states(states)
        if key in self._outputs:
            return self._outputs[key]
        self.tell("An assignment")
        found = predict(install(self.subject.placed.module, states), self.subject.placed.evaluation)
        if found.nbytes <= KEPT_BYTES:
            self._outputs[key] = found
            while len(self._outputs) > KEPT:
                self._outputs.pop(next(iter(self._outputs)))
        return found

    def tell(self, what: str, passes: int = 1) -> None:
        """Say what passes over all evaluation images will take, by the last pass over the search images."""
        images, search = len(self.subject.splits.evaluation), len(self.subject.splits.search)
        seconds = passes * self._seconds * images / search
        took = (
            f"{seconds:.1f} s"
            if seconds < 10
            else f"{seconds:.0f} s"
            if seconds < 120
            else f"{seconds / 60:.0f} min"
        )
        times = "" if passes == 1 else f" {passes} times"
        self.progress.say(f"{what} goes over {images:,} evaluation images{times}, which takes about {took}.")

    def _timed(self, module: object) -> Tensor:
        """Outputs on the search images; how long they took is what a pass over others is estimated by."""
        start = time.perf_counter()
        outputs = predict(module, self.subject.placed.search)  # type: ignore[arg-type]
        self._seconds = time.perf_counter() - start
        return outputs
