"""Size of a bit-packed ONNX file before it is written: a constant, and a sum over units.

How many Q/DQ pairs a graph has depends on the choices of neighbours, by some hundred bytes a unit. So each
quantised unit is counted with all nodes and constants that it may bring, at their greatest length, and the
file is filled up to the sum by spaces in its metadata.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from mpsearch.deploy.graph import readers_of, unit_of
from mpsearch.deploy.onnx_packing import DOMAIN, called_functions, fields_of, packed_code_bytes, shorten
from mpsearch.errors import MpsearchError
from mpsearch.hardware.qdq import opset_imports, stored_bytes
from mpsearch.problem import Assignment, Candidate

_PADDING = ("mpsearch.padding", "mpsearch.padding_")
"""Keys of the entries of spaces."""
_NAME = "q/zzzz"
"""As long as a name that `shorten` gives may be."""
_HEAD = 48
"""Bytes of a constant beside its values: name, type, up to five sizes, length fields."""
_SLACK = 256
"""Longer length fields of the graph, imports of operator sets, the empty entry of padding."""
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_BIG = 2**27
_NODES: dict[str, tuple[int, tuple[Any, ...], dict[str, Any]]] = {
    "QuantizeLinear": (3, (np.float32(0), np.uint8(0)), {}),
    "DequantizeLinear": (3, (), {}),
    "Clip": (3, (np.uint8(0), np.uint8(0)), {}),
    "Sub": (2, (), {}),
    "Add": (2, (), {}),
    "Max": (1, (), {}),
    "Unsqueeze": (2, (np.arange(3),), {}),
    "Bias": (3, (), {}),
    "Weight7Cut": (4, (), {"axis": 1, "shape": [_BIG] * 5, "size": [_BIG]}),
    "MatMulNBits": (3, (), {"K": _BIG, "N": _BIG, "bits": 8, "block_size": 128, "accuracy_level": 1}),
}
"""Nodes of mpsearch -> how many tensors they read, the scalars among them, and attributes at their
longest.
"""


@dataclass(frozen=True)
class OnnxUnit:
    """What a unit's nodes hold in the float graph.

    Args:
        op: Of its nodes: `Conv`, `Gemm` or `MatMul`.
        shape: Of its weight, [C_out, ...].
        calls: How many nodes it has.
        float_bytes: Of the constants that are gone once the unit is quantised: its weight and its bias.
        names: Bytes of the names of the float graph in what it brings, of all calls.
        biased: Whether its own nodes add the bias, else an Add behind them.
        adds: Whether it adds a bias that is no constant.
        further: Bytes of a bias of its own, once it is corrected, where the float graph has none for it, or
            one that others read too (equal constants are held once).
    """

    op: str
    shape: tuple[int, ...]
    calls: int
    float_bytes: int
    names: int
    biased: bool
    adds: bool
    further: int = 0

    def bytes_at(self, candidate: Candidate) -> int:
        """The most that the unit brings at a candidate."""
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        own = self.names + self.further
        if candidate.is_float or candidate.w_bits is None:
            return self.float_bytes + self.calls * _nodes_bytes(("Max",)) + self.names
        if candidate.weight_only:
            stored = stored_bytes(rows, columns, 4 if candidate.w_bits <= 4 else 8) + 4 * rows
            return self.calls * (stored + _nodes_bytes(("MatMulNBits", "Add")) + 3 * _HEAD) + own
        # calls of a convolution on other grids may have other scales, see `qdq._widened`
        copies = self.calls if self.op == "Conv" else 1
        codes = max(
            packed_code_bytes(rows * columns, bits) + _HEAD * len(fields_of(bits))
            for bits in range(2, candidate.w_bits + 1)
        )
        brought = [*_PAIR, "Weight7Cut", *(["Clip"] if (candidate.a_bits or 8) < 8 else [])]
        brought += [*_PAIR, "Bias"] if self.op == "Conv" else ["Sub", "Max"]
        brought += ["Unsqueeze", "Add"] if self.adds else []
        return (
            copies * codes
            + self.calls * (4 * rows * (1 + self.biased) + 2 * _HEAD + _nodes_bytes(tuple(brought)))
            + own
        )


@dataclass(frozen=True)
class OnnxLayout:
    """What the bit-packed file of a model holds, whatever the assignment.

    Args:
        held: Unit -> what its nodes hold.
        constant_bytes: Of all that is not a unit's.
    """

    held: Mapping[str, OnnxUnit]
    constant_bytes: int

    @classmethod
    def of(
        cls, float_model: ModelProto, weights: Mapping[str, tuple[int, ...]], biased: Collection[str] = ()
    ) -> OnnxLayout:
        """The layout of the files that are made of a float graph.

        Args:
            float_model: From `export_float`.
            weights: Unit -> shape of its weight.
            biased: Units that have a bias, whether the graph shows it or, of zeros, not.
        """
        bare = ModelProto()
        bare.CopyFrom(float_model)
        del bare.graph.value_info[:]
        shorten(bare)
        constants = {i.name: len(i.raw_data) for i in bare.graph.initializer}
        readers = Counter(name for node in float_model.graph.node for name in node.input)
        longest = max((len(name) for node in bare.graph.node for name in node.output), default=0)
        calls: dict[str, list[NodeProto]] = {unit: [] for unit in weights}
        for node in float_model.graph.node:
            if node.op_type in ("Conv", "Gemm", "MatMul") and unit_of(node) in calls:
                calls[unit_of(node)].append(node)
        held = {
            unit: _unit(unit, weights[unit], nodes, constants, readers, longest)
            for unit, nodes in calls.items()
        }
        behind = readers_of(float_model.graph.node)
        for unit in biased:
            if unit in held and held[unit].op == "MatMul":
                further = _further(unit, weights[unit][0], calls[unit], behind, longest)
                held[unit] = replace(held[unit], further=further)
        functions = sum(
            f.ByteSize() + 4 for f in called_functions(_possible_calls(weights), opset_imports()[0])
        )
        rest = bare.ByteSize() - sum(unit.float_bytes for unit in held.values())
        return cls(held, rest + functions + _SLACK)

    def unit_bytes(self, unit: str, candidate: Candidate) -> int:
        """Bytes of one unit's constants and nodes; 0 for a product of activations."""
        return self.held[unit].bytes_at(candidate) if unit in self.held else 0

    def size_bytes(self, assignment: Assignment) -> int:
        """Size of the file of an assignment, to the byte."""
        return self.constant_bytes + sum(
            self.unit_bytes(unit, candidate) for unit, candidate in assignment.items()
        )


def pad_to(model: ModelProto, size: int) -> None:
    """Fill a file up with spaces in its metadata, in place.

    Raises: MpsearchError: It is larger already (a defect: the predicted size would not hold).
    """
    before = model.ByteSize()
    for key in _PADDING:  # a length field that grows skips one size of an entry, which two entries reach
        entry = model.metadata_props.add(key=key, value="")
        missing = size - model.ByteSize()
        for length in range(max(0, missing - 8), missing + 1):
            entry.value = " " * length
            if model.ByteSize() == size:
                return
        entry.value = " " * 40
    raise MpsearchError(
        f"The ONNX file has {before} bytes, not the predicted {size}. Nothing was written; please report "
        "this."
    )


def _unit(
    unit: str,
    shape: tuple[int, ...],
    calls: list[NodeProto],
    constants: Mapping[str, int],
    readers: Counter[str],
    longest: int,
) -> OnnxUnit:
    mine = Counter(name for node in calls for name in node.input[1:])
    gone = sum(constants[name] for name in mine if name in constants and mine[name] == readers[name])
    adds = any(name and name not in constants for node in calls for name in node.input[2:])
    op = calls[0].op_type if calls else "Conv"
    corrected = 2 * len(f"{unit}.corrected_bias") if op == "MatMul" else 0
    # its input and output on their grids, the output's behind a ReLU
    names = sum(len(node.input[0]) + 2 * longest + corrected for node in calls)
    return OnnxUnit(op, shape, len(calls), gone, names, op != "MatMul", adds)


def _further(
    unit: str, rows: int, calls: list[NodeProto], behind: Mapping[str, list[NodeProto]], longest: int
) -> int:
    """Bytes of a corrected bias that the float graph has no place for, see `graph.with_biases`."""
    adding = [
        [r for r in behind[node.output[0]] if r.op_type == "Add" and unit_of(r) == unit] for node in calls
    ]
    added = sum(not each for each in adding) * (_nodes_bytes(("Add",)) + 3 * longest)
    read = {name for each in adding for node in each[:1] for name in node.input} - {
        n.output[0] for n in calls
    }
    alone = bool(read) and all(len(behind[name]) <= len(calls) for name in read) and all(adding)
    return added + (0 if alone else 4 * rows + _HEAD)


@functools.cache
def _nodes_bytes(operators: tuple[str, ...]) -> int:
    """Bytes of such nodes and the scalars that they read, but for the names of the float graph."""
    graph, name = GraphProto(), _NAME
    for operator in operators:
        inputs, scalars, attributes = _NODES[operator]
        domain = DOMAIN if operator in ("Bias", "Weight7Cut") else ""
        graph.node.append(helper.make_node(operator, [name] * inputs, [name], domain=domain, **attributes))
        graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for value in scalars)
    return int(graph.ByteSize())


def _possible_calls(weights: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Names of all functions that a file of these weights may call."""
    found = {"Bias", "Weight8"}
    for shape in weights.values():
        for bits in range(2, 8):
            full = math.prod(shape) % (8 // fields_of(bits)[-1]) == 0
            found.add(f"Weight{bits}" if full else f"Weight{bits}Cut")
    return found
