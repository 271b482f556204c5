"""Fits the cost model to whole-model runs, and judges it by runs it was not fitted to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import lsq_linear

from mpsearch.hardware.cost_model import (
    BYTES_PER_US,
    CONVERSION,
    Array,
    CostModel,
    Unit,
    features,
    fit_error,
    free,
    wire_name,
)
from mpsearch.hardware.rows import ModelRun
from mpsearch.hardware.wires import Wire

_FOLDS = 6


def _columns(units: Sequence[Unit], wires: Sequence[Wire], runs: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Names of the coefficients that some run can tell something of."""
    used = sorted({kernel for run in runs for kernel in run})
    names = ["other", *(f"row {k}" for k in used), *(f"weight {k}" for k in used)]
    pairs = {
        (w.kind, *((a, b) if w.kind != "join" else sorted((a, b))))
        for w in wires
        for run in runs
        for a, b in [(run[w.source], run[w.target])]
    }
    names += [wire_name(*p) for p in sorted(pairs) if not free(*p)]
    varied = [i for i in range(len(units)) if len({run[i] for run in runs}) > 1]
    return tuple(names + [f"unit {i} {k}" for i in varied for k in sorted({run[i] for run in runs})])


def _prior(
    names: Sequence[str],
    units: Sequence[Unit],
    runs: Sequence[ModelRun],
    width: tuple[float, float],
    bytes_per: float,
) -> tuple[Array, Array]:
    """Expected value and standard deviation of each coefficient."""
    floats = [
        run.latency_us - math.fsum(u.rows_us[k] for u, k in zip(units, run.kernels, strict=True))
        for run in runs
    ]
    other = max(0.0, float(np.median(floats)))
    scale = float(np.median([run.latency_us for run in runs]))
    means, widths, (common, own) = np.zeros(len(names)), np.zeros(len(names)), width
    for i, name in enumerate(names):
        what = name.split()[0]
        if what == "other":
            means[i], widths[i] = other, scale
        elif what == "row":
            means[i], widths[i] = 1.0, common
        elif what == "weight":
            widths[i] = common / bytes_per
        elif what == "wire":
            widths[i] = common * CONVERSION / bytes_per
        else:
            widths[i] = own
    return means, widths


def _solve(
    units: Sequence[Unit],
    wires: Sequence[Wire],
    names: tuple[str, ...],
    runs: Sequence[ModelRun],
    width: tuple[float, float],
    bytes_per: float,
) -> Array:
    """Least squares of the relative error, with the ridge as further rows, by bounded-variable least
    squares.
    """
    means, widths = _prior(names, units, runs, width, bytes_per)
    times = np.array([run.latency_us for run in runs])
    noise = _noise(runs)
    design = np.array([features(units, wires, names, run.kernels) for run in runs])
    a = np.vstack([design * widths / (times * noise)[:, None], np.eye(len(names))])
    b = np.concatenate([(times - design @ means) / (times * noise), np.zeros(len(names))])
    lower = np.array(
        [
            -0.9 / w if name.startswith("unit") else -m / w
            for name, m, w in zip(names, means, widths, strict=True)
        ]
    )
    found = lsq_linear(a, b, bounds=(lower - 1e-12, np.inf), method="bvls")
    values = np.asarray(means + widths * found.x, float)
    return np.where([name.startswith("unit") for name in names], values, np.maximum(values, 0.0))


def _noise(runs: Sequence[ModelRun]) -> float:
    """Standard deviation of a run, as a share: from its passes, with what no model of this form can tell
    added.
    """
    apart = np.array([(run.passes_us[0] - run.passes_us[-1]) / run.latency_us for run in runs])
    return float(max(0.005, np.sqrt(np.mean(apart**2)) / 2))


def fit_cost_model(
    units: Sequence[Unit],
    wires: Sequence[Wire],
    runs: Sequence[ModelRun],
    bytes_per: float = BYTES_PER_US,
    *,
    leave_one_out: bool = False,
) -> CostModel:
    """Fit the coefficients to whole-model runs.

    Args:
        units: L units.
        wires: Between them.
        runs: At least one; with fewer than `LEAST_RUNS` there is no statement of the error.
        bytes_per: Bytes of memory that are read in a microsecond (or with a millijoule, where rows and runs
            are energies), for the prior alone.
        leave_one_out: State the error of fewer than `LEAST_RUNS` too, but of one: each run as the others
            predict it.
    """
    names = _columns(units, wires, [run.kernels for run in runs])
    if len(runs) < LEAST_RUNS:
        width, error = _WIDTHS[-2], None
        if leave_one_out and len(runs) > 1:
            error = fit_error(_held_out(units, wires, names, runs, width, bytes_per, len(runs)), runs)
        return CostModel(
            tuple(units),
            tuple(wires),
            names,
            tuple(_solve(units, wires, names, runs, width, bytes_per).tolist()),
            error,
            width,
        )
    errors = {
        width: fit_error(_held_out(units, wires, names, runs, width, bytes_per), runs) for width in _WIDTHS
    }
    width = min(errors, key=lambda w: errors[w].mape)
    return CostModel(
        tuple(units),
        tuple(wires),
        names,
        tuple(_solve(units, wires, names, runs, width, bytes_per).tolist()),
        errors[width],
        width,
    )


def _held_out(
    units: Sequence[Unit],
    wires: Sequence[Wire],
    names: tuple[str, ...],
    runs: Sequence[ModelRun],
    width: tuple[float, float],
    bytes_per: float,
    folds: int = _FOLDS,
) -> list[float]:
    """Each run predicted from those of other folds."""
    predicted = [0.0] * len(runs)
    for fold in range(folds):
        kept = [run for i, run in enumerate(runs) if i % folds != fold]
        values = _solve(units, wires, names, kept, width, bytes_per)
        for i in range(fold, len(runs), folds):
            predicted[i] = float(features(units, wires, names, runs[i].kernels) @ values)
    return predicted


_WIDTHS = tuple((common, own) for common in (0.03, 0.1, 0.3, 1.0) for own in (0.01, 0.03, 0.1, 0.3))
"""Tried for the ridge: standard deviation of what all units have in common (scales, bytes, changes of
precision), and of a unit's own correction, both as a
share: of a row, or of the time that memory takes."""


LEAST_RUNS = 8
