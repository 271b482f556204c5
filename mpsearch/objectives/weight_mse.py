"""`weight_mse`: the squared error of the quantised weight. No data, no forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mpsearch.objectives._base import OBJECTIVES, Objective, Rows, ScoringContext
from mpsearch.quant.devices import wide


@OBJECTIVES.register("weight_mse")
@dataclass(frozen=True)
class WeightMse(Objective):
    """||W_hat - W||^2 of each unit, over ||W||^2 where `normalize` is `power`.

    Blind to the input bits and to what the network does with the weight.

    Args:
        normalize: `power` (noise-to-signal ratio, comparable between units) or `none` (squared norm).
    """

    unit: ClassVar[str] = "noise-to-signal ratio"
    normalize: Literal["power", "none"] = "power"

    def score(self, context: ScoringContext) -> Rows:
        """`L x C_l`; cost: no forward pass."""
        rows: Rows = []
        for done, (layer, candidates) in enumerate(zip(context.layers, context.candidates, strict=True)):
            weight = context.calibration.weights.get(layer.name)
            power = 0.0 if weight is None else float(wide(weight).square().sum())
            row = []
            for candidate in candidates:
                state = (
                    None
                    if weight is None or candidate.is_float
                    else context.calibration.state(layer.name, candidate)
                )
                if weight is None or state is None or state.weight is None:
                    row.append(0.0)
                    continue
                error = float(wide(state.weight.dequantize() - weight).square().sum())
                row.append(error if self.normalize == "none" else error / max(power, 1e-30))
            rows.append(row)
            context.on_step(done + 1, len(context.layers))
        return rows
