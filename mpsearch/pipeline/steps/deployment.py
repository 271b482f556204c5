"""Models in the files of the target: whole-model runs, and the memory of uniform models."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpsearch.deploy.memory import measured_peak
from mpsearch.deploy.targets import Job, Target
from mpsearch.deploy.wiring import find_wires
from mpsearch.hardware.whole import Kernels, WholeModel
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.engines import Engines, call_batch, given_table
from mpsearch.pipeline.steps.latency import backend_of
from mpsearch.pipeline.steps.latency_model import Architecture
from mpsearch.pipeline.steps.network import network_of
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.problem import FLOAT, Candidate, Layer, Problem
from mpsearch.pytrees import Inputs, sizes_of
from mpsearch.quant import UnitState
from mpsearch.reconstruct import Calibration


@dataclass
class Deployment:
    """Writes models for the target.

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

    @property
    def target(self) -> Target:
        """What files are written for."""
        return self.subject.target

    def job(
        self, states: Mapping[str, UnitState], example: Inputs | None = None, batch: int | None = None
    ) -> Job:
        """What targets make their files of; float graphs are shared between jobs.

        Args:
            states: Codes and quantisers of every unit.
            example: 1 x ..., which is what is timed; the first calibration image where it is left out.
            batch: Images in a call that is timed; None for those of the settings.
        """
        subject = self.subject
        calls = {layer.name: layer.calls for layer in subject.graph.layers if layer.calls > 1}
        one = subject.splits.calibration.inputs([0]) if example is None else example
        told = (subject.module, subject.layout, states, self.calibration, one, calls, subject.graphs.held)
        return Job(*told, batch=batch or call_batch(self.config))

    @functools.cached_property
    def engines(self) -> Engines | None:
        """The table of a target that is timed elsewhere; None for any other."""
        if not self.target.elsewhere:
            return None
        network = network_of(self.subject)
        return Engines(given_table(self.config), Path(str(self.config.table)), network)

    def architecture(self, problem: Problem) -> Architecture:
        """What whole-model runs are of: the exported graph, whose units this builds in any kernels."""
        units = [layer if layer.weight_shape else None for layer in problem.layers]

        def load(kernels: Kernels) -> tuple[Callable[[], object], int]:
            """Ready to run, and how many calls of units were asked to run quantised and do not."""
            asked = {
                unit: Candidate.parse(k) for unit, k in zip(units, kernels, strict=True) if unit is not None
            }
            states = {
                unit.name: self.calibration.state(unit.name, candidate) for unit, candidate in asked.items()
            }
            job = self.job(states)
            with tempfile.TemporaryDirectory() as folder:
                self.target.write(job, Path(folder))
                run, quantized = self.target.one_call(job, Path(folder), self.config.threads)
            return run, sum(unit.calls for unit, c in asked.items() if not c.is_float) - quantized

        @functools.cache
        def never() -> int:
            """Calls that run in float whatever is asked, such as a convolution that the model returns; their
            row is what they take there.
            """
            return load(tuple("float" if unit is None else str(self._widest(unit)) for unit in units))[1]

        def build(kernels: Kernels) -> WholeModel:
            run, missing = load(kernels)
            return WholeModel(run, 0 <= missing <= max(0, never()))

        return Architecture(
            self.subject.source.name.rpartition(":")[2],
            find_wires(self.subject.graphs.at(), problem.layers),
            build,
        )

    def uniform_peaks(self, kernels: Sequence[str]) -> dict[str, float]:
        """Kernel -> peak memory of the activations of the model that is uniform in it, measured; once for
        these weights.
        """

        def measure() -> dict[str, float]:
            found = {}
            for kernel in kernels:
                states = {
                    unit: self.calibration.state(unit, Candidate.parse(kernel)) for unit in self.subject.units
                }
                job = self.job(states)
                with tempfile.TemporaryDirectory() as folder:
                    self.target.write(job, Path(folder))
                    found[kernel] = float(
                        measured_peak(Path(folder) / self.target.file, sizes_of(job.example))
                    )
            return found

        with self.progress.task("measure the memory of uniform models") as advance:
            peaks: dict[str, float] = self.study.cached(
                "peaks", [self.subject.hashes, list(kernels)], measure
            )
            advance(1, 1)
        return peaks

    def _widest(self, layer: Layer) -> Candidate:
        """The integer candidate of most weight bits that the target's backend has a kernel for."""
        backend = backend_of(self.config)
        choices = (Candidate(bits, 8) for bits in range(8, 1, -1))
        return next((c for c in choices if backend.supports(layer, c).kernel is not None), FLOAT)
