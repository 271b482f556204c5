"""The additive table corrected by measurements: Bayesian regression on logarithms with the proxy as prior.

The measured loss is modelled as `base + exp(level) * (sum_l s[l, c_l] * exp(u[l] + v[l, c_l])) ** slope`: the
proxy `s` up to a power, each super-layer off by a factor of its own and each entry by a smaller one. The
factors are positive, so no drawn table calls a harmful choice useful, and what was never measured stays at
the proxy. All of it is normal in logarithms: `u` and `v` around 0, errors around the model. The posterior is
that of the model made linear at its mode (Gauss-Newton, Laplace); the widths, the noise and the base are
those of greatest evidence on fixed grids. It takes `N x N` factorisations for N measurements, whatever the
number of entries.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from mpsearch.solvers.tables.groups import Row

_SHARED = (0.1, 0.3, 0.6, 1.0)  # prior standard deviation of the log of a super-layer's factor
_OWN = (0.05, 0.15, 0.4)  # of an entry's
NOISES = (0.02, 0.06, 0.15, 0.4)  # of what the model cannot say, in log loss
_SLOPE_SD, _LEVEL_SD = 0.3, 1.0
_SLOPES = (0.3, 3.0)  # what a straight line through the logarithms may start from
_BASES = (0.005, 0.02, 0.1, 0.5)  # distances of the base below the least loss, in units of median less least
_ZERO_BASE = 2.0  # how much likelier, in logs, a base of zero is: divergences and mean squares have it
_REACH = 0.7  # distance in log damage at which a measurement counts half
_FAR = 10.0  # times the least loss: beyond that a measurement counts less too
_MOST_MEASUREMENTS = 400  # the nearest are used, so that a batch stays cheap in a long study
_STEPS = 4  # of Gauss-Newton, before the widths are chosen and after
_LONGEST_STEP = 1.0  # of any one correction


@dataclass(frozen=True)
class _Width:
    """Standard deviations of the prior and of a measurement near the focus."""

    shared: float = 0.3
    own: float = 0.15
    noise: float = 0.1


@dataclass(frozen=True)
class _Data:
    """N measurements of M choices.

    Args:
        logs: M rows, log of the proxy.
        choices: `N x M`.
        target: [N] log of the loss above the base.
        doubt: [N] factor on the noise of each.
        start: Slope and level of the straight line through the logarithms.
        centre: Log damage that the level belongs to.
    """

    logs: list[Row]
    choices: NDArray[np.intp]
    target: Row
    doubt: Row
    start: tuple[float, float]
    centre: float


@dataclass(frozen=True)
class CorrectedTable:
    """Posterior of the table.

    Args:
        base: Loss of no damage.
        width: Width of the prior and of the noise.
        data: What was measured.
        prior_sd: [D + M + 2], of `v`, `u`, slope and level.
        prior_mean: The same.
        mode: The same; most likely values.
        features: `N x (D + M + 2)`: derivatives of the log loss at the mode.
        noise_sd: [N].
        factor: `N x N` lower Cholesky factor of the covariance of the measurements.
        evidence: Log evidence, up to a constant.
    """

    base: float
    width: _Width
    data: _Data
    prior_sd: Row
    prior_mean: Row
    mode: Row
    features: Row
    noise_sd: Row
    factor: Row
    evidence: float

    def mean(self) -> list[Row]:
        """M rows of the most likely table, in units of the proxy."""
        return self._rows(self.mode)

    def draw(self, rng: np.random.Generator) -> list[Row]:
        """M rows of a table drawn from the posterior (Thompson): a prior draw moved by what it gets wrong."""
        prior = self.prior_sd * rng.standard_normal(len(self.prior_sd))
        seen = self.features @ prior + self.noise_sd * rng.standard_normal(len(self.noise_sd))
        return self._rows(
            self.mode + prior - self.prior_sd**2 * (self.features.T @ cho_solve((self.factor, True), seen))
        )

    def log_loss(self, damage: Row) -> Row:
        """[P] expected log of the loss above the base, from P sums of `mean()`."""
        return np.asarray(self.mode[-1] + self.mode[-2] * (np.log(damage) - self.data.centre))

    def _rows(self, weights: Row) -> list[Row]:
        return [np.exp(row) for row in _corrected(self.data.logs, weights)]


def positive(rows: Sequence[Row]) -> list[Row]:
    """The proxy with nothing at or below zero, of which no factor could make something: a tenth of the row's
    least harm instead.
    """
    shifted = [row - min(float(row.min()), 0.0) for row in rows]
    flat = np.concatenate(shifted)
    floor = float(np.median(flat[flat > 0])) * 1e-3 if (flat > 0).any() else 1.0
    return [np.maximum(row, 0.1 * float(row[row > 0].min()) if (row > 0).any() else floor) for row in shifted]


def correct(
    rows: Sequence[Row],
    choices: NDArray[np.intp],
    losses: Row,
    focus: Sequence[int] | None = None,
    like: CorrectedTable | None = None,
) -> CorrectedTable:
    """Fit the table to measurements.

    Args:
        rows: M proxy rows.
        choices: `N x M`, N at least 1.
        losses: [N], finite.
        focus: M choices; measurements whose predicted damage is near theirs count most. None: all alike.
        like: A fit to fewer of them whose base and widths may stay, where they can; ten times faster.
    """
    logs = [np.log(row) for row in positive(rows)]
    damage = _log_damage(logs, choices)
    distance = damage - (
        damage.mean() if focus is None else float(_log_damage(logs, np.asarray(focus)[None])[0])
    )
    near = np.sort(np.argsort(np.abs(distance), kind="stable")[:_MOST_MEASUREMENTS])
    doubt = (
        np.ones(len(near))
        if focus is None
        else np.sqrt(1 + (np.maximum(np.abs(distance[near]), _above(losses[near])) / _REACH) ** 2)
    )
    # small matrices: threads cost more than they save, and would round differently
    with threadpool_limits(1, user_api="blas"):
        if like is not None and like.base < losses.min():
            return _mode(
                _data(logs, choices[near], losses[near], damage[near], doubt, like.base),
                like.base,
                like.width,
                like.mode,
            )
        found = [
            _at_base(logs, choices[near], losses[near], damage[near], doubt, base) for base in _bases(losses)
        ]
        best = max(found, key=lambda table: table.evidence)
        return _mode(best.data, best.base, _most_likely_width(best), best.mode)


def _above(losses: Row) -> Row:
    """[N] log of each loss over ten times the least, at least 0: what is far worse than was predicted says
    little about the best.
    """
    least = float(losses.min())
    return np.log(np.maximum(losses / (_FAR * least), 1.0)) if least > 0 else np.zeros(len(losses))


def _bases(losses: Row) -> list[float]:
    least, room = float(losses.min()), float(np.median(losses) - losses.min())
    room = room or float(np.ptp(losses)) or max(abs(least), 1.0)
    return ([0.0] if least > 0 else []) + [least - share * room for share in _BASES]


def _at_base(
    logs: list[Row], choices: NDArray[np.intp], losses: Row, damage: Row, doubt: Row, base: float
) -> CorrectedTable:
    """The posterior under this base; its evidence is that of the losses, not of their logarithms, so that
    bases can be compared.
    """
    data = _data(logs, choices, losses, damage, doubt, base)
    at = np.zeros(sum(map(len, logs)) + len(logs) + 2)
    at[-2:] = data.start
    found = _mode(data, base, _Width(), at)
    found = _mode(data, base, _most_likely_width(found), found.mode)
    return replace(
        found, evidence=found.evidence - float(data.target.sum()) + (_ZERO_BASE if base == 0 else 0.0)
    )


def _data(
    logs: list[Row], choices: NDArray[np.intp], losses: Row, damage: Row, doubt: Row, base: float
) -> _Data:
    target = np.log(losses - base)
    centre = float(np.average(damage, weights=doubt**-2))
    return _Data(logs, choices, target, doubt, _line(damage - centre, target, doubt**-2), centre)


def _line(x: Row, y: Row, weight: Row) -> tuple[float, float]:
    """Slope and level of the straight line of y over x, held towards a slope of 1."""
    share = weight / weight.sum()
    mean_x, mean_y = float(share @ x), float(share @ y)
    variance, covariance = float(share @ (x - mean_x) ** 2), float(share @ ((x - mean_x) * (y - mean_y)))
    pull = 0.1 / len(x)
    slope = float(np.clip((covariance + pull) / (variance + pull), *_SLOPES))
    return slope, mean_y - slope * mean_x


def _mode(data: _Data, base: float, width: _Width, at: Row) -> CorrectedTable:
    """The posterior at its mode, from Gauss-Newton steps of bounded length."""
    entries = sum(map(len, data.logs))
    prior_sd = np.concatenate(
        [np.full(entries, width.own), np.full(len(data.logs), width.shared), [_SLOPE_SD, _LEVEL_SD]]
    )
    prior_mean = np.zeros(len(prior_sd))
    prior_mean[-2:] = data.start
    for _ in range(_STEPS):
        features, expected = linear(data, data.choices, at)
        residual = data.target - expected + features @ (at - prior_mean)
        noise_sd = width.noise * data.doubt
        factor = factor_of((features * prior_sd**2) @ features.T + np.diag(noise_sd**2))
        solved = cho_solve((factor, True), residual)
        step = prior_mean + prior_sd**2 * (features.T @ solved) - at
        at = at + step * min(1.0, _LONGEST_STEP / max(float(np.abs(step).max()), 1e-300))
        at[-2] = max(at[-2], _SLOPES[0] / 2)
    evidence = -0.5 * float(residual @ solved) - float(np.log(np.diag(factor)).sum())
    return CorrectedTable(base, width, data, prior_sd, prior_mean, at, features, noise_sd, factor, evidence)


def _most_likely_width(table: CorrectedTable) -> _Width:
    """Of greatest evidence for the model made linear at the mode of another width."""
    data, (features, expected) = table.data, linear(table.data, table.data.choices, table.mode)
    entries = sum(map(len, data.logs))
    residual = data.target - expected + features @ (table.mode - table.prior_mean)
    own, shared, line = features[:, :entries], features[:, entries:-2], features[:, -2:] * table.prior_sd[-2:]
    own_gram, shared_gram, line_gram = own @ own.T, shared @ shared.T, line @ line.T

    def evidence(width: _Width) -> float:
        factor = factor_of(
            width.own**2 * own_gram
            + width.shared**2 * shared_gram
            + line_gram
            + np.diag((width.noise * data.doubt) ** 2)
        )
        return -0.5 * float(residual @ cho_solve((factor, True), residual)) - float(
            np.log(np.diag(factor)).sum()
        )

    best = max((_Width(shared, own) for shared, own in itertools.product(_SHARED, _OWN)), key=evidence)
    return max((replace(best, noise=noise) for noise in NOISES), key=evidence)


def factor_of(covariance: Row) -> Row:
    """Lower Cholesky factor, with a ridge of rounding errors."""
    ridge = 1e-12 * float(np.trace(covariance)) / len(covariance)
    found: Row = cholesky(covariance + ridge * np.eye(len(covariance)), lower=True)
    return found


def linear(data: _Data, choices: NDArray[np.intp], at: Row) -> tuple[Row, Row]:
    """Derivatives of the log losses of `P x M` choices, `P x (D + M + 2)`, and their expectation [P]."""
    logs = _corrected(data.logs, at)
    taken = np.column_stack([row[choices[:, m]] for m, row in enumerate(logs)])
    damage = _log_sum(taken)
    share = at[-2] * np.exp(taken - damage[:, None])
    starts = np.cumsum([0, *(len(row) for row in logs[:-1])])
    entries = np.zeros((len(damage), sum(map(len, logs))))
    np.put_along_axis(entries, choices + starts, share, axis=1)
    return np.column_stack([entries, share, damage - data.centre, np.ones(len(damage))]), at[-1] + at[-2] * (
        damage - data.centre
    )


def _corrected(logs: Sequence[Row], weights: Row) -> list[Row]:
    ends = np.cumsum([len(row) for row in logs])
    shared = weights[ends[-1] : ends[-1] + len(logs)]
    return [
        row + own + u
        for row, own, u in zip(logs, np.split(weights[: ends[-1]], ends[:-1]), shared, strict=True)
    ]


def _log_damage(logs: Sequence[Row], choices: NDArray[np.intp]) -> Row:
    return _log_sum(np.column_stack([row[choices[:, m]] for m, row in enumerate(logs)]))


def _log_sum(logs: Row) -> Row:
    most: Row = logs.max(axis=1)
    found: Row = most + np.log(np.exp(logs - most[:, None]).sum(axis=1))
    return found
