"""`kl`: the measured KL divergence of the logits when one unit alone is quantised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mpsearch.evaluate import FastEvaluator
from mpsearch.evaluate.prefixes import MOST_PROBES
from mpsearch.objectives._base import OBJECTIVES, Objective, Passes, Rows, ScoringContext, require_positive
from mpsearch.objectives._grads import calibrated_units
from mpsearch.objectives._local import first_images
from mpsearch.problem import Assignment
from mpsearch.problem.assignment import FLOAT

WORK = 8e12
"""Multiply-accumulates of all passes together, had they all to start at the first unit; about half of it is
done. Some minutes on two cores.
"""
LEAST, MOST = 32, 1024
"""Images, whatever they cost."""


@OBJECTIVES.register("kl")
@dataclass(frozen=True)
class Kl(Objective):
    """Mean over images of KL(float || one unit at the candidate, all other units float).

    The truth for one unit, weight and input together; that the whole is the sum of its units is assumed. The
    dearest of the additive
    objectives: a forward pass from the unit on for every unit and candidate. Few images make much of the KL
    of a network that is sure of most of them, so as many are used as `WORK` allows.

    References: Cai et al., ZeroQ, CVPR 2020, arXiv:2001.00281 (sensitivity of one layer); the KL score of
    NVIDIA ModelOpt's `auto_quantize`, which minimises the largest such score where this table is summed.

    Args:
        images: Calibration images used; None for as many as `WORK` allows, `LEAST` to `MOST`.
        memory_mb: Bound on the quantised weights and the outputs of shared prefixes that are kept at a time,
            in 10^6 bytes; a pass starts behind the units before the quantised one where their outputs fit.
    """

    needs_data: ClassVar[bool] = True
    unit: ClassVar[str] = "nats"
    images: int | None = None
    memory_mb: int = 2048

    def __post_init__(self) -> None:
        require_positive("kl", images=LEAST if self.images is None else self.images, memory_mb=self.memory_mb)

    def passes(self, context: ScoringContext) -> Passes:
        """One forward pass of the float model, one for every integer candidate of every calibrated unit, and
        those of two images that tell where passes can start, at most.
        """
        return Passes(2 * MOST_PROBES + self.count(context) * (1 + _choices(context)))

    def score(self, context: ScoringContext) -> Rows:
        """`L x C_l`: each unit alone at each candidate."""
        images, room = first_images(context, self.count(context)), self.memory_mb * 10**6
        evaluator = FastEvaluator(
            context.module, context.calibration, images, memory_limit_bytes=room, task=context.task
        )
        everything = [*context.calibration.weights, *context.calibration.products]
        rows: Rows = []
        for done, (layer, candidates) in enumerate(zip(context.layers, context.candidates, strict=True)):
            row = []
            for candidate in candidates:
                quiet = candidate.is_float or layer.name not in everything
                choice = Assignment(
                    tuple((unit, candidate if unit == layer.name else FLOAT) for unit in everything)
                )
                row.append(0.0 if quiet else evaluator.measure(choice))
            rows.append(row)
            context.on_step(done + 1, len(context.layers))
        return rows

    def count(self, context: ScoringContext) -> int:
        """Images that are used."""
        wanted = self.images
        if wanted is None:
            passes = sum(layer.macs for layer in context.layers) * _choices(context)
            wanted = int(min(max(WORK / max(passes, 1), LEAST), MOST))
        return min(wanted, len(context.images))


def _choices(context: ScoringContext) -> int:
    """Integer candidates of calibrated units."""
    units = set(calibrated_units(context))
    return sum(
        not c.is_float
        for layer, row in zip(context.layers, context.candidates, strict=True)
        if layer.name in units
        for c in row
    )
