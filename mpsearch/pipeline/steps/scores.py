"""Step 3: the damage that each candidate does, by the objectives that were asked for: tables, with
interactions or without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from mpsearch.errors import OptionError
from mpsearch.objectives import OBJECTIVES, Objective, ScoringContext, score
from mpsearch.objectives.interacting import INTERACTING, Couplings, Interacting, couple
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.learned import states_digest
from mpsearch.pipeline.steps.subject import Subject
from mpsearch.problem import Problem
from mpsearch.reconstruct import Calibration


def add_scores(
    problem: Problem,
    subject: Subject,
    calibration: Calibration,
    config: RunConfig,
    study: Study,
    progress: Progress,
) -> tuple[Problem, dict[str, Any]]:
    """The table of every objective asked for, and its interactions where it has some, each cached by what it
    depends on.

    Raises: OptionError: An objective is given twice, or needs classes that the task has not.
    """
    names = [name_of(text) for text in config.objectives]
    if len(set(names)) < len(names):
        raise OptionError(
            f"The objectives are {', '.join(config.objectives)}; a run keeps tables by name. Give each "
            "once; `score` compares options."
        )
    problem, about = replace(problem, scores={}, interactions={}), {}
    scorer = Scorer(subject, calibration, config, study, progress)
    for name, text in zip(names, config.objectives, strict=True):
        problem, about[name] = scorer.add(problem, text, name)
    return problem, about


def name_of(text: str) -> str:
    """Of an objective as typed, its options left out."""
    return text.partition(":")[0].strip()


def interacts(text: str) -> bool:
    """Whether an objective as typed is one with interactions."""
    return name_of(text) in INTERACTING.names()


@dataclass(frozen=True)
class Scorer:
    """Scores objectives of both kinds on one model, each table kept in the study under all that it depends
    on.

    Args:
        subject: Model and images.
        calibration: Quantisers, with the states that were learned for the search.
        config: Seed and task.
        study: Where tables are kept.
        progress: Where progress goes.
    """

    subject: Subject
    calibration: Calibration
    config: RunConfig
    study: Study
    progress: Progress

    def add(self, problem: Problem, text: str, name: str) -> tuple[Problem, dict[str, Any]]:
        """The problem with the objective that was typed as `text` under `name`, and how its table came
        about.
        """
        if interacts(text):
            return self._coupled(problem, INTERACTING.create(text), name)
        return self._additive(problem, OBJECTIVES.create(text), name)

    def _additive(self, problem: Problem, objective: Objective, name: str) -> tuple[Problem, dict[str, Any]]:
        report = self._held(problem, objective, lambda context: asdict(score(objective, context)))
        rows = tuple(tuple(row) for row in report["rows"])
        problem = replace(problem, scores={**problem.scores, name: rows})
        about = {"seconds": report["seconds"], "violations": report["violations"], "unit": objective.unit}
        parts = ("weights", "activations", "passes", "notes")
        return problem, about | {k: report[k] for k in parts if report.get(k)}

    def _coupled(self, problem: Problem, objective: Interacting, name: str) -> tuple[Problem, dict[str, Any]]:
        held = self._held(problem, objective, lambda context: couple(objective, context).to_json())
        found = Couplings.from_json(held)
        said = {k: held[k] for k in ("violations", "seconds", "passes")}
        return found.put_into(problem, name), {
            **said,
            "unit": objective.unit,
            "interactions": len(found.interactions),
        }

    def _held(
        self,
        problem: Problem,
        objective: Objective | Interacting,
        work: Callable[[ScoringContext], dict[str, Any]],
    ) -> dict[str, Any]:
        """The kept result of the work, or that of doing it now."""
        key = self._key(problem, objective)
        with self.progress.task(f"score with {objective.name}") as advance:
            context = ScoringContext(
                self.subject.placed.module,
                problem.layers,
                problem.candidates,
                self.calibration,
                self.subject.placed.calibration,
                self.config.seed,
                advance,
                self.subject.task,
                self.subject.placed.search,
            )
            found: dict[str, Any] = self.study.cached(f"score-{objective.name}", key, lambda: work(context))
        return found

    def _key(self, problem: Problem, objective: Objective | Interacting) -> list[Any]:
        """All that a table depends on; one with interactions also on which layers share a block or a
        choice.
        """
        calibration, config = self.calibration, self.config
        key: list[Any] = [
            self.subject.hashes["weights"],
            self.subject.hashes["calibration"],
            self.subject.hashes["search"],
            repr(objective),
            calibration.weight_grids,
            calibration.input_observer,
            calibration.symmetric_inputs,
            [[str(c) for c in row] for row in problem.candidates],
            config.seed,
            states_digest(calibration),
            self.subject.task_text,
            *self.subject.arithmetic,
        ]
        if isinstance(objective, Interacting):
            key.append([[layer.name, layer.block, layer.tie] for layer in problem.layers])
        return [*key, objective.revision] if objective.revision else key
