"""The GPU of this process with its instruments, opened once: what a run needs to measure on it. A test puts a
fake in the place of `card`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache

from mpsearch.hardware.backend import Cell
from mpsearch.hardware.gpu import probe
from mpsearch.hardware.gpu.probe import Gpu
from mpsearch.hardware.gpu.reading import GpuSettings, GraphTimer, Monitor
from mpsearch.problem import Layer

_SIDE = 4096
"""Side of the square matrices of the anchor."""
_SHARED: list[Shared] = []
"""What this process was told by the one that it measures for."""


@dataclass(frozen=True)
class Shared:
    """What a process that measures for another one must know of its card.

    Args:
        index: Of the CUDA device.
        processes: Ids of the processes that hold the card beside it and do not compute meanwhile.
    """

    index: int
    processes: tuple[int, ...]


def shared() -> Shared:
    """For a process that measures on the card of this one."""
    import torch

    return Shared(torch.cuda.current_device(), (os.getpid(), *_others()))


def join(told: Shared) -> None:
    """Measure on the card of the process that started this one; called before `card`."""
    import torch

    torch.cuda.set_device(told.index)
    _SHARED[:] = [told]


def _others() -> tuple[int, ...]:
    return tuple(pid for told in _SHARED for pid in told.processes)


@dataclass(frozen=True)
class Card:
    """A GPU that can be measured on.

    Args:
        gpu: Which.
        timer: CUDA graphs. monitor: NVML.
        anchor: A fixed piece of work; another time of it is another state of the card.
        device: For torch.
        settings: How it is measured.
    """

    gpu: Gpu
    timer: GraphTimer
    monitor: Monitor
    anchor: Cell
    device: str = "cuda"
    settings: GpuSettings = field(default_factory=GpuSettings)


@cache
def card() -> Card:
    """The current CUDA device.

    Raises:
        DeviceMismatchError: There is none.
        MissingExtraError: nvidia-ml-py is not installed.
        MpsearchError: NVML cannot read the card.
    """
    gpu = probe.needed()
    import torch

    from mpsearch.hardware.gpu.cells import float_cell
    from mpsearch.hardware.gpu.graphs import CudaGraphTimer
    from mpsearch.hardware.gpu.nvml import NvmlMonitor

    monitor = NvmlMonitor(
        str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid), processes=_others()
    )
    product = Layer("anchor", "linear", (_SIDE, _SIDE), ((_SIDE, _SIDE),), (_SIDE, _SIDE), _SIDE**3, "")
    return Card(gpu, CudaGraphTimer(), monitor, float_cell(product, 1))
