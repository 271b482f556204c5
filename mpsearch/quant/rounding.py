"""Rounding policies: how the weight of one unit is mapped to its grid while a block is reconstructed.

A policy makes a `Rounding` for a weight and its quantiser. The reconstruction loop asks it for a
differentiable weight, whose gradient holds that of its regulariser, and in the end takes its hard codes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mpsearch.quant.affine import AffineParams, QuantizedTensor, quantize
from mpsearch.quant.pieces import Workspace, empty_like, pieces
from mpsearch.registry import Registry

ZETA, GAMMA = (
    1.1,
    -0.1,
)  # stretch of the rectified sigmoid (Louizos et al., ICLR 2018; Nagel et al., ICML 2020, eq. 23)


class Rounding(nn.Module, ABC):
    """The rounding of one weight while it is learned.

    Attributes:
        dtype: Of the soft weight, and of the gradient that comes back to it.
        workspace: Where soft weights lie; None for memory of their own.
    """

    dtype: torch.dtype | None = None
    workspace: Workspace | None = None

    @abstractmethod
    def soft(self, progress: float | Tensor = 0.0) -> Tensor:
        """The weight, differentiable in the parameters, given the share of the steps done; the gradient holds
        that of any regulariser.

        Args:
            progress: As a tensor (0-d) it must be a share at which `regularized` is true. It is read on its
                device, so that a captured step follows it.
        """

    def regularized(self, progress: float) -> bool:
        """Whether a regulariser has set in at this share of the steps."""
        return False

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
    def start(self, weight: Tensor, params: AffineParams, codes: Tensor | None = None) -> Rounding:
        """A rounding that has not learned anything yet.

        Args:
            weight: Float weight, [C_out, ...].
            params: Its grid.
            codes: Where its hard codes start, shape of `weight`; the nearest ones where None.
        """


ROUNDINGS: Registry[RoundingPolicy] = Registry("rounding policy", "mpsearch.quant")


@ROUNDINGS.register("nearest")
@dataclass(frozen=True)
class Nearest(RoundingPolicy):
    """To the nearest level; nothing is learned."""

    learned: ClassVar[bool] = False

    def start(self, weight: Tensor, params: AffineParams, codes: Tensor | None = None) -> Rounding:
        """The rounding that is already final."""
        return _Fixed(QuantizedTensor(quantize(weight, params) if codes is None else codes, params))


class _Fixed(Rounding):
    def __init__(self, tensor: QuantizedTensor) -> None:
        super().__init__()
        self._tensor = tensor
        self._weight = tensor.dequantize()

    def soft(self, progress: float | Tensor = 0.0) -> Tensor:
        return self._weight

    def hard(self) -> QuantizedTensor:
        return self._tensor


@ROUNDINGS.register("adaround")
@dataclass(frozen=True)
class AdaRound(RoundingPolicy):
    """Up or down, learned through a rectified sigmoid that a regulariser drives to 0 or 1.

    At the start the soft weight is the float weight and the hard weight is nearest rounding.

    References: Nagel et al., Up or Down?, ICML 2020, eq. 21-24, arXiv:2004.10568. beta goes linearly, as in
        BRECQ's code.

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

    def start(self, weight: Tensor, params: AffineParams, codes: Tensor | None = None) -> Rounding:
        """The rounding whose soft weight is `weight` (clamped to the grid), or as near to it as lets the hard
        codes be `codes`.
        """
        return _AdaRounding(self, weight, params, codes)


class _AdaRounding(Rounding):
    def __init__(self, policy: AdaRound, weight: Tensor, params: AffineParams, codes: Tensor | None) -> None:
        super().__init__()
        self._policy, self._params = policy, params
        self._scale, self._zero_point = params.expanded(weight.ndim)
        scaled = weight.detach() / self._scale
        if codes is None:
            self._floor = torch.floor(scaled)
        else:  # between the code and its neighbour on the side of the weight
            level = codes.to(scaled) - self._zero_point
            below = scaled < level
            self._floor = level - below.to(level)
            scaled = self._floor + torch.where(
                below, (scaled - self._floor).clamp(min=0.51), (scaled - self._floor).clamp(max=0.49)
            )
        low, high = params.qmin - self._zero_point, params.qmax - self._zero_point
        self._base = torch.clamp(self._floor, low, high) * self._scale
        self._room = ((self._floor >= low) & (self._floor + 1 <= high)) * self._scale
        h = (scaled - self._floor).clamp(1e-4, 1 - 1e-4)
        self.alpha = nn.Parameter(-torch.log((ZETA - GAMMA) / (h - GAMMA) - 1))

    def soft(self, progress: float | Tensor = 0.0) -> Tensor:
        policy, beta = self._policy, None
        if isinstance(progress, Tensor) or self.regularized(progress):
            done = (progress - policy.warmup) / max(1 - policy.warmup, 1e-9)
            beta = policy.beta_start + (policy.beta_end - policy.beta_start) * done
        weight: Tensor = SoftRound.apply(
            self.alpha, self._base, self._room, policy.weight, beta, self.dtype, self.workspace
        )
        return weight

    def regularized(self, progress: float) -> bool:
        return progress >= self._policy.warmup

    def decided(self) -> bool:
        h = torch.sigmoid(self.alpha.detach()).mul_(ZETA - GAMMA).add_(GAMMA)
        return float(((h > 0.05) & (h < 0.95)).float().mean()) < 1e-3

    def hard(self) -> QuantizedTensor:
        codes = (self._floor + (self.alpha >= 0) + self._zero_point).clamp(
            self._params.qmin, self._params.qmax
        )
        return QuantizedTensor(codes.detach().to(torch.int16), self._params)


class SoftRound(torch.autograd.Function):
    """base + room * h(alpha), whose backward adds the gradient of the regulariser in the same pass over
    memory.

    `room` is the step where the next level up is on the grid, else 0. The regulariser is `factor` * sum(1 -
    |2h - 1|^beta); `beta` None leaves it out. Its value is not part of any loss, only its gradient: for
    layers of millions of weights the elementwise passes, not the convolutions, are what a step costs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        alpha: Tensor,
        base: Tensor,
        room: Tensor,
        factor: float,
        beta: float | Tensor | None,
        dtype: torch.dtype | None = None,
        workspace: Workspace | None = None,
    ) -> Tensor:
        """The soft weight, shape of `alpha`, of `dtype` where it is given."""
        ctx.save_for_backward(alpha, room)
        ctx.factor, ctx.beta, ctx.workspace = factor, beta, workspace
        weight, held = empty_like(alpha, workspace, dtype), workspace or Workspace()
        for w, a, b, r in pieces(weight, alpha, base, room):
            soft = torch.sigmoid(a, out=held.scratch(0, a, a.dtype))
            w.copy_(_stretched(soft).clamp_(0, 1).mul_(r).add_(b))
        return weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of `alpha` alone."""
        alpha, room = ctx.saved_tensors
        found, held = torch.empty_like(alpha), ctx.workspace or Workspace()
        for grad, a, r, given in pieces(found, alpha, room, grads[0]):
            sigmoid, stretched = (held.scratch(number, a, a.dtype) for number in (0, 1))
            _stretched(stretched.copy_(torch.sigmoid(a, out=sigmoid)))
            grad.copy_(given).mul_(r)
            if ctx.beta is not None:
                centered = torch.clamp(stretched, 0, 1, out=held.scratch(2, a, a.dtype)).mul_(2).sub_(1)
                pull = torch.abs(
                    centered, out=held.scratch(3, a, a.dtype)
                ).log_()  # |2h - 1|^(beta - 1) by logarithms: torch.pow is several times slower
                pull.mul_(ctx.beta - 1).exp_().mul_(2 * ctx.factor * ctx.beta)
                grad.add_(pull.copysign_(centered.neg_()))
            grad.mul_(sigmoid.addcmul_(sigmoid, sigmoid, value=-1)).mul_(ZETA - GAMMA)
            torch.ops.aten.hardtanh_backward.grad_input(grad, stretched, 0.0, 1.0, grad_input=grad)
        return found, None, None, None, None, None, None


def _stretched(sigmoid: Tensor) -> Tensor:
    """Overwrites `sigmoid`."""
    return sigmoid.mul_(ZETA - GAMMA).add_(GAMMA)
