"""Uniform affine quantisation: q = clamp(round(x / scale) + zero_point, qmin, qmax), x_hat = (q - zero_point)
* scale.

Symmetric grids are signed with zero point 0 (qmin = -2^(b-1)); asymmetric grids are unsigned (qmin = 0).
Rounding is to nearest, ties to even, as in torch and ONNX.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from mpsearch.errors import UserError

ZERO_SCALE = 1e-8
"""Scale of what is zero throughout. There is no other floor: how small a scale is depends on the tensor's
unit.
"""
_LEAST = torch.finfo(torch.float32).tiny


class ActivationQuantizer(Protocol):
    """What a quantised layer needs of the quantiser of a tensor that it reads."""

    @property
    def bits(self) -> int:
        """2 to 8."""

    def fake_quantize(self, x: Tensor) -> Tensor:
        """`x` on the grid, same shape; the gradient is straight-through inside the range."""


@dataclass(frozen=True)
class AffineParams:
    """A quantiser of one tensor.

    Args:
        scale: float32; 0-d, or [C] along `axis`.
        zero_point: int32, shape of `scale`; 0 for symmetric grids.
        bits: 2 to 8.
        symmetric: Signed grid around zero, else unsigned grid with a zero point.
        axis: Axis that `scale` runs along; None for one scale for the tensor.
    Raises: UserError: Other bits, or a scale that is not positive and finite.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int
    symmetric: bool
    axis: int | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UserError(f"A quantiser has {self.bits} bits; it must have 2 to 8.")
        if (
            self.scale.device.type != "cpu"
        ):  # reading it would wait for the device; states are checked on the CPU
            return
        low, high = self.scale.aminmax()  # NaN comes out of both
        if not 0 < float(low) <= float(high) < math.inf:
            raise UserError(
                f"The scale of a quantiser runs from {float(low):g} to {float(high):g}; it must be "
                "positive and finite. Check the range that it is taken from."
            )

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def qmax(self) -> int:
        """Largest code."""
        return self.qmin + (1 << self.bits) - 1

    @cached_property
    def ends(self) -> tuple[int, int]:
        """Lowest and highest level in steps, of one scale for the tensor; read from the device once."""
        zero_point = int(self.zero_point)
        return self.qmin - zero_point, self.qmax - zero_point

    @property
    def step(self) -> Tensor:
        """What every level is a multiple of: the scale."""
        return self.scale

    def fake_quantize(self, x: Tensor) -> Tensor:
        """`fake_quantize(x, self)`."""
        return fake_quantize(x, self)

    def scaled(self, factor: Tensor) -> AffineParams:
        """The same with all levels times `factor`."""
        return replace(self, scale=self.scale * factor)

    def expanded(self, ndim: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point, float32, shaped to broadcast over a tensor of `ndim` axes."""
        if self.axis is None:
            return self.scale, self.zero_point.to(self.scale.dtype)
        shape = [1] * ndim
        shape[self.axis] = -1
        return self.scale.view(shape), self.zero_point.to(self.scale.dtype).view(shape)


@dataclass(frozen=True)
class QuantizedTensor:
    """Codes (int16, any shape) with the quantiser that reads them."""

    codes: Tensor
    params: AffineParams

    def dequantize(self) -> Tensor:
        """The float32 tensor that the codes stand for."""
        return dequantize(self.codes, self.params)


def affine_params(
    low: Tensor, high: Tensor, bits: int, *, symmetric: bool, axis: int | None = None
) -> AffineParams:
    """The quantiser whose grid spans [low, high]; the range is widened to hold zero.

    Args:
        low: Smallest value, 0-d or [C].
        high: Largest value, same shape.
        bits: 2 to 8.
        symmetric: Signed grid with max(|low|, |high|) on (qmax - qmin) / 2, else unsigned grid.
        axis: Axis that [C] runs along.
    References: Wei et al., QDrop, ICLR 2022 (the quantiser of its released code).
    """
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    steps = 2**bits - 1
    if symmetric:
        scale = step_of(torch.maximum(-low, high), steps / 2)
        return AffineParams(scale, torch.zeros_like(scale, dtype=torch.int32), bits, True, axis)
    scale = step_of(high - low, steps)
    zero_point = torch.round(-low / scale).clamp(0, steps).to(torch.int32)
    return AffineParams(scale, zero_point, bits, False, axis)


def step_of(reach: Tensor, steps: float) -> Tensor:
    """`reach` / `steps`, a positive normal number; `ZERO_SCALE` where the reach is zero."""
    return torch.where(reach > 0, reach.div(steps).clamp(min=_LEAST), ZERO_SCALE)


def quantize(x: Tensor, params: AffineParams) -> Tensor:
    """Codes of `x`, int16, same shape."""
    scale, zero_point = params.expanded(x.ndim)
    return (torch.round(x / scale) + zero_point).clamp(params.qmin, params.qmax).to(torch.int16)


def dequantize(codes: Tensor, params: AffineParams) -> Tensor:
    """The float32 values of codes. One subtraction and one product, so that every loader gives the same
    bits.
    """
    scale, zero_point = params.expanded(codes.ndim)
    return (codes.to(scale.dtype) - zero_point) * scale


def fake_quantize(x: Tensor, params: AffineParams) -> Tensor:
    """`dequantize(quantize(x))` to the bit; its gradient is straight-through inside the range.

    Elementwise passes of their own vectorise where torch's fused kernels do not, and are several times faster
    on a CPU.
    """
    scale, zero_point = params.expanded(x.ndim)
    if x.requires_grad and torch.is_grad_enabled():
        rounded: Tensor = StraightThrough.apply(x, scale, zero_point, params.qmin, params.qmax)
        return rounded
    return round_to_grid(x.float() / scale, scale, zero_point, params.qmin, params.qmax).to(x.dtype)


def round_to_grid(scaled: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """The grid values nearest to `scaled` * `scale`; overwrites `scaled`."""
    return scaled.round_().add_(zero_point).clamp_(qmin, qmax).sub_(zero_point).mul_(scale)


def inside_range(scaled: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """1.0 where `scaled` = x / scale rounds to a code of the grid, else 0.0; overwrites `scaled`."""
    return scaled.add_(zero_point - (qmin + qmax) / 2).abs_().le_((qmax - qmin + 1) / 2)


class StraightThrough(torch.autograd.Function):
    """`fake_quantize` whose gradient passes unchanged inside the range and is zero outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
        """`x` on the grid."""
        scaled = x.float() / scale
        quantized = round_to_grid(scaled.clone(), scale, zero_point, qmin, qmax)
        ctx.save_for_backward(inside_range(scaled, zero_point, qmin, qmax))
        return quantized.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of `x` alone."""
        (inside,) = ctx.saved_tensors
        return (grads[0] * inside).to(grads[0].dtype), None, None, None, None
