"""Observers: from values to the range that a quantiser should span. One file while each is a few lines.

Every observer works on a matrix R x n: R = 1 for one scale for the tensor, R = C for one for each channel.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mpsearch.errors import DataError, OptionError
from mpsearch.quant.affine import AffineParams, affine_params, fake_quantize
from mpsearch.registry import Registry

_CHUNK_VALUES = 2**17  # rows are searched in chunks that stay in the cache
_DEVICE_CHUNK_VALUES = 2**24  # or that keep a GPU busy

MAX_VALUES = 2**22
"""Values of one row that a percentile is taken over; of a longer row a random subset."""


class Observer(ABC):
    """Chooses the range of a quantiser from data."""

    name: ClassVar[str]

    def observe(self, x: Tensor, bits: int, *, symmetric: bool, axis: int | None = None) -> AffineParams:
        """The quantiser for `x`.

        Args:
            x: Values, any shape.
            bits: 2 to 8.
            symmetric: Signed grid around zero.
            axis: Axis with one scale for each index; None for one scale.

        Raises:
            DataError: `x` is empty, or holds NaN or infinity.
        """
        if x.numel() == 0 or not torch.isfinite(x).all():
            raise DataError(
                "A range cannot be taken of "
                f"{'no values' if x.numel() == 0 else 'values that are NaN or infinite'} (shape "
                f"{tuple(x.shape)})."
            )
        rows = (
            x.detach().float().reshape(1, -1)
            if axis is None
            else x.detach().float().movedim(axis, 0).flatten(1)
        )
        low, high = self._range(rows, bits, symmetric)
        return affine_params(
            low[0] if axis is None else low,
            high[0] if axis is None else high,
            bits,
            symmetric=symmetric,
            axis=axis,
        )

    @abstractmethod
    def _range(self, rows: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """Low and high, each [R], of `rows` [R, n]."""


OBSERVERS: Registry[Observer] = Registry("observer", "mpsearch.quant")


@OBSERVERS.register("minmax")
@dataclass(frozen=True)
class MinMax(Observer):
    """The extremes: nothing is clipped."""

    def _range(self, rows: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        return rows.amin(1), rows.amax(1)


@OBSERVERS.register("percentile")
@dataclass(frozen=True)
class Percentile(Observer):
    """The quantiles (1 - p, p) of each row, linearly interpolated.

    Args:
        percent: 100 * p, over 50 and at most 100.
    """

    percent: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percent <= 100:
            raise OptionError(
                f"The percentile is {self.percent}; it must be over 50 and at most 100, such as 99.99."
            )

    def _range(self, rows: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        values = _subset(rows, MAX_VALUES).sort(dim=1).values
        return _quantile(values, 1 - self.percent / 100), _quantile(values, self.percent / 100)


@OBSERVERS.register("mse")
@dataclass(frozen=True)
class Mse(Observer):
    """The range, among copies of [min, max] shrunk by 0 to 80 %, with the least mean |x_hat - x|^power.

    References: Li et al., BRECQ, ICLR 2021 (the search of its released code: 80 copies, power 2.4). Differs
    in: the error of a long row is taken over `values` of its elements, drawn at random, and its extremes;
    power 2 by default, which is what the name says.

    Args:
        steps: Copies tried, evenly spaced.
        power: Exponent of the error.
        values: Elements of a row that the error is taken over.
    """

    steps: int = 40
    power: float = 2.0
    values: int = 2**14

    def __post_init__(self) -> None:
        if self.steps < 1 or self.values < 1 or not 0 < self.power < math.inf:
            raise OptionError(
                "The MSE observer needs steps and values of at least 1 and a positive power, not "
                f"{self.steps}, {self.values}, {self.power}."
            )

    def _range(self, rows: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        low, high = rows.amin(1), rows.amax(1)
        unit = _power_of_two(torch.maximum(-low, high))  # squared errors of small values would be zero
        sample = _subset(rows, self.values)
        sample = (sample if sample is rows else torch.cat([sample, low[:, None], high[:, None]], 1)) / unit[
            :, None
        ]
        values = _CHUNK_VALUES if rows.device.type == "cpu" else _DEVICE_CHUNK_VALUES
        chunk = max(1, values // sample.shape[1])
        parts = zip(*(torch.split(t, chunk) for t in (sample, low / unit, high / unit)), strict=True)
        shrink = torch.cat([self._best_shrink(part, a, b, bits, symmetric) for part, a, b in parts])
        return low * shrink, high * shrink

    def _best_shrink(self, rows: Tensor, low: Tensor, high: Tensor, bits: int, symmetric: bool) -> Tensor:
        best, chosen = torch.full_like(low, torch.inf), torch.ones_like(low)
        for shrink in 1 - torch.arange(0, 80, 80 / self.steps, device=rows.device) / 100:
            params = affine_params(low * shrink, high * shrink, bits, symmetric=symmetric, axis=0)
            error = fake_quantize(rows, params).sub_(rows).abs_()
            error = (error.square_() if self.power == 2 else error.pow_(self.power)).mean(1)
            better = error < best
            best, chosen = torch.where(better, error, best), torch.where(better, shrink, chosen)
        return chosen


def _subset(rows: Tensor, count: int) -> Tensor:
    """`count` random columns, the same on every call, or all where there are no more. A fixed stride would
    see one column of a convolution's kernel.
    """
    if rows.shape[1] <= count:
        return rows
    drawn = torch.Generator("cpu").manual_seed(0)  # the same subset on every device
    picked = torch.randperm(rows.shape[1], generator=drawn, device="cpu")[:count]
    return rows[:, picked.sort().values.to(rows.device)]


def _power_of_two(reach: Tensor) -> Tensor:
    """The power of two at or below each number, which divides without a rounding; 1 for zero."""
    exponent = torch.frexp(reach).exponent - 1
    return torch.where(reach > 0, torch.ldexp(torch.ones_like(reach), exponent.clamp(min=-126)), 1.0)


def _quantile(ordered: Tensor, p: float) -> Tensor:
    """Linearly interpolated quantile of rows already sorted; torch.quantile fails above 16 million values."""
    position = p * (ordered.shape[1] - 1)
    below = min(int(position), ordered.shape[1] - 2) if ordered.shape[1] > 1 else 0
    above = min(below + 1, ordered.shape[1] - 1)
    return torch.lerp(ordered[:, below], ordered[:, above], position - below)
