"""Which layer of an engine is which unit of a model: by name, or else by shape and order."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

from mpsearch.errors import TableError
from mpsearch.hardware.trtexec.account import Account, Entry
from mpsearch.hardware.trtexec.engine import EngineTensor
from mpsearch.hardware.trtexec.shapes import kernel_of, residual_type, unit_layer
from mpsearch.problem import Layer

TENSORS = ("residual", "pool")
"""Operators of layers that stand for the precision of a tensor."""
_POOLS = ("Pooling", "Reduce")
Signature = tuple[tuple[int, ...], tuple[int, ...]]


def aligned(where: str, layers: Sequence[Layer], found: Account) -> dict[str, Entry]:
    """The entry that holds each unit with a weight; a unit may lie in a block of which TensorRT does not tell
    what it holds, and is left out.

    Args:
        where: The build, for messages.
        layers: Units of the model.
        found: Of the build.
    Raises: TableError: They are of another model.
    """
    weighted = [layer for layer in layers if layer.weight_shape]
    named = {unit: entry for entry in found.of("unit", "group") for unit in entry.units}
    opaque = any(not entry.units for entry in found.of("group"))
    if all(layer.name in named for layer in weighted) or (named and opaque):
        return {layer.name: named[layer.name] for layer in weighted if layer.name in named}
    waiting: dict[Signature, deque[Entry]] = defaultdict(deque)
    for entry in found.of("unit"):
        shape = unit_layer(entry.layer)
        if shape is not None:
            waiting[signature(shape)].append(entry)
    there = sum(map(len, waiting.values()))
    matched: dict[str, Entry] = {}
    for layer in weighted:
        if not waiting[signature(layer)]:
            if opaque:
                continue
            raise TableError(
                f"{where} is the engine of another model: it has {there} units, and none that is left for "
                f"{layer.name!r} ({layer.op}, weight {'x'.join(map(str, layer.weight_shape))}, output "
                f"{'x'.join(map(str, layer.output_shape[1:]))}). Name the model that it was built from with "
                "--model."
            )
        matched[layer.name] = waiting[signature(layer)].popleft()
    if there > len(weighted):
        left = next(entry for queue in waiting.values() for entry in queue)
        raise TableError(
            f"{where} is the engine of another model: its layer {left.layer.name[:60]!r} is none of the "
            f"{len(weighted)} units. Name the model that it was built from with --model."
        )
    return matched


def signature(layer: Layer) -> Signature:
    """Shapes of weight and output, a linear layer as a convolution of one pixel."""
    weight = (*layer.weight_shape, 1, 1)[:4]
    return weight, (*layer.output_shape[1:], 1, 1)[:3]


def tensor_kernels(layers: Sequence[Layer], found: Account) -> dict[str, str]:
    """What each tensor whose precision is a choice is in an engine: `W8A8` where its reader gets int8, else
    `float`.

    Args:
        layers: Units and tensors of the model.
        found: Of the build.
    """
    seen: dict[tuple[str, tuple[int, ...]], deque[str]] = defaultdict(deque)
    for entry in found.entries:
        engine = entry.layer
        shape = unit_layer(engine)
        if shape is not None and residual_type(engine) is not None:
            seen["residual", engine.inputs[1].dims[1:]].append(engine.inputs[1].dtype)
        elif (
            entry.role == "other"
            and len(engine.inputs) == 2
            and engine.inputs[0].dims == engine.inputs[1].dims
        ):
            seen["residual", engine.inputs[0].dims[1:]].append(_wider(*engine.inputs))
        if engine.parameter_type in _POOLS:
            seen["pool", engine.inputs[0].dims[1:]].append(engine.input_type)
        elif "PoolingWindowSize" in engine.about and shape is not None:
            seen["pool", shape.output_shape[1:]].append(engine.output_type)
    kernels = {}
    for layer in layers:
        if layer.op in TENSORS:
            queue = seen[layer.op, layer.output_shape[1:]]
            kernels[layer.name] = "W8A8" if queue and queue.popleft() == "int8" else "float"
    return kernels


def _wider(first: EngineTensor, second: EngineTensor) -> str:
    return first.dtype if first.dtype != "int8" else second.dtype


def kernels_of_build(layers: Sequence[Layer], entries: dict[str, Entry], found: Account) -> tuple[str, ...]:
    """What ran of each layer of a model: kernels of its units, precision of its tensors, `float` for what has
    neither.

    Args:
        layers: Units and tensors of the model.
        entries: From `aligned`.
        found: Of the build.
    """
    tensors = tensor_kernels(layers, found)
    return tuple(
        kernel_of(entries[layer.name].layer) if layer.name in entries else tensors.get(layer.name, "float")
        for layer in layers
    )
