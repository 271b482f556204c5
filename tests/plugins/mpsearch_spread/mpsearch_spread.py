"""`weight_spread`: what a step is of a weight's spread. No data, no forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mpsearch.objectives import Objective, ScoringContext


@dataclass(frozen=True)
class WeightSpread(Objective):
    """(max W - min W) / (std W * (2^b - 1)) to a power: large where few values reach far."""

    unit: ClassVar[str] = "steps of one standard deviation"
    power: float = 2.0

    def score(self, context: ScoringContext) -> list[list[float]]:
        rows = []
        for done, (layer, candidates) in enumerate(
            zip(context.layers, context.candidates, strict=True), start=1
        ):
            weight = context.calibration.weights.get(layer.name)
            spread = (
                0.0
                if weight is None
                else float((weight.max() - weight.min()) / weight.std().clamp_min(1e-30))
            )
            rows.append(
                [0.0 if c.w_bits is None else (spread / (2**c.w_bits - 1)) ** self.power for c in candidates]
            )
            context.on_step(done, len(context.layers))
        return rows
