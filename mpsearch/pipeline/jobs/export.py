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
from mpsearch.errors import MpsearchError, StudyError, UserError
from mpsearch.evaluate import Task, predict
from mpsearch.pipeline.steps.artifact import write_assignment
from mpsearch.pipeline.steps.deployment import Deployment
from mpsearch.pipeline.steps.states import States
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.pipeline.steps.tuned import FOLDER, POINT, read_tuned
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import FLOAT, Assignment, Candidate, Problem, mean_bits

REFERENCES = ("float", "W8A8")
"""What is exported beside every point, so that `bench` has something to compare with."""


@dataclass(frozen=True)
class Point:
    """An assignment that is to be exported.

    Args:
        label: Its folder's name.
        assignment: A candidate for every layer of the graph.
        reconstruct: Whether its weights are learned, else rounded to nearest.
        tuned: Artifact of a fine-tuning, whose parameters and states these are; None for the float model's.
    """

    label: str
    assignment: Assignment
    reconstruct: bool
    tuned: Path | None = None


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


def points_of(workshop: Workshop, texts: Sequence[str], *, reconstruct: bool = True) -> list[Point]:
    """The points that a user named.

    Args:
        workshop: Workshop of the study.
        texts: `best`; the number of a measured trial, such as `7`; `front:12` for the 12th point of the exact
            front in `front.json`; `float`; a uniform candidate such as `W4A8`; or `finetuned:LABEL`.
        reconstruct: Whether weights are learned.
    Raises: UserError: There is no such point.
    """
    study = workshop.study.path
    return [
        Point(
            text.replace(":", "-"),
            assignment_at(study, workshop.subject, text),
            reconstruct and text != "float" and not text.startswith(POINT),
            tuned_place(study, text) if text.startswith(POINT) else None,
        )
        for text in texts
    ]


def assignment_at(study: Path, subject: Subject, text: str) -> Assignment:
    """The assignment of a point, a uniform one with what the subject's units may have."""
    candidate = _uniform(text)
    return assignment_of(study, text) if candidate is None else uniform(subject, candidate)


def assignment_of(study: Path, text: str) -> Assignment:
    """The assignment of a point by its name, from a study's files alone.

    Args:
        study: Folder of the study.
        text: As for `points_of`.
    Raises: UserError: There is no such point.
    """
    if text.startswith(POINT):
        return Assignment.from_json(_read(tuned_place(study, text).with_suffix(".json"))["assignment"])
    if text == "best":
        return Assignment.from_json(_read(study / "best.json")["assignment"])
    problem, candidate = Problem.load(study / "problem.json"), _uniform(text)
    if candidate is None:
        return problem.assignment(_numbered(study, text))
    indices = problem.uniform(candidate)
    if indices is None:
        raise UserError(
            f"Not every layer of {study} has the candidate {text}. Give best, the number of a trial such as "
            "7, front:12, or another candidate."
        )
    return problem.assignment(indices)


def _uniform(text: str) -> Candidate | None:
    """The candidate that a text such as `W4A8` or `float` names; None where it names a single point."""
    is_one = text == "float" or re.fullmatch(r"W\d+A\d+(/\w+)?", text)
    return Candidate.parse(text) if is_one else None


def require_points(study: Path, texts: Sequence[str]) -> None:
    """Raises UserError as `points_of` does, before a model is loaded."""
    if not texts:
        raise UserError(
            "There is no point. Write best, the number of a trial such as 7, front:12, float, or a "
            "candidate such as W4A8."
        )
    for text in texts:
        if re.fullmatch(r"W\d+A\d+(/\w+)?", text):
            Candidate.parse(text)
        elif text == "best":
            _read(study / "best.json")
        elif text.startswith(POINT):
            _read(tuned_place(study, text).with_suffix(".json"))
        elif text != "float":
            _numbered(study, text)


def tuned_place(study: Path, text: str) -> Path:
    """Folder of the artifact that a point such as `finetuned:W4A4` names. Raises UserError where a study has
    no such.
    """
    label, folder = text.removeprefix(POINT), study / FOLDER
    known = sorted(path.stem for path in folder.glob("*.json"))
    if label not in known:
        held = f"It has {', '.join(known)}." if known else "Make one with `mpsearch finetune`."
        raise UserError(f"{study} has no fine-tuned model {label!r}. {held}")
    return folder / label


def _numbered(study: Path, text: str) -> Sequence[int]:
    """L choices of a trial, or of a point of the front."""
    front = _read(study / "front.json")
    number = re.fullmatch(r"(front:)?(\d+)", text)
    if number is None:
        raise UserError(
            f"{text!r} is no point. Write best, the number of a trial such as 7, front:12, float, or a "
            "candidate such as W4A8."
        )
    numbered = (
        enumerate(front["points"]) if number[1] else ((trial["number"], trial) for trial in front["measured"])
    )
    held = {i: entry["indices"] for i, entry in numbered}
    if int(number[2]) not in held:
        what = "points on the exact front" if number[1] else "measured trials"
        raise UserError(
            f"{study} has {len(held)} {what}, numbered {min(held)} to {max(held)}; {number[2]} is not one."
        )
    found: Sequence[int] = held[int(number[2])]
    return found


def uniform(subject: Subject, candidate: Candidate) -> Assignment:
    """One candidate at every layer that has a weight, and its input bits at other units that are
    quantised.
    """
    held = {**dict.fromkeys(subject.units, candidate)}
    held |= dict.fromkeys(subject.layout.products, candidate.of_inputs)
    return Assignment(tuple((layer.name, held.get(layer.name, FLOAT)) for layer in subject.graph.layers))


def slug(target_text: str) -> str:
    """A target with its options as a folder's name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", target_text)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = json.loads(path.read_text())
        return found
    except FileNotFoundError:
        raise StudyError(
            f"There is no {path}. Finish the study first: mpsearch run --resume {path.parent}"
        ) from None
    except ValueError as error:
        raise StudyError(
            f"{path} is damaged ({error}). Finish the study again: mpsearch run --resume {path.parent}"
        ) from None


def _keep(path: Path, row: Mapping[str, Any]) -> None:
    held = json.loads(path.read_text())["exports"] if path.is_file() else []
    kept = [old for old in held if (old["point"], old["target"]) != (row["point"], row["target"])]
    files.write_json(path, {"schema": 1, "exports": [*kept, dict(row)]})
