"""`jacobian`: how much the logits move with a unit's output, by Tr(J^T J), times the squared error of that
output. No labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mpsearch.objectives._base import (
    OBJECTIVES,
    Objective,
    Parts,
    Passes,
    Rows,
    ScoringContext,
    require_positive,
)
from mpsearch.objectives._grads import Cotangents, walk
from mpsearch.objectives._local import first_images, unit_passes
from mpsearch.objectives._moves import add_moves, parts_of, watch_slopes


@OBJECTIVES.register("jacobian")
@dataclass(frozen=True)
class Jacobian(Objective):
    """T / n * E: what the error would do to the logits if it pointed nowhere in particular.

    Over N images x, with Y the n output elements of the unit for one image (all its calls together), f the K
    logits and J = df/dY: T = mean over x of Tr(J^T J) = mean of ||J^T v||^2 over random v of K entries +-1; E
    = mean over x of ||Y_hat - Y||^2, weight and input of the unit quantised together, all others float. Then
    ||f(Y_hat) - f(Y)||^2 is T / n * E if the error has no direction, and `gradient` is the form that keeps
    its place. A product of two activations is the sum of two such terms, at its operands.

    References: after the Hessian scores of Sony's Model Compression Toolkit (commit fad922f), which take the
    same trace of each activation tensor as a weight of its normalised error. Differs in: the error is that of
    the unit's own output, not normalised, so that T / n * E is in squared logits.

    Args:
        metric: `logits` (v of +-1: squared error of the logits) or `softmax` (v = p - e_y with y drawn from
            the softmax p, so that the logits are measured by their Fisher information: about twice the KL
            divergence, in nats).
        probes: Random v for each image.
        contributions: As in `gradient`.
        images: Calibration images used.
        batch_size: Images of one pass; memory grows with it, the scores do not depend on it.
    """

    needs_data: ClassVar[bool] = True
    unit: ClassVar[str] = "squared logits"
    metric: Literal["logits", "softmax"] = "logits"
    probes: int = 4
    contributions: bool = False
    images: int = 128
    batch_size: int = 8

    def __post_init__(self) -> None:
        require_positive("jacobian", probes=self.probes, images=self.images, batch_size=self.batch_size)

    def passes(self, context: ScoringContext) -> Passes:
        """One forward pass, a backward pass for each probe, and each unit at each candidate."""
        count = min(self.images, len(context.images))
        return Passes(count, count * self.probes, count * unit_passes(context, self.contributions))

    def score(self, context: ScoringContext) -> Rows:
        """`L x C_l`."""
        return self.parts(context).total

    def parts(self, context: ScoringContext) -> Parts:
        """The table, and what weights and inputs contribute where `contributions` asks for it."""
        images = first_images(context, self.images)
        cotangents = Cotangents(
            "rademacher" if self.metric == "logits" else "model", images, context.seed, self.probes
        )
        slopes = {layer.name: np.zeros((2, 2)) for layer in context.layers}
        batches = watch_slopes(walk(context, images, self.batch_size, cotangents), slopes)
        moves = add_moves(context, batches, _squared, self.contributions)
        return parts_of(
            moves,
            [_mean_slope(slopes[layer.name]) / len(images) for layer in context.layers],
            self.contributions,
        )


def _squared(shift: Tensor, _: Tensor | None) -> Tensor:
    return shift.square_().sum()


def _mean_slope(slope: NDArray[np.float64]) -> NDArray[np.float64]:
    """T / n at each node: squared gradient of the mean element."""
    mean: NDArray[np.float64] = slope[0] / np.maximum(slope[1], 1)
    return mean
