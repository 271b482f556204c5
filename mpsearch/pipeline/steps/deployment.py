"""Models in the files of the target's runtime: the float graph, whole-model runs, and the memory of uniform models."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpsearch.deploy.memory import measured_peak
from mpsearch.deploy.onnx import export_float
from mpsearch.deploy.runtimes import RUNTIMES, DeployedRuntime, Origin
from mpsearch.deploy.wiring import find_wires
from mpsearch.hardware import BACKENDS
from mpsearch.hardware.whole import Kernels, WholeModel
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.latency import Architecture
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.problem import FLOAT, Candidate, Layer, Problem
from mpsearch.reconstruct import Calibration


@dataclass
class Deployment:
    """Writes models for the target's runtime; the float graph is exported once.

    Args:
        subject: Model and images.
        calibration: Quantisers.
        config: Target and threads.
        study: Where results are kept.
        progress: Where progress goes.
    """

    subject: Subject
    calibration: Calibration
    config: RunConfig
    study: Study
    progress: Progress
    _float_onnx: Any = None

    @property
    def runtime(self) -> DeployedRuntime:
        """Of the target; there is none for `packed`."""
        return RUNTIMES[self.config.target]

    @property
    def origin(self) -> Origin:
        """What runtimes make their files of."""
        return Origin(self.subject.module, self.subject.layout, self.calibration, self.float_onnx)

    def float_onnx(self) -> Any:
        """The float graph, exported at the first call."""
        if self._float_onnx is None:
            with self.progress.task("export to ONNX") as advance:
                self._float_onnx = export_float(self.subject.module, self.subject.splits.calibration.inputs([0]))
                advance(1, 1)
        return self._float_onnx

    def architecture(self, problem: Problem) -> Architecture:
        """What whole-model runs are of: the exported graph, whose units this builds in any kernels."""
        units = [layer if layer.weight_shape else None for layer in problem.layers]
        example = self.subject.splits.calibration.inputs([0])

        def load(kernels: Kernels) -> tuple[Callable[[], object], int]:
            """Ready to run, and how many calls of units were asked to run quantised and do not."""
            asked = {unit: Candidate.parse(k) for unit, k in zip(units, kernels, strict=True) if unit is not None}
            states = {unit.name: self.calibration.state(unit.name, candidate) for unit, candidate in asked.items()}
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"model{self.runtime.suffix}"
                self.runtime.write(path, self.origin, states)
                run, quantized = self.runtime.load(path, self.origin, example, self.config.threads)
            return run, sum(unit.calls for unit, c in asked.items() if not c.is_float) - quantized

        @functools.cache
        def never() -> int:
            """Calls that run in float whatever is asked, such as a convolution that the model returns; their row is what they take there."""
            return load(tuple("float" if unit is None else str(self._widest(unit)) for unit in units))[1]

        def build(kernels: Kernels) -> WholeModel:
            run, missing = load(kernels)
            return WholeModel(run, 0 <= missing <= max(0, never()))

        return Architecture(self.subject.source.name.rpartition(":")[2], find_wires(self.float_onnx(), problem.layers), build)

    def uniform_peaks(self, kernels: Sequence[str]) -> dict[str, float]:
        """Kernel -> peak memory of the activations of the model that is uniform in it, measured; once for these weights."""

        def measure() -> dict[str, float]:
            found = {}
            for kernel in kernels:
                states = {unit: self.calibration.state(unit, Candidate.parse(kernel)) for unit in self.subject.units}
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / f"model{self.runtime.suffix}"
                    self.runtime.write(path, self.origin, states)
                    found[kernel] = float(measured_peak(path, self.subject.splits.calibration.inputs([0]).shape))
            return found

        with self.progress.task("measure the memory of uniform models") as advance:
            peaks: dict[str, float] = self.study.cached("peaks", [self.subject.hashes, list(kernels)], measure)
            advance(1, 1)
        return peaks

    def _widest(self, layer: Layer) -> Candidate:
        """The integer candidate of most weight bits that the target's backend has a kernel for."""
        backend = BACKENDS.create(self.config.target)
        choices = (Candidate(bits, 8) for bits in range(8, 1, -1))
        return next((c for c in choices if backend.supports(layer, c).kernel is not None), FLOAT)
