"""`Layer`: a unit that can be quantised, described by plain numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ConvAttributes:
    """What a convolution kernel is besides its shapes. Padding is what the kernel itself does, after any
    explicit pad.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True)
class Layer:
    """A quantisable unit of a model.

    Args:
        name: Its key in `named_modules`; an activation product is `<module>.matmul<i>`.
        op: `conv2d`, `linear` or `matmul`.
        weight_shape: Shape of the weight; empty for `matmul`.
        input_shapes: Shapes of the tensor operands at batch 1 (one; two for `matmul`).
        output_shape: Shape of the output at batch 1.
        macs: Multiply-accumulates for one image, over all calls.
        block: Name of the block it is reconstructed in.
        tie: Units of one tie share a choice; None where a unit is free.
        bias: Whether it has a bias.
        conv: Attributes of a convolution.
        calls: How often one forward pass calls it.
    """

    name: str
    op: str
    weight_shape: Shape
    input_shapes: tuple[Shape, ...]
    output_shape: Shape
    macs: int
    block: str
    tie: str | None = None
    bias: bool = False
    conv: ConvAttributes | None = None
    calls: int = 1

    @property
    def weight_numel(self) -> int:
        """Number of weights; 0 for an activation product."""
        return math.prod(self.weight_shape) if self.weight_shape else 0

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Layer:
        """Inverse of `to_json`."""
        conv = data.get("conv")
        if conv is not None:
            conv = ConvAttributes(
                tuple(conv["stride"]), tuple(conv["padding"]), tuple(conv["dilation"]), conv["groups"]
            )
        return cls(
            **{
                **data,
                "weight_shape": tuple(data["weight_shape"]),
                "input_shapes": tuple(tuple(s) for s in data["input_shapes"]),
                "output_shape": tuple(data["output_shape"]),
                "conv": conv,
            }
        )
