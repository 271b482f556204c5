"""What each layer of an engine is: a unit, a group of units, a change of precision, or something else; none
is left out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mpsearch.hardware.trtexec.engine import EngineLayer

ROLES = ("unit", "group", "edge", "other")
_UNITS = ("Convolution", "ConvActPool", "Gemm", "MatrixMultiply", "FullyConnected", "Deconvolution")
"""Parameter types of layers that hold a unit's weight, where no names tell."""
_BLOCKS = ("Myelin", "ForeignNode", "kgen")


@dataclass(frozen=True)
class Entry:
    """A layer with what it is.

    Args:
        layer: The layer.
        role: One of `ROLES`: `unit` (one unit with what was fused into it), `group` (several units, or a
            block of which TensorRT does not tell what it holds; its time is never divided), `edge` (a change
            of precision or layout between units) or `other`.
        units: The units that it holds: their ONNX nodes where those are known, else the layer's own name.
    """

    layer: EngineLayer
    role: str
    units: tuple[str, ...] = ()


@dataclass(frozen=True)
class Account:
    """Every layer of a build, in order."""

    entries: tuple[Entry, ...]

    def of(self, *roles: str) -> list[Entry]:
        """The entries of these roles, in order."""
        return [entry for entry in self.entries if entry.role in roles]

    def sums(self) -> dict[str, float]:
        """Microseconds by role; together they are the profile's total."""
        return {role: math.fsum(e.layer.average_us for e in self.of(role)) for role in ROLES}

    def __str__(self) -> str:
        """`unit 0.74 ms (21), group 0.00 ms (0), edge 0.20 ms (12), other 0.15 ms (4)`."""
        sums = self.sums()
        return ", ".join(f"{role} {sums[role] / 1e3:.3f} ms ({len(self.of(role))})" for role in ROLES)


def account(layers: Sequence[EngineLayer], known: Collection[str] | None = None) -> Account:
    """What each layer is.

    Args:
        layers: Of an engine, in order.
        known: ONNX nodes that are units; None where the names of the graph are not those of units, and a
            layer with a weight is taken for one.
    """
    units = [_units(layer, known) for layer in layers]
    holds = {
        tensor.name: bool(found)
        for layer, found in zip(layers, units, strict=True)
        for tensor in layer.outputs
    }
    read_by_unit = {t.name for layer, found in zip(layers, units, strict=True) if found for t in layer.inputs}
    for layer in layers:
        if layer.kind == "NoOp" and layer.inputs and layer.outputs:  # a view: its ends are one tensor
            holds[layer.outputs[0].name] = holds.get(layer.inputs[0].name, False)
    entries = []
    for layer, found in zip(layers, units, strict=True):
        if found or layer.kind in _BLOCKS:
            role = "unit" if len(found) == 1 and layer.kind != "ForeignNode" else "group"
        elif _changes_precision(layer) or (
            layer.origin == "REFORMAT"
            and holds.get(layer.inputs[0].name)
            and layer.outputs[0].name in read_by_unit
        ):
            role = "edge"
        else:
            role = "other"
        entries.append(Entry(layer, role, found))
    return Account(tuple(entries))


def _units(layer: EngineLayer, known: Collection[str] | None) -> tuple[str, ...]:
    if known is not None:
        named = (node.partition("#")[0] for node in layer.nodes)  # a further call of a unit is `name#2`
        return tuple(dict.fromkeys(name for name in named if name in known))
    weighted = layer.parameter_type in _UNITS or layer.weight_bytes > 0 or layer.kind.lower() == "gemm"
    return (layer.name,) if weighted else ()


def _changes_precision(layer: EngineLayer) -> bool:
    return layer.kind != "NoOp" and layer.origin == "QDQ"
