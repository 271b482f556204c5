"""The quantiser at one input of a layer, with all that reconstruction does to it: dropping, and a step size that is learned."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.quant.affine import ActivationQuantizer, AffineParams
from mpsearch.quant.regions import TwoRegionParams


class InputQuantizer(nn.Module):
    """Fake-quantises the tensor that passes through.

    Attributes:
        params: The quantiser; None passes the tensor on in float.
        keep_prob: Probability that an element is quantised (QDrop's dropping); 1 but while a block is reconstructed.
        generator: Of the dropping; must be set where `keep_prob` is below 1.
        log_step: Logarithm of the factor on the scale, or on both steps of two regions, that is being learned; None where nothing is learned.
    """

    log_step: nn.Parameter | None

    def __init__(self, params: ActivationQuantizer | None = None) -> None:
        super().__init__()
        self.params = params
        self.keep_prob = 1.0
        self.generator: torch.Generator | None = None
        self.register_parameter("log_step", None)

    def forward(self, x: Tensor) -> Tensor:
        """`x` with each element quantised with probability `keep_prob`, else as it is.

        References: Wei et al., QDrop, ICLR 2022, arXiv:2203.05740; `drop_prob` in its code is this keep probability.
        """
        if self.params is None:
            return x
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x  # under autocast a convolution gives such
        keep = None if self.keep_prob >= 1 else keep_mask(x, self.keep_prob, self.generator)
        if self.log_step is not None and isinstance(self.params, AffineParams):
            return learned_step(x, self.params, self.log_step.exp(), keep)
        if self.log_step is not None and isinstance(self.params, TwoRegionParams):
            quantized = learned_regions(x, self.params, self.log_step.exp())
        else:
            quantized = self.params.fake_quantize(x)
        return quantized if keep is None else torch.lerp(x, quantized, keep)

    def learn(self) -> nn.Parameter | None:
        """Make the step size a parameter, and return it: of two regions one factor on both. None where the input is float or has logarithmic levels.

        Those keep the scale that was calibrated: rounding in the exponent errs further upwards than downwards, so the straight-through gradient of their
        scale does not vanish at the best one, and descending along it leads away from it.
        """
        if isinstance(self.params, AffineParams | TwoRegionParams):
            self.log_step = nn.Parameter(torch.zeros_like(self.params.step))
        return self.log_step

    def settle(self) -> ActivationQuantizer | None:
        """Put what was learned into `params`, stop learning and dropping, and return the quantiser."""
        if self.log_step is not None and isinstance(self.params, AffineParams | TwoRegionParams):
            self.params = self.params.scaled(self.log_step.detach().exp())
        self.log_step = None
        self.keep_prob, self.generator = 1.0, None
        return self.params


def keep_mask(x: Tensor, keep_prob: float, generator: torch.Generator | None) -> Tensor:
    """1.0 with probability `keep_prob` (to the next 1/256), else 0.0, shape and memory layout of `x`.

    A byte decides each element: on a CPU this takes a tenth of the time of `torch.bernoulli`.
    """
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device).random_(-(2**63), None, generator=generator)
    mask = torch.empty_like(x)
    strides: tuple[int, ...] = mask.stride()
    flat = mask.permute(sorted(range(x.ndim), key=lambda axis: -strides[axis])).view(-1)
    torch.lt(words.view(torch.uint8)[: x.numel()], round(keep_prob * 256), out=flat)
    return mask


def learned_step(x: Tensor, params: AffineParams, factor: Tensor, keep: Tensor | None = None) -> Tensor:
    """Fake-quantise with the scale times `factor`, differentiable in both `x` and `factor`.

    References: Esser et al., LSQ, ICLR 2020, eq. 2-3, arXiv:1902.08153; the gradient of the step is divided by sqrt(numel * qmax) as in
    QDrop's code. Differs in: the factor, not the step itself, is learned, so that a learning rate means the same for every tensor.

    Args:
        x: Any shape.
        params: The quantiser at factor 1; its zero point stays.
        factor: Positive, shape of `params.scale`.
        keep: 1.0 where an element is quantised, 0.0 where it passes; all where None.
    """
    scale, zero_point = params.expanded(x.ndim)
    factor = factor if params.axis is None else factor.view(scale.shape)
    damping = 1 / math.sqrt(max(1, x.numel() // scale.numel()) * max(params.qmax, 1))
    return LearnedStep.apply(x, scale * factor, zero_point, params.qmin, params.qmax, keep, damping)  # type: ignore[no-any-return]


def learned_regions(x: Tensor, params: TwoRegionParams, factor: Tensor) -> Tensor:
    """Fake-quantise with both steps times `factor`, differentiable in both `x` and `factor`.

    The levels of two regions are in proportion to the fine step s, x_hat = s q(x / s), as those of a uniform grid are, so the
    gradient of LSQ holds as it stands: d x_hat / d s = x_hat / s - x / s inside the range, x_hat / s outside. The ratio of the two steps is
    a shift in hardware and is not learned. The gradient is damped by 1 / sqrt(numel * (2^bits - 1)).

    References: after Esser et al., LSQ, ICLR 2020, eq. 3, arXiv:1902.08153, which has uniform grids alone.

    Args:
        x: Any shape.
        params: The quantiser at factor 1.
        factor: Positive, 0-d.
    """
    return LearnedRegions.apply(x, factor, params, 1 / math.sqrt(max(1, x.numel()) * (2**params.bits - 1)))  # type: ignore[no-any-return]


class LearnedRegions(torch.autograd.Function):
    """Fake quantisation with two regions, with straight-through gradients for the tensor and for the factor on both steps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, params: TwoRegionParams, damping: float) -> Tensor:
        """`x` on the levels times `factor`."""
        now = params.scaled(factor.detach().to(params.step.device))
        quantized = now.fake_quantize(x)
        ctx.save_for_backward(x, factor, quantized, now.inside(x))
        ctx.damping = damping
        return quantized

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of `x` and `factor`."""
        x, factor, quantized, inside = ctx.saved_tensors
        grad_x = grads[0] * inside
        grad_factor = (grads[0] * quantized - grad_x * x).sum().mul(ctx.damping).to(factor.device) / factor if ctx.needs_input_grad[1] else None
        return grad_x if ctx.needs_input_grad[0] else None, grad_factor, None, None


class LearnedStep(torch.autograd.Function):
    """Fake quantisation with straight-through gradients for the tensor and for its scale, and dropping, in few passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, keep: Tensor | None, damping: float) -> Tensor:
        """`x` on the grid where kept; shapes as `learned_step`, `scale` broadcast over `x`."""
        scaled = x / scale
        low, high = qmin - zero_point, qmax - zero_point
        quantized = torch.clamp(scaled, low, high).round_().mul_(scale)  # the bounds are whole numbers: clamping first gives the same
        if keep is not None:
            quantized = torch.lerp(x, quantized, keep)
            scaled = torch.lerp((low + high) / 2, scaled, keep)  # what is dropped counts as inside the range
        ctx.save_for_backward(x, scale, quantized, scaled, (low + high) / 2)
        ctx.half, ctx.damping = (qmax - qmin + 1) / 2, damping
        return quantized

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of `x` and `scale`."""
        x, scale, quantized, scaled, middle = ctx.saved_tensors
        grad_x = (scaled - middle).abs_().le_(ctx.half).mul_(grads[0])
        grad_scale = None
        if ctx.needs_input_grad[1]:
            # rounding error inside the range, grid value outside, 0 where dropped, each times its gradient
            products = torch.mul(grads[0], quantized).addcmul_(grad_x, x, value=-1)
            grad_scale = products.sum_to_size(scale.shape).mul(ctx.damping / scale)
        return grad_x if ctx.needs_input_grad[0] else None, grad_scale, None, None, None, None, None
