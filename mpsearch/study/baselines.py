"""Optuna's own samplers as baselines of `explore`: TPE, NSGA-II and random choices, through Optuna's public
interface alone.

A trial is one index for each super-layer; budgets are Optuna's constraints. They run in this process alone,
on a journal of their own, and leave an ordinary Optuna study with the same attributes as `explore` does.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from mpsearch.errors import UnknownNameError
from mpsearch.files import digest
from mpsearch.members import SAMPLERS
from mpsearch.problem import Budget, Choices, Problem
from mpsearch.solvers.budgeted.neighbours import random_unseen
from mpsearch.study.optuna_study import Trial, explore, make_planner, measured_trials, open_study
from mpsearch.study.proposals import Proposal
from mpsearch.study.sampler import INDICES, INTERRUPTED, REASON, CorrectedTableSampler, finished
from mpsearch.study.sharing.journal import open_journal
from mpsearch.study.sharing.storage import Place

POPULATION = 16
"""Population of NSGA-II: at the few hundred trials that are usual here, Optuna's own 50 would leave it three
generations.
"""
_MOST_REPEATS = (
    100  # proposals in a row that were measured already; told to the sampler again, measured never
)
_METHOD, _REPEAT_OF = 2, "repeat_of"


def explore_by(
    sampler: str,
    problem: Problem,
    objective: str,
    budgets: Sequence[Budget],
    measure: Callable[[Choices], float],
    path: Path,
    trials: int,
    seed: int,
    warm: Sequence[Sequence[int]] = (),
    on_trial: Callable[[int, int], None] | None = None,
) -> list[Trial]:
    """`explore`, or one of its baselines, by name.

    Args:
        sampler: `mpsearch` for `explore` itself; `tpe` or `nsga2` for Optuna's samplers over one index for
            each super-layer; `random` for random choices that keep the budgets.
        problem: Layers, candidates and tables.
        objective: Name of the proxy, as for `explore`; a baseline measures its exact optimum first, so that
            something keeps the budgets, and looks at it no more.
        budgets: Absolute limits.
        measure: Loss of an assignment of `L` choices, lower is better.
        path: Optuna's journal file.
        trials: Assignments that are measured, in all. What a sampler proposes again is told its known loss,
            and does not count.
        seed: Random seed.
        warm: Assignments to be measured first.
        on_trial: Called after each trial with how many are done, and `trials`.

    Returns: Trials in the order of their proposal; fewer once a sampler proposes only what it knows.

    Raises:
        UnknownNameError: There is no such sampler.
        StudyError: The file is another run's, in use, or no journal.
        MpsearchError: No loss was finite.
    """
    if sampler not in SAMPLERS:
        raise UnknownNameError("sampler", sampler, SAMPLERS)
    if sampler == "mpsearch":
        return explore(problem, objective, budgets, measure, path, trials, seed, warm, on_trial)
    own = CorrectedTableSampler(make_planner(problem, objective, budgets, seed, warm, POPULATION))
    given = [problem.to_json(), objective, [b.to_json() for b in budgets], seed, [list(w) for w in warm]]
    with open_journal(path) as storage:
        study = open_study(
            storage, None, own.planner.resource, digest([_METHOD, sampler, *given]), Place(str(path))
        )
        for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(left.number, state=TrialState.FAIL)  # without a reason: it is tried again
        baseline = _Baseline(sampler, study, own)
        total = len(baseline.done())
        while total < trials and (begun := baseline.begin()) is not None:
            baseline.finish(begun, measure)
            total += 1
            if on_trial is not None:
                on_trial(total, trials)
        return measured_trials(study, problem, trials)


@dataclass(frozen=True)
class _Baseline:
    """A sampler by name on a study; no other state, so that it may be interrupted anywhere.

    Args:
        name: Name of the sampler.
        study: What is done so far.
        own: Parameters and attributes of a trial, and the budgets.
    """

    name: str
    study: optuna.Study
    own: CorrectedTableSampler

    def done(self) -> dict[int, tuple[Choices, float | None]]:
        """Ordinal -> choices and loss of what is not to be tried again."""
        found = finished(self.study, self.own.planner.constraints.layers)
        return {ordinal: (result.choices, result.loss) for ordinal, result in found.items()}

    def begin(self) -> optuna.Trial | None:
        """The next trial; None where nothing new is proposed."""
        done = self.done()
        ordinal = next(k for k in range(len(done) + 1) if k not in done)
        known = dict(done.values())
        for _ in range(_MOST_REPEATS):
            trial, proposed_by = self._asked(ordinal, known)
            if trial is None:
                return None
            choices = tuple(int(trial.params.get(name, 0)) for name in self._names())
            self._constrain(trial, choices)
            if choices not in known:
                for key, value in self.own.attributes(ordinal, Proposal(choices, proposed_by)).items():
                    trial.set_user_attr(key, value)
                return trial
            self._repeat(trial, choices, known[choices])
        return None

    def finish(self, trial: optuna.Trial, measure: Callable[[Choices], float]) -> None:
        """Measure it and tell its loss; where that is not finite the trial fails for good."""
        indices = tuple(trial.user_attrs[INDICES])
        try:
            loss = float(measure(indices))
        except BaseException:
            self._fail(trial, INTERRUPTED)
            raise
        if math.isfinite(loss):
            self.study.tell(trial, [loss, self._use(indices)])
        else:
            self._fail(trial, f"the measured loss is {loss}")

    def _asked(self, ordinal: int, known: Mapping[Choices, float | None]) -> tuple[optuna.Trial | None, str]:
        """A trial that Optuna began, and who proposed it: what is measured first in any case, else the
        sampler.
        """
        planner = self.own.planner
        optimum = planner.proxy_optimum(planner.limit)
        first = list({optimum: "exact front", **dict.fromkeys(planner.warm, "warm")}.items())
        first.sort(key=lambda item: item[1] != "warm")  # in the order they were given, the optimum last
        told = len(self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        seed = int(np.random.SeedSequence([planner.seed, ordinal, told]).generate_state(1)[0])
        if ordinal < len(first):
            choices, proposed_by = first[ordinal]
            return self._begun(RandomSampler(seed), choices), proposed_by
        if self.name == "random":
            drawn = random_unseen(planner.constraints, optimum, known, np.random.default_rng(seed))
            return None if drawn is None else self._begun(RandomSampler(seed), drawn), self.name
        return self._begun(_sampler(self.name, seed)) if self.own.search_space() else None, self.name

    def _begun(self, sampler: BaseSampler, choices: Choices | None = None) -> optuna.Trial:
        """With these choices, or with those of the sampler."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if choices is not None and not waiting:  # an interrupted run may have left it behind
            self.study.enqueue_trial(self.own.params(choices))
        self.study.sampler = sampler
        return self.study.ask(dict(self.own.search_space()))

    def _repeat(self, trial: optuna.Trial, choices: Choices, loss: float | None) -> None:
        """Tell a known loss again: the sampler learns what it proposed, and nothing is measured."""
        indices = self.own.planner.constraints.layers.expand(choices)
        trial.set_user_attr(_REPEAT_OF, list(indices))
        if loss is None:
            self._fail(trial, "repeats an assignment without a finite loss")
        else:
            self.study.tell(trial, [loss, self._use(indices)])

    def _constrain(self, trial: optuna.Trial, choices: Choices) -> None:
        """Resource -> use less limit: Optuna's constraints are kept at 0 and below."""
        constraints = self.own.planner.constraints
        cost = constraints.problem.cost(constraints.layers.expand(choices))
        for resource, limit in constraints.limits.items():
            trial.set_constraint(resource, getattr(cost, resource) - limit)

    def _fail(self, trial: optuna.Trial, reason: str) -> None:
        trial.set_user_attr(REASON, reason)
        self.study.tell(trial, state=TrialState.FAIL)

    def _use(self, indices: Sequence[int]) -> float:
        planner = self.own.planner
        return float(getattr(planner.constraints.problem.cost(indices), planner.resource))

    def _names(self) -> list[str]:
        constraints = self.own.planner.constraints
        return [constraints.problem.layers[group[0]].name for group in constraints.layers.groups]


def _sampler(name: str, seed: int) -> BaseSampler:
    if name == "nsga2":
        return NSGAIISampler(population_size=POPULATION, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(multivariate=True, seed=seed)
