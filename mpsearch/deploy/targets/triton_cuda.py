"""`triton-cuda`: the packed checkpoint, run from its packed weights by the Triton kernels on an NVIDIA
GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mpsearch.deploy.loading import load
from mpsearch.deploy.packed import save_packed
from mpsearch.deploy.packed_reading import open_packed
from mpsearch.deploy.targets._base import MODEL_FILE, TARGETS, Job, Run, Target, TargetRun
from mpsearch.hardware import Backend
from mpsearch.hardware.backends import triton_cuda as backends
from mpsearch.hardware.gpu import card as cards
from mpsearch.hardware.gpu.bench import CudaBench
from mpsearch.pytrees import Inputs, repeated


@dataclass(frozen=True, eq=False)
class OneImage:
    """A whole model on one image that lies on the device: what a CUDA graph captures."""

    module: nn.Module
    image: Inputs

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        """The logits, on the device."""
        logits: Tensor = self.module(self.image)
        return logits


@TARGETS.register("triton-cuda")
@dataclass(frozen=True)
class TritonCuda(Target):
    """The packed checkpoint on kernels.

    Args:
        dtype: Type of tensors between units, and of layers that stay float.
    """

    dtype: Literal["fp16", "bf16"] = "fp16"
    file: ClassVar[str] = MODEL_FILE
    runs_with: ClassVar[str] = (
        "mpsearch.load on the Triton kernels, GPU; inputs and logits pass through the host"
    )
    needs_model: ClassVar[bool] = True
    integer: ClassVar[bool] = True
    key: ClassVar[str] = "triton"
    title: ClassVar[str] = "Triton"
    measures_energy: ClassVar[bool] = True

    @property
    def in_run(self) -> bool:
        """Latency by CUDA graph, energy by NVML."""
        return True

    def backend(self, threads: int = 1) -> Backend:
        """The Triton kernels in this type."""
        return backends.TritonCuda(threads, self.dtype)

    def write(self, job: Job, folder: Path) -> list[str]:
        """One file."""
        save_packed(folder / MODEL_FILE, job.layout, job.module, job.states)
        return []

    def load(self, folder: Path, threads: int, model: nn.Module | None = None) -> Run:
        """The module that `mpsearch.load` gives, from inputs on the host to float32 logits there.

        Raises:
            DeviceMismatchError: There is no GPU that runs the kernels.
            UserError: A unit has no kernel; names all of them.
        """
        device = cards.card().device
        return _through_host(
            load(folder / MODEL_FILE, model, kernels="triton-cuda", device=device, dtype=self.dtype), device
        )

    def reload(self, job: Job, folder: Path, threads: int) -> Run:
        """As `load`, from the job's float model."""
        return _through_host(self._module(job, folder), cards.card().device)

    def one_call(self, job: Job, folder: Path, threads: int) -> tuple[Callable[[], object], int]:
        """One call whose images lie on the device."""
        run = self._one_image(job, folder)
        return run, _calls(run)

    def measure(self, job: Job, folder: Path, threads: int, rounds: int = 1) -> TargetRun:
        """Latency and energy of one call whose images lie on the device, in `rounds` readings."""
        from mpsearch.deploy.kernels import kernel_layers

        run = self._one_image(job, folder)
        found = CudaBench().measure_whole(run, rounds)
        return TargetRun(found.timing, len(kernel_layers(run.module)), found.energy_mj, found.trouble)

    def _one_image(self, job: Job, folder: Path) -> OneImage:
        return OneImage(self._module(job, folder), repeated(job.example, job.batch).to(cards.card().device))

    def _module(self, job: Job, folder: Path) -> nn.Module:
        from mpsearch.deploy.kernels import kernel_module, tile_chooser

        device = cards.card().device
        module, states = open_packed(folder / MODEL_FILE, job.module, folded=True)
        tile = tile_chooser(device)
        return kernel_module(module, states, device=device, dtype=self.dtype, tile=tile, in_place=True)

    def device(self) -> str:
        """The GPU."""
        return str(cards.card().gpu.identity)

    def energy_counter(self) -> Callable[[], float | None]:
        """NVML's."""
        return cards.card().monitor.energy_mj


def _through_host(module: nn.Module, device: str) -> Run:
    """From inputs on the host to float32 logits there."""

    @torch.inference_mode()
    def run(inputs: Inputs) -> Tensor:
        logits: Tensor = module(inputs.to(device)).float().cpu()
        return logits

    return run


def _calls(run: OneImage) -> int:
    """Calls of units on kernels in one pass, counted."""
    from mpsearch.deploy.kernels import kernel_layers

    seen = Counter[str]()
    hooks = [
        layer.register_forward_pre_hook(lambda *_, name=name: seen.update([name]))
        for name, layer in kernel_layers(run.module).items()
    ]
    run()
    for hook in hooks:
        hook.remove()
    return seen.total()
