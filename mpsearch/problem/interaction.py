"""`Interaction`: damage, or use of a resource, that only the joint choice of several layers decides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpsearch.errors import UserError


@dataclass(frozen=True)
class Interaction:
    """A table over the choices of n layers, added to what their own rows say. A pair has n = 2; all tuples of
    a block are one table.

    Args:
        layers: Positions of n different layers in the problem, n at least 2.
        shape: [n] number of candidates of each.
        values: Damage, or cost in the unit of its resource, of every tuple of choices, that of the last layer
            changing fastest; may be negative.
    """

    layers: tuple[int, ...]
    shape: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if (
            len(self.layers) < 2
            or len(set(self.layers)) < len(self.layers)
            or len(self.shape) != len(self.layers)
        ):
            raise UserError(
                f"An interaction is between two or more different layers, not {self.layers} with the "
                f"shape {self.shape}."
            )
        if len(self.values) != math.prod(self.shape):
            raise UserError(
                f"The interaction of the layers {self.layers} has {len(self.values)} values; its shape "
                f"{self.shape} needs {math.prod(self.shape)}."
            )
        if not all(math.isfinite(v) for v in self.values):
            raise UserError(
                f"The interaction of the layers {self.layers} has a value that is NaN or infinite; every "
                "value must be a finite number."
            )

    def value(self, indices: Sequence[int]) -> float:
        """What it adds to an assignment of all `L` layers, of which only its own count."""
        at = 0
        for layer, width in zip(self.layers, self.shape, strict=True):
            at = at * width + indices[layer]
        return self.values[at]

    def only(self, kept: Sequence[Sequence[int]]) -> Interaction:
        """The same for fewer candidates: those at the positions `kept[l]` of each of all `L` layers."""
        own = [kept[layer] for layer in self.layers]
        steps = [math.prod(self.shape[k + 1 :]) for k in range(len(self.shape))]
        values = (
            self.values[sum(step * c for step, c in zip(steps, pick, strict=True))]
            for pick in itertools.product(*own)
        )
        return Interaction(self.layers, tuple(map(len, own)), tuple(values))

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        return {"layers": list(self.layers), "shape": list(self.shape), "values": list(self.values)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Interaction:
        """Inverse of `to_json`."""
        return cls(tuple(data["layers"]), tuple(data["shape"]), tuple(data["values"]))
