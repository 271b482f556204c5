"""The ONNX file with Q/DQ nodes: torch exports the float graph once; each assignment rewrites the nodes of
its units.

A unit is found by the module scope that the exporter writes on every node. Weights are int8 (fewer bits keep
their narrower range in an int8 container; rows of 8 bits whose products would overflow on some processors
lose a part of one, see `hardware.overflow`), activations uint8. A convolution runs in integers only if its
output is quantised too; where the next thing that reads it is not a quantised unit (a residual sum), its own
calibrated 8-bit grid is put there, one for each call of the unit: an error that the fake-quantised model does
not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor

from mpsearch import files
from mpsearch.deploy.graph import (
    constant_value,
    drop_unused,
    keep_arithmetic,
    readers_of,
    replace_nodes,
    unit_of,
    with_biases,
)
from mpsearch.errors import ModelError
from mpsearch.foreign import one_message
from mpsearch.hardware.overflow import is_depthwise, without_overflow
from mpsearch.hardware.qdq import Grid, QdqWriter, QuantizedWeight, opset_imports
from mpsearch.problem import Candidate
from mpsearch.quant import OBSERVERS, AffineParams, QuantizedTensor, UnitState, affine_input
from mpsearch.reconstruct import Calibration


def quantize_onnx(
    float_model: ModelProto, states: Mapping[str, UnitState], calibration: Calibration
) -> ModelProto:
    """The graph of an assignment.

    Args:
        float_model: From `export_float`; left as it is.
        states: Every unit's codes and quantisers.
        calibration: For the output ranges of convolutions.
    Raises: ModelError: A quantised unit has no node of its own in the graph.
    """
    model = with_biases(float_model, states)
    quantized = {unit: state for unit, state in states.items() if state.weight is not None}
    placed = _rewrite_units(model, quantized)
    missing = sorted(set(quantized) - set(placed))
    if missing:
        raise ModelError(
            f"The exported graph has no node for the units {missing[:5]}. Run with --target packed for "
            "the packed checkpoint alone."
        )
    _quantize_outputs(model, placed, calibration)
    keep_arithmetic(model)
    drop_unused(model)
    with one_message(
        "The graph would be no valid ONNX", "Run with --target packed for the packed checkpoint alone."
    ):
        onnx.checker.check_model(model)
    return model


def save_onnx(path: Path, model: ModelProto) -> int:
    """Write the file whole or not at all; its bytes on disk."""
    with files.replacing(path) as beside:
        beside.write_bytes(model.SerializeToString())
    return path.stat().st_size


def _rewrite_units(model: ModelProto, states: Mapping[str, UnitState]) -> dict[str, list[str | None]]:
    """Replace the node of each unit in place.

    Returns: Unit -> for each call, in order, the output of its new convolution; None where it is not to be
        quantised.
    """
    writer = QdqWriter()
    placed: dict[str, list[str | None]] = {}
    for node in model.graph.node:
        unit = unit_of(node)
        state = states.get(unit) if node.op_type in ("Conv", "Gemm", "MatMul") else None
        if state is None or state.weight is None:
            writer.nodes.append(node)
            continue
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        given = held_weight(state if state.activation is None else exact(state, groups))
        named = node.input[2] if len(node.input) > 2 else ""
        bias = constant_value(model, named) if named else None
        output = node.output[0]
        if named and bias is None:  # it is computed from what the model reads: added apart, in float
            output = writer.added(named, output, given.codes.ndim - 2)
        if state.activation is None:
            _rewrite_stored(writer, node, given, bias, state.candidate, output)
            kept = None
        elif node.op_type == "Conv":
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            kept = writer.conv(
                node.input[0], given, bias, _grid(affine_input(unit, state)), attributes, output
            )
        else:
            writer.linear(node.input[0], given, bias, _grid(affine_input(unit, state)), output)
            kept = None
        placed.setdefault(unit, []).append(kept if output == node.output[0] else None)
    replace_nodes(model, writer.nodes, writer.initializers)
    imports = opset_imports(max(o.version for o in model.opset_import if not o.domain))
    del model.opset_import[:]
    model.opset_import.extend(imports)
    return placed


def held_weight(state: UnitState) -> QuantizedWeight:
    """Codes and a scale for each output channel of a unit whose weight is quantised."""
    assert state.weight is not None
    codes = state.weight.codes
    return QuantizedWeight(codes.to(torch.int8).numpy(), state.weight.params.scale.expand(len(codes)).numpy())


def exact(state: UnitState, groups: int) -> UnitState:
    """The state of an integer unit as the file has it: rows whose products would overflow without VNNI on
    coarser scales.

    Args:
        state: With a uniform input.
        groups: Of its convolution; 1 for a linear layer.
    """
    if (
        state.weight is None
        or state.activation is None
        or is_depthwise(tuple(state.weight.codes.shape), groups)
    ):
        return state
    weight = held_weight(state)
    found = without_overflow(weight, state.activation.bits)
    if found is weight or np.array_equal(found.codes, weight.codes):
        return state
    scale = torch.from_numpy(found.scale)
    params = replace(
        state.weight.params, scale=scale, zero_point=torch.zeros_like(scale, dtype=torch.int32), axis=0
    )
    return replace(state, weight=QuantizedTensor(torch.from_numpy(found.codes).to(torch.int16), params))


def _rewrite_stored(
    writer: QdqWriter, node: NodeProto, weight: QuantizedWeight, bias: Any, candidate: Candidate, output: str
) -> None:
    """A unit whose weight alone is quantised. Raises ModelError for a convolution, which this runtime has no
    such kernel for.
    """
    if node.op_type == "Conv":
        raise ModelError(
            f"The convolution {unit_of(node)!r} is at {candidate}; ONNX Runtime stores weights alone for "
            "linear layers only. Give it 2 to 8 input bits."
        )
    writer.stored_linear(node.input[0], weight, bias, 4 if (candidate.w_bits or 8) <= 4 else 8, output)


def _quantize_outputs(
    model: ModelProto, placed: Mapping[str, list[str | None]], calibration: Calibration
) -> None:
    """Put a Q/DQ pair behind each quantised convolution (and the ReLU behind it) whose readers are not all
    one QuantizeLinear that fits.
    """
    readers = readers_of(model.graph.node)
    values = {
        i.name: numpy_helper.to_array(i)
        for i in model.graph.initializer
        if not i.name.endswith("weight") and len(i.dims) == 0
    }
    values |= {
        n.output[0]: numpy_helper.to_array(n.attribute[0].t)
        for n in model.graph.node
        if n.op_type == "Constant" and n.attribute[0].name == "value"
    }
    graph_outputs = {o.name for o in model.graph.output}
    writer = QdqWriter("mpsearch/out")
    rename: dict[str, str] = {}
    for unit, outputs in placed.items():
        samples = calibration.call_outputs.get(unit, ())
        if len(samples) != len(
            outputs
        ):  # the exporter merged calls that read one tensor, or dropped some: one grid for what is left
            samples = (calibration.outputs[unit],) * len(outputs)
        for output, sample in zip(outputs, samples, strict=True):
            if output is None:
                continue
            point, low, high = _behind_activation(output, readers, values)
            behind = readers[point]
            if point in graph_outputs or (len(behind) == 1 and _fits(behind[0], values, low, high)):
                continue  # what the model returns stays as exact as it can be
            writer.quantized(point, _output_grid(calibration, sample.clamp(low, high)))
            rename[point] = writer.nodes[-1].output[0]
    nodes = list(model.graph.node)
    for node in nodes:
        for i, name in enumerate(node.input):
            if name in rename:
                node.input[i] = rename[name]
    replace_nodes(model, [*nodes, *writer.nodes], writer.initializers)


def _behind_activation(
    output: str, readers: Mapping[str, list[NodeProto]], values: Mapping[str, Any]
) -> tuple[str, float, float]:
    """The tensor that an integer kernel would give, and its bounds: behind a ReLU or ReLU6 that alone reads
    the convolution, else its output.
    """
    if len(readers[output]) != 1:
        return output, -np.inf, np.inf
    node = readers[output][0]
    if node.op_type == "Relu":
        return node.output[0], 0.0, np.inf
    if (
        node.op_type == "Clip"
        and len(node.input) == 3
        and node.input[1] in values
        and node.input[2] in values
        and float(values[node.input[1]]) == 0
    ):
        return node.output[0], 0.0, float(values[node.input[2]])
    return output, -np.inf, np.inf


def _fits(node: NodeProto, values: Mapping[str, Any], low: float, high: float) -> bool:
    """Whether a QuantizeLinear makes the activation before it redundant, so that the runtime fuses all
    three.
    """
    if node.op_type != "QuantizeLinear":
        return False
    scale, zero = float(values[node.input[1]]), int(values[node.input[2]])
    return (low == -np.inf or zero == 0) and (255 - zero) * scale <= high * (1 + 1e-6)


def _output_grid(calibration: Calibration, values: Tensor) -> Grid:
    return _grid(OBSERVERS.create(calibration.uniform_observer).observe(values, 8, symmetric=False))


def _grid(params: AffineParams) -> Grid:
    return Grid(float(params.scale), int(params.zero_point), params.bits)
