"""How the units of a model hang together, as far as it decides latency: the tensors between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mpsearch import files
from mpsearch.errors import UserError
from mpsearch.problem import Layer

WIRE_KINDS = ("direct", "sum", "join")


@dataclass(frozen=True, order=True)
class Wire:
    """A tensor that two units have to do with.

    Args:
        source: Position of the unit that writes it.
        target: Position of the unit that reads it; of a `join`, of the other unit that the sum takes its
            terms from.
        kind: `direct` (only activations, pooling or a change of shape lie between), `sum` (a residual sum
            lies between) or `join` (both feed one sum, which a runtime may compute inside one of them).
        numel: Elements of the tensor for one image.
    """

    source: int
    target: int
    kind: str
    numel: int

    def __post_init__(self) -> None:
        if self.kind not in WIRE_KINDS:
            raise UserError(f"A wire is {', '.join(WIRE_KINDS)}, not {self.kind!r}.")
        if self.source == self.target or self.numel < 1:
            raise UserError(
                f"A wire joins two different units and holds something, not {self.source}, {self.target} "
                f"with {self.numel} elements."
            )

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        return asdict(self)


def model_key(name: str, layers: Sequence[Layer], wires: Sequence[Wire]) -> str:
    """What whole-model runs of one architecture have in common, whatever its weights: its name for people,
    and a digest.
    """
    shapes = [{k: v for k, v in layer.to_json().items() if k not in ("macs", "block")} for layer in layers]
    return f"{name}-{files.digest([shapes, [w.to_json() for w in sorted(wires)]])}"
