"""Learning steps on a quarter of a block's output, where that is exact: a block of convolutions gives the
same values on a crop of its input.

A step's gradient is a mean over images and positions, and neighbouring positions say much the same: a quarter
of them, a different one in each step, learns as well at about a third of the price. The four quarters part
the output without overlap, borders included, so that every position counts alike. Whether a block allows it
is tried out, not assumed: pooling over the whole image or attention does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MARGINS = (1, 2, 3, 4)  # outputs beside the quarter whose inputs are read too
WORTH_IT = 0.8  # greatest length of a crop as a share of the whole


@dataclass(frozen=True)
class Crop:
    """A quarter of the output of a block, and what of its input it is computed from. Height and width each.

    Args:
        read: Region of the input.
        own: Region of the block's output on that input.
        whole: The same positions in the block's output on the whole input.
    """

    read: tuple[slice, slice]
    own: tuple[slice, slice]
    whole: tuple[slice, slice]


@torch.no_grad()
def quarters(block: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Crop, ...]:
    """The four quarters of a block's output, with the least margin at which they are exact; none where there
    is no such margin, or nothing is saved.

    Args:
        block: Float, from N x C x H x W to N x D x H' x W'.
        x: A few inputs.
    """
    y = block(x)
    if (
        x.ndim != 4
        or y.ndim != 4
        or not y.any()
        or any(x.shape[axis] % max(y.shape[axis], 1) for axis in (2, 3))
    ):
        return ()
    for margin in MARGINS:
        sides = [_halves(x.shape[axis], y.shape[axis], margin) for axis in (2, 3)]
        crops = tuple(Crop((h[0], w[0]), (h[1], w[1]), (h[2], w[2])) for h, w in itertools.product(*sides))
        if crops and all(_is_exact(block, x, y, crop) for crop in crops):
            return crops
    return ()


def _halves(read: int, given: int, margin: int) -> list[tuple[slice, slice, slice]]:
    """Both halves of one axis: what is read, where it lies in the output of that, and in the whole output."""
    stride, half = read // given, -(-given // 2)
    length = half + margin
    if length > WORTH_IT * given:
        return []
    rest = given - half
    return [
        (slice(0, length * stride), slice(0, half), slice(0, half)),
        (slice(read - length * stride, read), slice(length - rest, length), slice(half, given)),
    ]


def _is_exact(block: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, crop: Crop) -> bool:
    try:
        found = block(x[:, :, *crop.read])
    except (RuntimeError, ValueError):  # the block is made for one size of image
        return False
    expected = y[:, :, *crop.whole]
    own = found[:, :, *crop.own] if found.ndim == 4 else found
    return own.shape == expected.shape and bool((own - expected).abs().max() <= 1e-4 * y.abs().max())
