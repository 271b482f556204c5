"""`sketch`: the damage of each unit to second order, seen along random directions of the output's
curvature.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import torch
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
from mpsearch.objectives._local import weight_kind
from mpsearch.objectives._sketches import Sketches, sketches
from mpsearch.quant.devices import wide


@OBJECTIVES.register("sketch")
@dataclass(frozen=True)
class Sketch(Objective):
    """Half the mean over images and directions v of <J^T v, e>^2, with e the error of the unit's own output
    and J its Jacobian.

    E[v v^T] is the curvature of the task's damage at the float model's output; for KL(float || quantised) it
    is diag(p) - p p^T, and v = p^(1/2) xi - p (p^(1/2) . xi) with xi of +-1. So the score is the damage of
    the unit alone to second order, with the covariances inside a unit, which `gradient` and `fisher` leave
    out, and without those between units. It looks at images that no state was made from: on its own images a
    unit in closed form seems better than it is.

    The error of the weight is the product of each image's weight gradient with it, so all widths cost one
    product; the error of the input is met by the gradient there; the two are added before squaring, each at
    the float model.

    References: ours; a random-probe Gauss-Newton after Martens, ICML 2010 (the curvature), and Dong et al.,
    HAWQ-V2, NeurIPS 2020, arXiv:1911.03852 (a curvature times an error, for mixed precision).

    Args:
        images: Held-out images used.
        probes: Directions for each image.
        batch_size: Images of one pass, at most.
        memory_mb: Bound on inputs, outputs and gradients of a batch, in 10^6 bytes; the batch is made smaller
            to keep it.
    """

    needs_data: ClassVar[bool] = True
    unit: ClassVar[str] = "damage, to second order"
    images: int = 512
    probes: int = 1
    batch_size: int = 16
    memory_mb: int = 2048

    def __post_init__(self) -> None:
        counts = {
            "images": self.images,
            "probes": self.probes,
            "batch_size": self.batch_size,
            "memory_mb": self.memory_mb,
        }
        require_positive("sketch", **counts)

    def passes(self, context: ScoringContext) -> Passes:
        """One forward pass of the images and of one more, and a backward pass for each direction."""
        count = min(self.images, len(context.unseen))
        return Passes(count + 1, count * self.probes)

    def score(self, context: ScoringContext) -> Rows:
        """`L x C_l`."""
        return self.parts(context).total

    def parts(self, context: ScoringContext) -> Parts:
        """The table, and what weights and inputs contribute; they do not add up to it, for they are added
        before squaring.
        """
        images = context.unseen.subset(range(min(self.images, len(context.unseen))))
        found = sketches(context, images, self.probes, self.batch_size, self.memory_mb * 10**6)
        rows = [
            [found.at(layer.name, c) for c in row]
            for layer, row in zip(context.layers, context.candidates, strict=True)
        ]
        notes = tuple(
            f"{unit}: the output does not depend on it, so its damage is 0."
            for unit in sorted(found.unreached)
        )
        return Parts(_tied(context, rows), *_apart(context, found), notes)


def _tied(context: ScoringContext, rows: list[list[Tensor | None]]) -> Rows:
    """Half the mean squares. Units of a tie share a choice, so their errors add before squaring; the sum is
    shared out by what each does alone.
    """
    alone = [[_half(s) for s in row] for row in rows]
    ties = defaultdict(list)
    for at, layer in enumerate(context.layers):
        ties[layer.tie or layer.name].append(at)
    for members in ties.values():
        if len(members) < 2 or len({tuple(map(str, context.candidates[at])) for at in members}) > 1:
            continue
        for column in range(len(rows[members[0]])):
            held = [s for at in members if (s := rows[at][column]) is not None]
            own = sum(alone[at][column] for at in members)
            if held and own > 0:
                factor = _half(torch.stack(held).sum(0)) / own
                for at in members:
                    alone[at][column] *= factor
    return alone


def _apart(context: ScoringContext, found: Sketches) -> tuple[Rows, Rows]:
    weights: Rows = []
    inputs: Rows = []
    for layer, row in zip(context.layers, context.candidates, strict=True):
        known = layer.name in found.weights
        weights.append(
            [
                _half(found.weights[layer.name][weight_kind(c)]) if known and not c.is_float else 0.0
                for c in row
            ]
        )
        inputs.append(
            [_half(found.inputs[layer.name][c.a_bits]) if known and not c.is_float else 0.0 for c in row]
        )
    return weights, inputs


def _half(s: Tensor | None) -> float:
    return 0.0 if s is None else float(wide(s).square().mean()) / 2
