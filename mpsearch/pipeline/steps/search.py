"""Step 4: the proxy's exact optimum, and a study of the measured loss that starts from it."""

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
from mpsearch.pipeline.steps.tightening import proxy_of
from mpsearch.pipeline.steps.uniforms import run_uniforms
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import Budget, Problem, Solution
from mpsearch.reconstruct import Calibration
from mpsearch.solvers import solve
from mpsearch.study import GreedyMP, LossFile, Step, Trial, explore, explore_by, polish
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
class Found:
    """What a search found.

    Args:
        proxy: The objective that was solved.
        optimum: Of it.
        uniform: The uniform assignment that fits with the least predicted damage; None where none fits.
        rivals: The best that the study measured and that are neither of these, by label; none where it
            measured nothing.
        trials: All that the study measured.
        journal: Name of its journal, or of the study in the database.
        greedy: Where Greedy MP came to, if it was asked for; its steps are the last of the trials.
        asked_for: By what option `best` is to be delivered, whatever the losses are; None where they decide.
    """

    proxy: str
    optimum: Solution
    uniform: Indices | None
    rivals: Mapping[str, Indices]
    trials: list[Trial]
    journal: str
    greedy: Indices | None = None
    asked_for: str | None = None

    @property
    def finalists(self) -> dict[str, Indices]:
        """By label, the uniform one apart."""
        walked = {} if self.greedy is None else {"Greedy MP": self.greedy}
        return {f"exact optimum of {self.proxy}": self.optimum.indices, **walked, **self.rivals}


def search_assignments(
    problem: Problem, limits: tuple[Budget, ...], calibration: Calibration, workshop: Workshop, crew: Crew
) -> Found:
    """The proxy's optimum, the best uniform assignment that fits, and the best of the study on the
    measured loss beside these two.

    Where the states that the study measures were learned, those of one width were learned together: it is
    partial to the uniform assignment, which is a finalist of its own.

    Args:
        problem: With the tables of the objectives.
        limits: For predicted costs.
        calibration: The states that are measured.
        workshop: Model, images, settings.
        crew: Who measures.
    Raises: InfeasibleError: No assignment keeps the limits.
    """
    config = workshop.config
    proxy = proxy_of(config)
    optimum = solve(problem, proxy, limits)
    uniform = best_uniform(problem, config, proxy, limits)
    count = _affordable(workshop, config.trial_count)
    if count < config.trial_count:
        workshop = replace(workshop, config=replace(config, trials=count, polish=0))
    beyond = problem.interactions.get(proxy)  # the table alone, which the study corrects, has another optimum
    warm = [
        indices
        for indices in dict.fromkeys((uniform, optimum.indices if beyond else None))
        if indices is not None
    ]
    study = _Study(replace(problem, interactions={}), limits, calibration, workshop, crew)
    trials, name = study.run(additive(problem, proxy), warm) if count else ([], "")
    rivals = _rivals(trials, (uniform, optimum.indices), config.effort_settings.rivals)
    found = Found(proxy, optimum, uniform, rivals, trials, name)
    return found if config.greedy is None else study.walked(found, config.greedy)


def best_uniform(
    problem: Problem, config: RunConfig, proxy: str, limits: tuple[Budget, ...]
) -> Indices | None:
    """Of the uniform assignments that fit, that of least predicted damage: the widest, where inputs have one
    width.
    """
    fitting = [u.indices for u in run_uniforms(problem, config) if keeps(problem, u.indices, limits)]
    return min(fitting, key=lambda indices: problem.score(proxy, indices), default=None)


def _affordable(workshop: Workshop, trials: int) -> int:
    """As many trials as leave time for two finalists and the artifact."""
    clock, plan = workshop.clock, workshop.plan
    if clock.limit is None or plan is None:
        return trials
    left = clock.limit - clock.spent - 2 * plan.finish - 2 * plan.artifact
    return max(0, min(trials, int(left / plan.trial)))


def _rivals(trials: Sequence[Trial], known: Sequence[Indices | None], most: int) -> dict[str, Indices]:
    """The best trials beside the known assignments, by label."""
    ranked = sorted((t for t in trials if t.feasible), key=lambda t: (t.loss, t.number))
    others = [t for t in ranked if t.indices not in known][:most]
    labels = ["best of the study" if others and others[0] is ranked[0] else "best other of the study"]
    labels += [f"number {place} of the study" for place in range(2, most + 1)]
    return {label: trial.indices for label, trial in zip(labels, others, strict=False)}


@dataclass(frozen=True)
class _Study:
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

    def walked(self, found: Found, greedy: GreedyMP) -> Found:
        """The same with where Greedy MP came to, and its steps behind the trials; its losses are kept for
        any budget.
        """
        problem, *_, seed, _, states, task = self._key()
        key = [problem, self.workshop.subject.hashes, seed, states, task]
        losses = LossFile(self.workshop.study.step_path("greedy", key, ".jsonl"), key)
        measure = _Measure(self.problem, self.calibration, self.workshop)
        with self.workshop.progress.task("Greedy MP") as advance:
            walk = greedy.solve(self.problem, self.limits, measure, losses=losses, on_step=advance)
        end = Step(walk.solution.indices, walk.solution.score, walk.solution.cost)
        path = dict.fromkeys([*walk.trajectory, end])
        first = 1 + max((t.number for t in found.trials), default=-1)
        steps = [
            Trial(number, s.indices, s.loss, s.cost, keeps(self.problem, s.indices, self.limits), "greedy MP")
            for number, s in enumerate(path, first)
        ]
        return replace(found, greedy=walk.solution.indices, trials=[*found.trials, *steps])

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


def additive(problem: Problem, proxy: str) -> tuple[str, ...]:
    """The tables that a study starts from, the one that it corrects first: the proxy's, if that has no
    interactions, and those of other objectives without.

    If all have interactions, the proxy's without them.
    """
    return tuple(
        dict.fromkeys(name for name in (proxy, *problem.scores) if not problem.interactions.get(name))
    ) or (proxy,)


def keeps(problem: Problem, indices: Sequence[int], limits: Sequence[Budget]) -> bool:
    """Whether an assignment is predicted to keep the limits."""
    cost = problem.cost(indices)
    return all(getattr(cost, b.resource) <= b.limit for b in limits)
