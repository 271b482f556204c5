"""`gradient`: the squared gradient at each output element times the squared error that quantisation makes
there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mpsearch.objectives._base import (
    OBJECTIVES,
    Objective,
    Parts,
    Passes,
    Rows,
    ScoringContext,
    require_positive,
)
from mpsearch.objectives._grads import Cotangents, Target, walk
from mpsearch.objectives._local import first_images, unit_passes
from mpsearch.objectives._moves import add_moves, parts_of, weighed


@OBJECTIVES.register("gradient")
@dataclass(frozen=True)
class Gradient(Objective):
    """Mean over images of the sum over output elements of (dL/dY)^2 (Y_hat - Y)^2, weight and input quantised
    together, all other units float.

    L is the cross entropy of one image. The gradient of KL(float || quantised) is zero at the float model, so
    the label is drawn from the model's own softmax: the mean of the squared gradient is then the diagonal of
    the Fisher information at Y, and half the score is the KL divergence to second order, up to the
    covariances between elements, which are left out. A product of two activations is scored at its operands.
    Calls of one unit add up.

    References: the gradient method of NVIDIA ModelOpt's `auto_quantize` (commit 5a4242f). Differs in: labels
    are drawn, where ModelOpt takes the user's loss (`target=labels` does so).

    Args:
        target: `model` (labels drawn from the model's softmax) or `labels` (the images' own; almost no
            gradient is left where the model fits them).
        samples: Labels drawn for each image; with `labels` more than 1 adds nothing.
        contributions: Whether weight and input are also quantised one without the other, to report what each
            does. The two do not add up to the total, which knows how the errors go together.
        images: Calibration images used.
        batch_size: Images of one pass; memory grows with it, the scores do not depend on it.
    """

    needs_data: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True
    unit: ClassVar[str] = "nats, about twice the KL divergence"
    target: Target = "model"
    samples: int = 1
    contributions: bool = False
    images: int = 128
    batch_size: int = 8

    def __post_init__(self) -> None:
        require_positive("gradient", samples=self.samples, images=self.images, batch_size=self.batch_size)

    def passes(self, context: ScoringContext) -> Passes:
        """One forward pass, a backward pass for each sample, and each unit at each candidate."""
        count = min(self.images, len(context.images))
        return Passes(count, count * self.samples, count * unit_passes(context, self.contributions))

    def score(self, context: ScoringContext) -> Rows:
        """`L x C_l`."""
        return self.parts(context).total

    def parts(self, context: ScoringContext) -> Parts:
        """The table, and what weights and inputs contribute where `contributions` asks for it."""
        images = first_images(context, self.images)
        batches = walk(
            context, images, self.batch_size, Cotangents(self.target, images, context.seed, self.samples)
        )
        moves = add_moves(context, batches, weighed, self.contributions)
        return parts_of(moves, [np.full(2, 1 / len(images))] * len(context.layers), self.contributions)
