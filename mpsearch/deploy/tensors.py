"""Tensors whose precision is a choice of its own: residual operands and what a pool reads.

A runtime that fuses a sum into a convolution reads both operands in one type, so a residual branch that stays
float makes a float tensor, and a kernel that quantises it again, of what could have stayed integer. Such a
tensor is the output of a module, under whose name it is a layer of the problem without weight or products:
`<module>.output`.
"""

from __future__ import annotations

import ast
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from mpsearch.deploy.graph import SCOPES, unit_of
from mpsearch.problem import Layer

OUTPUT = "output"
"""The last part of the name of such a layer, behind that of the module."""
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean")
_UNITS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class ChoiceTensor:
    """A tensor of the float graph.

    Args:
        tensor: Its name in the graph.
        layer: As the problem has it: op `residual` (an operand of a sum, whatever else reads it) or `pool`.
    """

    tensor: str
    layer: Layer


def find_tensors(model: ModelProto) -> tuple[ChoiceTensor, ...]:
    """The residual operands and pool inputs of a float graph, in its order.

    Of the operands of a sum it is the one that fewer units lie before; of equals the second. A tensor that no
    module returns is none: nothing could be put there.

    Args:
        model: From `export_float`.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    depths = _depths(model.graph.node)
    found: dict[str, str] = {}
    names: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "Add" and all(depths.get(x, 0) > 0 for x in node.input):
            tensor, op = min(reversed(node.input), key=lambda x: depths[x]), "residual"
        elif node.op_type in _POOLS and depths.get(node.input[0], 0) > 0:
            tensor, op = node.input[0], "pool"
        else:
            continue
        module = _returned_by(makers[tensor], node)
        shape = shapes.get(tensor, [])
        if (
            module is None
            or len(shape) < 2
            or not math.prod(shape[1:])
            or names.get(module, tensor) != tensor
        ):
            continue
        found[tensor] = "residual" if found.get(tensor) == "residual" else op
        names[module] = tensor
    return tuple(_choice(module, tensor, found[tensor], shapes[tensor]) for module, tensor in names.items())


def _choice(module: str, tensor: str, op: str, dims: Sequence[int]) -> ChoiceTensor:
    shape = (1, *dims[1:])
    return ChoiceTensor(tensor, Layer(f"{module}.{OUTPUT}", op, (), (shape,), shape, 0, ""))


def graph_names(tensors: Sequence[ChoiceTensor]) -> Mapping[str, str]:
    """Tensor of the graph -> name of its layer, as `find_wires` takes them."""
    return {choice.tensor: choice.layer.name for choice in tensors}


def _depths(nodes: Sequence[NodeProto]) -> dict[str, int]:
    """Tensor -> units on the longest way to it; constants have none."""
    depths: dict[str, int] = defaultdict(int)
    for node in nodes:
        depth = max((depths[x] for x in node.input if x in depths), default=0)
        for output in node.output:
            depths[output] = depth + (node.op_type in _UNITS and bool(unit_of(node)))
    return depths


def _returned_by(maker: NodeProto, reader: NodeProto) -> str | None:
    """The outermost module that holds the maker and not the reader: what it returns is the tensor. None where
    they lie in one.
    """
    inside, outside = _scopes(maker), set(_scopes(reader))
    return next((module for module in inside if module not in outside), None)


def _scopes(node: NodeProto) -> list[str]:
    """The modules around a node, from the outside."""
    text = next((p.value for p in node.metadata_props if p.key == SCOPES), "[]")
    return [str(name) for name in ast.literal_eval(text)[:-1]]
