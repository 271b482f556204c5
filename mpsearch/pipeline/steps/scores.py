"""Step 3: the damage that each candidate does, by the objectives that were asked for: tables, and interactions where they have some."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import Any

from mpsearch.errors import OptionError
from mpsearch.evaluate import TASKS
from mpsearch.objectives import OBJECTIVES, Objective, ScoringContext, score
from mpsearch.objectives.interacting import INTERACTING, Interacting, couple
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.problem import Interaction, Problem
from mpsearch.reconstruct import Calibration


def add_scores(
    problem: Problem, subject: Subject, calibration: Calibration, config: RunConfig, study: Study, progress: Progress
) -> tuple[Problem, dict[str, Any]]:
    """The table of every objective asked for, and its interactions where it has some, each cached by what it depends on."""
    names = [text.partition(":")[0].strip() for text in config.objectives]
    if len(set(names)) < len(names):
        raise OptionError(f"The objectives are {', '.join(config.objectives)}; a run keeps tables by name. Give each once; `score` compares options.")
    problem, about = replace(problem, scores={}, interactions={}, measured={}), {}
    candidates = [[str(c) for c in row] for row in problem.candidates]
    for text in config.objectives:
        if interacts(text):
            name = text.partition(":")[0].strip()
            problem, about[name] = add_couplings(problem, text, name, subject, calibration, config, study, progress)
            continue
        objective = OBJECTIVES.create(text)
        key = [
            subject.hashes["weights"],
            subject.hashes["calibration"],
            repr(objective),
            calibration.weight_observer,
            calibration.input_observer,
            calibration.symmetric_inputs,
            candidates,
            config.seed,
            config.learning if calibration.learned else [],
            config.task,
            *([objective.revision] if objective.revision else []),
        ]
        with progress.task(f"score with {objective.name}") as advance:
            images, task = subject.splits.calibration, TASKS.create(config.task)
            context = ScoringContext(subject.module, problem.layers, problem.candidates, calibration, images, config.seed, advance, task)
            report = study.cached(f"score-{objective.name}", key, partial(_scored, objective, context))
        problem = replace(problem, scores={**problem.scores, objective.name: tuple(tuple(row) for row in report["rows"])})
        if known := {tuple(indices): value for indices, value in report.get("measured", ())}:  # a table of before has none
            problem = replace(problem, measured={**problem.measured, objective.name: known})
        about[objective.name] = {"seconds": report["seconds"], "violations": report["violations"], "unit": objective.unit}
        about[objective.name] |= {k: report[k] for k in ("weights", "activations", "passes", "notes") if report.get(k)}
    return problem, about


def _scored(objective: Objective, context: ScoringContext) -> dict[str, Any]:
    return asdict(score(objective, context))


def interacts(text: str) -> bool:
    """Whether an objective as typed is one with interactions."""
    return text.partition(":")[0].strip() in INTERACTING.names()


def add_couplings(
    problem: Problem, text: str, name: str, subject: Subject, calibration: Calibration, config: RunConfig, study: Study, progress: Progress
) -> tuple[Problem, dict[str, Any]]:
    """The problem with the rows and interactions of the objective that was typed as `text` under `name`, and how they came about."""
    objective = INTERACTING.create(text)
    key: list[Any] = [subject.hashes["weights"], subject.hashes["calibration"], repr(objective), calibration.weight_observer, calibration.input_observer]
    key += [[[str(c) for c in row] for row in problem.candidates], [[layer.name, layer.block, layer.tie] for layer in problem.layers], config.seed]
    key += [config.learning] if calibration.learned else []
    with progress.task(f"score with {objective.name}") as advance:
        context = ScoringContext(subject.module, problem.layers, problem.candidates, calibration, subject.splits.calibration, config.seed, advance)
        held = study.cached(f"score-{objective.name}", key, lambda: _coupled(objective, context))
    rows, terms = held.pop("rows"), tuple(Interaction.from_json(term) for term in held.pop("interactions"))
    table = tuple(tuple(row) for row in rows)
    coupled = replace(problem, scores={**problem.scores, name: table}, interactions={**problem.interactions, name: terms})
    return coupled, {**held, "unit": objective.unit, "interactions": len(terms)}


def _coupled(objective: Interacting, context: ScoringContext) -> dict[str, Any]:
    found = couple(objective, context)
    about = {name: None if value is None else asdict(value) for name, value in (("projection", found.projection), ("passes", found.passes))}
    return {
        "rows": found.rows,
        "interactions": [term.to_json() for term in found.interactions],
        "violations": found.violations,
        "seconds": found.seconds,
        **about,
    }
