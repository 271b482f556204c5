"""Steps 5 and 6: assignments become quantised models, are written, and are measured as written."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from mpsearch import files
from mpsearch.deploy.memory import measured_peak
from mpsearch.deploy.onnx import export_float
from mpsearch.deploy.packed import load_packed, save_packed
from mpsearch.deploy.runtimes import RUNTIMES, DeployedRuntime, Origin
from mpsearch.deploy.triton_cuda import TritonRun
from mpsearch.deploy.wiring import find_wires
from mpsearch.errors import MpsearchError, OptionError
from mpsearch.evaluate import TASKS, Metrics, Task, predict
from mpsearch.hardware import BACKENDS
from mpsearch.hardware.bench import TRIES
from mpsearch.hardware.fresh import run_fresh
from mpsearch.hardware.new_process import SHARE, time_in_new_processes
from mpsearch.hardware.whole import Kernels, WholeModel
from mpsearch.models import build_model
from mpsearch.pipeline.config import RunConfig, limits
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.energy import energy_of
from mpsearch.pipeline.steps.latency import Architecture, timed
from mpsearch.pipeline.steps.memory import limits_memory
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.problem import FLOAT, Assignment, Candidate, Layer, Problem, assignment_csv, assignment_document
from mpsearch.quant import AffineParams, TwoRegionParams, UnitState, affine_input, install
from mpsearch.reconstruct import METHODS, BlockResult, Calibration, ReconstructionConfig, footprint, reconstruct
from mpsearch.units import format_bytes

States = dict[str, UnitState]
_FEW = 32
"""Images that the process of its own runs."""
_SAME = 0.02
"""Relative distance of the logits of two processes: other batch sizes and thread counts add in another order, and a code may tip over."""


@dataclass
class Workshop:
    """What is needed to turn an assignment into files, kept over all of them: the float graph is exported once.

    Args:
        subject: Model and images.
        calibration: Quantisers.
        config: Settings.
        study: Where results are kept.
        progress: Where progress goes.
    """

    subject: Subject
    calibration: Calibration
    config: RunConfig
    study: Study
    progress: Progress
    _float_onnx: Any = None
    _reference: dict[str, Tensor] | None = None
    _room: int | None = None
    _losses: dict[str, Tensor] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """What the model is for."""
        return TASKS.create(self.config.task)

    def reference(self) -> dict[str, Tensor]:
        """The float model's logits on the search and evaluation images."""
        if self._reference is None:
            splits = self.subject.splits
            with self.progress.task("evaluate the float model") as advance:
                search = predict(self.subject.module, splits.search)
                advance(1, 2)
                self._reference = {"search": search, "evaluation": predict(self.subject.module, splits.evaluation)}
                advance(2, 2)
        return self._reference

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

    @property
    def runtime(self) -> DeployedRuntime:
        """Of the target; there is none for `packed`."""
        return RUNTIMES[self.config.target]

    @property
    def origin(self) -> Origin:
        """What runtimes make their files of."""
        return Origin(self.subject.module, self.subject.layout, self.calibration, self.float_onnx)

    def _widest(self, layer: Layer) -> Candidate:
        """The integer candidate of most weight bits that the target's backend has a kernel for."""
        backend = BACKENDS.create(self.config.target)
        choices = (Candidate(bits, 8) for bits in range(8, 1, -1))
        return next((c for c in choices if backend.supports(layer, c).kernel is not None), FLOAT)

    def reconstructed(self, assignment: Assignment, label: str, steps: int | None = None) -> States:
        """Learned states of an assignment, after `steps` for each block or as many as the settings say.

        Each block's are saved when it is done, so an interrupted call goes on behind them.
        """
        start, blocks = self.calibration.states(assignment), self.subject.blocks
        config = ReconstructionConfig(iterations=self.config.steps if steps is None else steps, method=self.config.method, seed=self.config.seed)
        inputs = self.subject.splits.calibration.inputs(slice(0, self._reconstruction_images(config)))
        about = [self.subject.hashes, assignment.to_json(), config.__dict__, len(inputs), self.calibration.weight_observer, self.calibration.input_observer]
        folder = self.study.step_path("blocks", about, "")
        done = 0
        with self.progress.task(f"reconstruct: {label}") as advance:

            def keep(block: str, states: Mapping[str, UnitState], result: BlockResult | None) -> None:
                nonlocal done
                done += 1
                if result is not None:
                    with files.replacing(folder / str(result.phase) / f"{files.digest(block)}.safetensors") as beside:
                        beside.write_bytes(save(_learned_tensors(states)))
                advance(done, max(done, len(blocks)))

            return reconstruct(self.subject.module, blocks, start, inputs, config, known=_known(folder, start), on_block=keep)

    def _reconstruction_images(self, config: ReconstructionConfig) -> int:
        """As many calibration images as the reconstruction has room for, with every unit at 8 bits: coarser ones learn in bfloat16, which takes less."""
        calibration, bound = self.subject.splits.calibration, self.config.reconstruction_memory
        if not config.iterations or not METHODS.create(config.method).phases():
            return len(calibration)
        if self._room is None:
            states = {unit: self.calibration.state(unit, Candidate(8, 8)) for unit in self.subject.units}
            few = calibration.inputs(slice(0, min(8, len(calibration))))
            with self.progress.task("rehearse the reconstruction") as advance:
                need = footprint(self.subject.module, self.subject.blocks, states, few, config)
                advance(1, 1)
            self._room = min(need.images_within(self.config.memory_bytes), len(calibration))
            if not self._room:
                least = format_bytes(need.bytes_with(1))
                raise OptionError(f"Reconstruction takes {least} with one image, and may take {bound}. Raise --reconstruction-memory, or use --method nearest.")
            used = f"{self._room:,} of {len(calibration):,}" if self._room < len(calibration) else f"{self._room:,}"
            taken = format_bytes(need.bytes_with(self._room))
            self.progress.say(f"Reconstruction uses {used} calibration images, and takes up to {taken} of memory; its bound is {bound}.")
        return self._room

    def search_losses(self, states: States) -> Tensor:
        """Damage to each search image, KL to the float model for classification; kept, as a few numbers, for the next who asks."""
        key = _states_digest(states)
        if key not in self._losses:
            self._losses[key] = self.task.damage(predict(install(self.subject.module, states), self.subject.splits.search), self.reference()["search"])
        return self._losses[key]

    def measured(self, states: States) -> dict[str, Any]:
        """Written, weighed, timed and evaluated; the files are thrown away. Cached by the codes and the device-independent inputs."""
        key = [self.subject.hashes, _states_digest(states), self.config.target, self.config.threads, *self.task_key()]
        key += ["new processes"] if self._in_new_processes else []
        key += ["memory"] if limits_memory(self.config) else []
        key += ["energy"] if limits(self.config, "energy_mj") else []
        return self.study.cached("measured", key, lambda: self._measure(states))  # type: ignore[no-any-return]

    def task_key(self) -> list[str]:
        """What results depend on beside codes; nothing for classification, whose results were cached before tasks had names."""
        return [] if self.config.task == "classification" else [self.config.task]

    @property
    def _in_new_processes(self) -> bool:
        """Whether a latency is held against a budget and the file alone is enough to measure it as a deployment would."""
        return timed(self.config) and self.runtime.apart

    def latency(self, path: Path, earlier: Sequence[float] = ()) -> dict[str, Any]:
        """Of a file, by new processes: what is reported of it, and what is held against a budget. Earlier readings of the same file count as well."""
        image = self.subject.splits.evaluation.inputs([0]).numpy()
        with self.progress.task("time in new processes") as advance:
            timing = time_in_new_processes(path, image, threads=self.config.threads, on_process=advance)
            timing = replace(timing, readings_us=(*earlier, *timing.readings_us))
        about: dict[str, Any] = {"latency_us": timing.median_us, "latency_iqr_us": timing.iqr_us, "latency_high_us": timing.high_us, "clock": timing.clock}
        return about | {"latency_high_share": SHARE, "latency_readings_us": list(timing.readings_us)}

    def _measure(self, states: States) -> dict[str, Any]:
        images = self.subject.splits.evaluation
        metrics = self.task.compare(predict(install(self.subject.module, states), images), self.reference()["evaluation"], images.labels)
        result: dict[str, Any] = {"metrics": metrics.to_json(), "search_kl": float(self.search_losses(states).mean())}
        with tempfile.TemporaryDirectory() as folder:
            result["size_bytes"] = save_packed(Path(folder) / "model.safetensors", self.subject.layout, self.subject.module, states)
            if self.config.target != "packed":
                path = Path(folder) / f"model{self.runtime.suffix}"
                result[f"{self.runtime.key}_bytes"] = self.runtime.write(path, self.origin, states)
                rounds = TRIES if timed(self.config) and not self._in_new_processes else 1
                run = self.runtime.measure(path, self.origin, images.inputs([0]), self.config.threads, rounds)
                result |= {"latency_us": run.timing.median_us, "latency_iqr_us": run.timing.iqr_us, "clock": run.timing.clock}
                result["integer_units"] = run.integer_kernels
                if self._in_new_processes:
                    result |= self.latency(path)
                if isinstance(run, TritonRun):
                    result |= energy_of(run, self.config)
                    if run.trouble:
                        self.progress.say(f"The card did not hold still in {len(run.timing.passes_us) or 1} readings: {', '.join(run.trouble)}.")
                if limits_memory(self.config):
                    result["memory_bytes"] = float(measured_peak(path, images.inputs([0]).shape))
        return result

    def write_artifact(self, states: States, description: dict[str, Any]) -> dict[str, Any]:
        """Write the files for deployment, read them back, and compare: the checkpoint bit for bit, ONNX by its top class on the evaluation images.

        Raises: MpsearchError: What was read back does not compute what was written.
        """
        folder, images = self.study.artifact, self.subject.splits.evaluation
        packed = folder / "best.safetensors"
        about: dict[str, Any] = {"packed": str(packed), "size_bytes": save_packed(packed, self.subject.layout, self.subject.module, states)}
        logits = predict(install(self.subject.module, states), images)
        found = self.task.compare(logits, self.reference()["evaluation"], images.labels)
        about |= {"top1": found.top1, "scores": found.scores}
        fresh = self.subject.given if self.subject.given is not None else build_model(self.subject.source)
        if not torch.equal(logits, predict(load_packed(packed, fresh), images)):
            raise MpsearchError(f"{packed} was read back and does not compute what was written. Please report this with the model.")
        about["reloaded_bit_for_bit"] = True
        if self.config.target != "packed":
            about |= self._write_runtime(folder / f"best{self.runtime.suffix}", states, logits)
        measured = {**description["measured"], **about, **about.get("latency", {})}
        description = {**description, "measured": {k: measured[k] for k in measured if k in description["measured"]}}
        self.write_assignment(folder, Assignment.from_json(description["assignment"]), {k: v for k, v in description.items() if k != "assignment"})
        return about

    def _write_runtime(self, path: Path, states: States, logits: Tensor) -> dict[str, Any]:
        """Write the runtime's file and compare it: in a process of its own on a few images (where the file alone is enough), and by its top class on all.

        Raises: MpsearchError: The other process does not compute what this one does.
        """
        images, key, threads = self.subject.splits.evaluation, self.runtime.key, self.config.threads
        about: dict[str, Any] = {key: str(path), f"{key}_bytes": self.runtime.write(path, self.origin, states)}
        with self.progress.task(f"run the {self.runtime.title} file") as advance:
            ran = predict(self.runtime.run(path, self.origin, torch.get_num_threads()), images, on_batch=lambda done: advance(done, len(images)))
        both: Metrics = self.task.compare(ran, logits, images.labels)
        about |= {f"{key}_agreement": both.agreement, f"{key}_top1": both.top1, f"{key}_scores": both.scores}
        if not self.runtime.apart:
            return about
        few = images.inputs(slice(0, min(_FEW, len(images))))
        fresh = run_fresh(path, few.numpy(), threads=threads)
        apart = float((torch.from_numpy(fresh.outputs) - ran[: len(few)]).norm() / ran[: len(few)].norm())
        if not apart < _SAME:
            raise MpsearchError(
                f"{path} computes other logits in a process of its own: they differ by {apart:.2g} of their norm. Please report this with the model."
            )
        if self._in_new_processes:
            about["latency"] = self.latency(path, self.measured(states).get("latency_readings_us", ()))
        latency_us = about.get("latency", {}).get("latency_us", fresh.timing.median_us)
        return about | {f"{key}_fresh_latency_us": latency_us, f"{key}_fallbacks": fresh.fallbacks}

    def write_assignment(self, folder: Path, assignment: Assignment, about: Mapping[str, Any]) -> None:
        """`assignment.json` and `assignment.csv`, for tools that do not know the model."""
        layout, layers = self.subject.layout, self.subject.graph.layers
        sizes = {layer.name: layout.unit_bytes(layer.name, assignment[layer.name]) if layer.name in layout.units else 0 for layer in layers}
        document = assignment_document(layers, assignment, size_bytes=sizes, about={"model": self.subject.source.to_json(), **about})
        files.write_json(folder / "assignment.json", document)
        files.write_text(folder / "assignment.csv", assignment_csv(document))


def _learned_tensors(states: Mapping[str, UnitState]) -> dict[str, Tensor]:
    """Codes and input scales, by unit."""
    tensors = {f"{unit}|codes": s.weight.codes.to(torch.int8).contiguous() for unit, s in states.items() if s.weight is not None}
    return tensors | {f"{unit}|input": s.activation.step.clone() for unit, s in states.items() if isinstance(s.activation, AffineParams | TwoRegionParams)}


def _known(folder: Path, start: States) -> dict[int, States]:
    """What an interrupted reconstruction had learned: phase -> unit -> state."""
    known: dict[int, States] = {}
    for path in sorted(folder.glob("[0-9]*/[!.]*.safetensors")):
        tensors, phase = load_file(path), known.setdefault(int(path.parent.name), {})
        for unit in {name.rpartition("|")[0] for name in tensors}:
            state = start[unit]
            if state.weight is not None:
                state = replace(state, weight=replace(state.weight, codes=tensors[f"{unit}|codes"].to(torch.int16)))
            if isinstance(state.activation, AffineParams):
                state = replace(state, activation=replace(state.activation, scale=tensors[f"{unit}|input"]))
            elif isinstance(state.activation, TwoRegionParams):
                state = replace(state, activation=replace(state.activation, step=tensors[f"{unit}|input"]))
            phase[unit] = state
    return known


def _states_digest(states: States) -> str:
    digest = hashlib.sha256()
    for unit, state in sorted(states.items()):
        digest.update(f"{unit} {state.candidate}\n".encode())
        if state.weight is not None:
            values = [state.weight.codes, state.weight.params.scale]
            if state.activation is not None:
                read = affine_input(unit, state)
                values += [read.scale, read.zero_point]
            for value in values:
                digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
