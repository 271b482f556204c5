"""The model that fine-tuning trains: a copy whose weights, biases and step sizes are all parameters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mpsearch.quant import AffineParams, QuantizedTensor, UnitState, quantize
from mpsearch.quant.inputs import learned_step
from mpsearch.quant.layers import wrap_units

INSIDE = (
    0.499  # of a step: how far from a code's value its weight may start, so that it still rounds to the code
)


class LearnedWeight(nn.Module):
    """A parametrisation of `weight`: its fake-quantised form, with a learned factor on each scale."""

    def __init__(self, params: AffineParams) -> None:
        super().__init__()
        self.params = params
        self.log_step = nn.Parameter(torch.zeros_like(params.scale))

    def forward(self, weight: Tensor) -> Tensor:
        """Same shape as `weight`."""
        return learned_step(weight, self.params, self.log_step.exp())

    def settle(self, weight: Tensor) -> QuantizedTensor:
        """Codes of the weight on the learned grid."""
        params = replace(self.params, scale=(self.params.scale * self.log_step.exp()).detach())
        return QuantizedTensor(quantize(weight.detach(), params), params)


def student_of(module: nn.Module, states: Mapping[str, UnitState]) -> tuple[nn.Module, Mapping[str, Any]]:
    """A copy that computes with the states, and in which all that may learn is a parameter; its quantised
    units by name.
    """
    student = copy.deepcopy(module).eval()
    layers: Mapping[str, Any] = wrap_units(student, states)
    for unit, layer in layers.items():
        state = states[unit]
        layer.set_state(replace(state, bias=None))
        if state.bias is not None and layer.inner.bias is not None:
            with torch.no_grad():
                layer.inner.bias.copy_(state.bias)  # it learns, like every parameter
        for quantizer in layer.inputs():
            quantizer.learn()
        if state.weight is not None:
            layer.set_weight(
                start_weight(module.get_submodule(unit).get_parameter("weight").detach(), state.weight)
            )
            parametrize.register_parametrization(layer.inner, "weight", LearnedWeight(state.weight.params))
    return student, layers


def start_weight(weight: Tensor, tensor: QuantizedTensor) -> Tensor:
    """The weight nearest to the float one that rounds to the codes of `tensor`; outside the grid's range the
    float one stays.
    """
    scale, _ = tensor.params.expanded(weight.ndim)
    middle = tensor.dequantize()
    low = torch.where(tensor.codes == tensor.params.qmin, -torch.inf, middle - INSIDE * scale)
    high = torch.where(tensor.codes == tensor.params.qmax, torch.inf, middle + INSIDE * scale)
    return torch.clamp(weight, low, high)


def settled(state: UnitState, layer: Any) -> UnitState:
    """The state of a unit with what its layer in the student learned: codes, and quantisers of its inputs.

    Its bias is the float module's, which learned too.
    """
    found = [quantizer.settle() for quantizer in layer.inputs()]
    state = replace(state, bias=None, **dict(zip(("activation", "second"), found, strict=False)))
    if state.weight is None:
        return state
    behind = layer.inner.parametrizations.weight
    return replace(state, weight=behind[0].settle(behind.original))


def float_module(module: nn.Module, student: nn.Module, states: Mapping[str, UnitState]) -> nn.Module:
    """A copy of the module with the student's parameters."""
    result = copy.deepcopy(module)
    learned = dict(student.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            parameter.copy_(learned[_student_name(name, states)])
    return result


def _student_name(name: str, states: Mapping[str, UnitState]) -> str:
    """What the student calls a parameter of the module."""
    unit, _, leaf = name.rpartition(".")
    if unit not in states:
        return name
    behind = (
        "parametrizations.weight.original" if leaf == "weight" and states[unit].weight is not None else leaf
    )
    return f"{unit}.inner.{behind}"
