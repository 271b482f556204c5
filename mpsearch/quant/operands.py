"""Functions whose operands can be quantised: what they are called as units, and the quantisers of their
operands.

The i-th call of such a function in the forward of a module is the unit `<module>.<op><i>`: `matmul` (any
product of two activations), `add` (a residual sum), `softmax`, `gelu`, `layer_norm`, and `addcmul` (a scale
and a shift for each channel, the "norm" of ResMLP).
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from mpsearch.quant.inputs import InputQuantizer
from mpsearch.quant.states import UnitState

TWO_OPERANDS = ("matmul", "add")
ONE_OPERAND = ("softmax", "gelu", "layer_norm", "addcmul")
FUNCTIONS = (*TWO_OPERANDS, *ONE_OPERAND)
UNIT = re.compile(rf"(?:(?P<path>.+)\.)?(?P<op>{'|'.join(FUNCTIONS)})(?P<index>\d+)")


class QuantProduct(nn.Module):
    """The quantisers of the operands of one product or sum.

    Attributes:
        left: Quantiser of the left operand: queries, probabilities.
        right: Quantiser of the right operand: keys, values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = InputQuantizer(), InputQuantizer()

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Both operands, quantised."""
        return self.left(left), self.right(right)

    def inputs(self) -> tuple[InputQuantizer, ...]:
        """The quantisers of what the function reads."""
        return self.left, self.right

    def set_state(self, state: UnitState) -> None:
        """Quantise as `state` says: `activation` is the left operand's quantiser, `second` the right
        one's.
        """
        self.left.params, self.right.params = state.activation, state.second


class QuantOperand(nn.Module):
    """The quantiser of one tensor that has no layer of its own.

    Attributes:
        value: Quantiser of the tensor.
        unfused: Attentions that were told to call their parts one by one, so that the unit is called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.value = InputQuantizer()
        self.unfused: list[nn.Module] = []

    def forward(self, x: Tensor) -> Tensor:
        """`x`, quantised."""
        return self.value(x)  # type: ignore[no-any-return]

    def inputs(self) -> tuple[InputQuantizer, ...]:
        """Its one quantiser."""
        return (self.value,)

    def set_state(self, state: UnitState) -> None:
        """Quantise as `state` says; a float state passes the tensor on."""
        self.value.params = state.activation
