"""`onnx-tensorrt`, also `tensorrt`: strongly typed Q/DQ ONNX in float16 and symmetric int8, and the command
that builds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx
from torch import nn

from mpsearch.deploy.half import KEPT
from mpsearch.deploy.onnx import save_onnx
from mpsearch.deploy.onnx_run import run_onnx
from mpsearch.deploy.onnx_typed import half_state, typed_onnx
from mpsearch.deploy.targets._base import TARGETS, Job, Run, Target
from mpsearch.deploy.targets.states import refuse_products, signed
from mpsearch.errors import OptionError
from mpsearch.hardware import Backend
from mpsearch.hardware.backends import tensorrt as backends
from mpsearch.hardware.qdq import OPSET
from mpsearch.hardware.trtexec import script, trtexec_call
from mpsearch.pytrees import sizes_of
from mpsearch.quant import UnitState

COMMAND = "build.sh"
NAME = "model"
"""Of the engine's build."""


@TARGETS.register("onnx-tensorrt", {"tensorrt": ""})
@dataclass(frozen=True)
class OnnxTensorRt(Target):
    """An ONNX file whose types TensorRT takes as they are, and `build.sh` with trtexec's command.

    Args:
        max_batch: Greatest batch of the engine's profile; the best-tuned one is that of the latency table, or
            1.
        fp32: What stays in float32, separated by `+`: operators of ONNX, or modules.
    """

    max_batch: int = 32
    fp32: str = "+".join(KEPT)
    file: ClassVar[str] = "model.onnx"
    runs_with: ClassVar[str] = (
        "ONNX Runtime, CPU, in float between Q/DQ pairs: a check of the numbers, not TensorRT"
    )
    key: ClassVar[str] = "tensorrt"
    title: ClassVar[str] = "TensorRT"
    float_label: ClassVar[str] = "float (fp16 engine)"
    elsewhere: ClassVar[bool] = True
    tensors: ClassVar[bool] = True
    signed_inputs: ClassVar[bool] = True
    widths: ClassVar[tuple[int, ...]] = (8,)

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise OptionError(f"max_batch is {self.max_batch}; it must be 1 or more.")

    @property
    def in_run(self) -> bool:
        """With the latencies of a table."""
        return True

    def backend(self, threads: int = 1) -> Backend:
        """TensorRT, wherever it is."""
        return backends.TensorRt(threads)

    def states(self, job: Job) -> Mapping[str, UnitState]:
        """Inputs signed around zero, scales that float16 holds."""
        return {unit: half_state(state) for unit, state in signed(job).items()}

    def write(self, job: Job, folder: Path) -> list[str]:
        """The ONNX file and the command."""
        call = self.write_model(job, folder, NAME, max(self.max_batch, job.batch))
        (folder / COMMAND).write_text(script([(NAME, call)], f"the engine of {self.file}"))
        moved = sum(not _is_symmetric(job.states[unit]) for unit in job.quantized)
        below = sum(state.candidate.w_bits != 8 for state in job.quantized.values())
        return [
            f"{moved} inputs were calibrated anew, signed around zero: TensorRT has no zero points.",
            (
                f"{below} weights of fewer than 8 bits keep their narrower range in int8, which is what "
                "TensorRT multiplies."
            ),
        ]

    def write_model(self, job: Job, folder: Path, name: str, most: int | None = None) -> list[str]:
        """Write `<name>.onnx`.

        Args:
            job: What it is of.
            folder: Where it goes.
            name: Of the build.
            most: Greatest batch of the engine; None for the job's alone.
        Returns: The call that builds and times it.
        """
        refuse_products(job, self.name, tensors=True)
        kept = tuple(filter(None, self.fp32.split("+")))
        model = typed_onnx(job.float_onnx(OPSET), self.states(job), kept)
        onnx.checker.check_model(model, full_check=True)
        save_onnx(folder / f"{name}.onnx", model)
        pairs = zip(model.graph.input, sizes_of(job.example), strict=True)
        reads = {given.name: shape[1:] for given, (shape, _) in pairs}
        return trtexec_call(name, f"{name}.onnx", reads, job.batch, most)

    def load(self, folder: Path, threads: int, model: nn.Module | None = None) -> Run:
        """A session of ONNX Runtime, for the numbers alone."""
        run: Run = run_onnx(folder / self.file, threads, fused=False)
        return run


def _is_symmetric(state: UnitState) -> bool:
    return bool(getattr(state.activation, "symmetric", False))
