"""`coding_length`: the lossy coding length of the weight, after Attention Round. No data, no forward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mpsearch.errors import OptionError
from mpsearch.objectives._base import OBJECTIVES, Objective, Parts, Rows, ScoringContext
from mpsearch.objectives._clusters import cluster
from mpsearch.objectives._local import by_kind, weight_kind
from mpsearch.problem import Candidate
from mpsearch.quant import OBSERVERS
from mpsearch.quant.devices import wide
from mpsearch.reconstruct import Calibration

GRID_BITS = 4
"""Bits of the grid at whose own error the reading `own_grid` takes the length."""

_NOISES = 3  # draws of noise that a length is compared with

REFERENCE_BITS = 16
"""Bits of the grid that `distortion` takes for lossless."""


def coding_length(vectors: Tensor, eps2: float) -> float:
    """Bits to code the columns of V up to a mean squared error `eps2`: (m + n) / 2 * log2 det(I + n / (eps2
    m) V V^T).

    The determinant is taken of the smaller Gram matrix (Sylvester's identity); the factor n / m keeps the
    orientation of V.

    Args:
        vectors: n x m, m vectors of dimension n as columns; their mean is subtracted here.
        eps2: Distortion, in squared units of the values.
    Returns: Bits; 0 where all vectors are equal.
    References: Ma, Derksen, Hong, Wright, TPAMI 29(9), 2007, eq. 6 (zero mean).
    """
    v = wide(vectors)
    v = v - v.mean(1, keepdim=True)
    n, m = v.shape
    gram = v.T @ v if m < n else v @ v.T
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    bits = (
        0.5
        * (m + n)
        * float(torch.linalg.slogdet(identity + (n / (eps2 * m)) * gram).logabsdet)
        / math.log(2)
    )
    return max(bits, 0.0)  # in this order: max(0.0, nan) is 0.0


def cluster_bits(scores: Sequence[float], bits: Sequence[int]) -> list[int]:
    """A bit-width for each unit with no budget: scores are clustered into as many groups as there are
    bit-widths, and larger scores get more bits.

    Where there are fewer distinct scores than bit-widths, the largest bit-widths are used. Units that are to
    keep given bits (such as the first and the last) are the caller's to leave out.

    References: after Diao et al., Attention Round, arXiv:2207.03088, which clusters coding lengths; exact
        k-means is chosen here.

    Args:
        scores: L numbers, such as `CodingLength.rate` of each weight.
        bits: The bit-widths to give, in any order.
    Returns: L bit-widths.
    Raises: OptionError: No bit-widths, or one twice.
    """
    if not bits or len(set(bits)) < len(bits):
        raise OptionError(
            f"Cannot give the bit-widths {list(bits)} by clustering. Give at least one, and each once."
        )
    groups = cluster(scores, len(bits))
    largest = sorted(bits)[len(bits) - 1 - max(groups, default=0) :]
    return [largest[group] for group in groups]


@OBJECTIVES.register("coding_length")
@dataclass(frozen=True)
class CodingLength(Objective):
    """Damage from the coding length of a weight alone: how many bits each of its N numbers is worth, in three
    forms.

    Vectors are the rows of the weight seen as a matrix [C_out, C_in / groups * k * k], so m = C_out. R is the
    length for each weight, which does not depend on the weight's scale, in one of two readings:

    - `own_grid`: at the error of the weight's own 4-bit grid, step^2 / 12, with rows divided by their step,
      less the same of Gaussian noise of that shape on its own grid. What the shape alone makes of a length
      cancels; what is left is how evenly the weights fill their grid.
    - `rate`: at a distortion of `eps2` of the weight's variance. It mostly measures the shape.

    What is made of it:

    - `budget`: N * 4^(R - b), the distortion left at b bits.
    - `cluster`: N * 4^(B - b) with B the bit-width that `cluster_bits` gives the unit among the candidates'
      bit-widths. The clustered assignment itself is the optimum of this table among assignments of its own
      size (of no more weight bits in all).
    - `distortion`: bits of information that the candidate's own grid loses: the coding length of the weight
      at the error of a 16-bit grid of the same range, less that at the error of the candidate's grid, step^2
      / 12. Rows are divided by their step first, so that each channel counts in its own.

    All are blind to the input bits and to what the network does with the weight.

    References: after Diao et al., Attention Round, arXiv:2207.03088, whose orientation, distortion and
    normalisation were not published in what could be read; those, and the tables, were chosen here.

    Args:
        eps2: Distortion of `rate` as a share of the weight's variance.
        mode: `budget`, `cluster` or `distortion`.
        reading: `own_grid` or `rate`; not used by the mode `distortion`.
    """

    revision: ClassVar[int] = 1

    unit: ClassVar[str] = "relative distortion (bits in the mode distortion)"
    eps2: float = 1e-2
    mode: Literal["budget", "cluster", "distortion"] = "budget"
    reading: Literal["own_grid", "rate"] = "own_grid"

    def __post_init__(self) -> None:
        if not self.eps2 > 0:
            raise OptionError(f"The distortion eps2 is {self.eps2}; it must be positive, such as 0.01.")

    def score(self, context: ScoringContext) -> Rows:
        """`L x C_l`; cost: one determinant for each unit, in the mode `distortion` one more for each kind of
        weight candidate.
        """
        return self.parts(context).total

    def parts(self, context: ScoringContext) -> Parts:
        """The table; in the mode `cluster` a note with the clustered assignment."""
        weights = context.calibration.weights
        levels = (
            {}
            if self.mode == "distortion"
            else {
                layer.name: self.level(context.calibration, layer.name)
                for layer in context.layers
                if layer.name in weights
            }
        )
        notes: tuple[str, ...] = ()
        bits = sorted({c.w_bits for row in context.candidates for c in row if c.w_bits is not None})
        if self.mode == "cluster" and bits:
            given = dict(zip(levels, cluster_bits(list(levels.values()), bits), strict=True))
            levels, notes = dict(given), (_clusters(given, {unit: weights[unit].numel() for unit in given}),)
        return Parts(self._rows(context, levels), notes=notes)

    def _rows(self, context: ScoringContext, levels: Mapping[str, float]) -> Rows:
        weights = context.calibration.weights
        rows: Rows = []
        for done, (layer, candidates) in enumerate(zip(context.layers, context.candidates, strict=True)):
            if layer.name not in weights:
                rows.append([0.0] * len(candidates))
            elif self.mode == "distortion":
                rows.append(
                    by_kind(candidates, weight_kind, partial(_lost_bits, context.calibration, layer.name))
                )
            else:
                numel, level = weights[layer.name].numel(), levels[layer.name]
                rows.append(
                    [0.0 if c.w_bits is None else numel * 4.0 ** (level - c.w_bits) for c in candidates]
                )
            context.on_step(done + 1, len(context.layers))
        return rows

    def level(self, calibration: Calibration, unit: str) -> float:
        """R of a unit's weight, by the reading."""
        weight = calibration.weights[unit]
        return self.rate(weight) if self.reading == "rate" else excess(weight, calibration.weight_observer)

    def rate(self, weight: Tensor) -> float:
        """Coding length in bits for each weight; 0 for a constant weight."""
        rows = wide(weight.flatten(1))
        variance = float(rows.var(unbiased=False))
        return 0.0 if variance <= 0 else coding_length(rows.T, self.eps2 * variance) / weight.numel()


def excess(weight: Tensor, observer: str) -> float:
    """Bits for each weight that its coding length at the error of its own grid of `GRID_BITS` bits is above
    that of Gaussian noise of the same shape; 0 for a constant weight.

    Args:
        weight: [C_out, ...].
        observer: Registered observer, which makes both grids.
    """
    rows = weight.flatten(1)
    if float(wide(rows).var(unbiased=False)) <= 0:
        return 0.0
    draws = (torch.Generator("cpu").manual_seed(seed) for seed in range(_NOISES))
    drawn = (torch.randn(rows.shape, generator=draw, device="cpu").to(rows.device) for draw in draws)
    noise = [_at_own_grid(each, observer) for each in drawn]
    return _at_own_grid(rows, observer) - sum(noise) / len(noise)


def _at_own_grid(rows: Tensor, observer: str) -> float:
    """Coding length in bits for each number of rows [m, n], each row in units of its own step."""
    grid = OBSERVERS.create(observer).observe(rows, GRID_BITS, symmetric=True, axis=0)
    return coding_length((wide(rows) / wide(grid.scale)[:, None]).T, 1 / 12) / rows.numel()


def _clusters(bits: Mapping[str, int], numel: Mapping[str, int]) -> str:
    """The clustered assignment in words, the most bits first."""
    groups = [
        f"{b} bits: {', '.join(unit for unit in bits if bits[unit] == b)}"
        for b in sorted(set(bits.values()), reverse=True)
    ]
    mean = sum(bits[unit] * numel[unit] for unit in bits) / max(1, sum(numel.values()))
    return f"Clustered without a budget, {mean:.2f} bits a weight: {'; '.join(groups)}."


def _lost_bits(calibration: Calibration, unit: str, candidate: Candidate) -> float:
    """Coding length at the error of a grid of REFERENCE_BITS bits less that at the error of the candidate's
    grid, both over the same range.
    """
    weight, params = calibration.weights[unit], calibration.weight_params(unit, candidate)
    scale, _ = params.expanded(weight.ndim)
    steps = (wide(weight) / scale).flatten(1).T
    fine = 4.0 ** (params.bits - REFERENCE_BITS)
    return max(coding_length(steps, fine / 12) - coding_length(steps, 1 / 12), 0.0)
