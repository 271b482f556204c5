"""`openvino`: OpenVINO's model files (IR), integers and stored weights as the assignment has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch import nn

from mpsearch.deploy.openvino import narrowed, overflowing, run_openvino, write_openvino
from mpsearch.deploy.targets._base import TARGETS, Job, Run, Target, refuse_products
from mpsearch.hardware.device import identity
from mpsearch.hardware.ir import read_ir
from mpsearch.hardware.openvino_nodes import compiled, ran_nodes
from mpsearch.hardware.qdq import OPSET
from mpsearch.quant import UnitState

FILE = "model.xml"


@TARGETS.register("openvino")
@dataclass(frozen=True)
class OpenVino(Target):
    """An XML and a binary beside it, for OpenVINO's CPU plugin.

    Args:
        precision: What float layers compute in; bf16 needs a processor that has it.
        overflow_fix: `on` stores 8-bit weights of integer layers with 7 bits, because their products overflow 16 bits on
            processors without VNNI (but those of depthwise convolutions, which are added in 32); `off` keeps the eighth bit,
            for processors with VNNI alone.
    """

    precision: Literal["f32", "bf16"] = "f32"
    overflow_fix: Literal["on", "off"] = "on"
    runs_with: ClassVar[str] = "OpenVINO, CPU"
    integer: ClassVar[bool] = True

    def states(self, job: Job) -> dict[str, UnitState]:
        """Weights of 7 bits where those of 8 would overflow."""
        wide = overflowing(job.states, job.module) if self.overflow_fix == "on" else ()
        return {unit: narrowed(state, job.calibration.weight_observer) if unit in wide else state for unit, state in job.states.items()}

    def write(self, job: Job, folder: Path) -> list[str]:
        """Two files."""
        refuse_products(job, self.name)
        write_openvino(folder / FILE, job.float_onnx(OPSET), self.states(job), self.precision)
        wide = overflowing(job.states, job.module)
        if not wide:
            return []
        about = f"{len(wide)} units, such as {wide[0]!r}, have 8-bit weights, whose products overflow 16 bits on processors without VNNI"
        if self.overflow_fix == "on":
            return [f"{about}; they are stored with 7 bits."]
        return [f"{about}, {'such as this one' if identity().saturates else 'which this one is not'}; overflow_fix=on stores them with 7 bits."]

    def load(self, folder: Path, threads: int, model: nn.Module | None = None) -> Run:
        """Compiled models, one for each size of batch."""
        return run_openvino(folder / FILE, threads)

    def executed(self, folder: Path, threads: int) -> tuple[str, ...]:
        """Nodes of the runtime graph, as kind, precision and kernel."""
        ir = read_ir(folder / FILE, batch=1)
        return tuple(str(node) for node in ran_nodes(compiled(ir.model, threads, ir.precision)))
