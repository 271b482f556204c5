"""Optuna's own samplers as baselines of the study: TPE over the prices of resources, NSGA-II from a warm generation 0, and random choices.

They run in this process alone, on a journal of their own, and leave an ordinary Optuna study with the same attributes as `explore` does.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import NSGAIISampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from mpsearch.errors import MpsearchError, StudyError, UnknownNameError
from mpsearch.files import digest
from mpsearch.problem import Budget, Problem
from mpsearch.search.correction import positive
from mpsearch.search.hull import price_range
from mpsearch.search.journal import open_journal
from mpsearch.search.neighbours import Choices, random_unseen
from mpsearch.search.proposals import Planner, Proposal
from mpsearch.search.sampler import INDICES, INTERRUPTED, ORDINAL, PROPOSED_BY, REASON, CorrectedTableSampler, finished
from mpsearch.search.storage import STUDY_NAME
from mpsearch.search.study import Trial, _planner, explore

SAMPLERS = ("mpsearch", "tpe", "nsga2", "random")
POPULATION = 16
"""Of NSGA-II: at the few hundred trials that are usual here, Optuna's own 50 would leave it three generations."""
_MOST_PRICES = 2
_MOST_REPEATS = 100  # proposals in a row that were measured already; told to the sampler again, measured never
_METHOD, _INPUTS, _REPEAT_OF = 1, "inputs", "repeat_of"
_GENERATION = "NSGAIISampler:generation"


def explore_by(
    sampler: str,
    problem: Problem,
    objective: str,
    budgets: Sequence[Budget],
    measure: Callable[[tuple[int, ...]], float],
    path: Path,
    trials: int,
    seed: int,
    warm: Sequence[Sequence[int]] = (),
    on_trial: Callable[[int, int], None] | None = None,
) -> list[Trial]:
    """`explore`, or one of its baselines, by name.

    Args:
        sampler: `mpsearch`: `explore` itself. `tpe`: TPE over the price of each of up to two resources, an assignment being the exact optimum of
            the proxy plus the priced costs. `nsga2`: NSGA-II over the choices, its generation 0 the points of the exact proxy front that
            dominate most. `random`: random choices that keep the budgets.
        problem: As for `explore`.
        objective: As for `explore`; `random` looks at it for the first trial alone.
        budgets: As for `explore`.
        measure: As for `explore`.
        path: Optuna's journal file.
        trials: Assignments that are measured, in all. What a sampler proposes again is told its known loss, and does not count.
        seed: Of everything random.
        warm: Measured first. `tpe` cannot learn from them: they have no prices.
        on_trial: As for `explore`.

    Returns:
        Trials in the order of their proposal; fewer once a sampler proposes only what it knows.

    Raises:
        UnknownNameError: There is no such sampler.
        StudyError: The file is another run's, in use, or no journal.
        MpsearchError: No loss was finite.
    """
    if sampler not in SAMPLERS:
        raise UnknownNameError("sampler", sampler, SAMPLERS)
    if sampler == "mpsearch":
        return explore(problem, objective, budgets, measure, path, trials, seed, warm, on_trial)
    planner = _planner(problem, objective, budgets, seed, warm, POPULATION)
    inputs = digest([_METHOD, sampler, problem.to_json(), objective, [b.to_json() for b in budgets], seed, [list(w) for w in warm]])
    with open_journal(path) as storage:
        baseline = Baseline(_open(storage, inputs, path, planner.resource), planner, _MAKERS[sampler](planner))
        total = len(baseline.done())
        while total < trials and (started := baseline.start()) is not None:
            baseline.measure(started, measure)
            total += 1
            if on_trial is not None:
                on_trial(total, trials)
        return baseline.measured(trials)


def _open(storage: Any, inputs: str, path: Path, resource: str) -> Study:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(study_name=STUDY_NAME, storage=storage, directions=["minimize", "minimize"], load_if_exists=True)
    finally:
        optuna.logging.set_verbosity(verbosity)
    if study.user_attrs.get(_INPUTS, inputs) != inputs or (_INPUTS not in study.user_attrs and study.get_trials(deepcopy=False)):
        raise StudyError(f"{path} holds a study of another problem, sampler, objective, budget, seed or warm start. Name another study, or remove the file.")
    if _INPUTS not in study.user_attrs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(["measured_loss", resource])
        study.set_user_attr(_INPUTS, inputs)
    for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study._storage.set_trial_user_attr(left._trial_id, REASON, INTERRUPTED)
        study.tell(left.number, state=TrialState.FAIL)
    return study


class Method(Protocol):
    """How a baseline proposes."""

    @property
    def name(self) -> str:
        """As it is asked for."""

    def first(self) -> list[Proposal]:
        """What is measured before anything is asked."""

    def first_attrs(self) -> dict[str, Any]:
        """System attributes of those trials."""

    def params(self, choices: Choices) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """Optuna's parameters of M given choices, and their distributions; none where the choices cannot be expressed."""

    def ask(self, study: Study, seed: int, seen: set[Choices]) -> tuple[FrozenTrial | None, Choices] | None:
        """The trial that Optuna began, if it did, and the choices; None where there is nothing left."""


@dataclass(frozen=True)
class Baseline:
    """A study, and what proposes for it; no other state, so that it may be interrupted anywhere."""

    study: Study
    planner: Planner
    method: Method
    _first: list[Proposal] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._first.extend({p.choices: p for p in reversed(self.method.first())}.values())
        self._first.reverse()

    def done(self) -> dict[int, Any]:
        """Ordinal -> result of what is not to be tried again."""
        return dict(finished(self.study, self.planner.constraints.layers))

    def start(self) -> FrozenTrial | None:
        """The next trial, in the storage with all that is known of it; None where nothing new is proposed."""
        done = self.done()
        ordinal = next(k for k in range(len(done) + 1) if k not in done)
        if ordinal < len(self._first):
            return self._given(ordinal, self._first[ordinal])
        known = {result.choices: result.loss for result in done.values()}
        for _ in range(_MOST_REPEATS):
            told = len(self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
            seed = int(np.random.SeedSequence([self.planner.seed, ordinal, told]).generate_state(1)[0])
            asked = self.method.ask(self.study, seed, set(known))
            if asked is None:
                return None
            trial, choices = asked
            proposal = Proposal(choices, self.method.name)
            if trial is None:
                return self._given(ordinal, proposal)
            if choices not in known:
                return self._begun(trial, ordinal, proposal)
            self._repeated(trial, choices, known[choices])
        return None

    def measure(self, trial: FrozenTrial, measure: Callable[[tuple[int, ...]], float]) -> None:
        """Tell its loss; where that is not finite the trial fails for good."""
        try:
            loss = float(measure(tuple(trial.user_attrs[INDICES])))
        except BaseException:
            self._fail(trial, INTERRUPTED)
            raise
        if math.isfinite(loss):
            self.study.tell(trial.number, [loss, self._use(tuple(trial.user_attrs[INDICES]))])
        else:
            self._fail(trial, f"the measured loss is {loss}")

    def measured(self, trials: int) -> list[Trial]:
        """Those that were measured, in the order of their proposal. Raises MpsearchError where there is none."""
        found = []
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            attrs = trial.user_attrs
            if ORDINAL in attrs and attrs[ORDINAL] < trials:
                indices = tuple(attrs[INDICES])
                cost = self.planner.constraints.problem.cost(indices)
                found.append(Trial(attrs[ORDINAL], indices, trial.values[0], cost, attrs["feasible"], attrs[PROPOSED_BY]))
        if not found:
            raise MpsearchError("No trial had a finite loss. See the attribute `reason` of the study's trials, and check the model and the data.")
        return sorted(found, key=lambda t: t.number)

    def _given(self, ordinal: int, proposal: Proposal) -> FrozenTrial:
        params, distributions = self.method.params(proposal.choices)
        attrs = CorrectedTableSampler(self.planner).attributes(ordinal, proposal)
        system_attrs = self.method.first_attrs() if ordinal < len(self._first) else {}
        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=params,
                distributions=distributions,
                user_attrs=attrs,
                system_attrs=system_attrs,
                constraints=_excesses(self.planner, tuple(attrs[INDICES])),
            )
        )
        return self.study.get_trials(deepcopy=False)[-1]

    def _begun(self, trial: FrozenTrial, ordinal: int, proposal: Proposal) -> FrozenTrial:
        for key, value in CorrectedTableSampler(self.planner).attributes(ordinal, proposal).items():
            self.study._storage.set_trial_user_attr(trial._trial_id, key, value)
        return self.study.get_trials(deepcopy=False)[trial.number]

    def _repeated(self, trial: FrozenTrial, choices: Choices, loss: float | None) -> None:
        """Tell a known loss again: the sampler learns what it proposed, and nothing is measured."""
        indices = self.planner.constraints.layers.expand(choices)
        self.study._storage.set_trial_user_attr(trial._trial_id, _REPEAT_OF, list(indices))
        if loss is None:
            self._fail(trial, "repeats an assignment without a finite loss")
        else:
            self.study.tell(trial.number, [loss, self._use(indices)])

    def _fail(self, trial: FrozenTrial, reason: str) -> None:
        self.study._storage.set_trial_user_attr(trial._trial_id, REASON, reason)
        self.study.tell(trial.number, state=TrialState.FAIL)

    def _use(self, indices: tuple[int, ...]) -> float:
        return float(getattr(self.planner.constraints.problem.cost(indices), self.planner.resource))


def _excesses(planner: Planner, indices: tuple[int, ...]) -> dict[str, float]:
    """Resource -> use less limit: Optuna's constraints, kept at 0 and below."""
    cost = planner.constraints.problem.cost(indices)
    return {resource: getattr(cost, resource) - limit for resource, limit in planner.constraints.limits.items()}


def _asked(study: Study, planner: Planner, sampler: optuna.samplers.BaseSampler, space: dict[str, BaseDistribution]) -> FrozenTrial:
    """A trial that Optuna's sampler chose."""
    study.sampler = sampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        asked = study.ask(space)
    return study.get_trials(deepcopy=False)[asked.number]


@dataclass(frozen=True)
class Nsga2:
    """NSGA-II over one index for each super-layer.

    Optuna's NSGA-II never takes an enqueued trial into its population, because its generation is written when it samples, and it does not
    sample what is fixed. So the warm start is written with the attribute of generation 0 that Optuna looks for.
    """

    planner: Planner
    name: str = "nsga2"

    def first(self) -> list[Proposal]:
        """Generation 0: the caller's assignments, the proxy's optimum, and those points of its exact front that dominate most."""
        limit = self.planner.constraints.limits[self.planner.resource]
        found = [Proposal(c, "warm") for c in self.planner.warm] + [Proposal(self.planner.proxy_optimum(limit), "exact front")]
        more = self.planner.proxy_front(max(POPULATION - len(found), 0), [p.choices for p in found])
        return [*found, *(Proposal(c, "exact front") for c in more)]

    def first_attrs(self) -> dict[str, Any]:
        """Makes them members of generation 0."""
        return {_GENERATION: 0}

    def params(self, choices: Choices) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """Indices."""
        sampler = CorrectedTableSampler(self.planner)
        return sampler.params(choices), dict(sampler.search_space())

    def ask(self, study: Study, seed: int, seen: set[Choices]) -> tuple[FrozenTrial | None, Choices] | None:
        """A child of the population."""
        sampler = CorrectedTableSampler(self.planner)
        if not sampler.search_space():
            return None
        trial = _asked(study, self.planner, NSGAIISampler(population_size=POPULATION, seed=seed), dict(sampler.search_space()))
        layers = self.planner.constraints.layers
        names = [self.planner.constraints.problem.layers[group[0]].name for group in layers.groups]
        choices = tuple(int(trial.params.get(name, 0)) for name in names)
        return _constrained(study, self.planner, trial, choices), choices


class _Tpe(TPESampler):
    """TPE whose space is what it is asked for, though some trials (the warm start) have no parameters."""

    def __init__(self, space: dict[str, BaseDistribution], seed: int) -> None:
        super().__init__(multivariate=True, seed=seed)
        self._space = space

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space


@dataclass(frozen=True)
class TpePrices:
    """Multivariate TPE over the logarithm of the price of each of up to two resources, those with a budget first."""

    planner: Planner
    name: str = "tpe"

    def first(self) -> list[Proposal]:
        """The caller's assignments, and the proxy's optimum, so that something keeps the budgets."""
        limit = self.planner.constraints.limits[self.planner.resource]
        return [*(Proposal(c, "warm") for c in self.planner.warm), Proposal(self.planner.proxy_optimum(limit), "exact front")]

    def first_attrs(self) -> dict[str, Any]:
        """None."""
        return {}

    def params(self, choices: Choices) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """None: there need not be prices at which given choices are the best."""
        return {}, {}

    def ask(self, study: Study, seed: int, seen: set[Choices]) -> tuple[FrozenTrial | None, Choices] | None:
        """The exact optimum at prices that TPE chose."""
        rows, costs = positive(self.planner.rows), self._costs()
        space: dict[str, BaseDistribution] = {f"price of {r}": FloatDistribution(*price_range(rows, cost), log=True) for r, cost in costs.items()}
        trial = _asked(study, self.planner, _Tpe(space, seed), space)
        prices = {r: float(trial.params[f"price of {r}"]) for r in costs}
        choices = tuple(int((row + sum(prices[r] * cost[m] for r, cost in costs.items())).argmin()) for m, row in enumerate(rows))
        return _constrained(study, self.planner, trial, choices), choices

    def _costs(self) -> dict[str, Any]:
        constraints = self.planner.constraints
        problem = constraints.problem
        names = [*constraints.limits, *(r for r in problem.costs if r not in constraints.limits)][:_MOST_PRICES]
        return {r: constraints.layers.merge(problem.costs[r]) for r in names}


@dataclass(frozen=True)
class RandomChoices:
    """Random choices that keep the budgets, none twice."""

    planner: Planner
    name: str = "random"

    def first(self) -> list[Proposal]:
        """The caller's assignments."""
        return [Proposal(c, "warm") for c in self.planner.warm]

    def first_attrs(self) -> dict[str, Any]:
        """None."""
        return {}

    def params(self, choices: Choices) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """Indices."""
        sampler = CorrectedTableSampler(self.planner)
        return sampler.params(choices), dict(sampler.search_space())

    def ask(self, study: Study, seed: int, seen: set[Choices]) -> tuple[FrozenTrial | None, Choices] | None:
        """Every super-layer in a random order takes a random choice, if the budgets are still kept."""
        start = self.planner.proxy_optimum(self.planner.constraints.limits[self.planner.resource])
        found = random_unseen(self.planner.constraints, start, seen, np.random.default_rng(seed))
        return None if found is None else (None, found)


def _constrained(study: Study, planner: Planner, trial: FrozenTrial, choices: Choices) -> FrozenTrial:
    """The trial with its constraints, which Optuna's samplers rank by, written before anything can go wrong."""
    live = optuna.trial.Trial(study, trial._trial_id)
    for resource, excess in _excesses(planner, planner.constraints.layers.expand(choices)).items():
        live.set_constraint(resource, excess)
    return trial


_MAKERS: dict[str, Callable[[Planner], Method]] = {"tpe": TpePrices, "nsga2": Nsga2, "random": RandomChoices}
