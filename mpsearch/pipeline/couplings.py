"""Tables of objectives with interactions, cached as those of additive ones are."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from mpsearch.objectives import ScoringContext
from mpsearch.objectives.interacting import INTERACTING, Interacting, couple
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.prepare import Subject
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.study import Study
from mpsearch.problem import Interaction, Problem
from mpsearch.reconstruct import Calibration


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
