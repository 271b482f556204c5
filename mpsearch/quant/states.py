"""What quantisation decided for one unit: the vocabulary that layers, products and files share."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from mpsearch.errors import UserError
from mpsearch.problem import Candidate
from mpsearch.quant.affine import ActivationQuantizer, AffineParams, QuantizedTensor
from mpsearch.quant.devices import wide


@dataclass(frozen=True)
class UnitState:
    """What quantisation decided for one unit.

    Args:
        candidate: The choice that it materialises.
        weight: Codes and quantiser of the weight; None for a float unit and for a product of two activations.
        activation: Quantiser of the input, or of the left operand of a product; None for a float unit.
        second: Quantiser of the right operand of a product; None for all other units.
        bias: What the unit adds in place of its own bias, [C_out], such as one that makes up for the mean
            error of its weight; None for its own.
    """

    candidate: Candidate
    weight: QuantizedTensor | None = None
    activation: ActivationQuantizer | None = None
    second: ActivationQuantizer | None = None
    bias: Tensor | None = None


def in_integers(state: UnitState) -> UnitState:
    """The state with its bias where integer kernels have it: a convolution's is added to its sum, so it is a
    multiple of the scale of the input times that of the row. At few bits these are so far apart that what is
    off is seen in the outputs. Linear layers add theirs in float, and keep it.
    """
    weight, given = state.weight, state.activation
    if state.bias is None or weight is None or weight.codes.ndim != 4 or not isinstance(given, AffineParams):
        return state
    step = (wide(given.scale) * wide(weight.params.scale)).flatten()
    return replace(state, bias=((wide(state.bias) / step).round_() * step).float())


def affine_input(unit: str, state: UnitState) -> AffineParams:
    """The input quantiser of a unit, for code that can only express affine grids. Raises UserError where it
    is of another kind, or stays float.
    """
    if state.activation is None:
        raise UserError(
            f"The input of unit {unit!r} stays float at {state.candidate}; this format quantises inputs "
            "too. Give the unit 2 to 8 input bits."
        )
    if not isinstance(state.activation, AffineParams):
        raise UserError(
            f"The input of unit {unit!r} has a {type(state.activation).__name__}; this format holds "
            "affine grids alone. Use an affine observer."
        )
    return state.activation
