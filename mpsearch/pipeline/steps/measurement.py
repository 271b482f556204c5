"""What states take and how good they are: written, weighed, timed and evaluated, once for each."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpsearch.deploy.memory import measured_peak
from mpsearch.deploy.packed import save_packed
from mpsearch.deploy.targets import MODEL_FILE
from mpsearch.errors import MpsearchError
from mpsearch.hardware.bench import TRIES
from mpsearch.hardware.fresh import Program
from mpsearch.hardware.new_process import SHARE, time_in_new_processes
from mpsearch.pipeline.config import RunConfig, limits
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.deployment import Deployment
from mpsearch.pipeline.steps.energy import energy_of
from mpsearch.pipeline.steps.evaluation import FEW, Evaluation
from mpsearch.pipeline.steps.latency import has_backend, timed
from mpsearch.pipeline.steps.memory import limits_memory
from mpsearch.pipeline.steps.states import States, digest_of_states
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.problem import Assignment
from mpsearch.pytrees import arrays_of, sizes_of
from mpsearch.quant.devices import CPU, on_device


@dataclass(frozen=True)
class Measurement:
    """Measures states as the target runs them.

    Args:
        subject: Model and images.
        config: Target, threads and budgets.
        study: Where results are kept.
        progress: Where progress goes.
        deployment: Writes the files.
        evaluation: Compares with the float model.
    """

    subject: Subject
    config: RunConfig
    study: Study
    progress: Progress
    deployment: Deployment
    evaluation: Evaluation

    def measured(self, states: States, whole: bool = False) -> dict[str, Any]:
        """Written, weighed, timed and evaluated; the files are thrown away. Cached by the states and the
        device-independent inputs.

        Args:
            states: States of every unit.
            whole: Whether metrics are on all evaluation images, else on the first `FEW`.
        Returns: `metrics`, `search_kl`, `size_bytes` (of the target's file, which budgets limit),
            `packed_bytes` (of the checkpoint), and what the runtime takes: `latency_us` and others.
        """
        states = on_device(states, CPU)  # what is weighed, written and run is there
        key = [self.subject.hashes, digest_of_states(states), self.config.target, self.config.threads]
        key += (
            [] if self.subject.task_text == "classification" else [self.subject.task_text]
        )  # the only one before tasks had names
        own = self.subject.target.budgeted
        key += [] if own == MODEL_FILE else [own]
        key += ["new processes"] if self.in_new_processes else []
        key += ["memory"] if limits_memory(self.config) else []
        known = self._known_us(states)
        key += [] if known is None else [known]
        key += ["energy"] if limits(self.config, "energy_mj") else []
        key += [] if self.config.batch == 1 else [f"batch {self.config.batch}"]
        key += self.subject.arithmetic
        key += [] if whole or len(self.subject.splits.evaluation) <= FEW else [f"first {FEW}"]
        found: dict[str, Any] = self.study.cached("measured", key, lambda: self._measure(states, whole))
        return found

    @property
    def in_new_processes(self) -> bool:
        """Whether a latency is held against a budget and the file alone is enough to measure it as a
        deployment would.
        """
        return timed(self.config) and self.deployment.target.file_alone

    def latency(self, program: Program, earlier: Sequence[float] = ()) -> dict[str, Any]:
        """Latency of what was written, by new processes: what is reported of it, and what is held against a
        budget.

        Args:
            program: What a process of its own loads.
            earlier: Readings of the same in microseconds, which count as well.
        """
        image = arrays_of(self.subject.splits.evaluation.inputs([0]))
        with self.progress.task("time in new processes") as advance:
            timing = time_in_new_processes(
                program,
                image,
                threads=self.config.threads,
                batch=self.config.batch,
                on_process=advance,
            )
            timing = replace(timing, readings_us=(*earlier, *timing.readings_us))
        about: dict[str, Any] = {
            "latency_us": timing.median_us,
            "latency_iqr_us": timing.iqr_us,
            "latency_high_us": timing.high_us,
            "clock": timing.clock,
        }
        return about | {"latency_high_share": SHARE, "latency_readings_us": list(timing.readings_us)}

    def _measure(self, states: States, whole: bool) -> dict[str, Any]:
        search_kl = float(self.evaluation.search_losses(states).mean())
        result: dict[str, Any] = {
            "metrics": self.evaluation.metrics(states, whole).to_json(),
            "search_kl": search_kl,
        }
        with tempfile.TemporaryDirectory() as folder:
            packed = Path(folder) / MODEL_FILE
            result["packed_bytes"] = save_packed(packed, self.subject.layout, self.subject.module, states)
        if has_backend(self.config):
            result |= self._run(states)
        return result | {"size_bytes": self._predicted_size(states, result)}

    def _predicted_size(self, states: States, result: Mapping[str, Any]) -> int:
        """Bytes of the file that budgets limit. Raises MpsearchError where they are not those predicted."""
        target, subject = self.subject.target, self.subject
        size = int(result["packed_bytes" if target.budgeted == MODEL_FILE else f"{target.key}_bytes"])
        chosen = Assignment(tuple((unit, states[unit].candidate) for unit in subject.layout.units))
        predicted = subject.file.size_bytes(chosen)
        if size != predicted:
            raise MpsearchError(
                f"{target.budgeted} has {size} bytes, not the predicted {predicted}. Please report this."
            )
        return size

    def float_sizes(self) -> dict[str, float]:
        """Bytes of the same files if nothing were quantised."""
        subject = self.subject
        return {
            "size_bytes": subject.float_bytes(subject.file),
            "packed_bytes": subject.float_bytes(subject.layout),
        }

    def _known_us(self, states: States) -> float | None:
        """What another machine has measured of the engine of these states."""
        engines = self.deployment.engines
        return None if engines is None else engines.measured_us(states)

    def _run(self, states: States) -> dict[str, Any]:
        """What the target's files take: bytes, latency, energy, peak memory."""
        target, job = (
            self.deployment.target,
            self.deployment.job(states, self.subject.splits.evaluation.inputs([0])),
        )
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            target.write(job, folder)
            result: dict[str, Any] = {f"{target.key}_bytes": target.bytes_of(folder)}
            if target.elsewhere:
                known = self._known_us(states)
                return result if known is None else {**result, "latency_us": known}
            rounds = TRIES if timed(self.config) and not self.in_new_processes else 1
            run = target.measure(job, folder, self.config.threads, rounds)
            timing = run.timing
            result |= {"latency_us": timing.median_us, "latency_iqr_us": timing.iqr_us, "clock": timing.clock}
            result |= {"integer_units": run.integer_kernels, **energy_of(run, self.config)}
            if run.trouble:
                readings = len(timing.passes_us) or 1
                self.progress.say(
                    f"The card did not hold still in {readings} readings: {', '.join(run.trouble)}."
                )
            if self.in_new_processes:
                result |= self.latency(target.program(folder))
            if limits_memory(self.config):
                result["memory_bytes"] = float(measured_peak(folder / target.file, sizes_of(job.example)))
        return result
