"""Step 4: the proxy's exact optimum, and a study of the measured loss that starts from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mpsearch.pipeline.config import RunConfig
from mpsearch.pipeline.steps.measured_search import Crew, MeasuredSearch
from mpsearch.pipeline.steps.tightening import proxy_of
from mpsearch.pipeline.steps.uniforms import run_uniforms
from mpsearch.pipeline.steps.workshop import Workshop
from mpsearch.problem import Budget, Problem, Solution
from mpsearch.reconstruct import Calibration
from mpsearch.solvers import solve
from mpsearch.study import GreedyRun, Step, Trial

Indices = tuple[int, ...]


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
    study = MeasuredSearch(replace(problem, interactions={}), limits, calibration, workshop, crew)
    trials, name = study.run(additive(problem, proxy), warm) if count else ([], "")
    rivals = _rivals(trials, (uniform, optimum.indices), config.effort_settings.rivals)
    found = Found(proxy, optimum, uniform, rivals, trials, name)
    return found if config.greedy is None else _walked(found, study.walk(config.greedy), problem, limits)


def _walked(found: Found, walk: GreedyRun, problem: Problem, limits: tuple[Budget, ...]) -> Found:
    """The same with where Greedy MP came to, and its steps behind the trials."""
    end = Step(walk.solution.indices, walk.solution.score, walk.solution.cost)
    path = dict.fromkeys([*walk.trajectory, end])
    first = 1 + max((t.number for t in found.trials), default=-1)
    steps = [
        Trial(number, s.indices, s.loss, s.cost, keeps(problem, s.indices, limits), "greedy MP")
        for number, s in enumerate(path, first)
    ]
    return replace(found, greedy=walk.solution.indices, trials=[*found.trials, *steps])


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
