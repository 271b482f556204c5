"""`packed`: one safetensors file with bit-packed weights, opened by `mpsearch.load`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from mpsearch.deploy.integer import integer_module
from mpsearch.deploy.packed import save_packed
from mpsearch.deploy.packed_reading import load_packed, open_packed
from mpsearch.deploy.targets._base import MODEL_FILE, TARGETS, Job, Run, Target
from mpsearch.quant.operands import FUNCTIONS


@TARGETS.register("packed")
@dataclass(frozen=True)
class Packed(Target):
    """The packed checkpoint.

    Args:
        integer_arithmetic: Run it with integer products and int32 sums instead of fake quantisation.
    """

    integer_arithmetic: bool = False
    file: ClassVar[str] = MODEL_FILE
    runs_with: ClassVar[str] = "mpsearch.load"
    needs_model: ClassVar[bool] = True
    functions: ClassVar[tuple[str, ...]] = FUNCTIONS
    uneven_grids: ClassVar[bool] = True

    @property
    def in_run(self) -> bool:
        """Its size is all that is measured of it."""
        return not self.integer_arithmetic

    def write(self, job: Job, folder: Path) -> list[str]:
        """One file."""
        save_packed(folder / MODEL_FILE, job.layout, job.module, job.states)
        return []

    def load(self, folder: Path, threads: int, model: nn.Module | None = None) -> Run:
        """The module that `mpsearch.load` gives."""
        torch.set_num_threads(threads)
        return (
            integer_module(*open_packed(folder / MODEL_FILE, model))
            if self.integer_arithmetic
            else load_packed(folder / MODEL_FILE, model)
        )
