"""Step 6 on its own: points of a study, or any assignment, become artifacts; each is run in a fresh process
and compared with what it stands for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpsearch import files
from mpsearch.accelerator import exact_float32
from mpsearch.deploy.artifact import Artifact, write_artifact
from mpsearch.deploy.process import run_apart
from mpsearch.deploy.targets import TARGETS
from mpsearch.errors import MpsearchError, UserError
from mpsearch.evaluate import Task, predict
from mpsearch.pipeline.jobs.points import Point
from mpsearch.pipeline.steps.artifact import write_assignment
from mpsearch.pipeline.steps.deployment import Deployment
from mpsearch.pipeline.steps.states import States
from mpsearch.pipeline.steps.tuned import read_tuned
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import Assignment, mean_bits

REFERENCES = ("float", "W8A8")
"""What is exported beside every point, so that `bench` has something to compare with."""


@dataclass
class Deployer:
    """Exports the points of one study, sharing float graphs, calibration and learned weights between targets.

    Args:
        workshop: Model, images, settings.
        folder: Where artifacts go: `<folder>/<target>/<label>`.
    """

    workshop: Workshop
    folder: Path
    _states: dict[str, States] = field(default_factory=dict)
    _tuned: dict[Path, tuple[Deployment, States]] = field(default_factory=dict)

    def export(self, point: Point, target_text: str) -> dict[str, Any]:
        """One artifact, written, run apart, and compared; its row of `exports.json`."""
        subject, target = self.workshop.subject, TARGETS.create(target_text)
        states = self.states_of(point)
        job = self._deployment(point).job(states)
        assignment = Assignment(tuple((unit, states[unit].candidate) for unit in subject.layout.units))
        layouts = (target.layout(subject.layout, subject.graphs.at), subject.layout)
        predicted, packed = (layout.size_bytes(assignment) for layout in layouts)
        about = {
            "label": point.label,
            "study": self.workshop.study.name,
            "predicted": {"size_bytes": predicted},
            "reconstructed": point.reconstruct,
        }
        about["task"] = subject.task_text
        with self.workshop.progress.task(f"export {point.label} for {target_text}") as advance:
            artifact = write_artifact(self.folder / slug(target_text) / point.label, target_text, job, about)
            advance(1, 1)
        row: dict[str, Any] = {"point": point.label, "target": target_text, "folder": str(artifact.folder)}
        row |= {"predicted_bytes": predicted, "predicted_file": target.budgeted, "packed_bytes": packed}
        row |= {"artifact_bytes": artifact.size_bytes}
        weighted = [layer for layer in subject.graph.layers if layer.name in subject.layout.weights]
        row |= {"notes": list(artifact.manifest["notes"]), "mean_bits": mean_bits(weighted, point.assignment)}
        with self.workshop.progress.task(
            f"run {point.label} for {target_text} in a process of its own"
        ) as advance:
            row |= self._checked(artifact, predict(target.reference(job), subject.splits.evaluation))
            advance(1, 1)
        return row

    def states_of(self, point: Point) -> States:
        """Every unit of a point, reconstructed once for all targets."""
        if point.tuned is not None:
            return self._read(point.tuned)[1]
        if point.label not in self._states:
            learned = point.reconstruct and any(not c.is_float for c in point.assignment.values())
            make = (
                self.workshop.reconstructed
                if learned
                else lambda assignment, _: self.workshop.deployment.calibration.states(assignment)
            )
            self._states[point.label] = make(point.assignment, point.label)
        return self._states[point.label]

    def _read(self, folder: Path) -> tuple[Deployment, States]:
        """Of a fine-tuning, read once."""
        if folder not in self._tuned:
            subject, states = read_tuned(self.workshop.subject, folder, self.workshop.progress)
            self._tuned[folder] = replace(self.workshop.deployment, subject=subject), states
        return self._tuned[folder]

    def _deployment(self, point: Point) -> Deployment:
        return self.workshop.deployment if point.tuned is None else self._read(point.tuned)[0]

    def _checked(self, artifact: Artifact, expected: Tensor) -> dict[str, Any]:
        """Metrics of the study's task for the fake-quantised module and through the runtime, and how their
        outputs agree.

        Raises: MpsearchError: The packed checkpoint does not compute to the bit what was written.
        """
        images, source = self.workshop.subject.splits.evaluation, self.workshop.subject.source
        task, floats = self.workshop.task, self.workshop.evaluation.reference()["evaluation"]
        fake = task.compare(expected, floats, images.labels)
        row: dict[str, Any] = {
            "images": len(images),
            "measure": task.measure,
            "fake_quantized": fake.to_json(),
            "runs_with": artifact.target.runs_with,
        }
        if artifact.target.needs_model and source.kind == "module":
            return row | {
                "runtime": None,
                "reason": "the model was given as an object, which another process cannot build",
            }
        try:
            threads = torch.get_num_threads()
            logits = run_apart(
                artifact,
                images.inputs(),
                model=None if source.kind in ("timm", "module") else source,
                threads=threads,
            )
        except UserError as error:  # a tool that is not installed here: the files are there, and this is said
            return row | {"runtime": None, "reason": str(error)}
        if (
            artifact.target.name == "packed"
            and artifact.manifest["target"] == "packed"
            and not torch.equal(logits, expected)
        ):
            raise MpsearchError(
                f"{artifact.folder} was read back in a process of its own and does not compute what was "
                "written. Please report this."
            )
        return row | {"runtime": agreement(task, logits, expected, floats, images.labels)}


def agreement(
    task: Task, outputs: Tensor, expected: Tensor, floats: Tensor, labels: Tensor | None
) -> dict[str, Any]:
    """Metrics of a runtime's outputs against the float model, and their likeness to the fake-quantised
    model's.

    `same_decision` is the share of images on which both decide alike in the sense of the task, such as by
    their top class.
    """
    cosine = torch.nn.functional.cosine_similarity(outputs.flatten(1).double(), expected.flatten(1).double())
    same = task.compare(outputs, expected).agreement
    likeness = {
        "cosine_mean": float(cosine.mean()),
        "cosine_least": float(cosine.min()),
        "same_decision": same,
    }
    return {**task.compare(outputs, floats, labels).to_json(), **likeness}


@exact_float32()
def export_points(
    deployer: Deployer, points: Sequence[Point], targets: Sequence[str]
) -> tuple[list[dict[str, Any]], list[MpsearchError]]:
    """Every point for every target; rows are added to `exports.json` as they are done, an earlier row of the
    same point and target replaced.

    Returns: The rows, and an error for each export that failed: one target's does not keep the others from
        theirs.
    """
    for text in targets:
        TARGETS.create(text)
    rows, failed = list[dict[str, Any]](), list[MpsearchError]()
    for point in points:
        row = None
        deployer.states_of(point)  # what fails here would fail for every target
        for text in targets:
            try:
                row = deployer.export(point, text)
            except MpsearchError as error:
                failed.append(error)
                continue
            rows.append(row)
            _keep(deployer.folder / "exports.json", row)
        if row is not None:
            subject, folder = deployer.workshop.subject, deployer.folder / "assignments" / point.label
            size = subject.file.size_bytes(point.assignment)
            about = {"predicted": {"size_bytes": size}, "metrics": row["fake_quantized"]}
            write_assignment(subject, folder, point.assignment, about)
    return rows, failed


def slug(target_text: str) -> str:
    """A target with its options as a folder's name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", target_text)


def _keep(path: Path, row: Mapping[str, Any]) -> None:
    held = json.loads(path.read_text())["exports"] if path.is_file() else []
    kept = [old for old in held if (old["point"], old["target"]) != (row["point"], row["target"])]
    files.write_json(path, {"schema": 1, "exports": [*kept, dict(row)]})
