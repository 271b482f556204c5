"""Parameters of two-region and logarithmic quantisers from values: the search of OPT-m, and its special
cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mpsearch.errors import DataError
from mpsearch.quant.affine import ZERO_SCALE, ActivationQuantizer, AffineParams, step_of
from mpsearch.quant.devices import wide
from mpsearch.quant.observers import OBSERVERS
from mpsearch.quant.regions import (
    CHUNK_LEVELS,
    COARSE_STEPS,
    MAX_SHIFT,
    SPLITS,
    LogParams,
    Split,
    TwoRegionParams,
    regions_of,
    two_region_levels,
)


def two_region_params(x: Tensor, bits: int, split: Split, weights: Tensor | None = None) -> TwoRegionParams:
    """The two steps of a split with the least mean squared error on `x`.

    All pairs are tried: 48 coarse steps, from the one that just spans the data down to a fifteenth of it,
    with every m in 0 to 15.

    Args:
        x: Values, any shape.
        bits: 2 to 8.
        split: Which region holds what.
        weights: Non-negative factors of the squared errors, shape of `x`, such as squared gradients; all 1
            where None.
    Raises: DataError: No values, or some are NaN or infinite, or the weights do not fit.
    """
    return _best_two_region(_Sample(x, weights), bits, split)[0]


def two_region_shortlist(x: Tensor, bits: int, split: Split, count: int) -> list[TwoRegionParams]:
    """The steps of least mean squared error on `x` for each of the `count` best ratios of coarse to fine,
    the best first.

    Args and Raises: As `two_region_params`.
        count: Ratios, at most 16.
    """
    steps, shifts, errors = _two_region_errors(_Sample(x, None), bits, split)
    by_shift = errors.view(COARSE_STEPS, -1)
    least, row = by_shift.min(0)
    ranked = least.argsort(stable=True)[:count].tolist()
    at = [int(row[shift]) * by_shift.shape[1] + shift for shift in ranked]
    return [TwoRegionParams(steps[i].clone(), int(shifts[i]), bits, split) for i in at]


def log_params(x: Tensor, bits: int, root: int = 1, weights: Tensor | None = None) -> LogParams:
    """The logarithmic quantiser with the least mean squared error on `x`, its largest level at the greatest
    value or up to one octave below.

    Args and Raises: As `two_region_params`; values below 0 count as errors.
    """
    return _best_log(_Sample(x, weights), bits, root)[0]


def opt_m(
    x: Tensor, bits: int, weights: Tensor | None = None, *, symmetric: bool = False
) -> ActivationQuantizer:
    """The best on `x` of one uniform grid (the `mse` observer's) and of the sign and magnitude splits: never
    worse than the uniform grid.

    Args and Raises: As `two_region_params`.
        symmetric: Whether the uniform grid is signed around zero.
    """
    sample = _Sample(x, weights)
    uniform = OBSERVERS.create("mse").observe(x, bits, symmetric=symmetric)
    return _least(
        [(uniform, sample.error(uniform)), *(_best_two_region(sample, bits, split) for split in SPLITS)]
    )


def post_softmax_params(
    x: Tensor, bits: int, weights: Tensor | None = None, *, symmetric: bool = False
) -> ActivationQuantizer:
    """The best on `x` of one uniform grid, log2, log sqrt 2, and two unsigned regions whose border is a power
    of two below the top.

    Args and Raises: As `opt_m`.
    """
    sample = _Sample(x, weights)
    uniform = OBSERVERS.create("mse").observe(x, bits, symmetric=symmetric)
    logs = (_best_log(sample, bits, root) for root in (1, 2))
    return _least([(uniform, sample.error(uniform)), *logs, _best_two_region(sample, bits, "unsigned")])


def least_weighted(
    x: Tensor,
    bits: int,
    weights: Tensor,
    uniform: Mapping[str, AffineParams],
    splits: Sequence[Split] = (),
    roots: Sequence[int] = (),
) -> tuple[str, ActivationQuantizer]:
    """The grid with the least weighted squared error on `x`, and what it is called; of equals the first.

    Args and Raises: As `two_region_params`.
        uniform: Uniform grids by name.
        splits: Splits whose best two steps are tried.
        roots: Logarithmic levels that are tried, by the root of their base.
    """
    sample = _Sample(x, weights)
    found: list[tuple[ActivationQuantizer, float]] = [(each, sample.error(each)) for each in uniform.values()]
    found += [_best_two_region(sample, bits, split) for split in splits]
    found += [_best_log(sample, bits, root) for root in roots]
    best = _least(found)
    return next((name for name, each in uniform.items() if each is best), named(best)), best


def named(grid: ActivationQuantizer) -> str:
    """What a grid is called in results."""
    if isinstance(grid, TwoRegionParams):
        return f"two steps, {grid.split}, 2^{grid.shift}"
    if isinstance(grid, LogParams):
        return "log2" if grid.root == 1 else "log sqrt 2"
    return "uniform"


def _least(found: list[tuple[ActivationQuantizer, float]]) -> ActivationQuantizer:
    """The quantiser with the least error; the first of equals, which is the uniform grid."""
    return min(found, key=lambda pair: pair[1])[0]


class _Sample:
    """A sorted sample with running sums, so that the error of a set of levels costs a look-up for each level,
    not a pass over the values.
    """

    def __init__(self, x: Tensor, weights: Tensor | None) -> None:
        if x.numel() == 0 or not torch.isfinite(x).all():
            raise DataError(
                "Steps cannot be searched on "
                f"{'no values' if x.numel() == 0 else 'values that are NaN or infinite'} (shape "
                f"{tuple(x.shape)})."
            )
        if weights is not None and (
            weights.shape != x.shape or not torch.isfinite(weights).all() or bool((weights < 0).any())
        ):
            raise DataError(
                f"The weights of the errors (shape {tuple(weights.shape)}) must be finite, not negative, "
                f"and of the values' shape {tuple(x.shape)}."
            )
        self._x, order = wide(x.detach()).flatten().sort()
        w = torch.ones_like(self._x) if weights is None else wide(weights.detach()).flatten()[order]
        wx = w * self._x
        self._sums = torch.cat(
            [w.new_zeros(1, 3), torch.stack([w, wx, wx * self._x], 1).cumsum(0)]
        )  # (n + 1) x 3
        self.low, self.high, self.device = float(self._x[0]), float(self._x[-1]), self._x.device

    def errors(self, levels: Tensor, borders: Tensor | None = None) -> Tensor:
        """Sum of squared errors [C] of quantising to `levels` [C, n], ascending; a value changes level at
        `borders` [C, n - 1], else half-way.
        """
        levels = levels.to(self._x)
        borders = (levels[:, 1:] + levels[:, :-1]) / 2 if borders is None else borders.to(self._x)
        ends = torch.searchsorted(self._x, borders.contiguous())
        edge = torch.zeros(len(levels), 1, dtype=ends.dtype, device=ends.device)
        ends = torch.cat([edge, ends, edge + len(self._x)], 1)
        w, wx, wxx = (self._sums[ends[:, 1:]] - self._sums[ends[:, :-1]]).unbind(-1)
        return (wxx - 2 * levels * wx + levels.square() * w).sum(1)

    def error(self, params: AffineParams) -> float:
        """Sum of squared errors of one uniform grid."""
        codes = torch.arange(params.qmin, params.qmax + 1, device=params.scale.device)
        return float(self.errors(((codes - params.zero_point) * params.scale)[None]))


def _best_two_region(sample: _Sample, bits: int, split: Split) -> tuple[TwoRegionParams, float]:
    steps, shifts, errors = _two_region_errors(sample, bits, split)
    best = int(errors.argmin())
    return TwoRegionParams(steps[best].clone(), int(shifts[best]), bits, split), float(errors[best])


def _two_region_errors(sample: _Sample, bits: int, split: Split) -> tuple[Tensor, Tensor, Tensor]:
    """Fine steps, exponents and errors of all pairs, the exponent running fastest; [48 * 16] each."""
    shifts = torch.arange(MAX_SHIFT + 1, device=sample.device)
    coarse = _span(sample, bits, split) * torch.exp2(torch.arange(COARSE_STEPS, device=sample.device) / -12)
    steps = step_of(coarse[:, None] / 2.0 ** shifts[None], 1).flatten()
    shifts = shifts.repeat(COARSE_STEPS)
    chunk = max(1, CHUNK_LEVELS >> bits)
    pairs = zip(torch.split(steps, chunk), torch.split(shifts, chunk), strict=True)
    return steps, shifts, torch.cat([sample.errors(two_region_levels(a, m, split, bits)) for a, m in pairs])


def _best_log(sample: _Sample, bits: int, root: int) -> tuple[LogParams, float]:
    tried = []
    for fraction in torch.arange(8, device=sample.device) / 8:
        top = sample.high if sample.high > 0 else ZERO_SCALE
        params = LogParams((torch.full_like(fraction, top) * torch.exp2(-fraction)).float(), bits, root)
        levels = wide(params.levels())[None]
        borders = levels[:, 1:] * 2 ** (
            -0.5 / root
        )  # half-way in the exponent, but half-way in the value next to 0
        borders[:, 0] = levels[:, 1] / 2
        tried.append((params, float(sample.errors(levels, borders))))
    return min(tried, key=lambda pair: pair[1])


def _span(sample: _Sample, bits: int, split: Split) -> Tensor:
    """The coarse step, 0-d, with which the coarse region just reaches the data."""
    _, (low, high) = regions_of(split, bits)
    reach = max(sample.high / high if high else 0.0, sample.low / low if low else 0.0)
    return torch.tensor(reach if reach > 0 else ZERO_SCALE, dtype=torch.float32, device=sample.device)
