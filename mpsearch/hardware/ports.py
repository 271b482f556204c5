"""What the file of a runtime reads and gives, as one array for each sample: several inputs, and of several
outputs those whose error counts, joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpsearch.hardware.qdq import Array


@dataclass(frozen=True)
class Ports:
    """Inputs and outputs of a file, in order.

    Args:
        names: Of the inputs.
        reads: Axis of the samples in each input.
        gives: The same of each output; None for one that does not count: whole numbers, and what has no row
            for each sample.
    """

    names: tuple[str, ...]
    reads: tuple[int, ...]
    gives: tuple[int | None, ...]

    def feeds(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """What the runtime is given, from arrays N x ... in order."""
        moved = (np.moveaxis(x, 0, axis) for x, axis in zip(inputs, self.reads, strict=True))
        return dict(zip(self.names, map(np.ascontiguousarray, moved), strict=True))

    def joined(self, outputs: Sequence[Array]) -> Array:
        """N x ... of the one output that counts, or N x K of all of them."""
        counted = [
            np.moveaxis(np.asarray(x), axis, 0)
            for x, axis in zip(outputs, self.gives, strict=True)
            if axis is not None
        ]
        if len(counted) == 1:
            return counted[0]
        return np.concatenate([x.reshape(len(x), -1) for x in counted], 1)


def onnx_ports(live: Any) -> Ports:
    """Of a session of ONNX Runtime, whose free axes have names or nothing instead of numbers."""
    given, results = live.get_inputs(), live.get_outputs()
    floats = [
        str(port.type).removeprefix("tensor(").startswith(("float", "bfloat", "double")) for port in results
    ]
    return _ports([p.name for p in given], [p.shape for p in given], [p.shape for p in results], floats)


def openvino_ports(model: Any) -> Ports:
    """Of a model of OpenVINO whose batch is free yet."""
    floats = [port.get_element_type().is_real() for port in model.outputs]
    reads, gives = (
        [[n.get_length() if n.is_static else None for n in port.get_partial_shape()] for port in ports]
        for ports in (model.inputs, model.outputs)
    )
    return _ports([str(i) for i in range(len(reads))], reads, gives, floats)


def _ports(
    names: Sequence[str],
    reads: Sequence[Sequence[Any]],
    gives: Sequence[Sequence[Any]],
    floats: Sequence[bool],
) -> Ports:
    free = [_free_axis(shape) if real else None for shape, real in zip(gives, floats, strict=True)]
    # a file of another exporter may fix its batch: then its first output counts, as it stands
    free = free if any(axis is not None for axis in free) else [0, *[None] * (len(free) - 1)]
    return Ports(tuple(names), tuple(_free_axis(shape) or 0 for shape in reads), tuple(free))


def _free_axis(shape: Sequence[Any]) -> int | None:
    return next((axis for axis, size in enumerate(shape) if not isinstance(size, int)), None)
