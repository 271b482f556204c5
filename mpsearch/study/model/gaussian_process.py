"""Losses near what was measured: the corrected table, and what it gets wrong, which assignments with most
choices in common share.

On few images the loss of an assignment is to a tenth or so the luck of errors that cancel. No table can say
that, but a neighbour shares it: the errors of two assignments that differ in d super-layers are correlated by
`likeness ** d`, the overlap kernel of Gaussian processes on categories (after Wan et al., Think Global and
Act Local, ICML 2021). The mean is the corrected table; likeness and deviation are those of greatest evidence
on fixed grids.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from scipy.stats import norm

from mpsearch.solvers.tables.groups import Row
from mpsearch.study.model.correction import NOISES, CorrectedTable, factor_of, linear

_LIKENESSES = (0.0, 0.5, 0.7, 0.85, 0.95)
_SHARED = 0.96  # share of the errors' variance that neighbours have in common; the rest is each one's own


@dataclass(frozen=True)
class LocalModel:
    """Posterior of the log of the loss above the table's base.

    Args:
        table: Its mode is where the table is made linear.
        deviation: Standard deviation of what the table cannot say, near the table's focus.
        likeness: Its correlation for each super-layer that differs.
        weights: [D + M + 2] most likely parameters of the table.
        features: `N x (D + M + 2)`: derivatives of the measured log losses at the table's mode.
        solved: [N] inverse covariance times what the prior gets wrong.
        factor: `N x N` lower Cholesky factor of the covariance.
    """

    table: CorrectedTable
    deviation: float
    likeness: float
    weights: Row
    features: Row
    solved: Row
    factor: Row

    @classmethod
    def of(cls, table: CorrectedTable, like: LocalModel | None = None) -> LocalModel:
        """From the measurements that the table was corrected by; with the likeness and the deviation of
        another where one is given.
        """
        data, variance = table.data, table.prior_sd**2
        features, expected = linear(data, data.choices, table.mode)
        wrong = data.target - expected + features @ (table.mode - table.prior_mean)
        apart = _differing(data.choices, data.choices)
        given = (features * variance) @ features.T + np.diag(
            table.noise_sd**2 * (1 - data.doubt**-2)
        )  # what is far says less than the noise near the focus
        best = None
        for likeness in _LIKENESSES if like is None else (like.likeness,):
            correlation = _correlation(likeness, apart)
            for deviation in NOISES if like is None else (like.deviation,):
                factor = factor_of(given + deviation**2 * correlation)
                solved = cho_solve((factor, True), wrong)
                evidence = -0.5 * float(wrong @ solved) - float(np.log(np.diag(factor)).sum())
                if best is None or evidence > best[0]:
                    best = evidence, deviation, likeness, solved, factor
        assert best is not None
        _, deviation, likeness, solved, factor = best
        return cls(
            table,
            deviation,
            likeness,
            table.prior_mean + variance * (features.T @ solved),
            features,
            solved,
            factor,
        )

    def log_loss(self, choices: Sequence[Sequence[int]]) -> tuple[Row, Row]:
        """[P] expected log of the loss above the base of each of P assignments, and [P] its standard
        deviation.
        """
        taken = np.array(choices, dtype=np.intp)
        features, expected = linear(self.table.data, taken, self.table.mode)
        by_error = self._errors(taken)
        mean = expected + features @ (self.weights - self.table.mode) + by_error @ self.solved
        variance = self.table.prior_sd**2
        across = (features * variance) @ self.features.T + by_error
        known = (solve_triangular(self.factor, across.T, lower=True) ** 2).sum(axis=0)
        return mean, np.sqrt(
            np.maximum((features**2 * variance).sum(axis=1) + self.deviation**2 - known, 1e-12)
        )

    def expected_improvement(self, choices: Sequence[Sequence[int]], loss: float) -> Row:
        """[P] by how much each of P unmeasured assignments is expected to lower the log of a loss, where it
        lowers it.

        Jones, Schonlau and Welch, Efficient Global Optimization, J. Global Optim. 13, 1998, eq. 15.
        """
        mean, sd = self.log_loss(choices)
        rise = mean - math.log(loss - self.table.base)
        return np.asarray(sd * norm.pdf(rise / sd) - rise * norm.cdf(-rise / sd))

    def _errors(self, choices: NDArray[np.intp]) -> Row:
        """`P x N` covariance of the errors of P assignments with those of the measured ones."""
        data = self.table.data
        return self.deviation**2 * _correlation(self.likeness, _differing(choices, data.choices))


def _differing(first: NDArray[np.intp], second: NDArray[np.intp]) -> NDArray[np.int16]:
    """`P x N`: in how many super-layers each of P differs from each of N."""
    found = np.zeros((len(first), len(second)), dtype=np.int16)
    for m in range(first.shape[1]):
        found += first[:, m, None] != second[:, m]
    return found


def _correlation(likeness: float, apart: NDArray[np.int16]) -> Row:
    powers = np.array(
        list(itertools.accumulate([likeness] * int(apart.max(initial=0)), lambda a, b: a * b, initial=1.0))
    )
    return np.asarray(_SHARED * powers[apart] + (1 - _SHARED) * (apart == 0))
