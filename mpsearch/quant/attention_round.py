"""Attention Round: a weight may go to any level, and the pull towards far levels decays like a Gaussian."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mpsearch.errors import OptionError
from mpsearch.quant.affine import AffineParams, QuantizedTensor
from mpsearch.quant.rounding import ROUNDINGS, Rounding, RoundingPolicy

Init = Literal["zero", "gaussian"]


@ROUNDINGS.register("attention")
@dataclass(frozen=True)
class AttentionRound(RoundingPolicy):
    """Learns an offset alpha, in steps of the grid, and rounds (weight / scale + alpha) to nearest.

    A gradient that pulls alpha back to 0 passes almost whole, one that drives it further out is damped by the
    normal distribution function of alpha / tau. At the start alpha is 0, so that the weight is rounded to
    nearest, or with `init=gaussian` a sample of N(0, tau^2): level k is then taken with probability
    Phi((k + 1/2 - w) / tau) - Phi((k - 1/2 - w) / tau), w in steps: all levels are reached, the far ones
    seldom.

    References: after Diao et al., Attention Round, arXiv:2207.03088, whose formulas were not at hand: the
    shape of the gradient, tau and the start at 0 (a Gaussian start of tau >= 0.5 can end worse than nearest
    rounding) are chosen here.

    Args:
        tau: Width of the Gaussian, in steps of the grid.
        init: `zero` or `gaussian`; the sample depends on the weight alone.
    """

    tau: float = 0.5
    init: Init = "zero"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tau) and self.tau > 0):
            raise OptionError(
                f"tau of Attention Round is {self.tau}; it must be positive, such as 0.5 (in steps of "
                "the grid)."
            )

    def start(self, weight: Tensor, params: AffineParams, codes: Tensor | None = None) -> Rounding:
        """The rounding to nearest, before it learns, or that to `codes`, with the least offsets that give
        them; with a Gaussian start the sample about these.
        """
        rounding = _AttentionRounding(self.tau, weight, params, codes)
        if self.init == "gaussian":
            seed = zlib.crc32(weight.detach().cpu().contiguous().numpy().tobytes())
            noise = torch.randn(
                weight.shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu"
            )
            rounding.alpha.data.add_(noise.to(rounding.alpha), alpha=self.tau)
        return rounding


class _AttentionRounding(Rounding):
    def __init__(self, tau: float, weight: Tensor, params: AffineParams, codes: Tensor | None) -> None:
        super().__init__()
        self._tau, self._params = tau, params
        self._scale, self._zero_point = params.expanded(weight.ndim)
        self._scaled = weight.detach() / self._scale
        offset = torch.zeros_like(self._scaled)
        if codes is not None:
            level = codes.to(offset) - self._zero_point
            offset = torch.clamp(self._scaled, level - 0.49, level + 0.49) - self._scaled
        self.alpha = nn.Parameter(offset)

    def soft(self, progress: float | Tensor = 0.0) -> Tensor:
        low, high = self._params.qmin - self._zero_point, self._params.qmax - self._zero_point
        rounded: Tensor = RoundWithAttention.apply(
            self.alpha, self._scaled, self._scale, low, high, self._tau
        )
        return rounded

    def hard(self) -> QuantizedTensor:
        codes = ((self._scaled + self.alpha).round() + self._zero_point).clamp(
            self._params.qmin, self._params.qmax
        )
        return QuantizedTensor(codes.detach().to(torch.int16), self._params)


class RoundWithAttention(torch.autograd.Function):
    """clamp(round(scaled + alpha), low, high) * scale; the gradient of alpha is straight-through inside the
    range, times Phi(+-alpha / tau).
    """

    @staticmethod
    def forward(
        ctx: Any, alpha: Tensor, scaled: Tensor, scale: Tensor, low: Tensor, high: Tensor, tau: float
    ) -> Tensor:
        """The weight on its grid, shape of `alpha`."""
        code = (scaled + alpha).round_()
        ctx.save_for_backward(alpha, (code >= low) & (code <= high), scale)
        ctx.tau = tau
        return torch.clamp(code, low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of `alpha` alone."""
        alpha, inside, scale = ctx.saved_tensors
        grad = grads[0] * scale * inside
        return (
            grad * torch.special.ndtr(torch.copysign(alpha, alpha * grad) / ctx.tau),
            None,
            None,
            None,
            None,
            None,
        )
