"""Step 6: the chosen states become the files of `artifact/`, which are read back, compared and timed as they lie there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpsearch import files
from mpsearch.deploy.packed import load_packed, save_packed
from mpsearch.errors import MpsearchError
from mpsearch.evaluate import Metrics, predict
from mpsearch.hardware.fresh import run_fresh
from mpsearch.models import build_model
from mpsearch.pipeline.steps.measurement import Measurement
from mpsearch.pipeline.steps.states import States
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.problem import Assignment, assignment_csv, assignment_document
from mpsearch.quant import install

_FEW = 32
"""Images that the process of its own runs."""
_SAME = 0.02
"""Relative distance of the logits of two processes: other batch sizes and thread counts add in another order, and a code may tip over."""


@dataclass(frozen=True)
class ArtifactWriter:
    """Writes what a run ships, and checks it.

    Args:
        measurement: Of the model; its target says which files there are.
        folder: Where they go.
    """

    measurement: Measurement
    folder: Path

    def write(self, states: States, description: dict[str, Any]) -> dict[str, Any]:
        """Write the files, read them back, and compare: the checkpoint bit for bit, ONNX by its top class on the evaluation images.

        Args:
            states: Of every unit.
            description: For `assignment.json`: the assignment, budgets, predicted and measured costs, metrics.
        Returns: Paths, bytes, and how what was read back agrees.
        Raises: MpsearchError: What was read back does not compute what was written.
        """
        subject, config, evaluation = self.measurement.subject, self.measurement.config, self.measurement.evaluation
        packed, images = self.folder / "best.safetensors", subject.splits.evaluation
        about: dict[str, Any] = {"packed": str(packed), "size_bytes": save_packed(packed, subject.layout, subject.module, states)}
        rebuilt = subject.source.kind != "module"  # a module that was given as an object cannot be built anew here
        evaluation.tell("The artifact", 1 + rebuilt + (config.target != "packed"))
        logits = predict(install(subject.module, states), images)
        found = evaluation.task.compare(logits, evaluation.reference()["evaluation"], images.labels)
        about |= {"top1": found.top1, "scores": found.scores}
        if rebuilt:
            if not torch.equal(logits, predict(load_packed(packed, build_model(subject.source)), images)):
                raise MpsearchError(f"{packed} was read back and does not compute what was written. Please report this with the model.")
            about["reloaded_bit_for_bit"] = True
        if config.target != "packed":
            about |= self._write_runtime(states, logits)
        measured = {**description["measured"], **about, **about.get("latency", {})}
        description = {**description, "measured": {k: measured[k] for k in measured if k in description["measured"]}}
        assignment = Assignment.from_json(description.pop("assignment"))
        write_assignment(subject, self.folder, assignment, description)
        return about

    def _write_runtime(self, states: States, logits: Tensor) -> dict[str, Any]:
        """Write the runtime's file and compare it: in a process of its own on a few images (where the file alone is enough), and by its top class on all.

        Raises: MpsearchError: The other process does not compute what this one does.
        """
        measurement = self.measurement
        runtime, origin = measurement.deployment.runtime, measurement.deployment.origin
        images, key, path = measurement.subject.splits.evaluation, runtime.key, self.folder / f"best{runtime.suffix}"
        about: dict[str, Any] = {key: str(path), f"{key}_bytes": runtime.write(path, origin, states)}
        with measurement.progress.task(f"run the {runtime.title} file") as advance:
            run = runtime.run(path, origin, torch.get_num_threads())
            ran = predict(run, images, on_batch=lambda done: advance(done, len(images)))
        both: Metrics = measurement.evaluation.task.compare(ran, logits, images.labels)
        about |= {f"{key}_agreement": both.agreement, f"{key}_top1": both.top1, f"{key}_scores": both.scores}
        if not runtime.apart:
            return about
        few = images.inputs(slice(0, min(_FEW, len(images))))
        fresh = run_fresh(path, few.numpy(), threads=measurement.config.threads)
        apart = float((torch.from_numpy(fresh.outputs) - ran[: len(few)]).norm() / ran[: len(few)].norm())
        if not apart < _SAME:
            raise MpsearchError(
                f"{path} computes other logits in a process of its own: they differ by {apart:.2g} of their norm. Please report this with the model."
            )
        if measurement.in_new_processes:
            earlier = measurement.measured(states, whole=True).get("latency_readings_us", ())
            about["latency"] = measurement.latency(path, earlier)
        latency_us = about.get("latency", {}).get("latency_us", fresh.timing.median_us)
        return about | {f"{key}_fresh_latency_us": latency_us, f"{key}_fallbacks": fresh.fallbacks}


def write_assignment(subject: Subject, folder: Path, assignment: Assignment, about: Mapping[str, Any]) -> None:
    """`assignment.json` and `assignment.csv`, for tools that do not know the model."""
    layout, layers = subject.layout, subject.graph.layers
    sizes = {layer.name: layout.unit_bytes(layer.name, assignment[layer.name]) if layer.name in layout.units else 0 for layer in layers}
    document = assignment_document(layers, assignment, size_bytes=sizes, about={"model": subject.source.to_json(), **about})
    files.write_json(folder / "assignment.json", document)
    files.write_text(folder / "assignment.csv", assignment_csv(document))
