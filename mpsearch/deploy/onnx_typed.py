"""The ONNX file for TensorRT: strongly typed, float16 where nothing is quantised, symmetric int8 where it is.

TensorRT 11 takes types and Q/DQ pairs as they are; nothing is left to builder flags. A pair stands in front
of every quantised unit, at every quantised residual operand and pool input, once for all that read a tensor
on one grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from torch import Tensor

from mpsearch.deploy.graph import unit_of, with_biases
from mpsearch.deploy.half import KEPT, half_onnx
from mpsearch.deploy.onnx_forms import UNIT_OPS, rewrite_units
from mpsearch.deploy.tensors import find_tensors
from mpsearch.errors import ModelError, UserError
from mpsearch.hardware.qdq import QdqWriter
from mpsearch.quant import AffineParams, QuantizedTensor, UnitState, affine_input

_SMALLEST_NORMAL = 2.0**-14


def typed_onnx(
    float_model: ModelProto, states: Mapping[str, UnitState], kept: Collection[str] = KEPT
) -> ModelProto:
    """The graph of an assignment for TensorRT: int8 on both sides, zero points 0, one scale for each output
    channel of a weight, scales in float16.

    TensorRT has no integers of fewer bits than 8 for activations: codes of fewer bits keep their narrower
    range through a Clip of the float tensor before QuantizeLinear, which gives the same codes. Biases stay
    float, as its builder wants them.

    Args:
        float_model: From `export_float`; left as it is.
        states: Every unit's codes and quantisers, from `half_state`; inputs signed around zero.
        kept: What stays in float32, as in `half_onnx`.

    Raises:
        UserError: An input's grid is not signed around zero, or a unit is to be both quantised and float32.
        ModelError: A quantised unit or tensor has no node of its own in the graph.
    """
    both = sorted(unit for unit, s in states.items() if s.weight is not None and _holds(kept, unit))
    if both:
        raise UserError(
            f"{both[0]!r} is quantised, and fp32= names it. Leave it float: --fix {both[0]}=float."
        )
    model = half_onnx(with_biases(float_model, states), kept)
    _name_units(model)
    writer = QdqWriter("mpsearch/typed")
    pairs = _Pairs(writer)
    tensors = {choice.layer.name: choice.tensor for choice in find_tensors(float_model)}
    for name, state in states.items():
        if state.weight is None and state.activation is not None:
            if name not in tensors:
                raise ModelError(f"The exported graph has no tensor for {name!r}. Leave it float.")
            given = pairs.of(tensors[name], affine_input(name, state), name)
            _read_instead(model, tensors[name], given)

    def unit(node: NodeProto, state: UnitState, name: str) -> None:
        assert state.weight is not None
        node.input[0] = pairs.of(node.input[0], affine_input(name, state), name)
        codes, axis = _oriented(node, state.weight)
        scales = _scales(state.weight)
        scale = writer.constant(scales.astype(np.float16), "weight_scale")
        zero = writer.constant(np.zeros(len(scales), np.int8), "weight_zero_point")
        node.input[1] = writer.node(
            "DequantizeLinear", [writer.constant(codes, "weight"), scale, zero], axis=axis
        )
        writer.nodes.append(node)

    rewrite_units(model, states, writer, unit)
    return model


def _name_units(model: ModelProto) -> None:
    """Give the node of each unit the unit's name, which engines carry along: further calls `name#2` and so
    on.
    """
    calls = Counter[str]()
    for node in model.graph.node:
        unit = unit_of(node) if node.op_type in UNIT_OPS else ""
        if unit:
            calls[unit] += 1
            node.name = unit if calls[unit] == 1 else f"{unit}#{calls[unit]}"


class _Pairs:
    """Q/DQ pairs, one for each tensor and grid: what was quantised on a grid is not quantised on it again."""

    def __init__(self, writer: QdqWriter) -> None:
        self._writer = writer
        self._held: dict[tuple[str, float, int], str] = {}

    def of(self, x: str, params: AffineParams, unit: str) -> str:
        """Name of `x` on its grid."""
        if not params.symmetric:
            raise UserError(
                f"The input of unit {unit!r} has a zero point, which TensorRT does not take. Calibrate with "
                "symmetric_inputs."
            )
        scale, writer = np.float16(float(params.scale)), self._writer
        key = (x, float(scale), params.bits)
        if key not in self._held:
            if params.bits < 8:
                ends = [
                    writer.constant(np.float16(code * scale), "range") for code in (params.qmin, params.qmax)
                ]
                x = writer.node("Clip", [x, *ends])
            step, zero = writer.constant(scale, "scale"), writer.constant(np.int8(0), "zero_point")
            codes = writer.node("QuantizeLinear", [x, step, zero])
            found = writer.node("DequantizeLinear", [codes, step, zero])
            self._held[key] = self._held[found, *key[1:]] = found
        return self._held[key]


def _read_instead(model: ModelProto, tensor: str, given: str) -> None:
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == tensor:
                node.input[i] = given


def _holds(kept: Collection[str], unit: str) -> bool:
    return any(unit == name or unit.startswith(f"{name}.") for name in kept)


def _oriented(node: NodeProto, weight: QuantizedTensor) -> tuple[NDArray[np.int8], int]:
    """Codes as the node reads its weight, and the axis of the output channels."""
    codes = weight.codes.to(torch.int8).numpy()
    transposed = next((a.i for a in node.attribute if a.name == "transB"), 0)
    if node.op_type == "Conv" or transposed:
        return codes, 0
    return np.ascontiguousarray(codes.T), 1


def _scales(weight: QuantizedTensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = weight.params.scale.expand(len(weight.codes)).contiguous().numpy()
    return found


def half_state(state: UnitState) -> UnitState:
    """The state on scales that float16 holds exactly: TensorRT wants them in the type that it dequantises to.

    Codes of a weight whose scale had to be raised, which float16 holds only coarsely below 2^-14, are rounded
    again.
    """
    activation, weight = state.activation, state.weight
    if isinstance(activation, AffineParams):
        activation = replace(activation, scale=_half(activation.scale))
    if weight is not None:
        scale = _half(weight.params.scale)
        ratio = (weight.params.scale / scale).reshape(-1, *[1] * (weight.codes.ndim - 1))
        codes = torch.round(weight.codes * ratio).to(weight.codes.dtype)
        weight = QuantizedTensor(codes, replace(weight.params, scale=scale))
    return replace(state, activation=activation, weight=weight)


def _half(scale: Tensor) -> Tensor:
    """The nearest number of float16; among the coarse ones below 2^-14 the next above."""
    near = scale.half()
    above = torch.where(near.float() < scale, torch.nextafter(near, torch.full_like(near, torch.inf)), near)
    return torch.where(scale < _SMALLEST_NORMAL, above, near).float()
