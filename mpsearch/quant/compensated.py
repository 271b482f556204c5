"""Rounding in closed form: each column of a weight is rounded in turn, and those behind it make up for its
error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from scipy.linalg.lapack import dtrtri, strtri
from torch import Tensor

from mpsearch.quant.affine import AffineParams, QuantizedTensor
from mpsearch.quant.devices import wide, wide_type

DAMPING = 0.01
"""Added to the diagonal of the inputs' moments, as a share of its mean."""
WIDE = 512
"""Columns from which on factors are computed in float32, which the damping allows, and inverted by LAPACK."""
BLOCK = 128
"""Columns after which those behind are corrected, all at once, by one product."""


def compensated(
    weight: Tensor, params: Sequence[AffineParams], moments: Tensor, target: Tensor | None = None
) -> list[QuantizedTensor]:
    """The weight on each of several grids, rounded with error compensation.

    Columns are rounded in the order of their input's power, falling. The error of column j, divided by U_jj,
    is subtracted times U_jk from every column k behind it, where U is the upper Cholesky factor of the
    inverse of the damped moments H: so the columns behind take on what lowers the error of the output, tr(E H
    E^T), most. Columns that read nothing but zeros (dead channels, the taps of a convolution that lie beside
    a small image) are rounded to nearest and left out. A row in which rounding to nearest has less of that
    error (clipping can bring that about) is rounded to nearest. The factor is computed in float64 (of `WIDE`
    columns and more in float32, where that succeeds), the rounding in float32; all grids go through one loop.
    Memory beside the arguments: at most 4 G n^2 float64, and 5 float32 for each weight and grid.

    Args:
        weight: C x ..., float32; G groups of C / G rows, each with n columns.
        params: Grids of C rows with one scale each, or of one scale.
        moments: G x n x n, the mean of x x^T over the unit's unfolded input, or its covariance where a bias
            makes up for the mean.
        target: C x ..., what the codes are to stand for where that is not `weight` itself.
    Returns: For each grid the codes, C x ..., int16.
    Raises: torch.linalg.LinAlgError: The moments are not finite.
    References: Frantar et al., GPTQ, ICLR 2023, arXiv:2210.17323, algorithm 1, with the order of its
        `act_order`.
    """
    groups, columns = moments.shape[:2]
    rows = len(weight) // groups
    wanted = (weight if target is None else target).detach().float().reshape(groups, rows, columns)
    grid = _Grid.of(params, groups, rows)
    repeated = wanted.repeat(1, len(params), 1)
    codes, order = grid.codes(repeated), read_columns(moments)
    if order.shape[1]:
        across = order[:, None, :].expand(-1, repeated.shape[1], -1)
        codes.scatter_(2, across, _compensate(repeated.gather(2, across), grid, *_factors(moments, order)))
    each = codes.view(groups, len(params), rows, columns).transpose(0, 1).to(torch.int16)
    return [
        QuantizedTensor(c.reshape(weight.shape).contiguous(), p) for c, p in zip(each, params, strict=True)
    ]


@dataclass(frozen=True)
class _Grid:
    """Scale, zero point, lowest and highest code of each row, G x R x 1."""

    scale: Tensor
    zero: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, params: Sequence[AffineParams], groups: int, rows: int) -> _Grid:
        """The rows of all grids, behind each other in each group."""

        def stacked(numbers: Sequence[Tensor]) -> Tensor:
            return torch.cat([n.float().expand(groups * rows).reshape(groups, rows, 1) for n in numbers], 1)

        ends = (
            [torch.full_like(p.scale, end) for p, end in zip(params, each, strict=True)]
            for each in _ends(params)
        )
        return cls(
            stacked([p.scale for p in params]), stacked([p.zero_point for p in params]), *map(stacked, ends)
        )

    def codes(self, x: Tensor) -> Tensor:
        """The nearest, float32."""
        return torch.minimum(torch.maximum((x / self.scale).round_().add_(self.zero), self.low), self.high)

    def values(self, codes: Tensor) -> Tensor:
        """What they stand for."""
        return (codes - self.zero) * self.scale


def _ends(params: Sequence[AffineParams]) -> tuple[list[float], list[float]]:
    return [float(p.qmin) for p in params], [float(p.qmax) for p in params]


def read_columns(moments: Tensor) -> Tensor:
    """G x m int64: the columns with any power, by falling power; where groups have different numbers of them
    as many as the group of most.
    """
    power, order = torch.diagonal(moments, dim1=1, dim2=2).sort(dim=1, descending=True, stable=True)
    return order[:, : int((power > 0).sum(1).max())]


def picked(moments: Tensor, order: Tensor) -> Tensor:
    """Those rows and columns of moments, G x m x m."""
    held = moments.gather(1, order[:, :, None].expand(-1, -1, moments.shape[2]))
    return held.gather(2, order[:, None, :].expand(-1, order.shape[1], -1))


def mean_power(moments: Tensor) -> Tensor:
    """G x 1 float64: the mean of the diagonal, of what is not 0 in it; 1 where nothing is."""
    diagonal = torch.diagonal(moments, dim1=1, dim2=2)
    some = (diagonal > 0).sum(1, keepdim=True)
    total = diagonal.sum(1, keepdim=True, dtype=wide_type(moments.device))
    return torch.where(some > 0, total / some.clamp(min=1), 1.0)


def _factors(moments: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Upper triangular R and U, G x m x m float32: R R^T are the damped moments, U^T U their inverse, rows
    and columns in `order`.
    """
    held = picked(moments, order)
    added = DAMPING * mean_power(held)
    root = factored(held.flip(1, 2), added).flip(1, 2)  # one factorisation gives both: U is the inverse of R
    return root.float(), _inverse(root).float()


def factored(moments: Tensor, added: Tensor) -> Tensor:
    """The lower Cholesky factors of moments with something added to their diagonals.

    Wide ones are factorised in float32, in less than half the time: with `DAMPING` of the mean power added,
    the condition is below n / DAMPING, and that of 4,608 columns leaves the factor right to about 1e-5. Where
    that fails, and for all others, it is float64.

    Args:
        moments: G x n x n.
        added: G x 1, to each diagonal.
    Returns: G x n x n, float32 or float64.
    Raises: torch.linalg.LinAlgError: The moments are not finite.
    """
    if moments.shape[-1] >= WIDE:
        root, failed = torch.linalg.cholesky_ex(_damped(moments.float(), added))
        if not bool(failed.any()):
            return cast(Tensor, root)
    return cast(Tensor, torch.linalg.cholesky(_damped(wide(moments), added)))


def _damped(moments: Tensor, added: Tensor) -> Tensor:
    held = moments.clone()
    torch.diagonal(held, dim1=1, dim2=2).add_(added)
    return held


def _inverse(root: Tensor) -> Tensor:
    """The inverse of upper triangular matrices, G x n x n. Of wide ones in the CPU's memory by LAPACK's own
    routine, which torch has not: a third of the work of solving for every column of the identity.
    """
    if root.device.type == "cpu" and root.shape[1] >= WIDE:
        invert = strtri if root.dtype == torch.float32 else dtrtri
        each = [invert(matrix.numpy().T, lower=1)[0].T for matrix in root.contiguous()]
        return torch.stack([torch.from_numpy(matrix) for matrix in each])
    unit = torch.eye(root.shape[1], dtype=root.dtype, device=root.device).expand_as(root)
    found: Tensor = torch.linalg.solve_triangular(root, unit, upper=True)
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    """Steps of a tenth of a millisecond: threads that wait for each other take longer than they save, many
    times longer where other processes want the cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _round_block(block: Tensor, grid: _Grid, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and errors, G x m x R, of m columns that follow each other, which are overwritten.

    Args:
        block: G x m x R.
        grid: Grids of the rows.
        factor: G x m x m, those rows and columns of U.
    """
    rounded, errors = torch.empty_like(block), torch.empty_like(block)
    for j in range(block.shape[1]):
        row, column = factor[:, j, :, None], block[:, j, :, None]
        found = grid.codes(column)
        error = (column - grid.values(found))[:, None, :, 0].div_(row[:, j : j + 1])
        block[:, j + 1 :].addcmul_(row[:, j + 1 :], error, value=-1)
        rounded[:, j], errors[:, j] = found[:, :, 0], error[:, 0]
    return rounded, errors


def _compensate(wanted: Tensor, grid: _Grid, root: Tensor, factor: Tensor) -> Tensor:
    """Codes, G x R x n, in the order of the columns of `wanted`, which is overwritten.

    The errors of the loop are those of the output: their squares add up to tr(E H E^T) of a row for the
    damped moments.
    """
    columns = wanted.shape[2]
    nearest = grid.codes(wanted)
    plain = ((grid.values(nearest) - wanted) @ root).square_().sum(2, keepdim=True)
    codes, ours = torch.empty_like(wanted), torch.zeros_like(plain)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        block = (
            wanted[:, :, start:stop].transpose(1, 2).contiguous()
        )  # G x n x R: a column is one stretch of memory
        with _one_thread():
            rounded, errors = _round_block(block, grid, factor[:, start:stop, start:stop])
        codes[:, :, start:stop], errors = rounded.transpose(1, 2), errors.transpose(1, 2).contiguous()
        wanted[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
        ours += errors.square_().sum(2, keepdim=True)
    return torch.where(ours <= plain, codes, nearest)
