"""The grids of a unit as its kernel knows them: codes from 0 up, and the numbers that make values of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class InputGrid:
    """Quantiser of the input of an integer unit: codes 0 .. 2^bits - 1, x_hat = (q - zero_point) * scale; the
    kernels hold codes less 2^(bits - 1) as int8.
    """

    scale: float
    zero_point: int
    bits: int = 8

    @property
    def half(self) -> int:
        """What is taken off a code."""
        return 1 << (self.bits - 1)


@dataclass(frozen=True)
class WeightCodes:
    """A quantised weight: w_hat = (codes - zero_point[n]) * scale[n].

    Args:
        codes: Unsigned integers 0 .. 2^bits - 1, [N, ...].
        scale: float32 [N].
        zero_point: int32 [N], on the grid of the codes; None for 2^(bits - 1), which is the symmetric grid.
        bits: 1 to 8.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bits: int

    def dequantize(self) -> Tensor:
        """float64, shape of `codes`."""
        shape = (-1, *[1] * (self.codes.ndim - 1))
        zero = (
            torch.full_like(self.scale, 1 << (self.bits - 1)) if self.zero_point is None else self.zero_point
        )
        return (self.codes.double() - zero.double().view(shape)) * self.scale.double().view(shape)
