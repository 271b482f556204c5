"""An assignment from elsewhere beside ours: scored, weighed and measured by the same evaluator, at the same
bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpsearch import files
from mpsearch.accelerator import AUTO, exact_float32, find_device
from mpsearch.deploy.imports import IMPORTERS, Imported
from mpsearch.errors import InfeasibleError, OptionError
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.artifact import write_assignment
from mpsearch.pipeline.steps.costs import sized_problem, static_costs
from mpsearch.pipeline.steps.loading import load_subject
from mpsearch.pipeline.steps.ranges import calibrate_subject
from mpsearch.pipeline.steps.scores import add_scores
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.pipeline.steps.uniforms import even_uniforms
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import FLOAT, Assignment, Budget, Candidate, Problem
from mpsearch.solvers import solve


@dataclass(frozen=True)
class Comparison:
    """What was read, and the rows: label, assignment, predicted costs and damages, what was measured with
    weights rounded to nearest, by `measure`.
    """

    imported: Imported
    rows: tuple[dict[str, Any], ...]
    objectives: tuple[str, ...]
    measure: str


@exact_float32()
def open_workshop(config: RunConfig, study: Study, progress: Progress) -> Workshop:
    """Model, images and ranges of a study; see `open_subject`."""
    subject, config = open_subject(config, study, progress)
    return Workshop(subject, calibrate_subject(subject, config, progress, study), config, study, progress)


def open_subject(config: RunConfig, study: Study, progress: Progress) -> tuple[Subject, RunConfig]:
    """Model and images of a study, and its settings with the device that computes.

    What its own device has computed is used; where that is not here, another goes on.
    """
    try:
        find_device(config.device)
    except OptionError:
        config = replace(config, device=AUTO)
    subject = replace(load_subject(config, progress), kept_for=study.device()["type"])
    if subject.kept_for != subject.device.type:
        progress.say(
            f"The study was computed on {subject.kept_for}, and this on {subject.device.type}: what it holds "
            "is used as it is, and only what it lacks is computed here."
        )
    return subject, config


def read_import(path: Path, importer: str, subject: Subject) -> Imported:
    """The assignment of a file, its products of activations left float: no target but the packed checkpoint
    has them.
    """
    found = IMPORTERS.create(importer).read(path, subject.graph.layers)
    held = set(subject.units)
    dropped = [name for name, c in found.assignment.items() if name not in held and not c.is_float]
    choices = tuple((name, c if name in held else FLOAT) for name, c in found.assignment.items())
    note = (f"{len(dropped)} products of activations, such as {dropped[0]}, stay float.",) if dropped else ()
    return Imported(Assignment(choices), (*found.notes, *note))


@exact_float32()
def compare_import(path: Path, importer: str, workshop: Workshop) -> Comparison:
    """Measure an assignment beside uniform ones and beside the exact optimum of the first objective at the
    same bytes.

    Writes `assignment.json`, `assignment.csv` and `imported.json` into the study's folder.

    Raises: UserError: The file is not of the form, or does not fit the model.
    """
    subject, config, study = workshop.subject, workshop.config, workshop.study
    imported = read_import(path, importer, subject)
    problem = _problem(imported.assignment, subject, config)
    problem, _ = add_scores(problem, subject, workshop.calibration, config, study, workshop.progress)
    size = problem.cost(problem.indices(imported.assignment)).size_bytes
    ours = sized_problem(subject, config)
    wide = even_uniforms(ours, config)
    chosen = {"imported": imported.assignment} | {u.label: ours.assignment(u.indices) for u in wide}
    proxy = config.objectives[0].partition(":")[0]
    try:
        optimum = solve(
            _integers_alone(problem, imported.assignment), proxy, [Budget.parse(f"{int(size or 0)}B")]
        )
        chosen[f"exact optimum of {proxy} at the same bytes"] = _integers_alone(
            problem, imported.assignment
        ).assignment(optimum.indices)
    except InfeasibleError:  # the file has fewer bytes than 2 bits everywhere would
        workshop.progress.say(
            f"No assignment of {min(config.bits)} to {max(config.bits)} bits has at most {size:.0f} "
            "bytes; there is no optimum beside the import."
        )
    rows = [
        _float_row(workshop),
        *(_row(label, assignment, problem, workshop) for label, assignment in chosen.items()),
    ]
    about = {"predicted": rows[1]["predicted"], "metrics": rows[1]["measured"]["metrics"]}
    write_assignment(subject, study.path, imported.assignment, about)
    names = tuple(problem.scores)
    files.write_json(
        study.path / "imported.json",
        {
            "schema": 1,
            "file": str(path),
            "from": importer,
            "notes": list(imported.notes),
            "measure": workshop.task.measure,
            "rows": rows,
        },
    )
    return Comparison(imported, tuple(rows), names, workshop.task.measure)


def _problem(assignment: Assignment, subject: Subject, config: RunConfig) -> Problem:
    """The problem of the configuration whose candidates hold the file's too."""
    base = sized_problem(subject, config)
    candidates = tuple(
        choices
        if layer.name not in subject.layout.weights
        else tuple(dict.fromkeys((*choices, *_beside(choices, assignment[layer.name]))))
        for layer, choices in zip(base.layers, base.candidates, strict=True)
    )
    return replace(base, candidates=candidates, costs=static_costs(subject, candidates))


def _beside(choices: Sequence[Candidate], given: Candidate) -> list[Candidate]:
    """The file's candidate, and the layer's own widths with the input bits that it has, such as float
    inputs.
    """
    if given.is_float:
        return [given]
    return [given, *(Candidate(c.w_bits, given.a_bits) for c in choices if not c.is_float)]


def _integers_alone(problem: Problem, assignment: Assignment) -> Problem:
    """Candidates with the input bits that the file gives a layer: the optimum must not be better for having
    more of these.
    """
    kept = []
    for layer, choices in zip(problem.layers, problem.candidates, strict=True):
        given = assignment[layer.name]
        same = [
            i
            for i, c in enumerate(choices)
            if c == given or (not given.is_float and not c.is_float and c.a_bits == given.a_bits)
        ]
        kept.append(same)
    return problem.only(kept)


def _row(label: str, assignment: Assignment, problem: Problem, workshop: Workshop) -> dict[str, Any]:
    indices = problem.indices(assignment)
    with workshop.progress.task(f"measure {label}") as advance:
        measured = workshop.measured(workshop.calibration.states(assignment), whole=True)
        advance(1, 1)
    scores = {name: problem.score(name, indices) for name in problem.scores}
    return {
        "label": label,
        "assignment": assignment.to_json(),
        "predicted": problem.cost(indices).to_json(),
        "scores": scores,
        "measured": measured,
    }


def _float_row(workshop: Workshop) -> dict[str, Any]:
    images, logits = workshop.subject.splits.evaluation, workshop.evaluation.reference()["evaluation"]
    metrics = workshop.task.compare(logits, logits, images.labels).to_json()
    return {
        "label": "float",
        "assignment": {},
        "predicted": {},
        "scores": {},
        "measured": {"metrics": metrics, **workshop.measurement.float_sizes()},
    }
