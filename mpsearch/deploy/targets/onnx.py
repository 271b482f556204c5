"""`onnx`: Q/DQ nodes for ONNX Runtime on x86 (uint8 inputs, int8 weights), 4-bit weights where asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import onnx
from onnx import ModelProto
from torch import nn

from mpsearch.deploy.onnx import exact, quantize_onnx, run_onnx, save_onnx
from mpsearch.deploy.onnx_forms import OPSET_4BIT, FourBit, fits_four_bits, four_bit_onnx
from mpsearch.deploy.targets._base import TARGETS, Job, Run, Target, refuse_products
from mpsearch.hardware.backends.ort_cpu import executed
from mpsearch.hardware.qdq import OPSET
from mpsearch.quant import UnitState

FILE = "model.onnx"


@TARGETS.register("onnx")
@dataclass(frozen=True)
class Onnx(Target):
    """An ONNX file that ONNX Runtime runs in integers.

    Args:
        four_bit: How linear layers of at most 4 bits are stored: `no` (int8 containers, integer kernels), `matmulnbits` (ONNX Runtime's
            operator) or `blockwise` (DequantizeLinear of opset 21); the latter two halve the bytes and multiply in float.
    """

    four_bit: Literal["no", "matmulnbits", "blockwise"] = "no"
    runs_with: ClassVar[str] = "ONNX Runtime, CPU"
    integer: ClassVar[bool] = True

    def states(self, job: Job) -> dict[str, UnitState]:
        """Weights whose products are exact on every x86 processor."""
        return {
            unit: exact(state, getattr(job.module.get_submodule(unit), "groups", 1)) if state.weight is not None else state
            for unit, state in job.states.items()
        }

    def write(self, job: Job, folder: Path) -> list[str]:
        """One file."""
        refuse_products(job, self.name)
        save_onnx(folder / FILE, self.model(job))
        states = self.states(job)
        moved = sum(states[unit] is not state for unit, state in job.states.items())
        about = f"{moved} units have 8-bit weights of which some rows are on coarser scales: their products would overflow 16 bits on processors without VNNI."
        small = f"{sum(fits_four_bits(s) for s in job.states.values())} linear layers are stored in 4 bits."
        return [*([small] if self.four_bit != "no" else []), *([about] if moved else [])]

    def model(self, job: Job) -> ModelProto:
        """The graph."""
        if self.four_bit == "no":
            return quantize_onnx(job.float_onnx(OPSET), job.states, job.calibration)
        form: FourBit = self.four_bit
        small: Mapping[str, UnitState] = {unit: state for unit, state in job.states.items() if fits_four_bits(state)}
        rest = {unit: state for unit, state in job.states.items() if unit not in small}
        return quantize_onnx(four_bit_onnx(job.float_onnx(OPSET_4BIT), small, form), rest, job.calibration)

    def load(self, folder: Path, threads: int, model: nn.Module | None = None) -> Run:
        """A session of ONNX Runtime."""
        onnx.checker.check_model(str(folder / FILE))
        run: Run = run_onnx(folder / FILE, threads)
        return run

    def executed(self, folder: Path, threads: int) -> tuple[str, ...]:
        """Operators of the optimised graph."""
        return executed(folder / FILE, threads)
