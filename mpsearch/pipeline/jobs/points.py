"""Points of a study by the names that a user gives them: the best, a trial, a point of the front, a uniform
candidate, a fine-tuned model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpsearch.errors import StudyError, UserError
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.pipeline.steps.tuned import FOLDER, POINT
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import FLOAT, Assignment, Candidate, Problem


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
