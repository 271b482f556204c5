"""Weights of an ONNX file bit-packed: b bits for each, unpacked by plain ONNX nodes that ONNX Runtime folds.

A weight of b bits is cut into fields of 4, 2 and 1 bits (5 = 4 + 1). A field of f bits is an initialiser of
its own, with 8 / f codes in each byte. A function in the file (`Weight5` of the domain `mpsearch`) looks each
byte up in a table of what its codes add, joins the fields by BitwiseOr, and dequantises, with the zero points
written out; the function `Bias` makes the scale of a bias from those of input and weight. So a unit costs two
nodes, its codes, and a scale and a bias for each output channel. When a session is made, constant folding
leaves the int8 weight of the plain file, hence the same kernels and the same results, bit for bit. Folding
takes memory until then; tables take less than masks and shifts (`benchmarks/onnx_packing.py`).

Functions need IR version 8, BitwiseOr opset 18.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import (
    AttributeProto,
    FunctionProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    TensorProto,
    helper,
    numpy_helper,
)

DOMAIN = "mpsearch"
_PREFIX = "mpsearch/"
"""Of the tensors and nodes that `QdqWriter` makes."""
_KEPT = "/kept"
"""End of the tensors that `keep_arithmetic` makes."""
_FIELDS = (4, 2, 1)


def pack_weights(model: ModelProto) -> None:
    """Put every int8 weight of a graph of `quantize_onnx` into as many bits as its codes need, in place.

    What the exporter noted of its nodes (stack traces, scopes) is left out, and what mpsearch added gets
    short names.
    """
    graph, held = model.graph, {i.name: i for i in model.graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    packer = _Packer(held)
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and _data_type(held, node.input[0]) == TensorProto.INT8:
            packer.pack(node)
    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) > 2:
            _share_scales(node, held, makers)
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    kept = [i for name, i in held.items() if name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    opset = next(o for o in model.opset_import if not o.domain)
    model.functions.extend(
        called_functions({node.op_type for node in graph.node if node.domain == DOMAIN}, opset)
    )
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    shorten(model)


def fields_of(bits: int) -> tuple[int, ...]:
    """Widths of the fields that a code is cut into, the one with the sign first."""
    return (8,) if bits == 8 else tuple(width for width in _FIELDS if bits & width)


def packed_code_bytes(count: int, bits: int) -> int:
    """Bytes of the codes of a weight: `bits` for each, filled up to whole groups of 8 / (narrowest field)
    codes.
    """
    group = 8 // fields_of(bits)[-1]
    return -(-count // group) * group * bits // 8


def bits_of(codes: NDArray[np.int8]) -> int:
    """The least width, of 2 to 8 bits, that holds the codes."""
    widest = int(np.maximum(codes, -1 - codes.astype(np.int16)).max(initial=0))
    return max(2, widest.bit_length() + 1)


def pack_fields(codes: NDArray[np.int8], bits: int) -> list[NDArray[np.uint8]]:
    """The bytes of each field, the first code of a byte in its highest bits.

    Args:
        codes: Of 2 to 7 bits, any shape; read in order.
        bits: Of each code.
    Returns: For each of `fields_of`, [groups, 2, ...], so that a table lookup gives all fields one shape.
    """
    widths = fields_of(bits)
    group = 8 // widths[-1]
    flat = codes.ravel().view(np.uint8)
    flat = np.pad(flat, (0, -len(flat) % group))
    found, place = [], bits
    for width in widths:
        place -= width
        values = (flat >> place & 2**width - 1).reshape(-1, 8 // width)
        packed = np.zeros(len(values), np.uint8)
        for i in range(8 // width):
            packed |= values[:, i] << (8 - width * (i + 1))
        found.append(packed.reshape(-1, *[2] * int(math.log2(width // widths[-1]))))
    return found


def table_of(width: int, place: int, signed: bool) -> NDArray[np.int8]:
    """What each byte of a field adds to its codes: [256, 2, ...], one number for each code of the byte.

    Args:
        width: Bits of the field.
        place: Of its lowest bit in a code.
        signed: Whether its highest bit is the sign.
    """
    starts = np.arange(8 - width, -1, -width)
    values = np.arange(256)[:, None] >> starts & 2**width - 1
    if signed:
        values = np.where(values >> (width - 1), values - 2**width, values)
    table: NDArray[np.int8] = (values << place).astype(np.int8)
    return table.reshape(256, *[2] * int(math.log2(8 // width)))


@dataclass
class _Packer:
    """Turns the DequantizeLinear of weights into calls of a function, and shares what is equal."""

    held: dict[str, TensorProto]
    names: dict[tuple[bytes, tuple[int, ...]], str] = field(default_factory=dict)

    def pack(self, node: NodeProto) -> None:
        codes = numpy_helper.to_array(self.held[node.input[0]])
        scale = numpy_helper.to_array(self.held[node.input[1]])
        axis = next(a.i for a in node.attribute if a.name == "axis")
        bits = bits_of(codes)
        parts = [codes] if bits == 8 else pack_fields(codes, bits)
        cut = bits < 8 and parts[-1].size * 8 // fields_of(bits)[-1] != codes.size
        given = {"axis": axis} if bits == 8 else {"axis": axis, "shape": list(codes.shape)}
        if cut:
            given["size"] = [codes.size]
        inputs = [self._constant(value) for value in (*parts, scale)]
        call = helper.make_node(_name(bits, cut), inputs, node.output, domain=DOMAIN, **given)
        node.CopyFrom(call)

    def _constant(self, value: NDArray[Any]) -> str:
        key = (value.tobytes(), value.shape)
        if key not in self.names:
            self.names[key] = f"{_PREFIX}packed_{len(self.names)}"
            self.held[self.names[key]] = numpy_helper.from_array(value, self.names[key])
        return self.names[key]


def _name(bits: int, cut: bool) -> str:
    return f"Weight{bits}{'Cut' if cut else ''}"


def _data_type(held: Mapping[str, TensorProto], name: str) -> int:
    return held[name].data_type if name in held else TensorProto.UNDEFINED


def _share_scales(conv: NodeProto, held: Mapping[str, TensorProto], makers: Mapping[str, NodeProto]) -> None:
    """Take the scale of a bias from those of input and weight, where it is their product to the bit."""
    given, weight, bias = (makers.get(name) for name in conv.input)
    if given is None or weight is None or bias is None or weight.domain != DOMAIN:
        return
    if given.op_type != "DequantizeLinear" or bias.op_type != "DequantizeLinear" or bias.input[1] not in held:
        return
    product = numpy_helper.to_array(held[given.input[1]]) * numpy_helper.to_array(held[weight.input[-1]])
    if np.array_equal(product, numpy_helper.to_array(held[bias.input[1]])):
        inputs = [bias.input[0], given.input[1], weight.input[-1]]
        bias.CopyFrom(helper.make_node("Bias", inputs, bias.output, domain=DOMAIN))


def called_functions(names: Iterable[str], opset: OperatorSetIdProto) -> list[FunctionProto]:
    """The functions of these names, of `Bias` and `Weight2` to `Weight8` (`Weight5Cut` where groups of codes
    are not full).
    """
    found = []
    for name in sorted(names):
        made = _bias_function() if name == "Bias" else _weight_function(int(name[6]), name.endswith("Cut"))
        made.opset_import.append(opset)
        found.append(made)
    return found


def _weight_function(bits: int, cut: bool) -> FunctionProto:
    """`WeightB(fields..., scale)` with attributes `axis`, `shape` and, where the last group has codes to
    spare, `size`.
    """
    widths = fields_of(bits)
    names = [f"f{width}" for width in widths]
    nodes = [
        helper.make_node("Shape", ["scale"], ["channels"]),
        helper.make_node(
            "ConstantOfShape",
            ["channels"],
            ["zero"],
            value=helper.make_tensor("", TensorProto.INT8, [1], [0]),
        ),
    ]
    codes, place = names[0], bits
    if bits < 8:
        for width, name in zip(widths, names, strict=True):
            place -= width
            table = table_of(width, place, signed=name == names[0])
            nodes += [
                helper.make_node("Constant", [], [f"t{width}"], value=numpy_helper.from_array(table)),
                helper.make_node("Cast", [name], [f"i{width}"], to=TensorProto.INT32),
                helper.make_node("Gather", [f"t{width}", f"i{width}"], [f"c{width}"]),
            ]
            if name != names[0]:
                nodes.append(helper.make_node("BitwiseOr", [codes, f"c{width}"], [f"o{width}"]))
            codes = f"c{width}" if name == names[0] else f"o{width}"
        if cut:
            nodes += _cut(codes)
            codes = "cut"
        nodes += [_from_attribute("shape"), helper.make_node("Reshape", [codes, "shape"], ["codes"])]
        codes = "codes"
    dequantize = helper.make_node("DequantizeLinear", [codes, "scale", "zero"], ["y"])
    dequantize.attribute.append(AttributeProto(name="axis", ref_attr_name="axis", type=AttributeProto.INT))
    attributes = ["axis", *(["shape"] if bits < 8 else []), *(["size"] if cut else [])]
    return helper.make_function(
        DOMAIN, _name(bits, cut), [*names, "scale"], ["y"], [*nodes, dequantize], [], attributes
    )


def _cut(codes: str) -> list[NodeProto]:
    """The first `size` codes."""
    return [
        helper.make_node("Constant", [], ["flat_shape"], value_ints=[-1]),
        helper.make_node("Constant", [], ["start"], value_ints=[0]),
        helper.make_node("Reshape", [codes, "flat_shape"], ["flat"]),
        _from_attribute("size"),
        helper.make_node("Slice", ["flat", "start", "size"], ["cut"]),
    ]


def _from_attribute(name: str) -> NodeProto:
    """A constant of whole numbers that the caller gives."""
    node = helper.make_node("Constant", [], [name])
    node.attribute.append(AttributeProto(name="value_ints", ref_attr_name=name, type=AttributeProto.INTS))
    return node


def _bias_function() -> FunctionProto:
    nodes = [
        helper.make_node("Mul", ["input_scale", "weight_scale"], ["scale"]),
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["y"], axis=0),
    ]
    return helper.make_function(DOMAIN, "Bias", ["codes", "input_scale", "weight_scale"], ["y"], nodes, [])


def shorten(model: ModelProto) -> None:
    """Drop what the exporter noted and the names of nodes that mpsearch added; number the tensors that it
    added.
    """
    graph, names = model.graph, dict[str, str]()
    for noted in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del noted.metadata_props[:]
        noted.ClearField("doc_string")
    for initializer in graph.initializer:
        initializer.name = _short(initializer.name, names)
    for node in graph.node:
        if node.name.startswith(_PREFIX) or node.name.endswith(f"{_KEPT}_node"):
            node.ClearField("name")
        node.input[:] = [_short(name, names) for name in node.input]
        node.output[:] = [_short(name, names) for name in node.output]


def _short(name: str, names: dict[str, str]) -> str:
    if not name.startswith(_PREFIX) and not name.endswith(_KEPT):
        return name
    return names.setdefault(name, f"q/{np.base_repr(len(names), 36).lower()}")
