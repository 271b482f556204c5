"""Editing an exported ONNX graph: which module made a node, who reads a tensor, nodes replaced in a valid
order.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mpsearch.errors import MpsearchError
from mpsearch.quant import UnitState

_MOVES = {
    *(
        "MaxPool",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Slice",
        "Expand",
        "Gather",
        "Identity",
        "Pad",
    ),
    *("Split", "Dropout"),
}


SCOPES = "pkg.torch.onnx.name_scopes"
"""Key of what the exporter tells of a node: the paths of the modules that it is in."""


def unit_of(node: NodeProto) -> str:
    """Name of the module whose forward made the node."""
    scopes = next((p.value for p in node.metadata_props if p.key == SCOPES), "[]")
    found = ast.literal_eval(scopes)
    return str(found[-2]) if len(found) > 1 else ""


def constant_value(model: ModelProto, name: str) -> NDArray[Any] | None:
    """Value of a tensor that is computed from constants alone; None where it depends on what the model
    reads.
    """
    held = {i.name: i for i in model.graph.initializer}
    if name in held:
        return numpy_helper.to_array(held[name])
    makers = {output: node for node in model.graph.node for output in node.output}
    needed: dict[int, NodeProto] = {}
    todo = [name]
    while todo:
        tensor = todo.pop()
        if tensor in held or not tensor:
            continue
        if tensor not in makers:
            return None
        node = makers[tensor]
        if id(node) not in needed:
            needed[id(node)] = node
            todo.extend(node.input)
    nodes = [node for node in model.graph.node if id(node) in needed]
    read = {tensor for node in nodes for tensor in node.input}
    output = helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None)
    graph = helper.make_graph(
        nodes, "constant", [], [output], [held[tensor] for tensor in sorted(read & set(held))]
    )
    part = helper.make_model(graph, opset_imports=model.opset_import)
    (found,) = ReferenceEvaluator(part).run(None, {})
    return np.asarray(found)


def with_biases(model: ModelProto, states: Mapping[str, UnitState]) -> ModelProto:
    """A copy of a float graph in which the units of these states add the biases that these name.

    A bias of zeros may have been left out of the graph; then it is put there.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    readers = readers_of(copy.graph.node)
    held = {i.name for i in copy.graph.initializer}
    added: list[NodeProto] = []
    for node in list(copy.graph.node):
        unit = unit_of(node)
        bias = states[unit].bias if unit in states and node.op_type in ("Conv", "Gemm", "MatMul") else None
        if bias is None:
            continue
        name = f"{unit}.corrected_bias"
        adding = [r for r in readers[node.output[0]] if r.op_type == "Add" and unit_of(r) == unit]
        if node.op_type != "MatMul":
            del node.input[2:]
            node.input.append(name)
        elif adding:
            (at,) = (i for i, given in enumerate(adding[0].input) if given != node.output[0])
            adding[0].input[at] = name
        else:
            added.append(_behind(node, name))
        if name not in held:
            held.add(name)
            copy.graph.initializer.append(numpy_helper.from_array(bias.detach().cpu().numpy(), name))
    if added:
        replace_nodes(copy, [*copy.graph.node, *added], [])
    return copy


def _behind(node: NodeProto, bias: str) -> NodeProto:
    """An addition of the same scope that takes the output of a node, which is renamed."""
    output = node.output[0]
    node.output[0] = f"{output}_product"
    adding = helper.make_node("Add", [node.output[0], bias], [output])
    adding.metadata_props.extend(node.metadata_props)
    return adding


def readers_of(nodes: Iterable[NodeProto]) -> dict[str, list[NodeProto]]:
    """Tensor -> nodes that read it."""
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in nodes:
        for name in node.input:
            readers[name].append(node)
    return readers


def replace_nodes(
    model: ModelProto, nodes: Iterable[NodeProto], initializers: Iterable[onnx.TensorProto]
) -> None:
    """Set the nodes, in an order in which each comes after what it reads."""
    waiting = list(nodes)
    kept: list[NodeProto] = []
    ready = (
        {i.name for i in (*model.graph.initializer, *initializers)}
        | {i.name for i in model.graph.input}
        | {""}
    )
    while waiting:
        now = [n for n in waiting if all(name in ready for name in n.input)]
        if not now:
            raise MpsearchError("The rewritten ONNX graph has a cycle. Please report this with the model.")
        taken = {id(n) for n in now}
        waiting = [n for n in waiting if id(n) not in taken]
        for node in now:
            kept.append(node)
            ready.update(node.output)
    copies = []
    for node in kept:
        copy = NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del model.graph.node[:]
    model.graph.node.extend(copies)
    model.graph.initializer.extend(initializers)


def keep_pads(model: ModelProto) -> None:
    """Spell out the axes of each Pad that a MaxPool reads, in place.

    ONNX Runtime (1.31) moves a Pad without axes into the MaxPool behind it, whatever number it pads with; a
    MaxPool pads with minus infinity, so its windows at the border lose that number.
    """
    names = {name for node in model.graph.node if node.op_type == "MaxPool" for name in node.input}
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*model.graph.value_info, *model.graph.input)
    }
    sizes = {i.name: i.dims[0] // 2 for i in model.graph.initializer if len(i.dims) == 1}
    for node in model.graph.node:
        if node.op_type != "Pad" or node.output[0] not in names or len(node.input) > 3:
            continue
        rank = sizes.get(node.input[1]) or ranks.get(node.input[0])
        if rank is None:
            raise MpsearchError(
                f"The Pad {node.name!r} before a MaxPool has no known rank. Please report this with the "
                "model."
            )
        axes = f"{node.output[0]}/axes"
        node.input.extend([""] * (3 - len(node.input)) + [axes])
        model.graph.initializer.append(numpy_helper.from_array(np.arange(rank, dtype=np.int64), axes))


def keep_arithmetic(model: ModelProto) -> None:
    """Keep ONNX Runtime (1.31) from computing products in another arithmetic than the graph's, in place.

    It turns a Conv, ConvTranspose or Gemm of float weights into an integer one, with one scale for the whole
    weight, where it reads a DequantizeLinear and a QuantizeLinear reads it, or the Relu or Clip behind it.
    And it merges the MatMul of two dimensions with an Add behind it into a Gemm, which then runs in float. A
    Max of one tensor in between, which copies it, keeps it from both.
    """
    readers, makers = (
        readers_of(model.graph.node),
        {output: node for node in model.graph.node for output in node.output},
    )
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*model.graph.value_info, *model.graph.output)
    }
    nodes = list(model.graph.node)
    for node in model.graph.node:
        end, behind = node.output[0], ""
        weighted = len(node.input) > 1 and _is_dequantized(node.input[1], makers)
        if (
            node.op_type in ("Conv", "ConvTranspose", "Gemm")
            and not weighted
            and _is_dequantized(node.input[0], makers)
        ):
            while len(readers[end]) == 1 and readers[end][0].op_type in ("Relu", "Clip"):
                end = readers[end][0].output[0]
            behind = "QuantizeLinear"
        elif node.op_type == "MatMul" and weighted and ranks.get(end, 2) == 2:
            behind = "Add"
        if readers[end] and all(reader.op_type == behind for reader in readers[end]):
            nodes.append(helper.make_node("Max", [end], [f"{end}/kept"], name=f"{end}/kept_node"))
            for reader in readers[end]:
                reader.input[list(reader.input).index(end)] = f"{end}/kept"
    replace_nodes(model, nodes, ())


def _is_dequantized(name: str, makers: Mapping[str, NodeProto]) -> bool:
    """Whether a tensor comes from a DequantizeLinear, by way of operators at most that only move numbers."""
    while name in makers and makers[name].op_type in _MOVES:
        name = makers[name].input[0]
    return name in makers and makers[name].op_type == "DequantizeLinear"


def drop_unused(model: ModelProto) -> None:
    """Take away the initialisers that no node reads any more."""
    used = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
    kept = [i for i in model.graph.initializer if i.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.value_info[:]  # types of tensors that are gone would mislead the checker
