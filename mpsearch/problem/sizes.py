"""Sizes that a budget may be told by: of the float model, and of the model at a number of bits for each
weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mpsearch.problem.assignment import Candidate
from mpsearch.problem.budget import Budget
from mpsearch.problem.layer import Layer
from mpsearch.problem.problem import FLOAT_BYTES, Problem


def absolute(problem: Problem, budget: Budget) -> Budget:
    """The budget in bytes, where it is a share of the float model (`40%`) or bits for each weight (`5bits`);
    else as it is.
    """
    if budget.scale == "float":
        return budget.resolve(budget.limit * float_bytes(problem))
    return budget.resolve(bytes_at(problem, budget.limit)) if budget.scale == "bits" else budget


def float_bytes(problem: Problem) -> float:
    """Size of the file if nothing were quantised: as the problem says, else with float32 weights."""
    if FLOAT_BYTES in problem.constants:
        return problem.constants[FLOAT_BYTES]
    return _constant(problem) + 4.0 * sum(
        layer.weight_numel for layer in problem.layers if layer.weight_shape
    )


def bytes_at(problem: Problem, bits: float) -> float:
    """Size of the file at `bits` for each weight: linear between the files of the uniform widths on
    either side.
    """
    low, high = max(2, min(8, math.floor(bits))), max(2, min(8, math.ceil(bits)))
    below, above = (_uniform(problem, b) for b in (low, high))
    if not 2 <= bits <= 8:
        return _constant(problem) + below * bits / low
    return _constant(problem) + below + (bits - low if high > low else 0.0) * (above - below)


def _uniform(problem: Problem, bits: int) -> float:
    """Bytes of all weights and their quantisers at one width."""
    rows = problem.costs["size_bytes"]
    units = zip(problem.layers, problem.candidates, rows, strict=True)
    return math.fsum(
        _unit_bytes(layer, choices, row, bits) if layer.weight_shape else max(row)
        for layer, choices, row in units
    )


def _unit_bytes(layer: Layer, choices: Sequence[Candidate], row: Sequence[float], bits: int) -> float:
    """As the table says, or between its widths; beyond them only the codes, in rows of whole bytes,
    differ.
    """
    known = {
        c.w_bits: size
        for c, size in zip(choices, row, strict=True)
        if c.w_bits is not None and not c.is_float
    }
    below, above = (
        max((b for b in known if b <= bits), default=None),
        min((b for b in known if b >= bits), default=None),
    )
    if below is not None and above is not None:
        return known[below] + (known[above] - known[below]) * (bits - below) / max(above - below, 1)
    near = above if below is None else below
    if near is not None:
        return known[near] - _codes(layer, near) + _codes(layer, bits)
    return (
        _codes(layer, bits) + 4.0 * layer.weight_shape[0] + 8.0
    )  # a scale for each output channel, and the input's step and grid


def _codes(layer: Layer, bits: int) -> float:
    channels = layer.weight_shape[0]
    return float(channels * math.ceil(layer.weight_numel // channels * bits / 8))


def _constant(problem: Problem) -> float:
    return float(problem.constants.get("size_bytes", 0.0))
