"""The nearest convex form of a table of pairs, and what it changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-12  # share of the largest eigenvalue below which a negative one is a rounding

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Projection:
    """What clipping negative eigenvalues did to G, of which half of x^T G x is the damage of the one-hot choices x.

    Args:
        clipped: Eigenvalues that were negative.
        least: The least of all eigenvalues before.
        change: Norm of the change over the norm of G (Frobenius).
        most: Largest change of the damage of one measured choice, or of two measured together, in the unit of the objective.
    """

    clipped: int = 0
    least: float = 0.0
    change: float = 0.0
    most: float = 0.0


def nearest_convex(gram: Matrix) -> tuple[Matrix, Matrix]:
    """The positive semidefinite matrix nearest to a symmetric one, `N x N`, and the eigenvalues, [N] ascending.

    By `eigh`; CLADO's code uses `eig`, which for rounding alone may give complex pairs.

    References: Higham, Computing a nearest symmetric positive semidefinite matrix, Linear Algebra Appl. 103, 1988.
    """
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    if len(values) == 0 or values[0] >= -_ROUNDING * max(abs(values[-1]), abs(values[0])):
        return gram, values
    return (vectors * np.maximum(values, 0)) @ vectors.T, values
