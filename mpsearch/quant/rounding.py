"""Rounding policies: how the weight of one unit is mapped to its grid while a block is reconstructed.

A policy makes a `Rounding` for a weight and its quantiser. The reconstruction loop asks it for a differentiable weight, adds its
regulariser to the loss, and in the end takes its hard codes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mpsearch.quant.affine import AffineParams, QuantizedTensor, quantize
from mpsearch.registry import Registry

ZETA, GAMMA = 1.1, -0.1  # stretch of the rectified sigmoid (Louizos et al., ICLR 2018; Nagel et al., ICML 2020, eq. 23)


class Rounding(nn.Module, ABC):
    """The rounding of one weight while it is learned."""

    @abstractmethod
    def soft(self) -> Tensor:
        """The weight, differentiable in the parameters; float32, shape of the weight."""

    @abstractmethod
    def hard(self) -> QuantizedTensor:
        """The weight on its grid."""

    def regularizer(self, progress: float) -> Tensor | None:
        """A term of the loss, given the share of the steps done, or None."""
        return None


class RoundingPolicy(ABC):
    """Makes the rounding of a weight."""

    name: ClassVar[str]
    learned: ClassVar[bool] = True

    @abstractmethod
    def start(self, weight: Tensor, params: AffineParams) -> Rounding:
        """A rounding that has not learned anything yet."""


ROUNDINGS: Registry[RoundingPolicy] = Registry("rounding policy", "mpsearch.quant")


@ROUNDINGS.register("nearest")
@dataclass(frozen=True)
class Nearest(RoundingPolicy):
    """To the nearest level; nothing is learned."""

    learned: ClassVar[bool] = False

    def start(self, weight: Tensor, params: AffineParams) -> Rounding:
        """The rounding that is already final."""
        return _Fixed(QuantizedTensor(quantize(weight, params), params))


class _Fixed(Rounding):
    def __init__(self, tensor: QuantizedTensor) -> None:
        super().__init__()
        self._tensor = tensor
        self._weight = tensor.dequantize()

    def soft(self) -> Tensor:
        return self._weight

    def hard(self) -> QuantizedTensor:
        return self._tensor


@ROUNDINGS.register("adaround")
@dataclass(frozen=True)
class AdaRound(RoundingPolicy):
    """Up or down, learned through a rectified sigmoid that a regulariser drives to 0 or 1.

    At the start the soft weight is the float weight and the hard weight is nearest rounding.

    References: Nagel et al., Up or Down?, ICML 2020, eq. 21-24, arXiv:2004.10568. beta goes linearly, as in BRECQ's code.

    Args:
        weight: Factor of the regulariser (lambda).
        warmup: Share of the steps without the regulariser.
        beta_start: Exponent when the regulariser sets in.
        beta_end: Exponent at the last step.
    """

    weight: float = 0.01
    warmup: float = 0.2
    beta_start: float = 20.0
    beta_end: float = 2.0

    def start(self, weight: Tensor, params: AffineParams) -> Rounding:
        """The rounding whose soft weight is `weight` (clamped to the grid)."""
        return _AdaRounding(self, weight, params)


class _AdaRounding(Rounding):
    def __init__(self, policy: AdaRound, weight: Tensor, params: AffineParams) -> None:
        super().__init__()
        self._policy, self._params = policy, params
        self._scale, self._zero_point = params.expanded(weight.ndim)
        scaled = weight.detach() / self._scale
        self._floor = torch.floor(scaled)
        h = (scaled - self._floor).clamp(1e-4, 1 - 1e-4)
        self.alpha = nn.Parameter(-torch.log((ZETA - GAMMA) / (h - GAMMA) - 1))

    def _h(self) -> Tensor:
        return (torch.sigmoid(self.alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def soft(self) -> Tensor:
        codes = (self._floor + self._h() + self._zero_point).clamp(self._params.qmin, self._params.qmax)
        return (codes - self._zero_point) * self._scale

    def hard(self) -> QuantizedTensor:
        codes = (self._floor + (self.alpha >= 0) + self._zero_point).clamp(self._params.qmin, self._params.qmax)
        return QuantizedTensor(codes.detach().to(torch.int16), self._params)

    def regularizer(self, progress: float) -> Tensor | None:
        policy = self._policy
        if progress < policy.warmup:
            return None
        done = (progress - policy.warmup) / max(1 - policy.warmup, 1e-9)
        beta = policy.beta_start + (policy.beta_end - policy.beta_start) * done
        return policy.weight * (1 - (2 * self._h() - 1).abs().pow(beta)).sum()
