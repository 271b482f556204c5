"""The layers of a TensorRT engine, as `trtexec --exportLayerInfo` tells them, and the time of each from
`--exportProfile`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpsearch.errors import TableError

_TYPES = (
    ("int8", "int8"),
    ("fp8", "fp8"),
    ("bf16", "bf16"),
    ("bfloat16", "bf16"),
    ("int4", "int4"),
    ("int32", "int32"),
    ("int64", "int64"),
    ("bool", "bool"),
    ("fp16", "fp16"),
    ("half", "fp16"),
    ("fp32", "fp32"),
    ("float", "fp32"),
)
"""What a text about a tensor's format holds -> its type; the first that is found counts."""
_BYTES = {"int8": 1, "fp8": 1, "bool": 1, "bf16": 2, "fp16": 2, "int4": 0.5, "int64": 8}
_ONNX = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_FUSED = re.compile(r"(?:PWN|\{ForeignNode)\(?\[?(.+?)\]?[)}]+$")
LEAST_COUNT = 50
"""Iterations of a profile below which its times are `unstable`."""


@dataclass(frozen=True)
class EngineTensor:
    """What a layer reads or writes.

    Args:
        name: In the engine.
        dims: With the batch.
        dtype: `fp32`, `fp16`, `bf16`, `int8`, `fp8`, ... or `other`.
    """

    name: str
    dims: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """Elements, the batch included."""
        return math.prod(self.dims)

    @property
    def shape(self) -> str:
        """`32x64x56x56`."""
        return "x".join(map(str, self.dims))


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine, and what it takes.

    Args:
        name: As in the profile.
        kind: TensorRT's LayerType, such as `CaskConvolution`.
        inputs: What it reads; of a unit its own input first, then a residual operand.
        outputs: What it writes.
        about: The rest of the JSON, such as Kernel, Stride, Weights, Origin.
        median_us: Median time of one call.
        average_us: Mean time of one call; the sum over layers is the profile's total.
        count: Iterations that were profiled.
    """

    name: str
    kind: str
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    about: Mapping[str, Any]
    median_us: float
    average_us: float
    count: int

    @property
    def parameter_type(self) -> str:
        """Such as `Convolution` or `Pooling`; empty where TensorRT does not say."""
        return str(self.about.get("ParameterType", ""))

    @property
    def origin(self) -> str:
        """`QDQ` or `REFORMAT` of a reformat."""
        return str(self.about.get("Origin", ""))

    @property
    def nodes(self) -> tuple[str, ...]:
        """The ONNX nodes that it computes: from its Metadata, or else from its name."""
        found = _ONNX.findall(str(self.about.get("Metadata", "")))
        if found:
            return tuple(dict.fromkeys(found))
        parts = list[str]()
        for part in self.name.split(" + "):
            match = _FUSED.match(part.strip())
            parts += [p.strip() for p in match[1].split(",")] if match else [part.strip()]
        return tuple(parts)

    @property
    def input_type(self) -> str:
        """Type of its own input, which decides its kernel."""
        return self.inputs[0].dtype if self.inputs else "other"

    @property
    def output_type(self) -> str:
        """Type of what it writes."""
        return self.outputs[0].dtype if self.outputs else "other"

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weight as the engine holds it; 0 where it has none."""
        held = self.about.get("Weights") or self.about.get("ConvWeights") or {}
        size = _BYTES.get(_type_of(str(held.get("Type", ""))), 4)
        return int(int(held.get("Count", 0)) * size)


def read_layers(where: str, data: Any) -> list[dict[str, Any]]:
    """The layers of a file of `--exportLayerInfo`.

    Args:
        where: The file, for messages.
        data: Its JSON.
    Raises: TableError: It is another file, or was written with low verbosity.
    """
    layers = data.get("Layers") if isinstance(data, dict) else None
    if not isinstance(layers, list) or not layers:
        raise TableError(
            f"{where} has no list 'Layers'. It should be what trtexec writes with --exportLayerInfo."
        )
    for layer in layers:
        if isinstance(layer, str):
            raise TableError(
                f"{where} names layers and says nothing else of them ({layer[:60]!r}). Build and profile "
                "again with --profilingVerbosity=detailed."
            )
        if not isinstance(layer, dict) or not isinstance(layer.get("Name"), str):
            raise TableError(f"{where} has a layer without a Name. Write it again with --exportLayerInfo.")
    return layers


def read_profile(where: str, data: Any) -> tuple[int, list[dict[str, Any]]]:
    """Iterations, and the time of each layer, from a file of `--exportProfile`.

    Args:
        where: The file, for messages.
        data: Its JSON.
    Raises: TableError: It is another file.
    """
    head = data[0] if isinstance(data, list) and data else None
    if not isinstance(head, dict) or not isinstance(head.get("count"), int) or head["count"] < 1:
        raise TableError(
            f"{where} does not begin with the number of iterations. It should be what trtexec writes with "
            "--exportProfile."
        )
    for entry in data[1:]:
        times = [entry.get(key) for key in ("timeMs", "averageMs")] if isinstance(entry, dict) else [None]
        if not all(isinstance(t, int | float) and math.isfinite(t) and t >= 0 for t in times):
            raise TableError(f"{where} has an entry without timeMs and averageMs: {str(entry)[:80]}.")
    return head["count"], data[1:]


def joined(
    where: str, layers: list[dict[str, Any]], profile: list[dict[str, Any]], count: int
) -> list[EngineLayer]:
    """Layers with their times, joined by name and order.

    Args:
        where: The build, for messages.
        layers: From `read_layers`.
        profile: From `read_profile`.
        count: Iterations of the profile.
    Raises: TableError: They are of different engines.
    """
    names, timed = [layer["Name"] for layer in layers], [str(entry.get("name")) for entry in profile]
    if names != timed:
        at = next(
            (i for i, (a, b) in enumerate(zip(names, timed, strict=False)) if a != b),
            min(len(names), len(timed)),
        )
        ours, theirs = (list_[at] if at < len(list_) else "nothing" for list_ in (names, timed))
        raise TableError(
            f"The layers and the profile of {where} are of different engines: layer {at + 1} is "
            f"{ours[:60]!r} in one and {theirs[:60]!r} in the other ({len(names)} and {len(timed)} layers). "
            "Export both in one call of trtexec."
        )
    return [_layer(where, layer, entry, count) for layer, entry in zip(layers, profile, strict=True)]


def untimed(where: str, layers: list[dict[str, Any]]) -> list[EngineLayer]:
    """Layers of which there is no profile: their times are NaN.

    Args:
        where: The build, for messages.
        layers: From `read_layers`.
    """
    return [_layer(where, layer, {"averageMs": math.nan}, 0) for layer in layers]


def _layer(where: str, layer: dict[str, Any], entry: dict[str, Any], count: int) -> EngineLayer:
    try:
        inputs, outputs = (tuple(map(_tensor, layer.get(side, []))) for side in ("Inputs", "Outputs"))
    except (KeyError, TypeError, ValueError):
        raise TableError(
            f"A tensor of the layer {layer['Name'][:60]!r} of {where} lacks Dimensions or Format/Datatype. "
            "Build and profile again with --profilingVerbosity=detailed."
        ) from None
    average = 1e3 * float(entry["averageMs"])
    median = 1e3 * float(entry.get("medianMs", entry["averageMs"]))
    return EngineLayer(
        layer["Name"], str(layer.get("LayerType", "")), inputs, outputs, layer, median, average, count
    )


def _tensor(data: dict[str, Any]) -> EngineTensor:
    return EngineTensor(
        str(data["Name"]), tuple(map(int, data["Dimensions"])), _type_of(str(data["Format/Datatype"]))
    )


def _type_of(text: str) -> str:
    return next((name for held, name in _TYPES if held in text.lower()), "other")
