"""Fake quantisation whose step sizes learn: the gradients of LSQ, of one grid and of two regions, with
QDrop's dropping.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mpsearch.quant.affine import AffineParams
from mpsearch.quant.pieces import Workspace, empty_like, pieces
from mpsearch.quant.regions import TwoRegionParams

_REDUCED = (torch.bfloat16, torch.float16)
_HALF = 0.50005  # of a step, and what float32 rounds at 8 bits


def learned_step(
    x: Tensor,
    params: AffineParams,
    factor: Tensor,
    keep: Tensor | None = None,
    workspace: Workspace | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Fake-quantise with the scale times `factor`, differentiable in both `x` and `factor`.

    References: Esser et al., LSQ, ICLR 2020, eq. 2-3, arXiv:1902.08153; the gradient of the step is divided
    by sqrt(numel * qmax) as in QDrop's code. Differs in: the factor, not the step itself, is learned, so that
    a learning rate means the same for every tensor.

    Args:
        x: Any shape; of bfloat16 the arithmetic is float32.
        params: The quantiser at factor 1; its zero point stays.
        factor: Positive, shape of `params.scale`.
        keep: 1.0 where an element is quantised, 0.0 where it passes; all where None.
        workspace: Where the result lies; it is overwritten by the next step.
        dtype: Type of the result; that of `x` where None.
    """
    scale, zero_point = params.expanded(x.ndim)
    factor = factor if params.axis is None else factor.view(scale.shape)
    damping = 1 / math.sqrt(max(1, x.numel() // scale.numel()) * max(params.qmax, 1))
    asked = (params.qmin, params.qmax, keep, damping, workspace, dtype)
    quantized: Tensor = LearnedStep.apply(x, scale * factor, zero_point, *asked)
    return quantized


class LearnedStep(torch.autograd.Function):
    """Fake quantisation with straight-through gradients for the tensor and for its scale, and dropping.

    The backward pass needs the tensor and the result alone, which the layers beside it hold anyway: an
    element that was dropped is equal in both, but for the rounding to the result's type.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        qmin: int,
        qmax: int,
        keep: Tensor | None,
        damping: float,
        workspace: Workspace | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """`x` on the grid where kept; shapes as `learned_step`, `scale` broadcast over `x`."""
        low, high = qmin - zero_point, qmax - zero_point
        quantized, held = empty_like(x, workspace, dtype), workspace or Workspace()
        for s, low_, high_, q, v, *k in _parts(
            (scale, low, high), quantized, x, *([] if keep is None else [keep])
        ):
            v, level = (
                _precise(held, 0, v),
                q if q.dtype not in _REDUCED else held.scratch(1, q, torch.float32),
            )
            torch.div(v, s, out=level)
            torch.maximum(
                level, low_, out=level
            )  # the bounds are whole numbers: clamping first gives the same
            torch.minimum(level, high_, out=level).round_().mul_(s)
            if k:
                torch.lerp(v, level, _precise(held, 2, k[0]), out=level)
            if level is not q:
                q.copy_(level)
        ctx.save_for_backward(x, scale, quantized, (low + high) / 2)
        ctx.half, ctx.damping, ctx.workspace = (qmax - qmin + 1) / 2, damping, workspace
        return quantized

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of `x` and `scale`."""
        x, scale, quantized, middle = ctx.saved_tensors
        held, total = ctx.workspace or Workspace(), None
        grad_x = empty_like(quantized, ctx.workspace, x.dtype)
        for s, m, into, v, q, g in _parts((scale, middle), grad_x, x, quantized, grads[0]):
            v, q, g = (_precise(held, number, t) for number, t in enumerate((v, q, g)))
            error, outside = held.scratch(3, q, q.dtype), held.scratch(4, q, q.dtype)
            torch.sub(
                q,
                v
                if x.dtype == quantized.dtype
                else error.copy_(held.scratch(5, q, quantized.dtype).copy_(v)),
                out=error,
            )
            if (
                quantized.dtype in _REDUCED
            ):  # the error is not as exact as the range: ask that, of what was not dropped
                torch.div(v, s, out=outside).sub_(m)
                _where_beyond(error, outside, ctx.half, outside)
                _where_beyond(g, outside, 0.0, outside)
            else:
                _where_beyond(
                    g, torch.div(error, s, out=outside), _HALF, outside
                )  # further than half a step from its level: clipped
            if ctx.needs_input_grad[
                1
                # rounding error inside the range, grid value outside, 0 where dropped, each times its
                # gradient
            ]:
                found = (
                    torch.dot(g, error) + torch.dot(outside, v)
                    if g.ndim == 1
                    else torch.mul(g, error).addcmul_(outside, v).sum_to_size(s.shape)
                )
                total = found if total is None else total + found
            if ctx.needs_input_grad[0]:
                torch.sub(g, outside, out=into if into.dtype == g.dtype else outside)
                into.copy_(outside) if into.dtype != g.dtype else None
        grad_scale = None if total is None else total.view(scale.shape).mul(ctx.damping / scale)
        return (
            grad_x if ctx.needs_input_grad[0] else None,
            grad_scale,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
        )


def _parts(numbers: tuple[Tensor, ...], like: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of the tensors, behind the numbers that hold for them; the whole tensors, where there is a
    number for each channel.
    """
    if numbers[0].numel() == 1:
        for found in pieces(like, *others):
            yield (*(number.reshape(()) for number in numbers), *found)
    else:
        yield (*numbers, like, *others)


def _where_beyond(values: Tensor, x: Tensor, bound: float, out: Tensor) -> None:
    """`values` where |x| > bound, else 0, in one vectorised pass."""
    torch.ops.aten.hardshrink_backward.grad_input(values, x, bound, grad_input=out)


def _precise(held: Workspace, number: int, x: Tensor) -> Tensor:
    """`x` in float32 where it is of less."""
    return held.scratch(number, x, torch.float32).copy_(x) if x.dtype in _REDUCED else x


def learned_regions(x: Tensor, params: TwoRegionParams, factor: Tensor) -> Tensor:
    """Fake-quantise with both steps times `factor`, differentiable in both `x` and `factor`.

    The levels of two regions are in proportion to the fine step s, x_hat = s q(x / s), as those of a uniform
    grid are, so the gradient of LSQ holds as it stands: d x_hat / d s = x_hat / s - x / s inside the range,
    x_hat / s outside. The ratio of the two steps is a shift in hardware and is not learned. The gradient is
    damped by 1 / sqrt(numel * (2^bits - 1)).

    References: after Esser et al., LSQ, ICLR 2020, eq. 3, arXiv:1902.08153, which has uniform grids alone.

    Args:
        x: Any shape.
        params: The quantiser at factor 1.
        factor: Positive, 0-d.
    """
    share = 1 / math.sqrt(max(1, x.numel()) * (2**params.bits - 1))
    quantized: Tensor = LearnedRegions.apply(x, factor, params, share)
    return quantized


class LearnedRegions(torch.autograd.Function):
    """Fake quantisation with two regions, with straight-through gradients for the tensor and for the factor
    on both steps.
    """

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
        grad_factor = (
            (grads[0] * quantized - grad_x * x).sum().mul(ctx.damping).to(factor.device) / factor
            if ctx.needs_input_grad[1]
            else None
        )
        return grad_x if ctx.needs_input_grad[0] else None, grad_factor, None, None
