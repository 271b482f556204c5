"""`triton-cuda` as a runtime of `run`: its file is the packed checkpoint, read back and run on kernels; time by CUDA graph, energy by NVML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mpsearch.deploy.origin import Origin
from mpsearch.deploy.packed import open_packed, save_packed
from mpsearch.hardware.gpu import card as cards
from mpsearch.hardware.gpu.bench import CudaBench
from mpsearch.hardware.measure import Timing
from mpsearch.quant import UnitState


@dataclass(frozen=True)
class TritonRun:
    """What the kernels make of a checkpoint.

    Args:
        timing: Of one image.
        integer_kernels: Units that run on packed weights.
        energy_mj: Of one image, whole board; None where the card has no counter.
        trouble: Why a reading is no good, after every try.
    """

    timing: Timing
    integer_kernels: int
    energy_mj: float | None
    trouble: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class OneImage:
    """A whole model on one image that lies on the device: what a CUDA graph captures."""

    module: nn.Module
    image: Tensor

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        """The logits, on the device."""
        logits: Tensor = self.module(self.image)
        return logits


def write_triton(path: Path, origin: Origin, states: Mapping[str, UnitState]) -> int:
    """The packed checkpoint. Returns its bytes."""
    return save_packed(path, origin.layout, origin.module, states)


def load_triton(path: Path, origin: Origin, image: Tensor, threads: int = 1) -> tuple[Callable[[], object], int]:
    """A checkpoint ready to run one image, and how many calls of its units run on kernels."""
    run = _one_image(path, origin, image)
    return run, _calls(run)


def measure_triton(path: Path, origin: Origin, image: Tensor, threads: int = 1, rounds: int = 1) -> TritonRun:
    """Latency and energy of the whole model at batch 1, as read back from the file, in `rounds` readings."""
    from mpsearch.deploy.kernels import kernel_layers

    run = _one_image(path, origin, image)
    found = CudaBench().measure_whole(run, rounds)
    return TritonRun(found.timing, len(kernel_layers(run.module)), found.energy_mj, found.trouble)


def run_triton(path: Path, origin: Origin, threads: int = 1) -> Callable[[Tensor], Tensor]:
    """A function from inputs to logits, float32, computed on the device from the file."""
    module, device = _module(path, origin), cards.card().device

    @torch.inference_mode()
    def run(inputs: Tensor) -> Tensor:
        logits: Tensor = module(inputs.to(device)).float().cpu()
        return logits

    return run


def _one_image(path: Path, origin: Origin, image: Tensor) -> OneImage:
    return OneImage(_module(path, origin), image[:1].to(cards.card().device))


def _module(path: Path, origin: Origin) -> nn.Module:
    from mpsearch.deploy.kernels import kernel_module, tile_chooser

    device = cards.card().device
    module, states = open_packed(path, origin.module, folded=True)
    return kernel_module(module, states, device=device, tile=tile_chooser(device), in_place=True)


def _calls(run: OneImage) -> int:
    """Calls of units on kernels in one pass, counted."""
    from mpsearch.deploy.kernels import kernel_layers

    seen = Counter[str]()
    hooks = [layer.register_forward_pre_hook(lambda *_, name=name: seen.update([name])) for name, layer in kernel_layers(run.module).items()]
    run()
    for hook in hooks:
        hook.remove()
    return seen.total()
