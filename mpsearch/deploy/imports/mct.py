"""`mct`: an ONNX file that Sony's Model Compression Toolkit exported in its MCTQ form; the bits stand on its
quantiser nodes.

`pytorch_export_model(..., serialization_format=ONNX, quantization_format=MCTQ)` writes `Weights*Quantizer`
nodes, whose first input is named as the parameter, and `Activation*Quantizer` nodes, both in the domain
`mct_quantizers` with the attribute `num_bits`. The toolkit traces a model by torch.fx and so writes
`layer1_0_conv1` for `layer1.0.conv1`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, NodeProto

from mpsearch.deploy.imports._base import IMPORTERS, Bits, Imported, Importer, assigned
from mpsearch.errors import UserError
from mpsearch.problem import Layer

_DOMAIN = "mct_quantizers"
_OPS = ("Conv", "Gemm", "MatMul")
_MOVES = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Pad")
"""Operators through which a quantised tensor stays on its grid."""


@IMPORTERS.register("mct")
@dataclass(frozen=True)
class FromMct(Importer):
    """The ONNX file of the MCTQ form; it needs none of Sony's packages."""

    def read(self, path: Path, layers: Sequence[Layer]) -> Imported:
        """The assignment that its quantiser nodes state."""
        try:
            graph = onnx.load(str(path), load_external_data=False).graph
        except (OSError, DecodeError) as error:
            raise UserError(
                f"{path} is not an ONNX file ({type(error).__name__}). Export with "
                "QuantizationFormat.MCTQ to ONNX."
            ) from None
        by_trace = {layer.name.replace(".", "_"): layer.name for layer in layers}
        found = {by_trace.get(name, name): bits for name, bits in _bits(graph).items()}
        if not found:
            raise UserError(
                f"{path} has no quantiser nodes of the domain {_DOMAIN}. Export with "
                "QuantizationFormat.MCTQ, not fake-quantised."
            )
        return assigned(path, layers, found)


def _bits(graph: GraphProto) -> dict[str, Bits]:
    made = {output: node for node in graph.node for output in node.output}
    found: dict[str, Bits] = {}
    for node in graph.node:
        if node.op_type not in _OPS or len(node.input) < 2:
            continue
        weight = _quantizer(made, node.input[1], "Weights")
        if weight is not None:
            given = _quantizer(made, node.input[0], "Activation")
            found[_layer_of(weight.input[0])] = (
                _num_bits(weight),
                None if given is None else _num_bits(given),
            )
    return found


def _quantizer(made: Mapping[str, NodeProto], tensor: str, kind: str) -> NodeProto | None:
    """The quantiser node of a kind whose output a tensor is, looked for behind what only moves values."""
    for _ in range(len(made) + 1):
        node = made.get(tensor)
        if node is None:
            return None
        if node.domain == _DOMAIN and node.op_type.startswith(kind):
            return node
        if node.op_type not in _MOVES:
            return None
        tensor = node.input[0]
    return None


def _layer_of(parameter: str) -> str:
    return parameter.rpartition(".")[0].removesuffix(".layer")


def _num_bits(node: NodeProto) -> int:
    found = [a.i for a in node.attribute if a.name == "num_bits"]
    if not found:
        raise UserError(
            f"The quantiser node {node.name!r} has no attribute num_bits. Export the file again with "
            "mct_quantizers."
        )
    return int(found[0])
