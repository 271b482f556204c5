"""Quantised outputs of modules: tensors whose precision is a choice of its own, such as a residual operand or
what a pool reads.

The tensor that module `m` returns is the unit `m.output`: all that read it read it quantised. It is put there
by a forward hook, so the module, its children and its parameters stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mpsearch.errors import ModelError, UnknownNameError
from mpsearch.quant.inputs import InputQuantizer
from mpsearch.quant.states import UnitState

OUTPUT = "output"
"""Last part of the name of such a unit, behind that of the module."""


class QuantOutput(nn.Module):
    """The quantiser of what one module returns.

    Attributes:
        value: Quantiser of the tensor.
        second_half: Whether only the second half of the rows is quantised: two streams, one of them float,
            pass through together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.value = InputQuantizer()
        self.second_half = False
        self.handle: RemovableHandle | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`x`, quantised."""
        if self.second_half and self.value.params is not None:
            rows = len(x) // 2
            return torch.cat([x[:rows], self.value(x[rows:])])
        return self.value(x)  # type: ignore[no-any-return]

    def inputs(self) -> tuple[InputQuantizer, ...]:
        """Its one quantiser."""
        return (self.value,)

    def set_state(self, state: UnitState) -> None:
        """Quantise as `state` says; a float state passes the tensor on."""
        self.value.params = state.activation

    def take(self, module: nn.Module, _: tuple[Any, ...], output: Any) -> Tensor:
        """The forward hook. Raises ModelError where the module returns anything but one tensor."""
        if not isinstance(output, Tensor):
            raise ModelError(
                f"A {type(module).__name__} returns a {type(output).__name__}, not one tensor, so what it "
                "returns cannot be quantised. Leave it float."
            )
        return self(output)  # type: ignore[no-any-return]


def output_names(module: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of `names` that are outputs of modules: `<module>.output`, and no module of the model."""
    modules = dict(module.named_modules())
    return [name for name in names if name not in modules and name.rpartition(".")[2] == OUTPUT]


def wrap_outputs(module: nn.Module, names: Iterable[str]) -> dict[str, QuantOutput]:
    """Make the named outputs quantisable, in place.

    Returns: By name, still computing in float.
    Raises: UnknownNameError: There is no such module.
    """
    found = {}
    for name in names:
        owner = name.rpartition(".")[0]
        try:
            at = module.get_submodule(owner)
        except AttributeError:
            known = [known for known, _ in module.named_modules()]
            raise UnknownNameError("module", owner, known) from None
        found[name] = QuantOutput()
        found[name].handle = at.register_forward_hook(found[name].take)
    return found


def unwrap_outputs(wrapped: Mapping[str, QuantOutput]) -> None:
    """Undo `wrap_outputs`."""
    for output in wrapped.values():
        if output.handle is not None:
            output.handle.remove()
