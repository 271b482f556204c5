"""How fast this machine is with a model: what a plan is made from, measured in about a second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpsearch.data import SampleSet
from mpsearch.models import ModelGraph
from mpsearch.quant.devices import device_of

_IMAGES = 32
_SIDE = 384
_TIMES = 3
_ENOUGH = 0.5


@dataclass(frozen=True)
class Pace:
    """Seconds of this machine, and the sizes of a model that they are multiplied with.

    Args:
        forward: Seconds of the float model for an image.
        copy: Seconds to write a float32 to memory that is not in any cache.
        multiply: Seconds of a multiplication with its addition in a product of matrices, float32.
        values: Numbers that all units read and give for an image.
        units: Units with a weight.
        weights: Their weights.
        columns: Columns of all their weights.
        rounding: Multiplications that make up for the errors of all columns, at one width.
        factoring: Those of the factors of the moments.
        on_cpu: `forward` on the CPU, where something else computes.
    """

    forward: float
    copy: float
    multiply: float
    values: int
    units: int
    weights: int
    columns: int
    rounding: int
    factoring: int
    on_cpu: float | None = None

    @property
    def deployed(self) -> float:
        """Seconds of the float model for an image where files are checked: on the CPU."""
        return self.forward if self.on_cpu is None else self.on_cpu


def measure_pace(
    module: nn.Module, graph: ModelGraph, images: SampleSet, on_cpu: tuple[nn.Module, SampleSet] | None = None
) -> Pace:
    """Time the model on some of the images, and its device on a copy and a product.

    Args:
        module: Float model in eval mode.
        graph: Its units.
        images: Any of the model's inputs, where it is.
        on_cpu: Both on the CPU, where they are elsewhere.
    """
    device, forward = device_of(module), _forward(module, images)
    source, into = torch.ones(2**22, device=device), torch.empty(2**22, device=device)
    square = torch.ones(_SIDE, _SIDE, device=device)
    shapes = [
        (layer.weight_shape, _groups(module, layer.name)) for layer in graph.layers if layer.weight_shape
    ]
    sizes = [(shape[0], math.prod(shape[1:]), groups) for shape, groups in shapes]
    values = sum(
        math.prod(layer.output_shape) + sum(map(math.prod, layer.input_shapes)) for layer in graph.layers
    )
    return Pace(
        forward,
        _seconds(lambda: into.copy_(source)) / len(source),
        _seconds(lambda: square @ square) / _SIDE**3,
        values,
        len(sizes),
        sum(rows * columns for rows, columns, _ in sizes),
        sum(columns for _, columns, _ in sizes),
        sum(rows * columns**2 // 2 for rows, columns, _ in sizes),
        sum(groups * columns**3 for _, columns, groups in sizes),
        None if on_cpu is None else _forward(*on_cpu),
    )


def _forward(module: nn.Module, images: SampleSet) -> float:
    """Seconds for an image."""
    few = images.inputs(slice(0, min(_IMAGES, len(images))))
    with torch.no_grad():
        return _seconds(lambda: module(few)) / len(few)


def _groups(module: nn.Module, unit: str) -> int:
    return int(getattr(module.get_submodule(unit), "groups", 1))


def _seconds(work: Callable[[], Tensor]) -> float:
    """The least of a few times, behind one that is not counted; of one alone where that takes long."""
    first = _once(work)
    if first > _ENOUGH:
        return first
    return min(_once(work) for _ in range(_TIMES))


def _once(work: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    work().flatten()[:1].cpu()  # a device is waited for
    return time.perf_counter() - start
