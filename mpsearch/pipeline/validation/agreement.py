"""How well predicted damage orders assignments as the measured loss does. Plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEAST = 3


@dataclass(frozen=True)
class Agreement:
    """Rank correlations over `count` assignments; None where fewer than three, or where one side is constant.

    Args:
        count: Assignments.
        spearman: Spearman's rho of predicted and measured.
        kendall: Kendall's tau-b.
        at_equal_size: Partial Spearman given the size: what an objective knows beyond that fewer bytes are
            worse, which any does.
    """

    count: int
    spearman: float | None = None
    kendall: float | None = None
    at_equal_size: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Plain data for `json.dump`."""
        return asdict(self)


def agreement(predicted: Sequence[float], measured: Sequence[float], sizes: Sequence[float]) -> Agreement:
    """Rank correlations of N predictions with N measurements; an infinite measurement is the worst rank.

    The partial correlation is (r_pm - r_ps r_ms) / sqrt((1 - r_ps^2)(1 - r_ms^2)) of Spearman's coefficients,
    p predicted, m measured, s size.
    """
    count = len(measured)
    if count < LEAST or len(set(predicted)) == 1 or len(set(measured)) == 1:
        return Agreement(count)
    finite = [v if math.isfinite(v) else np.finfo(float).max for v in measured]
    found = float(stats.spearmanr(predicted, finite).statistic)
    return Agreement(
        count,
        found,
        float(stats.kendalltau(predicted, finite).statistic),
        _partial(found, predicted, finite, sizes),
    )


def _partial(
    found: float, predicted: Sequence[float], measured: Sequence[float], sizes: Sequence[float]
) -> float | None:
    if len(set(sizes)) == 1:
        return found
    with_predicted, with_measured = (
        float(stats.spearmanr(values, sizes).statistic) for values in (predicted, measured)
    )
    left = (1 - with_predicted**2) * (1 - with_measured**2)
    return None if left <= 1e-12 else (found - with_predicted * with_measured) / math.sqrt(left)


def regret_with_error(losses: NDArray[np.float64], best: NDArray[np.float64]) -> tuple[float, float]:
    """Regret of the mean over the same N images, below 0 where `best` was not best on them, and its standard
    error.

    The error is that of a ratio of two means of pairs (the delta method): sd(losses - ratio best) / sqrt(N) /
    mean(best). Infinite, without an error, where a loss is infinite, or the best mean is 0 and the other is
    not.
    """
    mean, least = float(losses.mean()), float(best.mean())
    if not math.isfinite(mean) or not math.isfinite(least):
        return math.inf, 0.0
    if mean == least:
        return 0.0, 0.0
    if least <= 0:
        return math.inf, 0.0
    ratio = mean / least
    spread = float((losses - ratio * best).std(ddof=1)) if len(losses) > 1 else math.inf
    return ratio - 1, spread / math.sqrt(len(losses)) / least


def regret(loss: float, best: float) -> float:
    """By how much a loss is above the best known, as a share of it; both are above the float model's, whose
    KL to itself is 0.
    """
    if not math.isfinite(best):
        return math.inf
    if loss <= best:
        return 0.0
    return loss / best - 1 if best > 0 else math.inf
