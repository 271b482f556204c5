"""The additive table corrected by measurements: Bayesian linear regression with the proxy as prior mean.

Around a region of interest the measured loss is modelled as `b + a * sum_l s[l, c_l] * (1 + d[l, c_l])`: the proxy `s` up to scale and
offset, each entry off by a factor of its own. `d` has a normal prior around 0; its width and the noise are chosen by the evidence
on a fixed grid. The posterior is exact and needs one `N x N` factorisation for N measurements, whatever the number of entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from mpsearch.search.superlayers import Row

_WIDTHS = (0.1, 0.25, 0.5, 1.0, 2.0)  # prior standard deviation of an entry's relative error
_NOISES = (0.003, 0.01, 0.03, 0.1, 0.3)  # standard deviation of a measurement, relative to its own predicted damage
_SLOPE_SD = 0.3  # what the first straight-line fit may be off by
_REACH = 0.7  # distance in log damage at which a measurement counts half
_MOST_MEASUREMENTS = 400  # the nearest are used, so that a batch stays cheap in a long study


@dataclass(frozen=True)
class CorrectedTable:
    """Posterior of the table.

    Args:
        proxy: M rows, the least of each taken off.
        spread: [D] prior scale of each of the D entries, in units of the proxy.
        width: Prior standard deviation of the relative errors.
        features: `N x (D + 2)`: spread where an entry is taken; damage; 1.
        prior_sd: [D + 2].
        noise_sd: [N].
        target: [N] measured less predicted damage, in units of the proxy.
        factor: `N x N` lower Cholesky factor of the covariance of `target`.
    """

    proxy: list[Row]
    spread: Row
    features: Row
    prior_sd: Row
    noise_sd: Row
    target: Row
    factor: Row

    def mean(self) -> list[Row]:
        """M rows of the expected table."""
        return self._rows(self._gain(self.target))

    def draw(self, rng: np.random.Generator) -> list[Row]:
        """M rows of a table drawn from the posterior (Thompson), exactly: a prior draw moved by what it gets wrong."""
        prior = self.prior_sd * rng.standard_normal(len(self.prior_sd))
        seen = self.features @ prior + self.noise_sd * rng.standard_normal(len(self.noise_sd))
        return self._rows(prior + self._gain(self.target - seen))

    def _gain(self, residual: Row) -> Row:
        gain: Row = self.prior_sd**2 * (self.features.T @ cho_solve((self.factor, True), residual))
        return gain

    def _rows(self, weights: Row) -> list[Row]:
        slope = weights[-2]
        ends = np.cumsum([len(row) for row in self.proxy])[:-1]
        corrections = np.split(self.spread * weights[:-2], ends)
        return [row * (1 + slope) + correction for row, correction in zip(self.proxy, corrections, strict=True)]


def correct(rows: Sequence[Row], choices: NDArray[np.intp], losses: Row, focus: Sequence[int]) -> CorrectedTable:
    """Fit the table to measurements, those whose predicted damage is near that of `focus` above all.

    Args:
        rows: M proxy rows.
        choices: `N x M`, N at least 1.
        losses: [N], finite.
        focus: M choices.
    """
    proxy = [row - row.min() for row in rows]
    starts = np.cumsum([0, *(len(row) for row in proxy[:-1])])
    flat = np.concatenate(proxy)
    floor = float(np.median(flat[flat > 0])) * 1e-3 if (flat > 0).any() else 1.0
    damage = flat[choices + starts].sum(1)
    distance = np.log((damage + floor) / (flat[np.asarray(focus) + starts].sum() + floor))
    near = np.sort(np.argsort(np.abs(distance), kind="stable")[:_MOST_MEASUREMENTS])
    damage, choices, losses = damage[near], choices[near], losses[near]
    doubt = (damage + floor) * (1 + (distance[near] / _REACH) ** 2)
    spread = np.concatenate([np.maximum(row, _least_spread(row, floor)) for row in proxy])
    entries = np.zeros((len(near), len(flat)))
    np.put_along_axis(entries, choices + starts, spread[choices + starts], axis=1)
    features = np.column_stack([entries, damage, np.ones(len(near))])
    offset, scale = _line(damage, losses, 1 / doubt**2)
    target = (losses - offset) / scale - damage
    return _posterior(proxy, spread, features, target, doubt)


def _least_spread(row: Row, floor: float) -> float:
    """Scale of the error of an entry that the proxy calls harmless: a tenth of the row's least harm."""
    return 0.1 * float(row[row > 0].min()) if (row > 0).any() else floor


def _line(x: Row, y: Row, weight: Row) -> tuple[float, float]:
    """Offset and positive scale of the weighted straight line of y over x."""
    share = weight / weight.sum()
    mean_x, mean_y = float(share @ x), float(share @ y)
    variance, covariance = float(share @ (x - mean_x) ** 2), float(share @ ((x - mean_x) * (y - mean_y)))
    if variance <= 1e-24 * max(mean_x**2, 1e-300):
        return mean_y - mean_x, 1.0
    spread = math.sqrt(float(share @ (y - mean_y) ** 2) / variance)
    scale = max(covariance / variance, 0.1 * spread) or 1.0  # a proxy that points the wrong way still sets the unit
    return mean_y - scale * mean_x, scale


def _posterior(proxy: list[Row], spread: Row, features: Row, target: Row, doubt: Row) -> CorrectedTable:
    """The posterior under the width and noise of greatest evidence."""
    offset_sd = float(np.std(target)) + float(doubt.min())
    gram = features[:, :-2] @ features[:, :-2].T
    shared = _SLOPE_SD**2 * np.outer(features[:, -2], features[:, -2]) + offset_sd**2

    def fit(width: float, noise: float) -> tuple[float, CorrectedTable]:
        covariance = width**2 * gram + shared + np.diag((noise * doubt) ** 2)
        factor = cholesky(covariance + 1e-12 * np.trace(covariance) / len(target) * np.eye(len(target)), lower=True)
        evidence = -0.5 * float(target @ cho_solve((factor, True), target)) - float(np.log(np.diag(factor)).sum())
        prior_sd = np.append(np.full(len(spread), width), [_SLOPE_SD, offset_sd])
        return evidence, CorrectedTable(proxy, spread, features, prior_sd, noise * doubt, target, factor)

    with threadpool_limits(1, user_api="blas"):  # small matrices: threads cost more than they save, and would round differently
        return max((fit(width, noise) for width in _WIDTHS for noise in _NOISES), key=lambda found: found[0])[1]
