"""`onnx-tensorrt`: strongly typed Q/DQ ONNX with symmetric int8, and the command that builds it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx
from torch import nn

from mpsearch.deploy.onnx import run_onnx, save_onnx
from mpsearch.deploy.onnx_forms import typed_onnx
from mpsearch.deploy.targets._base import TARGETS, Job, Run, Target, refuse_products, signed
from mpsearch.errors import OptionError
from mpsearch.hardware.qdq import OPSET
from mpsearch.pytrees import sizes_of
from mpsearch.quant import UnitState

COMMAND = "build.sh"


@TARGETS.register("onnx-tensorrt")
@dataclass(frozen=True)
class OnnxTensorRt(Target):
    """An ONNX file whose types TensorRT takes as they are, and `build.sh` with trtexec's command.

    Args:
        max_batch: Greatest batch of the engine's profile; the best-tuned one is 1.
    """

    max_batch: int = 32
    file: ClassVar[str] = "model.onnx"
    runs_with: ClassVar[str] = (
        "ONNX Runtime, CPU, in float between Q/DQ pairs: a check of the numbers, not TensorRT"
    )

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise OptionError(f"max_batch is {self.max_batch}; it must be 1 or more.")

    def states(self, job: Job) -> Mapping[str, UnitState]:
        """Inputs signed around zero."""
        return signed(job)

    def write(self, job: Job, folder: Path) -> list[str]:
        """The ONNX file and the command."""
        refuse_products(job, self.name)
        states = self.states(job)
        model = typed_onnx(job.float_onnx(OPSET), states)
        onnx.checker.check_model(model, full_check=True)
        save_onnx(folder / self.file, model)
        (folder / COMMAND).write_text(
            self._command(
                {
                    p.name: shape[1:]
                    for p, (shape, _) in zip(model.graph.input, sizes_of(job.example), strict=True)
                }
            )
        )
        moved = sum(state.activation is not job.states[unit].activation for unit, state in states.items())
        below = sum(state.candidate.w_bits != 8 for state in job.quantized.values())
        return [
            f"{moved} inputs were calibrated anew, signed around zero: TensorRT has no zero points.",
            (
                f"{below} weights of fewer than 8 bits keep their narrower range in int8, which is what "
                "TensorRT multiplies."
            ),
        ]

    def _command(self, inputs: Mapping[str, tuple[int, ...]]) -> str:
        shapes = [
            f"--{which}Shapes={','.join(f'{name}:{_dims(batch, shape)}' for name, shape in inputs.items())}"
            for which, batch in (("min", 1), ("opt", 1), ("max", self.max_batch))
        ]
        parts = ["trtexec", f"--onnx={self.file}", "--stronglyTyped", *shapes, "--saveEngine=model.engine"]
        return (
            "#!/bin/sh\n# Builds and times the engine; run it where TensorRT 10 or later is "
            f'installed.\ncd "$(dirname "$0")" && {shlex.join(parts)}\n'
        )

    def load(self, folder: Path, threads: int, model: nn.Module | None = None) -> Run:
        """A session of ONNX Runtime, for the numbers alone."""
        run: Run = run_onnx(folder / self.file, threads, fused=False)
        return run


def _dims(batch: int, shape: tuple[int, ...]) -> str:
    return "x".join(map(str, (batch, *shape)))
