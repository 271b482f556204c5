"""`openvino`: OpenVINO's model files (IR), integers and stored weights as the assignment has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from mpsearch.deploy.openvino import (
    load_openvino,
    measure_openvino,
    narrowed,
    overflowing,
    run_openvino,
    write_openvino,
)
from mpsearch.deploy.targets._base import TARGETS, Job, Run, Target, TargetRun
from mpsearch.deploy.targets.states import refuse_products
from mpsearch.hardware.backends.openvino_cpu import OpenVinoCpu, OpenVinoCpuBf16
from mpsearch.hardware.device import identity
from mpsearch.hardware.fresh import Program, file_program
from mpsearch.hardware.ir import ir_bytes, read_ir
from mpsearch.hardware.openvino_nodes import compiled, ran_nodes
from mpsearch.hardware.qdq import OPSET
from mpsearch.quant import UnitState


@TARGETS.register("openvino", {"openvino-cpu": "", "openvino-cpu-bf16": "precision=bf16"})
@dataclass(frozen=True)
class OpenVino(Target):
    """An XML and a binary beside it, for OpenVINO's CPU plugin.

    Args:
        precision: What float layers compute in; bf16 needs a processor that has it.
        overflow_fix: `on` stores 8-bit weights of integer layers with 7 bits, because their products overflow
            16 bits on processors without VNNI (but those of depthwise convolutions, which are added in 32);
            `off` keeps the eighth bit, for processors with VNNI alone.
        weights: How weights of integer units are stored: `packed` (as many bits as they have, in 4- and
            1-bit constants that OpenVINO folds when it compiles the model) or `plain` (8-bit containers).
            Both run in the same kernels and give the same results. Budgets limit the checkpoint.
    """

    precision: Literal["f32", "bf16"] = "f32"
    overflow_fix: Literal["on", "off"] = "on"
    weights: Literal["packed", "plain"] = "packed"
    file: ClassVar[str] = "model.xml"
    runs_with: ClassVar[str] = "OpenVINO, CPU"
    integer: ClassVar[bool] = True
    key: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO"
    file_alone: ClassVar[bool] = True

    @property
    def in_run(self) -> bool:
        """A run writes what is exact on every processor."""
        return self.overflow_fix == "on"

    def backend(self, threads: int = 1) -> OpenVinoCpu:
        """OpenVINO at this precision."""
        return OpenVinoCpuBf16(threads) if self.precision == "bf16" else OpenVinoCpu(threads)

    def states(self, job: Job) -> dict[str, UnitState]:
        """Weights of 7 bits where those of 8 would overflow."""
        wide = overflowing(job.states, job.module) if self.overflow_fix == "on" else ()
        return {
            unit: narrowed(state, job.calibration.weight_observer) if unit in wide else state
            for unit, state in job.states.items()
        }

    def write(self, job: Job, folder: Path) -> list[str]:
        """Two files."""
        refuse_products(job, self.name)
        packed = self.weights == "packed"
        path, graph = folder / self.file, job.float_onnx(OPSET)
        write_openvino(path, graph, self.states(job), self.precision, packed=packed)
        wide = overflowing(job.states, job.module)
        if not wide:
            return []
        about = (
            f"{len(wide)} units, such as {wide[0]!r}, have 8-bit weights, whose products overflow 16 "
            "bits on processors without VNNI"
        )
        if self.overflow_fix == "on":
            return [f"{about}; they are stored with 7 bits."]
        return [
            (
                f"{about}, {'such as this one' if identity().saturates else 'which this one is not'}; "
                "overflow_fix=on stores them with 7 bits."
            )
        ]

    def load(self, folder: Path, threads: int, model: nn.Module | None = None) -> Run:
        """Compiled models, one for each size of batch."""
        return run_openvino(folder / self.file, threads)

    def one_call(self, job: Job, folder: Path, threads: int) -> tuple[Callable[[], object], int]:
        """By the compiled model that a deployment would use."""
        return load_openvino(folder / self.file, job.example, threads, job.batch)

    def measure(self, job: Job, folder: Path, threads: int, rounds: int = 1) -> TargetRun:
        """By the compiled model that a deployment would use."""
        found = measure_openvino(folder / self.file, job.example, threads, rounds, batch=job.batch)
        return TargetRun(found.timing, found.integer_kernels)

    def program(self, folder: Path, model: Mapping[str, Any] | None = None) -> Program:
        """The files alone."""
        return file_program(folder / self.file)

    def bytes_of(self, folder: Path) -> int:
        """Bytes of both files."""
        return ir_bytes(folder / self.file)

    def executed(self, folder: Path, threads: int) -> tuple[str, ...]:
        """Nodes of the runtime graph, as kind, precision and kernel."""
        ir = read_ir(folder / self.file, batch=1)
        return tuple(str(node) for node in ran_nodes(compiled(ir.model, threads, ir.precision)))
