"""`kl_fisher`: two estimates of the KL divergence that one unit causes, the measured one and that of second order, and their mean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from mpsearch.objectives._base import OBJECTIVES, Objective, Parts, Passes, Rows, ScoringContext, require_positive
from mpsearch.objectives.fisher import Fisher
from mpsearch.objectives.kl import Kl


@OBJECTIVES.register("kl_fisher")
@dataclass(frozen=True)
class KlFisher(Objective):
    """(`kl` + `fisher` / 2) / 2: what is measured, and what the Fisher information predicts, of the same divergence in nats.

    The measured divergence of one unit alone is right for that unit, but levels off where the unit does much damage, which units that are
    quantised beside it do not, and is made by few images where the model is sure of most. The second-order one knows nothing of higher
    orders, but keeps growing with the squared error and varies less with the images. Where they err in different places the mean errs less
    than either: so on a ResNet, but not at 4 bits on a transformer (docs/objectives.md has the measurements). Where the task has no classes
    there is no Fisher information of them, and this is `kl`.

    References: ours. Of the parts, see `kl` and `fisher`.

    Args:
        images: Calibration images of both; None for each one's own number.
        memory_mb: As in `kl`.
    """

    needs_data: ClassVar[bool] = True
    unit: ClassVar[str] = "nats"
    images: int | None = None
    memory_mb: int = 2048

    def __post_init__(self) -> None:
        require_positive("kl_fisher", images=1 if self.images is None else self.images, memory_mb=self.memory_mb)

    @property
    def _fisher(self) -> Fisher:
        return Fisher() if self.images is None else Fisher(images=self.images)

    @property
    def _kl(self) -> Kl:
        return Kl(images=self.images, memory_mb=self.memory_mb)

    def passes(self, context: ScoringContext) -> Passes:
        """Of both."""
        kl, fisher = self._kl.passes(context), self._fisher.passes(context) if context.task.classes else Passes()
        return Passes(kl.forward + fisher.forward, kl.backward + fisher.backward, kl.units + fisher.units)

    def score(self, context: ScoringContext) -> Rows:
        """`L x C_l`."""
        return self.parts(context).total

    def parts(self, context: ScoringContext) -> Parts:
        """The table, and what weights and inputs contribute in the proportion that the Fisher information gives them."""
        if not context.task.classes:
            return self._kl.parts(context)
        images = min(self._fisher.images, len(context.images))  # its steps; those of `kl` are the layers
        steps = images + len(context.layers)
        fisher = self._fisher.parts(replace(context, on_step=lambda done, total: context.on_step(done, steps)))
        measured = self._kl.score(replace(context, on_step=lambda done, total: context.on_step(images + done, steps)))
        total = [[(m + f / 2) / 2 for m, f in zip(*rows, strict=True)] for rows in zip(measured, fisher.total, strict=True)]
        return Parts(total, _shares(total, fisher.weights, fisher.total), _shares(total, fisher.activations, fisher.total))


def _shares(total: Rows, part: Rows | None, whole: Rows) -> Rows | None:
    if part is None:
        return None
    return [[t * p / w if w else 0.0 for t, p, w in zip(*rows, strict=True)] for rows in zip(total, part, whole, strict=True)]
