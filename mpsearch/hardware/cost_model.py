"""The latency of a whole model from its rows: what each unit costs, what changes of precision between units
cost, and the rest.

A unit alone finds its weight in the cache and pays for float tensors on both sides; in the model it does
neither, float neighbours are fused, and what is no unit takes time too. So the latency is a sum with
coefficients,

    other + sum over units (s[k] * row + b[k] * weight bytes + own correction) + sum over wires c[kind, k, k']
    * elements,

k the kernel of a unit. The coefficients are fitted to whole-model runs of mixed assignments: least squares of
the relative error, a ridge to what is known beforehand (s = 1, and the median of what the runs take beyond
their rows), and none of them below zero. The widths of the ridge are chosen by cross-validation, and its
error, beside the error of measuring the same twice, is the model's own statement of what it is worth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from mpsearch.hardware.rows import ModelRun
from mpsearch.hardware.wires import Wire
from mpsearch.problem import Interaction

Array = NDArray[np.float64]
FLOAT = "float"
BYTES_PER_US = 8e3
"""Memory that one core reads in a microsecond, for the prior alone."""
CONVERSION = 10
"""Bytes of an element that is read as float and written as a byte, or the other way round, with a change of
layout: the unit of a wire's width.
"""
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
        """Whether predictions order assignments nearly as well as a second measurement does, and are not far
        off.
        """
        return self.mape <= max(_MOST_MAPE, 2 * self.aa_mape) and (
            self.tau >= _LEAST_TAU * self.aa_tau or self.mape <= self.aa_mape
        )

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
    return FitError(
        float(off.mean()),
        float(off.max()),
        _tau(predicted, measured),
        float(apart.mean()),
        _tau(first, second),
        len(runs),
    )


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
        """Latency of the whole model with unit l in `kernels[l]`, in microseconds. Raises KeyError on a
        kernel without a row.
        """
        return float(features(self.units, self.wires, self.names, kernels) @ np.array(self.values))

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
            found = np.array(
                [
                    [by_name.get(wire_name(wire.kind, ka, kb), 0.0) * wire.numel for kb in kernels[b]]
                    for ka in kernels[a]
                ]
            )
            tables[a, b] = tables.get((a, b), np.zeros_like(found)) + found
        return tuple(
            Interaction(pair, table.shape, tuple(map(float, table.ravel())))
            for pair, table in sorted(tables.items())
            if np.ptp(table) > 0
        )


def wire_name(kind: str, source: str, target: str) -> str:
    """Name of the feature of a wire between two kernels; a join has no direction."""
    if kind == "join":
        source, target = sorted((source, target))
    return f"wire {kind} {source}>{target}"


def free(kind: str, source: str, target: str) -> bool:
    """Pairs that cost nothing by definition: what they cost is in the rows, and the other pairs are counted
    from there.
    """
    return source == target and (kind == "direct" or source == FLOAT)


def features(
    units: Sequence[Unit], wires: Sequence[Wire], names: Sequence[str], kernels: Sequence[str]
) -> Array:
    """What each coefficient is multiplied with at one assignment."""
    found = dict.fromkeys(names, 0.0)
    found["other"] = 1.0
    for i, (unit, kernel) in enumerate(zip(units, kernels, strict=True)):
        alone = unit.rows_us[kernel]
        for name, value in (
            (f"row {kernel}", alone),
            (f"weight {kernel}", float(unit.weight_bytes[kernel])),
            (f"unit {i} {kernel}", alone),
        ):
            if name in found:
                found[name] += value
    for wire in wires:
        name = wire_name(wire.kind, kernels[wire.source], kernels[wire.target])
        if name in found:
            found[name] += wire.numel
    return np.array([found[name] for name in names])
