"""Rounding policies: how the weight of one unit is mapped to its grid while a block is reconstructed.

A policy makes a `Rounding` for a weight and its quantiser. The reconstruction loop asks it for a differentiable weight, whose gradient
holds that of its regulariser, and in the end takes its hard codes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mpsearch.quant.affine import AffineParams, QuantizedTensor, quantize
from mpsearch.registry import Registry

PIECE = 2**17  # weights that are worked on at once on a CPU
ZETA, GAMMA = 1.1, -0.1  # stretch of the rectified sigmoid (Louizos et al., ICLR 2018; Nagel et al., ICML 2020, eq. 23)


class Rounding(nn.Module, ABC):
    """The rounding of one weight while it is learned."""

    @abstractmethod
    def soft(self, progress: float = 0.0) -> Tensor:
        """The weight, differentiable in the parameters, given the share of the steps done; the gradient holds that of any regulariser."""

    @abstractmethod
    def hard(self) -> QuantizedTensor:
        """The weight on its grid."""

    def decided(self) -> bool:
        """Whether the soft weight is the hard one, but for a thousandth of its elements."""
        return True


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

    def soft(self, progress: float = 0.0) -> Tensor:
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
        low, high = params.qmin - self._zero_point, params.qmax - self._zero_point
        self._base = torch.clamp(self._floor, low, high) * self._scale
        self._room = ((self._floor >= low) & (self._floor + 1 <= high)) * self._scale
        h = (scaled - self._floor).clamp(1e-4, 1 - 1e-4)
        self.alpha = nn.Parameter(-torch.log((ZETA - GAMMA) / (h - GAMMA) - 1))

    def soft(self, progress: float = 0.0) -> Tensor:
        policy = self._policy
        done = (progress - policy.warmup) / max(1 - policy.warmup, 1e-9)
        beta = None if done < 0 else policy.beta_start + (policy.beta_end - policy.beta_start) * done
        weight: Tensor = SoftRound.apply(self.alpha, self._base, self._room, policy.weight, beta)
        return weight

    def decided(self) -> bool:
        h = torch.sigmoid(self.alpha.detach()).mul_(ZETA - GAMMA).add_(GAMMA)
        return float(((h > 0.05) & (h < 0.95)).float().mean()) < 1e-3

    def hard(self) -> QuantizedTensor:
        codes = (self._floor + (self.alpha >= 0) + self._zero_point).clamp(self._params.qmin, self._params.qmax)
        return QuantizedTensor(codes.detach().to(torch.int16), self._params)


class SoftRound(torch.autograd.Function):
    """base + room * h(alpha), whose backward adds the gradient of the regulariser in the same pass over memory.

    `room` is the step where the next level up is on the grid, else 0. The regulariser is `factor` * sum(1 - |2h - 1|^beta); `beta` None leaves
    it out. Its value is not part of any loss, only its gradient: for layers of millions of weights the elementwise passes, not
    the convolutions, are what a step costs.
    """

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, base: Tensor, room: Tensor, factor: float, beta: float | None) -> Tensor:
        """The soft weight, shape of `alpha`."""
        ctx.save_for_backward(alpha, room)
        ctx.factor, ctx.beta = factor, beta
        weight = torch.empty_like(alpha)
        for a, b, r, w in _pieces(alpha, base, room, weight):
            torch.addcmul(b, r, _stretched(a.sigmoid()).clamp_(0, 1), out=w)
        return weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of `alpha` alone."""
        alpha, room = ctx.saved_tensors
        found = torch.empty_like(alpha)
        for a, r, given, grad in _pieces(alpha, room, grads[0], found):
            sigmoid = a.sigmoid()
            stretched = _stretched(sigmoid.clone())
            torch.mul(given, r, out=grad)
            if ctx.beta is not None:
                centered = stretched.clamp(0, 1).mul_(2).sub_(1)  # |2h - 1|^(beta - 1) by logarithms: torch.pow is several times slower
                pull = centered.abs().log_().mul_(ctx.beta - 1).exp_().mul_(2 * ctx.factor * ctx.beta)
                grad.add_(pull.copysign_(centered.neg_()))
            grad.mul_(sigmoid.addcmul_(sigmoid, sigmoid, value=-1)).mul_(ZETA - GAMMA)
            grad.copy_(torch.ops.aten.hardtanh_backward(grad, stretched, 0.0, 1.0))
        return found, None, None, None, None


def _stretched(sigmoid: Tensor) -> Tensor:
    """Overwrites `sigmoid`."""
    return sigmoid.mul_(ZETA - GAMMA).add_(GAMMA)


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flat pieces of tensors of one shape, so small on a CPU that what is made of one stays in the cache from pass to pass.

    The last tensor is written to, and has the memory layout of the first.
    """
    like = tensors[0]
    strides: tuple[int, ...] = like.stride()
    order = sorted(range(like.ndim), key=lambda axis: (-strides[axis], axis))
    same = [t if t.stride() == strides else torch.empty_like(like).copy_(t) for t in tensors]
    flat = [t.permute(order).view(-1) for t in same]
    yield from zip(*(torch.split(t, PIECE if like.device.type == "cpu" else max(1, len(t))) for t in flat), strict=True)
