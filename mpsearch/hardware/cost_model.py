"""The latency of a whole model from its rows: what each unit costs, what changes of precision between units cost, and the rest.

A unit alone finds its weight in the cache and pays for float tensors on both sides; in the model it does neither, float neighbours are fused, and what is no
unit takes time too. So the latency is a sum with coefficients,

    other + sum over units (s[k] * row + b[k] * weight bytes + own correction) + sum over wires c[kind, k, k'] * elements,

k the kernel of a unit. The coefficients are fitted to whole-model runs of mixed assignments: least squares of the relative error, a ridge to what is known
beforehand (s = 1, and the median of what the runs take beyond their rows), and none of them below zero. The widths of the
ridge are chosen by cross-validation, and its error, beside the error of measuring the same twice, is the model's own statement of what it is worth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear
from scipy.stats import kendalltau

from mpsearch.hardware.rows import ModelRun
from mpsearch.hardware.wires import Wire
from mpsearch.problem import Interaction

Array = NDArray[np.float64]
FLOAT = "float"
LEAST_RUNS = 8
_FOLDS = 6
_WIDTHS = tuple((common, own) for common in (0.03, 0.1, 0.3, 1.0) for own in (0.01, 0.03, 0.1, 0.3))
"""Tried for the ridge: standard deviation of what all units have in common (scales, bytes, changes of precision), and of a unit's own correction, both as a
share: of a row, or of the time that memory takes."""
BYTES_PER_US = 8e3
"""Memory that one core reads in a microsecond, for the prior alone."""
_CONVERSION = 10
"""Bytes of an element that is read as float and written as a byte, or the other way round, with a change of layout: the unit of a wire's width."""
_LEAST_TAU = 0.8
_MOST_MAPE = 0.10


@dataclass(frozen=True)
class Unit:
    """What the model knows of one unit.

    Args:
        rows_us: Kernel -> latency of the unit alone, all calls.
        weight_bytes: Kernel -> bytes of its weight.
    """

    rows_us: Mapping[str, float]
    weight_bytes: Mapping[str, int]


@dataclass(frozen=True)
class FitError:
    """How far predictions are from measurements that they were not fitted to.

    Args:
        mape: Mean of |predicted - measured| / measured.
        worst: The greatest of them.
        tau: Kendall's rank correlation of predicted and measured.
        aa_mape: Mean of |first - second| / mean of two passes of the same.
        aa_tau: Rank correlation of the passes.
        runs: Whole-model runs that this is from.
    """

    mape: float
    worst: float
    tau: float
    aa_mape: float
    aa_tau: float
    runs: int

    @property
    def trusted(self) -> bool:
        """Whether predictions order assignments nearly as well as a second measurement does, and are not far off."""
        return self.mape <= max(_MOST_MAPE, 2 * self.aa_mape) and (self.tau >= _LEAST_TAU * self.aa_tau or self.mape <= self.aa_mape)

    def __str__(self) -> str:
        """`2.1% (worst 5.0%), tau 0.91; the same measured twice 1.1%, tau 0.95; 24 runs`."""
        twice = f"the same measured twice {self.aa_mape:.1%}, tau {self.aa_tau:.2f}"
        return f"{self.mape:.1%} (worst {self.worst:.1%}), tau {self.tau:.2f}; {twice}; {self.runs} runs"

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`."""
        return {**asdict(self), "trusted": self.trusted}


def fit_error(predicted: Sequence[float], runs: Sequence[ModelRun]) -> FitError:
    """The error of predictions of whole-model runs."""
    measured = np.array([run.latency_us for run in runs])
    off = np.abs(np.asarray(predicted) - measured) / measured
    first, second = (np.array([run.passes_us[i] for run in runs]) for i in (0, -1))
    apart = np.abs(first - second) / ((first + second) / 2)
    return FitError(float(off.mean()), float(off.max()), _tau(predicted, measured), float(apart.mean()), _tau(first, second), len(runs))


def _tau(a: Any, b: Any) -> float:
    found = float(kendalltau(a, b).statistic)
    return found if math.isfinite(found) else 0.0


@dataclass(frozen=True)
class CostModel:
    """A fitted model.

    Args:
        units: L units.
        wires: Between them.
        names: What each coefficient is of.
        values: The coefficients.
        error: By cross-validation; None where there were too few runs.
        width: Width of the ridge: for what all units have in common, and for each by itself.
    """

    units: tuple[Unit, ...]
    wires: tuple[Wire, ...]
    names: tuple[str, ...]
    values: tuple[float, ...]
    error: FitError | None
    width: tuple[float, float]

    def predict(self, kernels: Sequence[str]) -> float:
        """Latency of the whole model with unit l in `kernels[l]`, in microseconds. Raises KeyError on a kernel without a row."""
        return float(_features(self.units, self.wires, self.names, kernels) @ np.array(self.values))

    @property
    def other_us(self) -> float:
        """What is no unit."""
        return self.values[0]

    def row(self, unit: int, kernel: str) -> float:
        """What a unit adds in a kernel, in microseconds; never below zero."""
        by_name = dict(zip(self.names, self.values, strict=True))
        alone, held = self.units[unit].rows_us[kernel], self.units[unit].weight_bytes[kernel]
        scale = by_name.get(f"row {kernel}", 1.0) + by_name.get(f"unit {unit} {kernel}", 0.0)
        return max(0.0, scale * alone + by_name.get(f"weight {kernel}", 0.0) * held)

    def conversions(self, kernels: Sequence[Sequence[str]]) -> tuple[Interaction, ...]:
        """What wires add, as a table for each pair of units that a wire joins.

        Args:
            kernels: For each unit, the kernel of each of its candidates.
        """
        by_name = dict(zip(self.names, self.values, strict=True))
        tables: dict[tuple[int, int], Array] = {}
        for wire in self.wires:
            a, b = wire.source, wire.target
            found = np.array([[by_name.get(_wire_name(wire.kind, ka, kb), 0.0) * wire.numel for kb in kernels[b]] for ka in kernels[a]])
            tables[a, b] = tables.get((a, b), np.zeros_like(found)) + found
        return tuple(Interaction(pair, table.shape, tuple(map(float, table.ravel()))) for pair, table in sorted(tables.items()) if np.ptp(table) > 0)


def _wire_name(kind: str, source: str, target: str) -> str:
    if kind == "join":
        source, target = sorted((source, target))
    return f"wire {kind} {source}>{target}"


def _free(kind: str, source: str, target: str) -> bool:
    """Pairs that cost nothing by definition: what they cost is in the rows, and the other pairs are counted from there."""
    return source == target and (kind == "direct" or source == FLOAT)


def _columns(units: Sequence[Unit], wires: Sequence[Wire], runs: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Names of the coefficients that some run can tell something of."""
    used = sorted({kernel for run in runs for kernel in run})
    names = ["other", *(f"row {k}" for k in used), *(f"weight {k}" for k in used)]
    pairs = {(w.kind, *((a, b) if w.kind != "join" else sorted((a, b)))) for w in wires for run in runs for a, b in [(run[w.source], run[w.target])]}
    names += [_wire_name(*p) for p in sorted(pairs) if not _free(*p)]
    varied = [i for i in range(len(units)) if len({run[i] for run in runs}) > 1]
    return tuple(names + [f"unit {i} {k}" for i in varied for k in sorted({run[i] for run in runs})])


def _features(units: Sequence[Unit], wires: Sequence[Wire], names: Sequence[str], kernels: Sequence[str]) -> Array:
    """What each coefficient is multiplied with at one assignment."""
    found = dict.fromkeys(names, 0.0)
    found["other"] = 1.0
    for i, (unit, kernel) in enumerate(zip(units, kernels, strict=True)):
        alone = unit.rows_us[kernel]
        for name, value in ((f"row {kernel}", alone), (f"weight {kernel}", float(unit.weight_bytes[kernel])), (f"unit {i} {kernel}", alone)):
            if name in found:
                found[name] += value
    for wire in wires:
        name = _wire_name(wire.kind, kernels[wire.source], kernels[wire.target])
        if name in found:
            found[name] += wire.numel
    return np.array([found[name] for name in names])


def _prior(names: Sequence[str], units: Sequence[Unit], runs: Sequence[ModelRun], width: tuple[float, float], bytes_per: float) -> tuple[Array, Array]:
    """Expected value and standard deviation of each coefficient."""
    floats = [run.latency_us - math.fsum(u.rows_us[k] for u, k in zip(units, run.kernels, strict=True)) for run in runs]
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
            widths[i] = common * _CONVERSION / bytes_per
        else:
            widths[i] = own
    return means, widths


def _solve(
    units: Sequence[Unit], wires: Sequence[Wire], names: tuple[str, ...], runs: Sequence[ModelRun], width: tuple[float, float], bytes_per: float
) -> Array:
    """Least squares of the relative error, with the ridge as further rows, by bounded-variable least squares."""
    means, widths = _prior(names, units, runs, width, bytes_per)
    times = np.array([run.latency_us for run in runs])
    noise = _noise(runs)
    design = np.array([_features(units, wires, names, run.kernels) for run in runs])
    a = np.vstack([design * widths / (times * noise)[:, None], np.eye(len(names))])
    b = np.concatenate([(times - design @ means) / (times * noise), np.zeros(len(names))])
    lower = np.array([-0.9 / w if name.startswith("unit") else -m / w for name, m, w in zip(names, means, widths, strict=True)])
    found = lsq_linear(a, b, bounds=(lower - 1e-12, np.inf), method="bvls")
    values = np.asarray(means + widths * found.x, float)
    return np.where([name.startswith("unit") for name in names], values, np.maximum(values, 0.0))


def _noise(runs: Sequence[ModelRun]) -> float:
    """Standard deviation of a run, as a share: from its passes, with what no model of this form can tell added."""
    apart = np.array([(run.passes_us[0] - run.passes_us[-1]) / run.latency_us for run in runs])
    return float(max(0.005, np.sqrt(np.mean(apart**2)) / 2))


def fit_cost_model(units: Sequence[Unit], wires: Sequence[Wire], runs: Sequence[ModelRun], bytes_per: float = BYTES_PER_US) -> CostModel:
    """Fit the coefficients to whole-model runs.

    Args:
        units: L units.
        wires: Between them.
        runs: At least one; with fewer than `LEAST_RUNS` there is no statement of the error.
        bytes_per: Bytes of memory that are read in a microsecond (or with a millijoule, where rows and runs are energies), for the prior alone.
    """
    names = _columns(units, wires, [run.kernels for run in runs])
    if len(runs) < LEAST_RUNS:
        width = _WIDTHS[-2]
        return CostModel(tuple(units), tuple(wires), names, tuple(_solve(units, wires, names, runs, width, bytes_per).tolist()), None, width)
    errors = {width: fit_error(_held_out(units, wires, names, runs, width, bytes_per), runs) for width in _WIDTHS}
    width = min(errors, key=lambda w: errors[w].mape)
    return CostModel(tuple(units), tuple(wires), names, tuple(_solve(units, wires, names, runs, width, bytes_per).tolist()), errors[width], width)


def _held_out(
    units: Sequence[Unit], wires: Sequence[Wire], names: tuple[str, ...], runs: Sequence[ModelRun], width: tuple[float, float], bytes_per: float
) -> list[float]:
    """Each run predicted from those of other folds."""
    predicted = [0.0] * len(runs)
    for fold in range(_FOLDS):
        kept = [run for i, run in enumerate(runs) if i % _FOLDS != fold]
        values = _solve(units, wires, names, kept, width, bytes_per)
        for i in range(fold, len(runs), _FOLDS):
            predicted[i] = float(_features(units, wires, names, runs[i].kernels) @ values)
    return predicted
