"""What engines of a model are made of: its units, the tensors whose precision is a choice, and the wires
between both.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto

from mpsearch.deploy.tensors import find_tensors, graph_names
from mpsearch.deploy.wiring import find_wires
from mpsearch.hardware.trtexec import Network
from mpsearch.pipeline.steps.subject import Subject


def network_of(subject: Subject, asked: Mapping[str, tuple[str, ...]] | None = None) -> Network:
    """The network of a model.

    Args:
        subject: The model.
        asked: Build -> kernels, as `Network` has them.
    """
    graph: ModelProto = subject.graphs.at()
    tensors = subject.tensors or find_tensors(graph)
    layers = subject.graph.layers
    if not subject.tensors:
        layers = (*layers, *(choice.layer for choice in tensors))
    wires = find_wires(graph, layers, graph_names(tensors))
    return Network(subject.source.name.rpartition(":")[2], layers, wires, asked or {})
