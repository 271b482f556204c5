"""`triton-cuda`: the packed checkpoint, run from its packed weights by the Triton kernels on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mpsearch.deploy.loading import load
from mpsearch.deploy.packed import save_packed
from mpsearch.deploy.targets._base import MODEL_FILE, TARGETS, Job, Run, Target
from mpsearch.hardware.gpu import card as cards


@TARGETS.register("triton-cuda")
@dataclass(frozen=True)
class TritonCuda(Target):
    """The packed checkpoint on kernels.

    Args:
        dtype: Of tensors between units, and of layers that stay float.
    """

    dtype: Literal["fp16", "bf16"] = "fp16"
    runs_with: ClassVar[str] = "mpsearch.load on the Triton kernels, GPU; inputs and logits pass through the host"
    needs_model: ClassVar[bool] = True
    integer: ClassVar[bool] = True

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
        module = load(folder / MODEL_FILE, model, kernels="triton-cuda", device=device, dtype=self.dtype)

        @torch.inference_mode()
        def run(inputs: Tensor) -> Tensor:
            logits: Tensor = module(inputs.to(device)).float().cpu()
            return logits

        return run

    def device(self) -> str:
        """The GPU."""
        return str(cards.card().gpu.identity)

    def energy_counter(self) -> Callable[[], float | None]:
        """NVML's."""
        return cards.card().monitor.energy_mj
