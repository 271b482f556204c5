"""Step 6: the chosen states become the files of `artifact/`, which are read back, compared and timed as they
lie there.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpsearch import files
from mpsearch.deploy.artifact import write_artifact
from mpsearch.deploy.packed import save_packed
from mpsearch.deploy.packed_reading import load_packed
from mpsearch.deploy.targets import MODEL_FILE, Job
from mpsearch.errors import MpsearchError
from mpsearch.evaluate import Metrics, predict
from mpsearch.hardware.fresh import run_fresh
from mpsearch.models import build_model, rebound
from mpsearch.pipeline.steps.latency import has_backend
from mpsearch.pipeline.steps.measurement import Measurement
from mpsearch.pipeline.steps.states import States
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.problem import Assignment, assignment_csv, assignment_document
from mpsearch.pytrees import arrays_of
from mpsearch.quant import install

_FEW = 32
"""Images that the process of its own runs."""
REREAD = 256
"""Images, at most, on which the checkpoint that was read back is compared bit for bit: whole batches."""
_SAME = 0.02
"""Relative distance of the logits of two processes: other batch sizes and thread counts add in another order,
and a code may tip over.
"""


@dataclass(frozen=True)
class ArtifactWriter:
    """Writes what a run ships, and checks it.

    Args:
        measurement: Measurement of the model; its target says which files there are.
        folder: Where they go.
    """

    measurement: Measurement
    folder: Path

    def write(
        self, states: States, description: dict[str, Any], told: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write the files, read them back, and compare: the checkpoint bit for bit, ONNX by its top class on
        the evaluation images.

        Args:
            states: States of every unit.
            description: For `assignment.json`: the assignment, budgets, predicted and measured costs,
                metrics.
            told: For `artifact.json`, beside the study and the task; None for the label `best`.
        Returns: Paths, bytes, and how what was read back agrees.
        Raises: MpsearchError: What was read back does not compute what was written.
        """
        subject, config, evaluation = (
            self.measurement.subject,
            self.measurement.config,
            self.measurement.evaluation,
        )
        packed, images, job = (
            self.folder / MODEL_FILE,
            subject.splits.evaluation,
            self.measurement.deployment.job(states),
        )
        about_run: dict[str, Any] = {"study": self.measurement.study.name, "task": subject.task_text}
        about_run |= {} if config.batch == 1 else {"batch": config.batch}
        beside = functools.partial(self._beside, job, description)
        write_artifact(self.folder, config.target, job, {**(told or {"label": "best"}), **about_run}, beside)
        about: dict[str, Any] = {"packed": str(packed), "packed_bytes": packed.stat().st_size}
        file = self.folder / subject.target.budgeted
        about |= {"file": str(file), "size_bytes": file.stat().st_size}
        fresh = subject.given if subject.given is not None else build_model(subject.source)
        kept = subject.device.type == "cpu" and evaluation.keeps(states)
        passes = has_backend(config) + (not kept)
        if passes:
            evaluation.tell("The artifact", passes)
        logits = evaluation.outputs(states) if kept else predict(install(subject.module, states), images)
        found = evaluation.task.compare(logits, evaluation.reference()["evaluation"], images.labels)
        about |= {"top1": found.top1, "scores": found.scores}
        first = images.subset(range(min(REREAD, len(images))))
        again = predict(rebound(load_packed(packed, fresh), subject.module), first)
        if not torch.equal(logits[: len(first)], again):
            raise MpsearchError(
                f"{packed} was read back and does not compute what was written. Please report this with "
                "the model."
            )
        about["reloaded_bit_for_bit"] = True
        if has_backend(config):
            about |= self._compared(job, logits)
        measured = {**description["measured"], **about, **about.get("latency", {})}
        description = {
            **description,
            "measured": {k: measured[k] for k in measured if k in description["measured"]},
        }
        assignment = Assignment.from_json(description.pop("assignment"))
        write_assignment(subject, self.folder, assignment, description)
        return about

    def _beside(self, job: Job, description: Mapping[str, Any], folder: Path) -> None:
        """The packed checkpoint, where it is not the target's own file, and what an engine's input is."""
        if not (folder / MODEL_FILE).exists():
            save_packed(folder / MODEL_FILE, job.layout, job.module, job.states)
        engines = self.measurement.deployment.engines
        if engines is not None:
            predicted = description["predicted"].get("latency_us")
            engines.write_builds(folder, "model", job.states, predicted)

    def _compared(self, job: Job, logits: Tensor) -> dict[str, Any]:
        """Run the target's files: in a process of its own on a few images (where the files alone are enough),
        and by their top class on all.

        Raises: MpsearchError: The other process does not compute what this one does.
        """
        measurement, target = self.measurement, self.measurement.deployment.target
        images, key, path = measurement.subject.splits.evaluation, target.key, self.folder / target.file
        about: dict[str, Any] = {key: str(path), f"{key}_bytes": target.bytes_of(self.folder)}
        with measurement.progress.task(f"run the {target.title} file") as advance:
            run = target.reload(job, self.folder, torch.get_num_threads())
            ran = predict(run, images, on_batch=lambda done: advance(done, len(images)))
        both: Metrics = measurement.evaluation.task.compare(ran, logits, images.labels)
        about |= {f"{key}_agreement": both.agreement, f"{key}_top1": both.top1, f"{key}_scores": both.scores}
        if not target.file_alone:
            return about
        few = images.inputs(slice(0, min(_FEW, len(images))))
        program = target.program(self.folder)
        fresh = run_fresh(
            program, arrays_of(few), threads=measurement.config.threads, batch=measurement.config.batch
        )
        apart = float((torch.from_numpy(fresh.outputs) - ran[: len(few)]).norm() / ran[: len(few)].norm())
        if not apart < _SAME:
            raise MpsearchError(
                f"{path} computes other logits in a process of its own: they differ by {apart:.2g} of "
                "their norm. Please report this with the model."
            )
        if measurement.in_new_processes:
            earlier = measurement.measured(dict(job.states), whole=True).get("latency_readings_us", ())
            about["latency"] = measurement.latency(program, earlier)
        latency_us = about.get("latency", {}).get("latency_us", fresh.timing.median_us)
        return about | {f"{key}_fresh_latency_us": latency_us, f"{key}_fallbacks": fresh.fallbacks}


def write_assignment(
    subject: Subject, folder: Path, assignment: Assignment, about: Mapping[str, Any]
) -> None:
    """`assignment.json` and `assignment.csv`, for tools that do not know the model."""
    layers, units = subject.graph.layers, subject.layout.units
    sizes = {
        layer.name: subject.file.unit_bytes(layer.name, assignment[layer.name]) if layer.name in units else 0
        for layer in layers
    }
    document = assignment_document(
        layers, assignment, size_bytes=sizes, about={"model": subject.source.to_json(), **about}
    )
    files.write_json(folder / "assignment.json", document)
    files.write_text(folder / "assignment.csv", assignment_csv(document))
