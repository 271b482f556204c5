"""A study of the measured loss: who proposes its trials, where they are kept, and who measures them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import mpsearch
from mpsearch import files
from mpsearch.evaluate import FastEvaluator
from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.folder import Study
from mpsearch.pipeline.progress import Progress
from mpsearch.pipeline.steps.learned import states_digest
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import Budget, Problem
from mpsearch.reconstruct import Calibration
from mpsearch.study import GreedyMP, GreedyRun, LossFile, Trial, explore, explore_by, polish
from mpsearch.study.sharing.queue import Sharing
from mpsearch.study.sharing.storage import Studies

Indices = tuple[int, ...]


class Team(Protocol):
    """Processes that measure while a search goes on."""

    def sharing(self, job: dict[str, Any]) -> Sharing:
        """How trials are shared with them."""


class Crew(Protocol):
    """Where the trials of a run are kept, and who measures them: `workers.crew.Crew`."""

    @property
    def storage(self) -> str | None:
        """Its URL; None for a journal in the study's folder."""

    @property
    def workers(self) -> int:
        """1: the run itself measures."""

    def studies(self, study: Study) -> Studies:
        """Where the trials of a run are."""

    def team(self, study: Study, progress: Progress) -> contextlib.AbstractContextManager[Team]:
        """Those that measure, while it is entered."""


@dataclass(frozen=True)
class MeasuredSearch:
    """A study of the measured loss under these limits."""

    problem: Problem
    limits: tuple[Budget, ...]
    calibration: Calibration
    workshop: Workshop
    crew: Crew

    def run(self, tables: Sequence[str], warm: Sequence[Indices]) -> tuple[list[Trial], str]:
        """Trials with their polish, and the name of their journal or in the database; of the tables the first
        is corrected.
        """
        workshop, config, key = self.workshop, self.workshop.config, self._key()
        measure = _Measure(self.problem, self.calibration, workshop)
        own = config.sampler == "mpsearch" or config.greedy is not None
        explored = self._explore if own else self._explore_by_baseline
        trials, name = explored(tables, warm, measure)
        with workshop.progress.task("polish the best") as advance:
            held = LossFile(workshop.study.step_path("polish", [*key, config.trial_count], ".jsonl"), key)
            trials += polish(
                self.problem,
                tables[0],
                self.limits,
                measure,
                trials,
                config.polish_count,
                held,
                on_trial=advance,
            )
        return trials, name

    def walk(self, greedy: GreedyMP) -> GreedyRun:
        """Where Greedy MP goes; its losses are kept for any budget."""
        problem, *_, seed, _, states, task = self._key()
        key = [problem, self.workshop.subject.hashes, seed, states, task]
        losses = LossFile(self.workshop.study.step_path("greedy", key, ".jsonl"), key)
        measure = _Measure(self.problem, self.calibration, self.workshop)
        with self.workshop.progress.task("Greedy MP") as advance:
            return greedy.solve(self.problem, self.limits, measure, losses=losses, on_step=advance)

    def _key(self) -> list[object]:
        """What the trials depend on."""
        config, limits = self.workshop.config, [b.to_json() for b in self.limits]
        key = [self.problem.to_json(), limits, self.workshop.subject.hashes, config.seed, config.sampler]
        subject = self.workshop.subject
        return [*key, states_digest(self.calibration), subject.task_text, *subject.arithmetic]

    def _explore(
        self, tables: Sequence[str], warm: Sequence[Indices], measure: _Measure
    ) -> tuple[list[Trial], str]:
        """By our own sampler, whose trials others may measure."""
        workshop, crew, config = self.workshop, self.crew, self.workshop.config
        with contextlib.closing(crew.studies(workshop.study)) as studies:
            place = studies.place(files.digest(self._key()))
            studies.finish(but=place)  # what an earlier run with other limits left is not worked on
        here = replace(config, device=str(workshop.subject.device))
        job = make_job(workshop.subject.hashes, self.problem, here, states_digest(self.calibration))
        with (
            workshop.progress.task("search on the measured loss") as advance,
            crew.team(workshop.study, workshop.progress) as team,
        ):
            trials = explore(
                self.problem,
                tables[0],
                self.limits,
                measure if crew.workers == 1 else _left_to_workers,
                place,
                config.trial_count,
                config.seed,
                warm,
                on_trial=advance,
                sharing=team.sharing(job),
                others=tables[1:],
            )
        return trials, Path(place.url).name if crew.storage is None else place.name

    def _explore_by_baseline(
        self, tables: Sequence[str], warm: Sequence[Indices], measure: _Measure
    ) -> tuple[list[Trial], str]:
        """By a baseline, in this process."""
        workshop, config = self.workshop, self.workshop.config
        name = f"optuna-{files.digest(self._key())}.log"
        with workshop.progress.task(f"search on the measured loss by {config.sampler}") as advance:
            trials = explore_by(
                config.sampler,
                self.problem,
                tables[0],
                self.limits,
                measure,
                workshop.study.path / name,
                config.trial_count,
                config.seed,
                warm,
                on_trial=advance,
            )
        return trials, name


def make_job(hashes: Mapping[str, str], problem: Problem, config: RunConfig, states: str) -> dict[str, Any]:
    """What a worker needs to measure as the run does, and to know that it does; `states` is the digest of
    what was learned for the search.
    """
    plain = replace(problem, scores={}, interactions={}).to_json()
    job = {
        "version": mpsearch.__version__,
        "hashes": dict(hashes),
        "states": states,
        "config": replace(config, metric=None).to_json(),  # it is the run's own to measure
        "problem": plain,
    }
    return dict(json.loads(json.dumps(job)))  # as it will be read


class _Measure:
    """The loss of L choices; the evaluator is made at the first call, which a run with workers may never
    make.
    """

    def __init__(self, problem: Problem, calibration: Calibration, workshop: Workshop) -> None:
        self._problem, self._calibration, self._workshop = problem, calibration, workshop
        self._evaluator: FastEvaluator | None = None

    def __call__(self, indices: Indices) -> float:
        if self._evaluator is None:
            subject = self._workshop.subject
            here = subject.placed
            self._evaluator = FastEvaluator(
                here.module, self._calibration, here.search, task=self._workshop.task
            )
        return self._evaluator.measure(self._problem.assignment(indices))


def _left_to_workers(indices: Indices) -> float:
    raise AssertionError("A run that leaves the measuring to workers measures nothing.")
