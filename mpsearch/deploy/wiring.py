"""The tensors between quantisable units, read from the exported float graph."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from onnx import ModelProto, NodeProto

from mpsearch.deploy.graph import unit_of
from mpsearch.hardware.wires import Wire
from mpsearch.problem import Layer

_THROUGH = {"Relu", "Clip", "Identity", "MaxPool", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose"}
"""What a quantised tensor passes without becoming float, or that is fused into a float convolution."""
_UNITS = ("Conv", "Gemm", "MatMul")


def find_wires(
    model: ModelProto, layers: Sequence[Layer], tensors: Mapping[str, str] | None = None
) -> tuple[Wire, ...]:
    """The wires of a float graph.

    From the output of every unit, forward through activations, pooling and changes of shape, and through one
    residual sum at most. A unit that is called several times has the wires of all its calls.

    Args:
        model: From `export_float`.
        layers: The problem's units; activation products have no wires.
        tensors: Tensor of the graph -> the layer that its precision is, where that is a choice of its own: a
            wire ends there, and another begins.
    """
    tensors = tensors or {}
    places = {layer.name: i for i, layer in enumerate(layers)}
    at = {layer.name: i for i, layer in enumerate(layers) if layer.weight_shape}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    walk = _Walk(
        {id(n): at[unit_of(n)] for n in model.graph.node if n.op_type in _UNITS and unit_of(n) in at},
        readers,
        {tensor: places[name] for tensor, name in tensors.items()},
    )
    for node in model.graph.node:
        if id(node) in walk.units:
            walk.forward(
                walk.units[id(node)],
                node.output[0],
                math.prod(layers[walk.units[id(node)]].output_shape),
                "direct",
            )
    for tensor, place in walk.tensors.items():
        walk.forward(place, tensor, math.prod(layers[place].output_shape), "direct")
    walk.joins(layers)
    return tuple(sorted(walk.found))


class _Walk:
    def __init__(
        self, units: Mapping[int, int], readers: Mapping[str, list[NodeProto]], tensors: Mapping[str, int]
    ) -> None:
        self.units, self.readers, self.tensors = units, readers, tensors
        self.found: set[Wire] = set()
        self._sums: dict[int, dict[int, int]] = defaultdict(
            dict
        )  # sum node -> unit that feeds it -> how many sums lie between

    def forward(self, source: int, tensor: str, numel: int, kind: str) -> None:
        """Follow a tensor that `source` has written to whoever reads it."""
        if self.tensors.get(tensor, source) != source:
            self.found.add(Wire(source, self.tensors[tensor], kind, numel))
            return
        for node in self.readers[tensor]:
            if id(node) in self.units:
                target = self.units[id(node)]
                if target != source:
                    self.found.add(Wire(source, target, kind, numel))
            elif node.op_type in _THROUGH:
                self.forward(source, node.output[0], numel, kind)
            elif node.op_type == "Add":
                passed = 0 if kind == "direct" else 1
                self._sums[id(node)][source] = min(passed, self._sums[id(node)].get(source, passed))
                if kind == "direct":
                    self.forward(source, node.output[0], numel, "sum")

    def joins(self, layers: Sequence[Layer]) -> None:
        """Units that feed one sum: the nearest of each of its terms."""
        for feeders in self._sums.values():
            for first, second in _pairs(feeders):
                if (
                    min(feeders[first], feeders[second]) == 0
                    and layers[first].output_shape == layers[second].output_shape
                ):
                    self.found.add(
                        Wire(
                            min(first, second),
                            max(first, second),
                            "join",
                            math.prod(layers[first].output_shape),
                        )
                    )


def _pairs(feeders: Iterable[int]) -> list[tuple[int, int]]:
    ordered = sorted(feeders)
    return [(a, b) for i, a in enumerate(ordered) for b in ordered[i + 1 :]]
