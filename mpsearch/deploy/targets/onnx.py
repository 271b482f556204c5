"""`onnx`: Q/DQ nodes for ONNX Runtime on x86 (uint8 inputs, int8 weights), 4-bit weights where asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import onnx
from onnx import ModelProto
from torch import nn

from mpsearch.deploy.onnx import exact, quantize_onnx, save_onnx
from mpsearch.deploy.onnx_forms import OPSET_4BIT, FourBit, fits_four_bits, four_bit_onnx
from mpsearch.deploy.onnx_layout import OnnxLayout, pad_to
from mpsearch.deploy.onnx_packing import pack_weights
from mpsearch.deploy.onnx_run import load_onnx, measure_onnx, run_onnx
from mpsearch.deploy.packed import PackedLayout
from mpsearch.deploy.targets._base import TARGETS, Job, Layout, Run, Target, TargetRun
from mpsearch.deploy.targets.states import refuse_products
from mpsearch.hardware.backends.ort_cpu import OrtCpu, executed
from mpsearch.hardware.fresh import Program, file_program
from mpsearch.hardware.qdq import OPSET
from mpsearch.problem import Assignment
from mpsearch.quant import UnitState


@TARGETS.register("onnx", {"ort-cpu": ""})
@dataclass(frozen=True)
class Onnx(Target):
    """An ONNX file that ONNX Runtime runs in integers.

    Args:
        four_bit: How linear layers of at most 4 bits are stored: `no` (int8 containers, integer kernels),
            `matmulnbits` (ONNX Runtime's operator) or `blockwise` (DequantizeLinear of opset 21); the latter
            two halve the bytes and multiply in float.
        weights: How weights of integer units are stored: `packed` (as many bits as they have, unpacked when a
            session is made) or `plain` (8-bit containers, faster to load; budgets limit the checkpoint then).
            Both run in the same kernels and give the same results.
    """

    four_bit: Literal["no", "matmulnbits", "blockwise"] = "no"
    weights: Literal["packed", "plain"] = "packed"
    file: ClassVar[str] = "model.onnx"
    runs_with: ClassVar[str] = "ONNX Runtime, CPU"
    integer: ClassVar[bool] = True
    key: ClassVar[str] = "onnx"
    title: ClassVar[str] = "ONNX"
    file_alone: ClassVar[bool] = True
    measures_memory: ClassVar[bool] = True

    @property
    def in_run(self) -> bool:
        """Stored 4-bit weights are another kernel than the one that the backend times."""
        return self.four_bit == "no"

    def backend(self, threads: int = 1) -> OrtCpu:
        """ONNX Runtime."""
        return OrtCpu(threads)

    def states(self, job: Job) -> dict[str, UnitState]:
        """Weights whose products are exact on every x86 processor."""
        return {
            unit: exact(state, getattr(job.module.get_submodule(unit), "groups", 1))
            if state.weight is not None
            else state
            for unit, state in job.states.items()
        }

    def write(self, job: Job, folder: Path) -> list[str]:
        """One file."""
        refuse_products(job, self.name)
        save_onnx(folder / self.file, self.model(job))
        states = self.states(job)
        moved = sum(states[unit] is not state for unit, state in job.states.items())
        about = (
            f"{moved} units have 8-bit weights of which some rows are on coarser scales: their "
            "products would overflow 16 bits on processors without VNNI."
        )
        small = f"{sum(fits_four_bits(s) for s in job.states.values())} linear layers are stored in 4 bits."
        return [*([small] if self.four_bit != "no" else []), *([about] if moved else [])]

    def model(self, job: Job) -> ModelProto:
        """The graph."""
        model = self._plain(job)
        if self.weights == "packed":
            pack_weights(model)
        if self._predicted:
            chosen = Assignment(tuple((unit, state.candidate) for unit, state in job.states.items()))
            pad_to(model, self.layout(job.layout, job.float_onnx).size_bytes(chosen))
        return model

    @property
    def _predicted(self) -> bool:
        return self.weights == "packed" and self.four_bit == "no"

    @property
    def budgeted(self) -> str:
        """The ONNX file, where it is bit-packed."""
        return self.file if self._predicted else super().budgeted

    def layout(self, packed: PackedLayout, float_onnx: Callable[[int], Any]) -> Layout:
        """Of the bit-packed file; other forms have the checkpoint's, which is not what they take."""
        if not self._predicted:
            return packed
        biased = [unit for unit in packed.weights if f"{unit}.bias" in packed.leftovers]
        return OnnxLayout.of(float_onnx(OPSET), packed.weights, biased)

    def _plain(self, job: Job) -> ModelProto:
        if self.four_bit == "no":
            return quantize_onnx(job.float_onnx(OPSET), job.states, job.calibration)
        form: FourBit = self.four_bit
        small: Mapping[str, UnitState] = {
            unit: state for unit, state in job.states.items() if fits_four_bits(state)
        }
        rest = {unit: state for unit, state in job.states.items() if unit not in small}
        return quantize_onnx(four_bit_onnx(job.float_onnx(OPSET_4BIT), small, form), rest, job.calibration)

    def load(self, folder: Path, threads: int, model: nn.Module | None = None) -> Run:
        """A session of ONNX Runtime."""
        onnx.checker.check_model(str(folder / self.file))
        run: Run = run_onnx(folder / self.file, threads)
        return run

    def one_call(self, job: Job, folder: Path, threads: int) -> tuple[Callable[[], object], int]:
        """By the session that a deployment would use."""
        return load_onnx(folder / self.file, job.example, threads, job.batch)

    def measure(self, job: Job, folder: Path, threads: int, rounds: int = 1) -> TargetRun:
        """By the session that a deployment would use."""
        found = measure_onnx(folder / self.file, job.example, threads, rounds, batch=job.batch)
        return TargetRun(found.timing, found.integer_kernels)

    def program(self, folder: Path, model: Mapping[str, Any] | None = None) -> Program:
        """The file alone."""
        return file_program(folder / self.file)

    def executed(self, folder: Path, threads: int) -> tuple[str, ...]:
        """Operators of the optimised graph."""
        return executed(folder / self.file, threads)
