"""`coding_length`: the lossy coding length of the weight, after Attention Round. No data, no forward pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mpsearch.errors import OptionError
from mpsearch.objectives._base import OBJECTIVES, Objective, Rows, ScoringContext


def coding_length(vectors: Tensor, eps2: float) -> float:
    """Bits to code the columns of V up to a mean squared error `eps2`: (m + n) / 2 * log2 det(I + n / (eps2 m) V V^T).

    The determinant is taken of the smaller Gram matrix (Sylvester's identity); the factor n / m keeps the orientation of V.

    Args:
        vectors: n x m, m vectors of dimension n as columns; their mean is subtracted here.
        eps2: Distortion, in squared units of the values.
    Returns: Bits; 0 where all vectors are equal.
    References: Ma, Derksen, Hong, Wright, TPAMI 29(9), 2007, eq. 6 (zero mean).
    """
    v = vectors.double()
    v = v - v.mean(1, keepdim=True)
    n, m = v.shape
    gram = v.T @ v if m < n else v @ v.T
    identity = torch.eye(len(gram), dtype=gram.dtype)
    bits = 0.5 * (m + n) * float(torch.linalg.slogdet(identity + (n / (eps2 * m)) * gram).logabsdet) / math.log(2)
    return max(bits, 0.0)  # in this order: max(0.0, nan) is 0.0


@OBJECTIVES.register("coding_length")
@dataclass(frozen=True)
class CodingLength(Objective):
    """Distortion left at b bits for a weight whose coding length is R bits for each weight: N * 4^(R - b).

    Vectors are the rows of the weight seen as a matrix [C_out, C_in / groups * k * k], so m = C_out. The distortion of the code is
    `eps2` of the weight's variance, which makes R independent of the weight's scale.

    References: after Diao et al., Attention Round, arXiv:2207.03088, whose orientation, distortion and normalisation were not
    published in what could be read; those, and the form 4^(R - b), were chosen here.

    Args:
        eps2: Distortion as a share of the weight's variance.
    """

    unit: ClassVar[str] = "relative distortion"
    eps2: float = 1e-2

    def __post_init__(self) -> None:
        if not self.eps2 > 0:
            raise OptionError(f"The distortion eps2 is {self.eps2}; it must be positive, such as 0.01.")

    def score(self, context: ScoringContext) -> Rows:
        """`L x C_l`; cost: one determinant for each unit."""
        rows: Rows = []
        for done, (layer, candidates) in enumerate(zip(context.layers, context.candidates, strict=True)):
            weight = context.calibration.weights.get(layer.name)
            rate = 0.0 if weight is None else self.rate(weight)
            numel = 0 if weight is None else weight.numel()
            rows.append([0.0 if c.is_float or c.w_bits is None else numel * 4.0 ** (rate - c.w_bits) for c in candidates])
            context.on_step(done + 1, len(context.layers))
        return rows

    def rate(self, weight: Tensor) -> float:
        """Coding length in bits for each weight; 0 for a constant weight."""
        rows = weight.flatten(1).double()
        variance = float(rows.var(unbiased=False))
        return 0.0 if variance <= 0 else coding_length(rows.T, self.eps2 * variance) / weight.numel()
