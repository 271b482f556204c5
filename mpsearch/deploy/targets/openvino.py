"""`openvino`: OpenVINO's model files (IR), integers and stored weights as the assignment has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch import nn

from mpsearch.deploy.openvino import overflowing, run_openvino, write_openvino
from mpsearch.deploy.targets._base import TARGETS, Job, Run, Target, refuse_products
from mpsearch.hardware.ir import read_ir
from mpsearch.hardware.openvino_nodes import compiled, ran_nodes
from mpsearch.hardware.qdq import OPSET

FILE = "model.xml"


@TARGETS.register("openvino")
@dataclass(frozen=True)
class OpenVino(Target):
    """An XML and a binary beside it, for OpenVINO's CPU plugin.

    Args:
        precision: What float layers compute in; bf16 needs a processor that has it.
    """

    precision: Literal["f32", "bf16"] = "f32"
    runs_with: ClassVar[str] = "OpenVINO, CPU"
    integer: ClassVar[bool] = True

    def write(self, job: Job, folder: Path) -> list[str]:
        """Two files."""
        refuse_products(job, self.name)
        write_openvino(folder / FILE, job.float_onnx(OPSET), job.states, self.precision)
        wide = overflowing(job.states)
        if not wide:
            return []
        return [f"{len(wide)} units, such as {wide[0]!r}, have 8-bit weights, whose products overflow 16 bits on processors without VNNI, such as this one."]

    def load(self, folder: Path, threads: int, model: nn.Module | None = None) -> Run:
        """Compiled models, one for each size of batch."""
        return run_openvino(folder / FILE, threads)

    def executed(self, folder: Path, threads: int) -> tuple[str, ...]:
        """Nodes of the runtime graph, as kind, precision and kernel."""
        ir = read_ir(folder / FILE, batch=1)
        return tuple(str(node) for node in ran_nodes(compiled(ir.model, threads, ir.precision)))
