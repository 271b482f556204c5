"""A further form of the ONNX file: weights of at most 4 bits that take 4 bits in it.

It keeps the nodes of the float graph and puts quantised tensors before them, so what it computes is the
fake-quantised model up to the order of float sums; `onnx.py` is the form that runs in integers on x86.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from mpsearch.deploy.graph import drop_unused, replace_nodes, unit_of, with_biases
from mpsearch.errors import ModelError, UserError
from mpsearch.hardware.qdq import Grid, QdqWriter
from mpsearch.quant import UnitState, affine_input

FourBit = Literal["matmulnbits", "blockwise"]
WriteUnit = Callable[[NodeProto, UnitState, str], None]
"""From the node of a unit, its state and its name."""
OPSET_4BIT = 21
"""First with 4-bit integers and a block size in DequantizeLinear."""
UNIT_OPS = ("Conv", "Gemm", "MatMul")


def four_bit_onnx(float_model: ModelProto, states: Mapping[str, UnitState], form: FourBit) -> ModelProto:
    """A model whose linear units of at most 4 bits are stored in 4, everything else as its float graph has
    it.

    Inputs pass through QuantizeLinear, Clip and DequantizeLinear and are multiplied in float. A scale of an
    output channel is repeated for each block of its row. To be joined with the integer form: give it only the
    units that it should rewrite.

    Args:
        float_model: From `export_float` with opset 21; left as it is.
        states: Units to rewrite: linear, at most 4 bits.
        form: `matmulnbits` (ONNX Runtime's operator) or `blockwise` (the standard's DequantizeLinear).
    Raises: ModelError: A unit has no node of its own in the graph.
    """
    writer = QdqWriter("mpsearch/four")

    def unit(node: NodeProto, state: UnitState, name: str) -> None:
        x = (
            node.input[0]
            if state.activation is None
            else writer.quantized(node.input[0], _unsigned(name, state))
        )
        product = (_matmulnbits if form == "matmulnbits" else _blockwise)(writer, x, state)
        if len(node.input) > 2 and node.input[2]:
            writer.node("Add", [product, node.input[2]], node.output[0])
        else:
            writer.node("Identity", [product], node.output[0])

    model = _rewritten(float_model, states, writer, unit)
    if form == "matmulnbits" and states:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def _unsigned(unit: str, state: UnitState) -> Grid:
    params = affine_input(unit, state)
    if params.symmetric:
        raise UserError(
            f"The input of unit {unit!r} is signed; this form takes unsigned codes. Calibrate without "
            "symmetric_inputs."
        )
    return Grid(float(params.scale), int(params.zero_point), params.bits)


def fits_four_bits(state: UnitState) -> bool:
    """Whether a unit is a linear layer whose codes take at most 4 bits."""
    return state.weight is not None and state.weight.codes.ndim == 2 and state.weight.params.bits <= 4


def block_size(columns: int) -> int:
    """Codes that share a scale: the power of two from 16 to 256 that wastes least of a row, the largest of
    equals.
    """
    return min((256, 128, 64, 32, 16), key=lambda size: (-(-columns // size) * size, -size))


def rewrite_units(
    model: ModelProto, states: Mapping[str, UnitState], writer: QdqWriter, unit: WriteUnit
) -> None:
    """Put each node of a quantised unit through `unit`, in place.

    Args:
        model: Graph.
        states: Every unit's codes and quantisers; those without a weight are left alone.
        writer: Collects what the graph is then made of.
        unit: Adds the nodes of a unit to the writer, from its node, its state and its name.
    Raises: ModelError: A unit has no node of its own in the graph.
    """
    quantized = {name: state for name, state in states.items() if state.weight is not None}
    placed = set()
    for node in model.graph.node:
        name = unit_of(node)
        if node.op_type in UNIT_OPS and name in quantized:
            unit(node, quantized[name], name)
            placed.add(name)
        else:
            writer.nodes.append(node)
    missing = sorted(set(quantized) - placed)
    if missing:
        raise ModelError(
            f"The exported graph has no node for the units {missing[:5]}. Export with --target packed, "
            "which needs no graph."
        )
    replace_nodes(model, writer.nodes, writer.initializers)
    drop_unused(model)


def _rewritten(
    float_model: ModelProto, states: Mapping[str, UnitState], writer: QdqWriter, unit: WriteUnit
) -> ModelProto:
    model = with_biases(float_model, states)
    rewrite_units(model, states, writer, unit)
    return model


def _scales(state: UnitState) -> NDArray[np.float32]:
    assert state.weight is not None
    found: NDArray[np.float32] = (
        state.weight.params.scale.expand(len(state.weight.codes)).contiguous().numpy()
    )
    return found


def _blocks(state: UnitState) -> tuple[NDArray[np.int8], NDArray[np.float32], int]:
    """Codes padded to whole blocks [N, K'], a scale for each block [N, K' / size], and the size."""
    assert state.weight is not None
    codes = state.weight.codes.to(torch.int8).numpy()
    size = block_size(codes.shape[1])
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % size)))
    return padded, np.repeat(_scales(state)[:, None], padded.shape[1] // size, 1), size


def _matmulnbits(writer: QdqWriter, x: str, state: UnitState) -> str:
    assert state.weight is not None
    (rows, columns), (codes, scales, size) = state.weight.codes.shape, _blocks(state)
    unsigned = (codes + 8).astype(np.uint8)  # the operator's zero point is 8
    packed = (unsigned[:, ::2] | (unsigned[:, 1::2] << 4)).reshape(rows, -1, size // 2)
    inputs = [x, writer.constant(packed, "weight"), writer.constant(scales.reshape(-1), "weight_scale")]
    return writer.node(
        "MatMulNBits",
        inputs,
        domain="com.microsoft",
        K=columns,
        N=rows,
        bits=4,
        block_size=size,
        accuracy_level=1,
    )


def _blockwise(writer: QdqWriter, x: str, state: UnitState) -> str:
    assert state.weight is not None
    columns = state.weight.codes.shape[1]
    codes, scales, size = _blocks(state)
    name = writer.constant(np.ascontiguousarray(codes[:, :columns].T).astype(ml_dtypes.int4), "weight")
    weight = writer.node(
        "DequantizeLinear",
        [name, writer.constant(np.ascontiguousarray(scales.T), "weight_scale")],
        axis=0,
        block_size=size,
    )
    return writer.node("MatMul", [x, weight])
