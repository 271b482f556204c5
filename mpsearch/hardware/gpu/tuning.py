"""Tiles of the product kernel found on the device: each shape once, kept in a file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import triton

from mpsearch.hardware.gpu.graphs import CudaGraphTimer
from mpsearch.hardware.gpu.probe import Gpu
from mpsearch.hardware.kernels.tiles import Shape, Tile, TileCache, default_tile, tiles_to_try, tune
from mpsearch.hardware.kernels.unit import KernelUnit, TileChooser

CALLS = 16
"""Calls in a graph, so that a launch is not what is timed."""


@contextlib.contextmanager
def tuned(path: str, device: Gpu) -> Iterator[TileChooser]:
    """What chooses tiles: those of a file, else the untuned ones of the device.

    Args:
        path: Of the tile cache; empty for none.
        device: The GPU.
    """
    if not path:
        yield partial(default_tile, processors=device.processors)
        return
    cache = TileCache.open(Path(path), str(device.identity), triton.__version__)
    yield partial(cache.tile, processors=device.processors)


def tune_unit(unit: KernelUnit, x: torch.Tensor, device: Gpu, cache: TileCache, on_failure: Callable[[Tile, str], None] | None = None) -> Tile | None:
    """The fastest tile of a unit's product, measured with the data in the cache; None for a unit that has none (depthwise).

    Args:
        unit: On the device.
        x: An input.
        device: The GPU.
        cache: Where tiles are kept; its file is the caller's to write.
        on_failure: Told of tiles that the device cannot run, and why.
    """
    shapes: list[Shape] = []

    def look(shape: Shape) -> Tile:
        shapes.append(shape)
        return cache.tile(shape, device.processors)

    unit.tile = look
    a = x if unit.grid is None else unit.quantize(x)
    unit.product(a)
    if not shapes:
        return None
    shape, timer = shapes[0], CudaGraphTimer()

    def time_us(tile: Tile) -> float | None:
        unit.tile = lambda _: tile
        try:
            launch = timer.capture([partial(unit.product, a)] * CALLS)
            return sorted(timer.times_us(launch, 7))[3] / CALLS
        except (triton.runtime.errors.OutOfResources, triton.compiler.errors.CompilationError) as error:
            if on_failure is not None:
                on_failure(tile, f"{type(error).__name__}: {str(error).splitlines()[0]}")
            return None

    best = tune(shape, tiles_to_try(shape, device.shared_bytes, device.processors), time_us, cache)
    unit.tile = lambda _: best
    return best
