"""A float graph in half precision, as a strongly typed engine takes it: float16 everywhere but at what the
model reads and gives, and in the operators that lose too much by it.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mpsearch.deploy.graph import replace_nodes, unit_of
from mpsearch.errors import ModelError

KEPT = ("LayerNormalization", "Softmax")
"""Operators that stay in float32 unless more are named."""
_FLOAT_INPUTS = {"Resize": (1, 2)}
"""Inputs that are float32 by definition."""
_LARGEST = 65504.0
_ATTRIBUTES = ("Constant", "ConstantOfShape")


def half_onnx(model: ModelProto, kept: Collection[str] = KEPT) -> ModelProto:
    """A copy in half precision, with float32 inputs and outputs.

    Constants beyond the range, such as those of masks, become its ends.

    Args:
        model: From `export_float`, or what `with_biases` makes of it; left as it is.
        kept: What stays in float32: operators, or names of modules with all that they hold.
    Raises: ModelError: The graph has branches or loops.
    """
    typed = onnx.shape_inference.infer_shapes(model)
    floats = _float_tensors(typed)
    copy = ModelProto()
    copy.CopyFrom(model)
    held = {i.name: i for i in copy.graph.initializer if i.data_type == TensorProto.FLOAT}
    writer = _Casts({i.name for i in copy.graph.input if i.name in floats}, held)
    for node in copy.graph.node:
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            raise ModelError(
                f"The node {node.name!r} of the exported graph is a branch or a loop, which has no form "
                "in half precision here. Export with --target packed."
            )
        writer.node(node, floats, _is_kept(node, kept))
    writer.outputs(copy, floats)
    _set_initializers(copy, writer, held)
    replace_nodes(copy, writer.nodes, ())
    del copy.graph.value_info[:]  # they would name the old types
    return copy


def as_half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """float16, finite numbers beyond its range at its ends."""
    kept = np.where(np.isfinite(values), np.clip(values, -_LARGEST, _LARGEST), values)
    return kept.astype(np.float16)


def _float_tensors(model: ModelProto) -> set[str]:
    graph = model.graph
    infos = (*graph.value_info, *graph.input, *graph.output)
    found = {v.name for v in infos if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return found | {i.name for i in graph.initializer if i.data_type == TensorProto.FLOAT}


def _is_kept(node: NodeProto, kept: Collection[str]) -> bool:
    unit = unit_of(node)
    return node.op_type in kept or any(unit == name or unit.startswith(f"{name}.") for name in kept)


class _Casts:
    """Nodes of the new graph, and the casts between its two types, one for each tensor and type.

    Args:
        inputs: Float tensors that the model reads.
        held: Float initialisers.
    """

    def __init__(self, inputs: set[str], held: Collection[str]) -> None:
        self.nodes: list[NodeProto] = []
        self.wide: dict[str, str] = {}
        self._inputs, self._held = inputs, held
        self._made: dict[tuple[str, int], str] = {}

    def node(self, node: NodeProto, floats: set[str], kept: bool) -> None:
        """Add a node of the float graph; it is changed in place."""
        always = _FLOAT_INPUTS.get(node.op_type, ())
        for i, name in enumerate(node.input):
            if name in floats:
                node.input[i] = self._wide(name) if kept or i in always else self._narrow(name)
        if kept:
            for i, name in enumerate(node.output):
                if name in floats:
                    node.output[i] = f"{name}/fp32"
                    self._cast(node.output[i], name, TensorProto.FLOAT16)
        else:
            _narrow_attributes(node)
        self.nodes.append(node)

    def outputs(self, model: ModelProto, floats: set[str]) -> None:
        """What the model gives stays float32."""
        for given in model.graph.output:
            if given.name in floats:
                inner = f"{given.name}/fp16"
                for node in self.nodes:
                    for names in (node.input, node.output):
                        for i, name in enumerate(names):
                            if name == given.name:
                                names[i] = inner
                self._cast(inner, given.name, TensorProto.FLOAT)

    def _narrow(self, name: str) -> str:
        if name not in self._inputs:
            return name
        return self._shared(name, TensorProto.FLOAT16, f"{name}/fp16")

    def _wide(self, name: str) -> str:
        if name in self._inputs:
            return name
        if name in self._held:
            return self.wide.setdefault(name, f"{name}/fp32")
        return self._shared(name, TensorProto.FLOAT, f"{name}/wide")

    def _shared(self, name: str, to: int, made: str) -> str:
        if (name, to) not in self._made:
            self._made[name, to] = made
            self._cast(name, made, to)
        return self._made[name, to]

    def _cast(self, source: str, target: str, to: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}/cast", to=to))


def _narrow_attributes(node: NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif node.op_type in _ATTRIBUTES and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(numpy_helper.from_array(as_half(numpy_helper.to_array(attribute.t))))
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            given = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            values = np.asarray(given, np.float32)
            node.attribute.remove(attribute)
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(as_half(values))))
            return
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(
            helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float16)))
        )


def _set_initializers(model: ModelProto, writer: _Casts, held: Collection[str]) -> None:
    """Halve the initialisers, with a float32 one beside it of each that an operator of float32 reads."""
    read = {name for node in writer.nodes for name in node.input}
    kept = []
    for initializer in model.graph.initializer:
        if initializer.name not in held:
            kept.append(initializer)
            continue
        values = numpy_helper.to_array(initializer)
        if initializer.name in writer.wide:
            kept.append(numpy_helper.from_array(values, writer.wide[initializer.name]))
        if initializer.name in read:
            kept.append(numpy_helper.from_array(as_half(values), initializer.name))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
